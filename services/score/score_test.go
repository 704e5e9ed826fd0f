package score_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"crivo/pkg/stage"
	"crivo/pkg/txn"
	"crivo/services/rules"
	"crivo/services/score"
	"crivo/streams"
	"crivo/streams/event"
)

var accepted = time.Date(2026, 11, 22, 1, 5, 12, 0, time.UTC)

// set fires for amounts above limit, and at 22 hours.
func set(t testing.TB, version, limit string) *rules.Set {
	t.Helper()
	s, err := rules.Parse([]byte("name: s\nversion: " + version + "\nreview_at: 30\ndecline_at: 70\nrules:\n" +
		"  - {id: large, when: tx.amount > " + limit + ", points: 40, code: LARGE, text: large}\n" +
		"  - {id: late, when: hour == 22, points: 5, code: LATE, text: late}\n"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func validated(pinned txn.RuleSet) event.Validated {
	return event.Validated{Enriched: event.Enriched{RuleSet: pinned, Degraded: []string{},
		Features: map[string]event.Value{"payer.count_5m": {Known: true, Number: 3}, "payer.sum_5m": {}},
		Submitted: event.Submitted{Schema: 1, Tenant: "t", ID: "a", Run: 1, ClaimedAt: txn.At(accepted), AcceptedAt: txn.At(accepted),
			Deadline: txn.At(accepted.Add(2 * time.Second)), Digest: "d",
			Tx: txn.Sealed{ID: "a", Type: "pix", Amount: 500, Currency: "BRL", CreatedAt: txn.At(accepted)}}},
		Checks: []txn.Check{{Name: "blocklist", Status: txn.Clear}}}
}

func TestThePinnedVersionDecides(t *testing.T) {
	mild, strict := set(t, "1", "1000"), set(t, "2", "100")
	live := rules.NewLive(mild)
	live.Publish(strict)
	s := score.Stage{Rules: live, Zone: time.UTC, Engine: "1.2"}
	for _, tc := range []struct {
		pinned   *rules.Set
		decision string
	}{{mild, txn.Approve}, {strict, txn.Review}} {
		in := validated(tc.pinned.Ref())
		out, err := s.Handle(context.Background(), in)
		if err != nil || out.Verdict.Decision != tc.decision || out.Verdict.RuleSet != tc.pinned.Ref() || out.Engine != "1.2" {
			t.Errorf("version %d: got %+v, %v", tc.pinned.Ref().Version, out.Verdict, err)
		}
		if diff := cmp.Diff(in, out.Validated); diff != "" {
			t.Errorf("the evidence changed: %s", diff)
		}
	}
}

func TestAVersionThatIsGoneIsReplacedAndSaid(t *testing.T) {
	current := set(t, "2", "100")
	s := score.Stage{Rules: rules.NewLive(current), Zone: time.UTC}
	in := validated(set(t, "1", "1000").Ref())
	room := [2]string{"features: unavailable", "untouched"}
	in.Degraded = room[:1]
	out, err := s.Handle(context.Background(), in)
	if err != nil || out.Verdict.RuleSet != current.Ref() || out.Verdict.Decision != txn.Review {
		t.Errorf("got %+v, %v", out.Verdict, err)
	}
	if out.RuleSet != in.RuleSet {
		t.Error("the pinned version is forgotten")
	}
	if diff := cmp.Diff([]string{"features: unavailable", "rule_set: replaced"}, out.Degraded); diff != "" {
		t.Error(diff)
	}
	if room[1] != "untouched" {
		t.Error("the input's array was written to")
	}
}

func TestHoursAreOfTheZone(t *testing.T) {
	only := set(t, "1", "1000")
	for zone, want := range map[*time.Location]int{time.UTC: 0, time.FixedZone("-03", -3*3600): 5} {
		out, err := score.Stage{Rules: rules.NewLive(only), Zone: zone}.Handle(context.Background(), validated(only.Ref()))
		if err != nil || out.Verdict.Score != want {
			t.Errorf("%v: got %+v, %v", zone, out.Verdict, err)
		}
	}
}

// message is a validated event as the broker delivers it.
func message(t testing.TB, v event.Validated) stage.Message {
	t.Helper()
	data, err := event.Encode(v)
	if err != nil {
		t.Fatal(err)
	}
	ident := streams.Ident{Tenant: v.Tenant, ID: v.ID, Run: v.Run, AcceptedAt: v.AcceptedAt.Time, Deadline: v.Deadline.Time, Digest: v.Digest}
	return stage.Message{Header: ident.Header(), Data: data, Sequence: 1, Deliveries: 1}
}

func TestARepeatGivesTheSameBytes(t *testing.T) {
	only := set(t, "1", "100")
	step := streams.Step(streams.EventScored, 1, score.Stage{Rules: rules.NewLive(only), Zone: time.UTC}.Handle)
	m := message(t, validated(only.Ref()))
	var last []stage.Output
	for range 5 {
		got := step(context.Background(), []stage.Message{m})[0]
		if got.Err != nil || len(got.Outputs) != 1 || got.Outputs[0].Subject != "tx.scored.t" || got.Outputs[0].ID != "t/a/scored/1" {
			t.Fatalf("got %+v", got)
		}
		if last != nil {
			if diff := cmp.Diff(last, got.Outputs); diff != "" {
				t.Fatal(diff)
			}
		}
		last = got.Outputs
	}
}

func BenchmarkStep(b *testing.B) {
	byDefault, err := rules.Default()
	if err != nil {
		b.Fatal(err)
	}
	v := validated(byDefault.Ref())
	for _, role := range []string{"payer", "payee", "device", "terminal"} {
		for _, w := range []string{"5m", "1h", "24h", "30d"} {
			v.Features[role+".count_"+w] = event.Value{Known: true, Number: 3}
			v.Features[role+".sum_"+w] = event.Value{Known: true, Number: 90000}
		}
	}
	step := streams.Step(streams.EventScored, 1, score.Stage{Rules: rules.NewLive(byDefault), Zone: time.UTC}.Handle)
	batch := []stage.Message{message(b, v)}
	b.ReportAllocs()
	for b.Loop() {
		if got := step(context.Background(), batch)[0]; got.Err != nil {
			b.Fatal(got.Err)
		}
	}
}
