package decide_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/rs/zerolog"

	"crivo/pkg/app"
	"crivo/pkg/seal"
	"crivo/pkg/txn"
	"crivo/services/decide"
	"crivo/services/enrich"
	"crivo/services/rules"
	"crivo/services/store/memory"
	"crivo/services/validate"
	"crivo/streams"
	"crivo/streams/event"
)

var noon = time.Date(2026, 11, 22, 15, 0, 0, 0, time.UTC)

// rig is a core on features in memory.
type rig struct {
	core     decide.Core
	features *memory.Features
	box      *seal.Box
}

func newRig(t testing.TB, features enrich.Reader) rig {
	t.Helper()
	keys, err := seal.Open(filepath.Join(t.TempDir(), "keyset"), true)
	if err != nil {
		t.Fatal(err)
	}
	if err := keys.Add("t"); err != nil {
		t.Fatal(err)
	}
	box, err := keys.Box("t")
	if err != nil {
		t.Fatal(err)
	}
	mem, err := memory.OpenFeatures(filepath.Join(t.TempDir(), "features"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = mem.Close() })
	mem.Whole()
	if features == nil {
		features = mem
	}
	set, err := rules.Default()
	if err != nil {
		t.Fatal(err)
	}
	core, closes, err := decide.Open(t.Context(), features, rules.NewLive(set),
		validate.Config{Shell: app.Shell{Clock: app.NewClock(func() time.Time { return noon }), Log: zerolog.Nop()}, Keys: keys}, "1.2")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(closes) // though the context goes on: an edge that cannot listen ends at once
	return rig{core, mem, box}
}

// payment is the n-th of a few payers.
func (r rig) payment(t testing.TB, n int, payer, amount int) event.Submitted {
	t.Helper()
	at := noon.Add(time.Duration(n) * 10 * time.Second)
	tx, err := txn.Decode(fmt.Appendf(nil, `{"id":"%d","type":"pix","amount":%d,"currency":"BRL","created_at":%q,"payer":{"customer_id":"c-%d"},"merchant":{"terminal_id":"t-%d"}}`,
		n, amount, at.Format(time.RFC3339), payer, n%3), at)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := txn.Seal(r.box, "t", tx)
	if err != nil {
		t.Fatal(err)
	}
	return event.Submitted{Schema: event.Schema, Tenant: "t", ID: tx.ID, Run: 1, AcceptedAt: txn.At(at), Deadline: txn.At(at.Add(2 * time.Second)), Tx: sealed}
}

// The guard decides as the pipeline would have: on the same features, before the pipeline has counted the transaction and after.
func TestTheGuardDecidesAsThePipelineWould(t *testing.T) {
	r := newRig(t, nil)
	random := rand.New(rand.NewPCG(1, 2))
	seen := map[string]int{}
	for n := range 300 {
		in := r.payment(t, n, random.IntN(4), 1+random.IntN(3_000_000))
		before := r.core.Guard(t.Context(), []event.Submitted{in})[0]
		of := enrich.EventOf(in, uint64(n+1))
		histories, err := r.features.Apply(t.Context(), []enrich.Event{of})
		if err != nil {
			t.Fatal(err)
		}
		validated, err := r.core.Validate.Handle(t.Context(), enrich.Add(in, of, histories[0], r.core.RuleSet()))
		if err != nil {
			t.Fatal(err)
		}
		want, err := r.core.Score.Handle(t.Context(), validated)
		if err != nil {
			t.Fatal(err)
		}
		after := r.core.Guard(t.Context(), []event.Submitted{in})[0]
		for when, got := range map[string]event.Scored{"before": before, "after": after} {
			if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(event.Enriched{}, "Degraded")); diff != "" {
				t.Fatalf("%d, %s it was counted: %s", n, when, diff)
			}
		}
		if diff := cmp.Diff([]string{"guard: pipeline late", "features: behind"}, before.Degraded); diff != "" {
			t.Fatal(diff)
		}
		if diff := cmp.Diff([]string{"guard: pipeline late"}, after.Degraded); diff != "" {
			t.Fatal(diff)
		}
		seen[want.Verdict.Decision]++
	}
	if len(seen) < 2 {
		t.Errorf("all alike: %v", seen)
	}
}

// away is a feature store that does not answer.
type away struct{ hangs bool }

func (a away) Peek(ctx context.Context, _ []enrich.Event) ([][]enrich.History, error) {
	if a.hangs {
		<-ctx.Done()
	}
	return nil, errors.New("away")
}

func TestWithoutFeaturesNothingIsTakenForClear(t *testing.T) {
	for _, a := range []away{{false}, {true}} {
		r := newRig(t, a)
		out := r.core.Guard(t.Context(), []event.Submitted{r.payment(t, 1, 1, 100), r.payment(t, 2, 2, 100)})
		for _, s := range out {
			if s.Verdict.Decision == txn.Approve || !slices.Equal(s.Degraded, []string{"guard: pipeline late", "features: unavailable"}) {
				t.Errorf("%s, degraded %v", s.Verdict.Decision, s.Degraded)
			}
		}
	}
}

func TestOneThatMakesACorePanicIsReviewedAlone(t *testing.T) {
	r := newRig(t, nil)
	list := r.core.Validate.List
	calls := 0
	r.core.Validate.List = func() *validate.Snapshot {
		if calls++; calls == 2 {
			panic("for the test")
		}
		return list()
	}
	out := r.core.Guard(t.Context(), []event.Submitted{r.payment(t, 1, 1, 100), r.payment(t, 2, 2, 100), r.payment(t, 3, 3, 100)})
	for i, s := range out {
		faulted := len(s.Verdict.Reasons) == 1 && s.Verdict.Reasons[0].Code == streams.Faulted
		if faulted != (i == 1) || faulted && s.Verdict.Decision != txn.Review {
			t.Errorf("%d: %+v", i, s.Verdict)
		}
	}
}

// BenchmarkGuard decides groups of 64.
func BenchmarkGuard(b *testing.B) {
	r := newRig(b, nil)
	txs := make([]event.Submitted, 64)
	for i := range txs {
		txs[i] = r.payment(b, i, i%7, 1000)
	}
	for b.Loop() {
		r.core.Guard(b.Context(), txs)
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*len(txs)), "µs/tx")
}
