package runner_test

import (
	"context"
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"crivo/pkg/app"
	"crivo/pkg/stage"
	"crivo/services/broker"
	"crivo/streams"
)

// guarded is a broker that knows who is who.
func guarded(t testing.TB) *broker.Server {
	t.Helper()
	dir := t.TempDir()
	return start(t, broker.Options{Dir: filepath.Join(dir, "nats"), Keys: filepath.Join(dir, "nats-keys.json")})
}

// login connects as a service does; what the broker refuses it goes to denied.
func login(t testing.TB, s *broker.Server, service string, denied *notes) *nats.Conn {
	t.Helper()
	publish, subscribe := streams.Permissions(service)
	who, err := s.As(service, publish, subscribe)
	if err != nil {
		t.Fatal(err)
	}
	nc, err := app.Connect(app.Connection{Name: service, Inbox: streams.InboxPrefix(service), Log: zerolog.Nop(),
		Extra: []nats.Option{s.InProcess(), who, nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if errors.Is(err, nats.ErrPermissionViolation) {
				_, subject, _ := strings.Cut(err.Error(), `"`)
				subject, _, _ = strings.Cut(subject, `"`)
				denied.add(subject)
			}
		})}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	wait(t, service+" is connected", nc.IsConnected)
	return nc
}

// mayPublish is the table of DESIGN §2, with the announcements of control.
var mayPublish = map[string][]string{
	"edge": {"tx.submitted.acme", "tx.decided.acme", "tx.rejected.acme", "control.keys", "control.tenants", "control.endpoints",
		"control.lists", "$JS.API.STREAM.INFO.TX_SUBMITTED", "$JS.API.STREAM.INFO.DEADLETTERS", "$JS.API.DIRECT.GET.DEADLETTERS",
		"$JS.API.STREAM.MSG.DELETE.DEADLETTERS", "$JS.API.DIRECT.GET.TX_DECIDED", "$JS.API.STREAM.MSG.GET.TX_DECIDED"},
	"enrich":   {"tx.enriched.acme", "tx.scored.acme", "dlq.enrich.reject.acme", "$JS.ACK.TX_SUBMITTED.enrich.1.1.1.1.0", "$JS.API.STREAM.INFO.TX_SUBMITTED"},
	"validate": {"tx.validated.acme", "tx.scored.acme", "dlq.validate.reject.acme"},
	"score":    {"tx.scored.acme", "dlq.score.reject.acme"},
	"persist":  {"tx.decided.acme", "dlq.persist.reject.acme", "edge.e1"},
	"notify":   {"dlq.notify.reject.acme", "control.endpoints", "$JS.ACK.TX_DECIDED.notify.1.1.1.1.0"},
	"keeper": {"tx.submitted.acme", "tx.enriched.acme", "tx.validated.acme", "tx.scored.acme", "tx.decided.acme", "control.keys", "control.tenants",
		"control.endpoints", "control.lists", "dlq.enrich.reject.acme", "dlq.validate.reject.acme", "dlq.score.reject.acme", "dlq.persist.reject.acme",
		"dlq.notify.reject.acme", "$JS.API.STREAM.DELETE.TX_DECIDED", "$JS.API.STREAM.PURGE.TX_SUBMITTED", "$JS.API.STREAM.INFO.TX_SUBMITTED",
		"$JS.API.STREAM.INFO.DEADLETTERS", "$JS.API.DIRECT.GET.DEADLETTERS", "$JS.API.STREAM.MSG.DELETE.DEADLETTERS",
		"$JS.API.STREAM.PURGE.DEADLETTERS", "$JS.API.STREAM.DELETE.DEADLETTERS", "$JS.API.CONSUMER.CREATE.DEADLETTERS.x",
		"$JS.API.STREAM.MSG.DELETE.TX_DECIDED", "$JS.API.STREAM.MSG.GET.DEADLETTERS", "$JS.API.DIRECT.GET.TX_DECIDED", "$JS.API.STREAM.MSG.GET.TX_DECIDED",
		"$JS.API.CONSUMER.DELETE.TX_SCORED.persist", "$JS.ACK.TX_SUBMITTED.enrich.1.1.1.1.0", "$JS.ACK.TX_DECIDED.notify.1.1.1.1.0"},
}

// subjects are all that anybody may or may not publish.
func subjects() []string {
	all := map[string]bool{"tx.labeled.acme": true, "tx.intake.acme": true, "_INBOX_edge.x": true, "_INBOX_persist.x": true, "_INBOX_keeper.x": true,
		"$SYS.REQ.SERVER.PING": true, "dlq.edge.reject.acme": true, "dlq.other.reject.acme": true, "tx.decided": true, "tx.decided.acme.x": true}
	for _, may := range mayPublish {
		for _, s := range may {
			all[s] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

func TestEachServiceMayPublishWhatTheTableSays(t *testing.T) {
	t.Parallel()
	s := guarded(t)
	for _, service := range streams.Services {
		t.Run(service, func(t *testing.T) {
			denied := &notes{}
			nc := login(t, s, service, denied)
			var may, refused []string
			for _, subject := range subjects() {
				if err := nc.Publish(subject, nil); err != nil {
					t.Fatal(err)
				}
				if slices.Contains(mayPublish[service], subject) {
					may = append(may, subject)
				} else if !open(service, subject) {
					refused = append(refused, subject)
				}
			}
			if err := nc.Flush(); err != nil {
				t.Fatal(err)
			}
			wait(t, "what must be refused", func() bool { return len(denied.list()) >= len(refused) })
			got := denied.list()
			slices.Sort(got)
			if diff := cmp.Diff(refused, got); diff != "" {
				t.Errorf("refused: %s", diff)
			}
			if len(may) != len(mayPublish[service]) {
				t.Errorf("only %v was tried", may)
			}
		})
	}
}

// open tells of the subjects that the table leaves to the keeper's tools.
func open(service, subject string) bool {
	return service == "keeper" && strings.HasPrefix(subject, "dlq.")
}

func TestNobodyHearsWhatIsNotHis(t *testing.T) {
	t.Parallel()
	s := guarded(t)
	for _, service := range streams.Services {
		t.Run(service, func(t *testing.T) {
			denied := &notes{}
			nc := login(t, s, service, denied)
			var refused []string
			for _, other := range streams.Services {
				subject := streams.InboxPrefix(other) + ".>"
				if _, err := nc.SubscribeSync(subject); err != nil {
					t.Fatal(err)
				}
				if other != service {
					refused = append(refused, subject)
				}
			}
			for _, subject := range []string{">", "_INBOX.>", "tx.decided.*", "tx.submitted.*", "dlq.>", "$JS.>", "$KV.>"} {
				if _, err := nc.SubscribeSync(subject); err != nil {
					t.Fatal(err)
				}
				refused = append(refused, subject)
			}
			if err := nc.Flush(); err != nil {
				t.Fatal(err)
			}
			wait(t, "what must be refused", func() bool { return len(denied.list()) >= len(refused) })
			got := denied.list()
			slices.Sort(got)
			slices.Sort(refused)
			if diff := cmp.Diff(refused, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestEachStepWorksUnderItsPermissions takes every step through all that its runner does with the broker.
func TestEachStepWorksUnderItsPermissions(t *testing.T) {
	t.Parallel()
	s := guarded(t)
	denied := &notes{}
	keeper, err := jetstream.New(login(t, s, "keeper", denied))
	if err != nil {
		t.Fatal(err)
	}
	if done, err := streams.Ensure(t.Context(), keeper, layout); err != nil || len(done) != len(everything) {
		t.Fatalf("the keeper provisions: %v, %v", done, err)
	}
	ident := streams.Ident{Tenant: "acme", ID: "x", Run: 1, AcceptedAt: time.Now(), Deadline: time.Now(), Digest: "k1:d"}
	reads := map[string]string{"enrich": "submitted", "validate": "enriched", "score": "validated", "persist": "scored", "notify": "decided"}
	makes := map[string]string{"enrich": "enriched", "validate": "validated", "score": "scored", "persist": "decided"}
	for _, step := range streams.Steps {
		t.Run(step.Step, func(t *testing.T) {
			js, err := jetstream.New(login(t, s, step.Step, denied))
			if err != nil {
				t.Fatal(err)
			}
			registry := prometheus.NewRegistry()
			health := &app.Health{}
			shell := app.Shell{JS: js, Log: zerolog.Nop(), Health: health, Steps: stage.NewMetrics(registry)}
			runner := streams.Runner(shell, step, stage.Each(0, func(_ context.Context, m stage.Message) ([]stage.Output, error) {
				switch {
				case string(m.Data) == "poison":
					return nil, errBad
				case makes[step.Step] == "":
					return nil, nil
				}
				return []stage.Output{streams.Message(ident, makes[step.Step], m.Data)}, nil
			}), nil)
			before := stream(t, keeper, step.Stream).State.LastSeq
			for _, body := range []string{"fine", "poison"} {
				in := ident
				in.ID = step.Step + "-" + body
				if _, err := stage.Publish(t.Context(), keeper, []stage.Output{streams.Message(in, reads[step.Step], []byte(body))}); err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan error, 1)
			go func() { ended <- runner.Run(ctx) }()
			wait(t, "both settled", func() bool {
				c, err := keeper.Consumer(t.Context(), step.Stream, step.Durable)
				return err == nil && c.CachedInfo().AckFloor.Stream >= before+2
			})
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
	var letters []string
	dead := stream(t, keeper, streams.DeadLetters)
	for seq := dead.State.FirstSeq; seq <= dead.State.LastSeq; seq++ {
		raw, err := keeper.Stream(t.Context(), streams.DeadLetters)
		if err != nil {
			t.Fatal(err)
		}
		m, err := raw.GetMsg(t.Context(), seq)
		if err != nil {
			t.Fatal(err)
		}
		if string(m.Data) == "poison" {
			letters = append(letters, m.Subject)
		}
	}
	want := []string{"dlq.enrich.exhausted.acme", "dlq.validate.exhausted.acme", "dlq.score.exhausted.acme", "dlq.persist.exhausted.acme", "dlq.notify.exhausted.acme"}
	if diff := cmp.Diff(want, letters); diff != "" {
		t.Error(diff)
	}
	if got := denied.list(); len(got) > 0 {
		t.Errorf("denied %v", got)
	}
}
