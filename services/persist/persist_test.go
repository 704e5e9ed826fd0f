package persist_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"crivo/pkg/app"
	"crivo/pkg/stage"
	"crivo/pkg/txn"
	"crivo/services/broker"
	"crivo/services/persist"
	"crivo/services/store"
	"crivo/services/store/memory"
	"crivo/services/store/sqlite"
	"crivo/streams"
	"crivo/streams/event"
)

// within is how long a fact may take to show.
const within = 30 * time.Second

var accepted = time.Date(2026, 11, 22, 23, 5, 12, 0, time.UTC)

// clock is a hand that tests move.
type clock struct{ now time.Time }

func (c *clock) shell() app.Shell {
	return app.Shell{Clock: app.NewClock(func() time.Time { return c.now }), Metrics: prometheus.NewRegistry(), Health: &app.Health{}}
}

// each runs do on every store that persist may write to.
func each(t *testing.T, do func(t *testing.T, s store.Transactions)) {
	t.Run("memory", func(t *testing.T) { do(t, memory.NewTransactions()) })
	t.Run("sqlite", func(t *testing.T) { do(t, database(t, sqlite.Options{})) })
}

func database(t testing.TB, o sqlite.Options) *sqlite.Transactions {
	t.Helper()
	s, err := sqlite.OpenTransactions(filepath.Join(t.TempDir(), "t.db"), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func arbiter(s persist.Transactions) (persist.Stage, *clock) {
	c := &clock{accepted.Add(9 * time.Millisecond)}
	return persist.New(persist.Config{Shell: c.shell(), Transactions: s}), c
}

func scored(id, decision string) event.Scored {
	s := event.Scored{Engine: "1", Verdict: txn.Verdict{Decision: decision, Reasons: []txn.Reason{{Code: "C-" + decision, Rule: "r"}}}}
	s.Submitted = event.Submitted{Schema: 1, Tenant: "t", ID: id, Run: 1, ClaimedAt: txn.At(accepted), AcceptedAt: txn.At(accepted),
		Deadline: txn.At(accepted.Add(2 * time.Second)), Digest: "d",
		Tx: txn.Sealed{ID: id, Type: "pix", Amount: 1, Currency: "BRL", CreatedAt: txn.At(accepted), Blob: []byte("sealed")}}
	return s
}

func ident(s event.Submitted) streams.Ident {
	return streams.Ident{Tenant: s.Tenant, ID: s.ID, Run: s.Run, AcceptedAt: s.AcceptedAt.Time, Deadline: s.Deadline.Time, Digest: s.Digest}
}

func message(t testing.TB, s event.Scored) stage.Message {
	t.Helper()
	data, err := event.Encode(s)
	if err != nil {
		t.Fatal(err)
	}
	return stage.Message{Header: ident(s.Submitted).Header(), Data: data, Sequence: 1, Stored: accepted, Deliveries: 1}
}

// claimed is the document that the edge wrote for s.
func claimed(t testing.TB, s event.Submitted) store.Claim {
	t.Helper()
	body, err := json.Marshal(&s.Tx)
	if err != nil {
		t.Fatal(err)
	}
	return store.Claim{Key: store.Key{Tenant: s.Tenant, ID: s.ID}, Digest: s.Digest, Run: s.Run, ClaimedAt: s.ClaimedAt.Time,
		AcceptedAt: s.AcceptedAt.Time, Deadline: s.Deadline.Time, Body: body}
}

func claim(t testing.TB, s store.Transactions, claims ...store.Claim) {
	t.Helper()
	if _, err := s.Claim(context.Background(), claims); err != nil {
		t.Fatal(err)
	}
}

func entry(t testing.TB, s store.Transactions, id string) store.Entry {
	t.Helper()
	e, err := s.Get(context.Background(), store.Key{Tenant: "t", ID: id})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// announced is the decision that a result tells of.
func announced(t testing.TB, outputs []stage.Output) event.Decided {
	t.Helper()
	last := outputs[len(outputs)-1]
	d, err := event.Decode[event.Decided](last.Data)
	if err != nil {
		t.Fatal(err)
	}
	if last.Subject != "tx.decided.t" || last.ID != "t/"+d.ID+"/decided" {
		t.Errorf("announced as %s on %s", last.ID, last.Subject)
	}
	return d
}

func TestADecisionIsTheWholeStory(t *testing.T) {
	each(t, func(t *testing.T, s store.Transactions) {
		in := scored("a", txn.Review)
		claim(t, s, claimed(t, in.Submitted))
		p, c := arbiter(s)
		out := p.Handle(context.Background(), []stage.Message{message(t, in)})
		if out[0].Err != nil || len(out[0].Outputs) != 1 {
			t.Fatalf("got %+v", out)
		}
		in.Features, in.Degraded, in.Checks = map[string]event.Value{}, []string{}, []txn.Check{}
		want := event.Decided{Scored: in, By: event.ByPipeline, DecidedAt: txn.At(c.now)}
		if diff := cmp.Diff(want, announced(t, out[0].Outputs)); diff != "" {
			t.Error(diff)
		}
		e := entry(t, s, "a")
		if !bytes.Equal(e.Event, out[0].Outputs[0].Data) || e.Body != nil || !e.DecidedAt.Equal(c.now) || e.Unannounced {
			t.Errorf("stored %+v", e)
		}
	})
}

func TestTheFirstDecisionStands(t *testing.T) {
	each(t, func(t *testing.T, s store.Transactions) {
		p, c := arbiter(s)
		second := scored("a", txn.Decline)
		second.Run = 2
		claim(t, s, claimed(t, second.Submitted))
		first := p.Handle(context.Background(), []stage.Message{message(t, scored("a", txn.Approve))})
		c.now = c.now.Add(time.Second)
		later := p.Handle(context.Background(), []stage.Message{message(t, second), message(t, scored("a", txn.Approve))})
		for i, r := range append(first, later...) {
			if r.Err != nil || announced(t, r.Outputs).Verdict.Decision != txn.Approve || !bytes.Equal(r.Outputs[0].Data, entry(t, s, "a").Event) {
				t.Errorf("call %d: got %+v", i, r)
			}
		}
	})
}

func TestOfTwoRunsInOneBatchTheFirstStands(t *testing.T) {
	each(t, func(t *testing.T, s store.Transactions) {
		p, _ := arbiter(s)
		out := p.Handle(context.Background(), []stage.Message{message(t, scored("a", txn.Decline)), message(t, scored("b", txn.Review)), message(t, scored("a", txn.Approve))})
		for i, want := range []string{txn.Decline, txn.Review, txn.Decline} {
			if d := announced(t, out[i].Outputs); d.Verdict.Decision != want {
				t.Errorf("message %d is announced as %s of %s, want %s", i, d.Verdict.Decision, d.ID, want)
			}
		}
		if diff := cmp.Diff(out[0], out[2]); diff != "" {
			t.Error(diff)
		}
	})
}

func TestAnotherBodysClaimIsLeftAlone(t *testing.T) {
	each(t, func(t *testing.T, s store.Transactions) {
		p, _ := arbiter(s)
		own, other := scored("a", txn.Approve), scored("a", txn.Decline)
		other.Digest = "another"
		claim(t, s, claimed(t, own.Submitted))
		out := p.Handle(context.Background(), []stage.Message{message(t, other), message(t, scored("b", txn.Review))})
		if !stage.IsReject(out[0].Err) || len(out[0].Outputs) != 0 {
			t.Errorf("got %+v", out[0])
		}
		if entry(t, s, "a").Decided() {
			t.Error("decided by another body")
		}
		if announced(t, out[1].Outputs).ID != "b" {
			t.Errorf("got %+v", out[1])
		}
	})
}

func TestWhatCannotBeReadDisturbsNobody(t *testing.T) {
	p, _ := arbiter(memory.NewTransactions())
	newer := scored("n", txn.Approve)
	newer.Schema = event.Schema + 1
	out := p.Handle(context.Background(), []stage.Message{{Data: []byte("{")}, message(t, scored("a", txn.Review)), message(t, newer), message(t, scored("b", txn.Decline))})
	if !stage.IsUndecodable(out[0].Err) || !stage.IsHold(out[2].Err) {
		t.Errorf("got %v, %v", out[0].Err, out[2].Err)
	}
	if a, b := announced(t, out[1].Outputs), announced(t, out[3].Outputs); a.ID != "a" || b.ID != "b" {
		t.Errorf("got %s, %s", a.ID, b.ID)
	}
	if out := p.Handle(context.Background(), []stage.Message{{Data: []byte("{")}}); len(out) != 1 || out[0].Err == nil {
		t.Errorf("got %+v", out)
	}
}

// down is a store that does not answer.
type down struct{ persist.Transactions }

var errDown = errors.New("store is down")

func (down) Decide(context.Context, []store.Decide) ([]store.Outcome, error) { return nil, errDown }
func (down) Get(context.Context, store.Key) (store.Entry, error)             { return store.Entry{}, errDown }

func TestAStoreThatFailsHoldsAllThatCanBeRead(t *testing.T) {
	p, _ := arbiter(down{})
	out := p.Handle(context.Background(), []stage.Message{message(t, scored("a", txn.Approve)), {Data: []byte("{")}, message(t, scored("b", txn.Approve))})
	if !stage.IsUnavailable(out[0].Err) || !errors.Is(out[0].Err, errDown) || !stage.IsUnavailable(out[2].Err) {
		t.Errorf("got %v, %v", out[0].Err, out[2].Err)
	}
	if stage.IsUnavailable(out[1].Err) || !stage.IsUndecodable(out[1].Err) {
		t.Errorf("got %v", out[1].Err)
	}
}

// What is decided is found by the documents and accounts of both sides, by decision and by reason.
func TestADecisionIsFound(t *testing.T) {
	each(t, func(t *testing.T, s store.Transactions) {
		in := scored("a", txn.Review)
		in.Tx.Payer = txn.SealedParty{Document: &txn.SealedDocument{Token: "k.payer", Root: "k.root"}, Account: &txn.SealedAccount{Token: "k.account"}}
		in.Tx.Payee = &txn.SealedParty{Document: &txn.SealedDocument{Token: "k.payee"}, Account: &txn.SealedAccount{ISPB: "12345678"}}
		p, _ := arbiter(s)
		p.Handle(context.Background(), []stage.Message{message(t, in), message(t, scored("b", txn.Approve))})
		for token, want := range map[string]int{"k.payer": 1, "k.account": 1, "k.payee": 1, "k.root": 0, "": 0} {
			got, _, err := s.Search(context.Background(), store.Query{Tenant: "t", Tokens: []string{token}, Decision: txn.Review, Reason: "C-review", Limit: 9})
			if err != nil || len(got) != want {
				t.Errorf("%q: %d found, %v", token, len(got), err)
			}
		}
	})
}

// picky is a store that will not take what is decided on some transactions.
type picky struct {
	store.Transactions
	refuses func(store.Decide) bool
}

func (p picky) Decide(ctx context.Context, decides []store.Decide) ([]store.Outcome, error) {
	out := make([]store.Outcome, len(decides))
	for i, d := range decides {
		if p.refuses(d) {
			out[i].Err = store.ErrRefused
			continue
		}
		one, err := p.Transactions.Decide(ctx, []store.Decide{d})
		if err != nil {
			return nil, err
		}
		out[i] = one[0]
	}
	return out, nil
}

func TestWhatTheStoreRefusesIsAnAttemptOfThatMessageAlone(t *testing.T) {
	for name, tc := range map[string]struct {
		refuses func(store.Decide) bool
		letters int // outputs of the burial: the letter, and the decision where there is one
	}{
		"the event":              {func(d store.Decide) bool { return d.Decision == txn.Approve }, 2},
		"the burial's event too": {func(d store.Decide) bool { return d.ID == "bad" }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := memory.NewTransactions()
			bad, good := scored("bad", txn.Approve), scored("good", txn.Decline)
			claim(t, s, claimed(t, bad.Submitted))
			p, _ := arbiter(picky{s, tc.refuses})
			out := p.Handle(context.Background(), []stage.Message{message(t, bad), message(t, good)})
			if err := out[0].Err; !errors.Is(err, store.ErrRefused) || stage.IsUnavailable(err) || stage.IsReject(err) || out[1].Err != nil {
				t.Errorf("%v, %v", out[0].Err, out[1].Err)
			}
			buried, err := p.Bury(context.Background(), stage.Burial{Step: "persist", Message: message(t, bad), Cause: stage.CauseExhausted, Err: out[0].Err, Attempts: 3})
			if err != nil || len(buried) != tc.letters {
				t.Errorf("buried with %d outputs, %v", len(buried), err)
			}
		})
	}
}

func TestByAndLate(t *testing.T) {
	fault := streams.Fault("score", stage.CausePanic, txn.RuleSet{})
	for name, tc := range map[string]struct {
		verdict txn.Verdict
		after   time.Duration
		by      string
		late    bool
	}{
		"in time":                {txn.Verdict{Decision: txn.Approve}, time.Second, event.ByPipeline, false},
		"on the deadline":        {txn.Verdict{Decision: txn.Approve}, 2 * time.Second, event.ByPipeline, false},
		"a millisecond later":    {txn.Verdict{Decision: txn.Approve}, 2001 * time.Millisecond, event.ByPipeline, true},
		"after a step's failure": {fault, time.Second, event.ByBurial, false},
		"that, and late":         {fault, time.Hour, event.ByBurial, true},
	} {
		t.Run(name, func(t *testing.T) {
			p, c := arbiter(memory.NewTransactions())
			in := scored("a", "")
			in.Verdict, c.now = tc.verdict, accepted.Add(tc.after)
			d := announced(t, p.Handle(context.Background(), []stage.Message{message(t, in)})[0].Outputs)
			if d.By != tc.by || d.Late != tc.late || !d.DecidedAt.Equal(c.now) {
				t.Errorf("got by %s, late %v at %v", d.By, d.Late, d.DecidedAt)
			}
		})
	}
}

// stuck is a store that answers nothing and tells how long it was waited for.
type stuck struct {
	store.Transactions
	waited *time.Duration
}

func (s stuck) Decide(ctx context.Context, _ []store.Decide) ([]store.Outcome, error) {
	began := time.Now()
	<-ctx.Done()
	*s.waited = time.Since(began)
	return nil, ctx.Err()
}

// A decision says when it was made. It is not kept waiting until that is long ago.
func TestNoDecisionInTimeIsWrittenLongAfterItsDeadline(t *testing.T) {
	for name, tc := range map[string]struct{ after, want time.Duration }{
		"early":             {300 * time.Millisecond, 1700 * time.Millisecond},
		"just in time":      {1900 * time.Millisecond, 500 * time.Millisecond},
		"late, and said so": {3 * time.Second, time.Minute}, // the runner's own patience
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var waited time.Duration
				p, c := arbiter(stuck{waited: &waited})
				c.now = accepted.Add(tc.after)
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				late := scored("b", txn.Approve) // beside one that is late anyway
				late.Deadline = txn.At(accepted)
				out := p.Handle(ctx, []stage.Message{message(t, late), message(t, scored("a", txn.Approve))})
				if waited != tc.want || !stage.IsUnavailable(out[1].Err) {
					t.Errorf("waited %s: %v", waited, out[1].Err)
				}
			})
		})
	}
}

// A claim's deadline is the sweep's pace, once it ran again; what was promised is in the message.
func TestABurialAfterASweepIsLate(t *testing.T) {
	s := memory.NewTransactions()
	p, c := arbiter(s)
	in := scored("a", txn.Approve)
	swept := claimed(t, in.Submitted)
	swept.Deadline = accepted.Add(8 * time.Second)
	claim(t, s, swept)
	c.now = accepted.Add(7 * time.Second)
	out, err := p.Bury(t.Context(), stage.Burial{Step: "persist", Message: message(t, in), Cause: stage.CauseDecode})
	if err != nil {
		t.Fatal(err)
	}
	if d := announced(t, out); !d.Late || !d.Deadline.Equal(accepted.Add(2*time.Second)) {
		t.Errorf("late %v, by %s", d.Late, d.Deadline)
	}
}

// Who repeats what is late is promised anew: an older run's burial keeps to that.
func TestABurialAfterARepeatKeepsTheNewPromise(t *testing.T) {
	s := memory.NewTransactions()
	p, c := arbiter(s)
	in := scored("a", txn.Approve)
	again := claimed(t, in.Submitted)
	again.Run, again.AcceptedAt, again.Deadline = 2, accepted.Add(6*time.Second), accepted.Add(8*time.Second)
	claim(t, s, again)
	c.now = accepted.Add(7 * time.Second)
	out, err := p.Bury(t.Context(), stage.Burial{Step: "persist", Message: message(t, in), Cause: stage.CauseDecode})
	if err != nil {
		t.Fatal(err)
	}
	if d := announced(t, out); d.Late || !d.Deadline.Equal(accepted.Add(8*time.Second)) {
		t.Errorf("late %v, by %s", d.Late, d.Deadline)
	}
}

func TestPoisonIsDecidedByReview(t *testing.T) {
	each(t, func(t *testing.T, s store.Transactions) {
		p, _ := arbiter(s)
		in := scored("a", txn.Approve)
		in.Run = 3
		claim(t, s, claimed(t, in.Submitted))
		m := message(t, in)
		m.Data = []byte("{")
		out, err := p.Bury(context.Background(), stage.Burial{Step: "persist", Message: m, Cause: stage.CauseDecode})
		if err != nil || len(out) != 2 || out[0].Subject != "dlq.persist.decode.t" || string(out[0].Data) != "{" {
			t.Fatalf("got %+v, %v", out, err)
		}
		d := announced(t, out)
		if d.Verdict.Decision != txn.Review || d.Verdict.Reasons[0].Code != streams.Faulted || d.By != event.ByBurial {
			t.Errorf("got %+v", d)
		}
		if diff := cmp.Diff(in.Submitted, d.Submitted); diff != "" {
			t.Errorf("not the claim's transaction: %s", diff)
		}
		if !bytes.Equal(entry(t, s, "a").Event, out[1].Data) {
			t.Error("the store holds other bytes")
		}
		again, err := p.Bury(context.Background(), stage.Burial{Step: "persist", Message: m, Cause: stage.CauseDecode})
		if diff := cmp.Diff(out, again); diff != "" || err != nil {
			t.Error(err, diff)
		}
	})
}

// A step that could not read its message buries it without the transaction, which the claim still has.
func TestABurialKeepsTheTransactionOfTheClaim(t *testing.T) {
	each(t, func(t *testing.T, s store.Transactions) {
		p, _ := arbiter(s)
		in := scored("a", txn.Review)
		claim(t, s, claimed(t, in.Submitted))
		buried := in
		buried.Verdict, buried.Tx = streams.Fault("score", stage.CauseDecode, txn.RuleSet{}), txn.Sealed{}
		out := p.Handle(context.Background(), []stage.Message{message(t, buried)})
		if out[0].Err != nil {
			t.Fatal(out[0].Err)
		}
		d := announced(t, out[0].Outputs)
		if d.By != event.ByBurial || d.Verdict.Reasons[0].Code != streams.Faulted {
			t.Errorf("got %+v", d)
		}
		if diff := cmp.Diff(in.Submitted, d.Submitted); diff != "" {
			t.Errorf("not the claim's transaction: %s", diff)
		}
	})
}

// A decision that was written by a run which ended before it could tell is told by the burial.
func TestABurialAnnouncesTheDecisionThatIsThere(t *testing.T) {
	each(t, func(t *testing.T, s store.Transactions) {
		p, _ := arbiter(s)
		m := message(t, scored("a", txn.Decline))
		p.Handle(context.Background(), []stage.Message{m})
		out, err := p.Bury(context.Background(), stage.Burial{Step: "persist", Message: m, Cause: stage.CauseCrash, Err: errors.New("crash"), Attempts: 3})
		if err != nil || len(out) != 2 || announced(t, out).Verdict.Decision != txn.Decline || !bytes.Equal(out[1].Data, entry(t, s, "a").Event) {
			t.Errorf("got %+v, %v", out, err)
		}
	})
}

func TestABurialThatIsALetterOnly(t *testing.T) {
	own := scored("a", txn.Approve)
	other := own
	other.Digest = "another"
	disguised := message(t, other)
	disguised.Header = message(t, own).Header
	headless := message(t, own)
	headless.Header = nats.Header{}
	for name, tc := range map[string]struct {
		message stage.Message
		cause   string
		claimed bool
	}{
		"no identity":                       {headless, stage.CauseDecode, true},
		"no claim":                          {message(t, own), stage.CauseCrash, false},
		"another body's, rejected":          {message(t, other), stage.CauseReject, true},
		"another body's under own headers":  {disguised, stage.CauseReject, true},
		"another body's, for another cause": {message(t, other), stage.CausePanic, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := memory.NewTransactions()
			p, _ := arbiter(s)
			if tc.claimed {
				claim(t, s, claimed(t, own.Submitted))
			}
			b := stage.Burial{Step: "persist", Message: tc.message, Cause: tc.cause}
			if tc.cause == stage.CauseReject {
				b.Err = p.Handle(context.Background(), []stage.Message{tc.message})[0].Err
			}
			out, err := p.Bury(context.Background(), b)
			if err != nil || len(out) != 1 || out[0].ID == "" {
				t.Errorf("got %+v, %v", out, err)
			}
			if tc.claimed && entry(t, s, "a").Decided() {
				t.Error("decided")
			}
		})
	}
}

func TestABurialWaitsForTheStore(t *testing.T) {
	p, _ := arbiter(down{})
	out, err := p.Bury(context.Background(), stage.Burial{Step: "persist", Message: message(t, scored("a", txn.Approve)), Cause: stage.CauseCrash})
	if !errors.Is(err, errDown) || out != nil {
		t.Errorf("got %+v, %v", out, err)
	}
}

// connected is a broker with the streams of the pipeline.
func connected(t *testing.T) app.Shell {
	t.Helper()
	s, err := broker.Start(broker.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	nc, err := s.Connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	shell := (&clock{accepted}).shell()
	shell.Conn, shell.JS, shell.Steps = nc, js, stage.NewMetrics(shell.Metrics)
	return shell
}

func TestTheEdgeThatWaitsIsWoken(t *testing.T) {
	shell := connected(t)
	heard, err := shell.Conn.SubscribeSync(streams.EdgeSubject("e1"))
	if err != nil {
		t.Fatal(err)
	}
	p := persist.New(persist.Config{Shell: shell, Transactions: memory.NewTransactions()})
	silent, waiting := message(t, scored("a", txn.Approve)), message(t, scored("b", txn.Review))
	waiting.Header.Set(streams.HeaderReply, streams.EdgeSubject("e1"))
	out := p.Handle(context.Background(), []stage.Message{silent, waiting})
	m, err := heard.NextMsg(within)
	if err != nil || !bytes.Equal(m.Data, out[1].Outputs[0].Data) {
		t.Fatalf("heard %v, %v", m, err)
	}
	if who, err := streams.ReadIdent(m.Header); err != nil || who.ID != "b" || who.Tenant != "t" {
		t.Errorf("of %+v, %v", who, err)
	}
	if err := shell.Conn.FlushTimeout(within); err != nil {
		t.Fatal(err)
	}
	if n, _, _ := heard.Pending(); n != 0 {
		t.Errorf("%d more were heard", n)
	}
}

func TestRunDecidesAndBuries(t *testing.T) {
	shell := connected(t)
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	if _, err := streams.Ensure(ctx, shell.JS, streams.Layout{Replicas: 1, SubmittedBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	s := memory.NewTransactions()
	poison := scored("poison", txn.Approve)
	claim(t, s, claimed(t, poison.Submitted))
	for _, out := range []stage.Output{
		streams.Message(ident(poison.Submitted), streams.EventScored, []byte("{")),
		streams.Message(ident(scored("a", "").Submitted), streams.EventScored, message(t, scored("a", txn.Approve)).Data),
	} {
		if _, err := stage.Publish(ctx, shell.JS, []stage.Output{out}); err != nil {
			t.Fatal(err)
		}
	}
	running, end := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- persist.Run(running, persist.Config{Shell: shell, Transactions: s}) }()
	got := map[string]string{}
	for _, m := range stored(ctx, t, shell.JS, streams.Decided, 2) {
		d, err := event.Decode[event.Decided](m.Data)
		if err != nil {
			t.Fatal(err)
		}
		got[d.ID] = d.Verdict.Decision + " by " + d.By
	}
	if diff := cmp.Diff(map[string]string{"a": "approve by pipeline", "poison": "review by burial"}, got); diff != "" {
		t.Error(diff)
	}
	if letter := stored(ctx, t, shell.JS, streams.DeadLetters, 1)[0]; letter.Subject != "dlq.persist.decode.t" || string(letter.Data) != "{" {
		t.Errorf("got %+v", letter)
	}
	end()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Nothing is decided meanwhile: the store is looked at all the same.
func TestAStoreThatIsAwayIsSaid(t *testing.T) {
	was := *persist.WatchEvery
	*persist.WatchEvery = 20 * time.Millisecond
	t.Cleanup(func() { *persist.WatchEvery = was })
	shell := connected(t)
	ctx, end := context.WithTimeout(context.Background(), time.Minute)
	defer end()
	if _, err := streams.Ensure(ctx, shell.JS, streams.Layout{Replicas: 1, SubmittedBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	var away atomic.Bool
	ping := func(context.Context) error {
		if away.Load() {
			return errDown
		}
		return nil
	}
	done := make(chan error, 1)
	go func() {
		done <- persist.Run(ctx, persist.Config{Shell: shell, Transactions: memory.NewTransactions(), Ping: ping})
	}()
	for _, is := range []bool{true, false, true} {
		away.Store(is)
		for give := time.Now().Add(within); ; time.Sleep(5 * time.Millisecond) {
			ready, _ := shell.Health.Report()
			if _, said := shell.Health.Reasons()["store"]; said == is && ready != is {
				break
			}
			if time.Now().After(give) {
				t.Fatalf("away %v: %v", is, shell.Health.Reasons())
			}
		}
	}
	end()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// stored waits for the first n messages of a stream.
func stored(ctx context.Context, t *testing.T, js jetstream.JetStream, name string, n int) []*jetstream.RawStreamMsg {
	t.Helper()
	s, err := js.Stream(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	var out []*jetstream.RawStreamMsg
	for deadline := time.Now().Add(within); len(out) < n; {
		m, err := s.GetMsg(ctx, uint64(len(out)+1))
		if err == nil {
			out = append(out, m)
		} else if time.Now().After(deadline) {
			t.Fatalf("%d of %d messages in %s: %v", len(out), n, name, err)
		}
	}
	return out
}

func BenchmarkStep(b *testing.B) {
	for _, sync := range []bool{true, false} {
		for _, size := range []int{1, 64} {
			b.Run(fmt.Sprintf("sync %v, batch %d", sync, size), func(b *testing.B) {
				s := database(b, sqlite.Options{Sync: sync})
				p, _ := arbiter(s)
				batch, claims := make([]stage.Message, size), make([]store.Claim, size)
				for n := 0; b.Loop(); n++ {
					b.StopTimer()
					for i := range batch {
						in := scored(fmt.Sprint("id-", n*size+i), txn.Approve)
						batch[i], claims[i] = message(b, in), claimed(b, in.Submitted)
					}
					claim(b, s, claims...)
					b.StartTimer()
					for _, r := range p.Handle(context.Background(), batch) {
						if r.Err != nil {
							b.Fatal(r.Err)
						}
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*size), "ns/decision")
			})
		}
	}
}
