package edge_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"

	"crivo/pkg/txn"
	"crivo/services/edge"
	"crivo/services/store"
	"crivo/streams"
	"crivo/streams/event"
)

// guardsPause is how long the guard waits between two tries.
const guardsPause = 100 * time.Millisecond

// reviewing stands for the steps' cores: everything is reviewed.
func reviewing(_ context.Context, txs []event.Submitted) []event.Scored {
	out := make([]event.Scored, len(txs))
	for i, s := range txs {
		out[i].Submitted, out[i].Degraded = s, []string{"guard: pipeline late"}
		out[i].Verdict = txn.Verdict{Decision: txn.Review, RiskBand: "medium", Reasons: []txn.Reason{}}
	}
	return out
}

// entry is what the store has.
func (b *bubble) entry(id string) store.Entry {
	b.t.Helper()
	e, err := b.memory.Get(context.Background(), key(id))
	if err != nil {
		b.t.Fatal(err)
	}
	return e
}

func (b *bubble) decision(id string) event.Decided {
	b.t.Helper()
	d, err := event.Decode[event.Decided](b.entry(id).Event)
	if err != nil {
		b.t.Fatal(err)
	}
	return d
}

// counted is what a histogram's or a counter's family has counted.
func (b *bubble) counted(name string) float64 {
	b.t.Helper()
	families, err := b.metrics.Gather()
	if err != nil {
		b.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			m := f.GetMetric()[0]
			return m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return -1
}

// announced are the decisions that the broker took.
func (b *bubble) announced() (out [][]byte) {
	for _, m := range b.broker.took {
		if m.Subject == streams.Subject(streams.EventDecided, "default") {
			out = append(out, m.Data)
		}
	}
	return out
}

func TestTheGuardDecidesAtThreeQuartersOfTheDeadline(t *testing.T) {
	inBubbleWith(t, false, reviewing, func(b *bubble) {
		a, d := b.post("x", "Prefer", "wait=5")
		if a.status != http.StatusOK || a.member("decision") != "review" || a.member("degraded") != "[guard: pipeline late]" || a.member("late") != "false" {
			t.Errorf("got %d %s", a.status, a.body)
		}
		took(t, d, 1500*time.Millisecond)
		synctest.Wait()
		if got := b.decision("x"); got.By != event.ByGuard || got.Late {
			t.Errorf("by %s, late %v", got.By, got.Late)
		}
		if all := b.announced(); len(all) != 1 || !bytes.Equal(all[0], b.entry("x").Event) || b.entry("x").Unannounced {
			t.Errorf("announced %d times, unannounced: %v", len(all), b.entry("x").Unannounced)
		}
	})
}

func TestTheGuardKnowsATenantsOwnDeadline(t *testing.T) {
	inBubbleWith(t, false, reviewing, func(b *bubble) {
		b.ask(http.MethodPost, "/v1/tenants", `{"id":"patient","deadline_ms":4000}`)
		made, _ := b.ask(http.MethodPost, "/v1/keys", `{"tenant":"patient","roles":["submit","read"]}`)
		if err := b.served.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		a, err := ask(b.client, "http://edge", made.member("key"), http.MethodPost, "/v1/transactions", paymentAt("x", start), "Prefer", "wait=5")
		if err != nil || a.member("decision") != "review" {
			t.Fatal(a, err)
		}
		took(t, time.Since(start), 3*time.Second)
	})
}

func TestTheGuardLeavesAloneWhatIsDecided(t *testing.T) {
	inBubbleWith(t, false, reviewing, func(b *bubble) {
		b.post("heard")
		b.post("unheard")
		for _, id := range []string{"heard", "unheard"} {
			d := decidedEvent(b.entry(id).Claim)
			data, _ := event.Encode(d)
			if _, err := b.memory.Decide(t.Context(), []store.Decide{store.DecideOf(d, data)}); err != nil {
				t.Fatal(err)
			}
		}
		b.served.Heard(key("heard"), b.entry("heard").Event)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		for _, id := range []string{"heard", "unheard"} {
			if d := b.decision(id); d.By != event.ByPipeline {
				t.Errorf("%s by %s", id, d.By)
			}
		}
		// Nobody told this edge of the second one: it may not have been announced at all.
		if all := b.announced(); len(all) != 1 || !bytes.Equal(all[0], b.entry("unheard").Event) {
			t.Errorf("announced %s", all)
		}
	})
}

// A publish that fails leaves a claim behind: the client was refused, and the claim is decided all the same.
func TestTheGuardDecidesAClaimThatWasNotPublished(t *testing.T) {
	inBubbleWith(t, true, reviewing, func(b *bubble) {
		start := time.Now()
		a, _ := b.post("x")
		refused(t, a, "broker")
		time.Sleep(time.Until(start.Add(1600 * time.Millisecond)))
		synctest.Wait()
		if !b.entry("x").Decided() || !b.entry("x").Unannounced {
			t.Error("not decided, or taken for announced")
		}
		again, _ := b.ask(http.MethodPost, "/v1/transactions", paymentAt("x", start))
		if again.status != http.StatusOK || again.member("decision") != "review" {
			t.Errorf("the repeat got %d %s", again.status, again.body)
		}
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if !b.entry("x").Unannounced {
			t.Error("taken for announced, and the broker took nothing: the sweep would forget it")
		}
	})
}

// What the guard decides is counted like any other payment, also where the broker had not taken it in time.
func TestTheGuardSubmitsWhatWasNotPublished(t *testing.T) {
	inBubbleWith(t, true, reviewing, func(b *bubble) {
		start := time.Now()
		a, _ := b.post("x")
		refused(t, a, "broker")
		b.broker.speak()
		time.Sleep(time.Until(start.Add(1600 * time.Millisecond)))
		synctest.Wait()
		var subjects []string
		for _, m := range b.broker.took {
			subjects = append(subjects, m.Subject+" "+m.Header.Get(nats.MsgIdHdr))
		}
		want := []string{"tx.decided.default default/x/decided", "tx.submitted.default default/x/submitted/1"}
		if diff := cmp.Diff(want, subjects); diff != "" || b.entry("x").Unannounced {
			t.Error(diff, b.entry("x").Unannounced)
		}
		if s, err := event.Decode[event.Submitted](b.broker.took[1].Data); err != nil || s.Tx.ID != "x" {
			t.Errorf("%+v, %v", s, err)
		}
	})
}

func TestTheGuardDecidesWhenTheStoreIsBack(t *testing.T) {
	inBubbleWith(t, false, reviewing, func(b *bubble) {
		b.store.breaks("get", down)
		b.store.breaks("decide", down)
		b.post("x")
		time.Sleep(2500 * time.Millisecond)
		b.store.breaks("decide", func(context.Context) error { return nil })
		time.Sleep(200 * time.Millisecond)
		synctest.Wait()
		if d := b.decision("x"); !d.Late || d.By != event.ByGuard {
			t.Errorf("by %s, late %v", d.By, d.Late)
		}
		if all, late := b.counted("crivo_decision_duration_seconds"), b.counted("crivo_decisions_late_total"); all != 1 || late != 1 {
			t.Errorf("counted: %v, %v of them late", all, late)
		}
	})
}

// The time of a repeat beyond the deadline is its own: the guard waits for three quarters of it.
func TestTheGuardWaitsForARaisedRun(t *testing.T) {
	inBubbleWith(t, false, reviewing, func(b *bubble) {
		b.store.breaks("decide", down)
		b.post("x")
		at := time.Now()
		time.Sleep(3*time.Second + guardsPause/2) // between two tries of the guard
		repeated := time.Now()
		a, _ := b.ask(http.MethodPost, "/v1/transactions", paymentAt("x", at))
		accepted(t, a, true)
		b.store.breaks("decide", func(context.Context) error { return nil })
		time.Sleep(1400 * time.Millisecond)
		synctest.Wait()
		if b.entry("x").Decided() {
			t.Error("decided early")
		}
		time.Sleep(200 * time.Millisecond)
		synctest.Wait()
		if d := b.decision("x"); d.Late || d.Run != 2 || d.DecidedAt.Sub(repeated) > 1600*time.Millisecond {
			t.Errorf("late %v, run %d, after %s", d.Late, d.Run, d.DecidedAt.Sub(repeated))
		}
	})
}

// What the sweep runs again keeps its time of acceptance, and a deadline that nobody was promised. A repeat is accepted anew, so
// what is counted from its acceptance is what the client waited.
func TestARepeatOfWhatTheSweepRunsAgainIsAcceptedAnew(t *testing.T) {
	inBubbleWith(t, false, reviewing, func(b *bubble) {
		b.store.breaks("decide", down)
		b.post("x")
		at := time.Now()
		time.Sleep(8 * time.Second) // the edge gave it up, and forgets it within a second
		swept, err := b.store.Transactions.Raise(t.Context(), store.Raise{Key: b.entry("x").Key, FromRun: 1, AcceptedAt: at, Deadline: time.Now().Add(2 * time.Second)})
		if err != nil || swept.Run != 2 {
			t.Fatal(swept.Run, err)
		}
		time.Sleep(time.Second)
		repeated := time.Now()
		a, _ := b.ask(http.MethodPost, "/v1/transactions", paymentAt("x", at))
		accepted(t, a, true)
		b.store.breaks("decide", func(context.Context) error { return nil })
		time.Sleep(1600 * time.Millisecond)
		synctest.Wait()
		d := b.decision("x")
		if d.Late || d.Run != 3 || !d.AcceptedAt.Equal(txn.At(repeated).Time) {
			t.Errorf("late %v, run %d, accepted %s after the repeat", d.Late, d.Run, d.AcceptedAt.Sub(repeated))
		}
	})
}

// A few that the store refuses for good cost the others nothing, and do not keep the guard busy.
func TestTheGuardDecidesManyAtOnce(t *testing.T) {
	groups := 0
	counting := func(ctx context.Context, txs []event.Submitted) []event.Scored {
		groups++
		time.Sleep(10 * time.Millisecond)
		return reviewing(ctx, txs)
	}
	inBubbleWith(t, false, counting, func(b *bubble) {
		for i := range 90 {
			b.post(fmt.Sprint(i))
		}
		time.Sleep(1600 * time.Millisecond)
		synctest.Wait()
		for i := range 90 {
			if !b.entry(fmt.Sprint(i)).Decided() {
				t.Errorf("%d is undecided", i)
			}
		}
		if groups > 10 {
			t.Errorf("%d groups", groups)
		}
	})
}

var _ edge.Decider = reviewing
