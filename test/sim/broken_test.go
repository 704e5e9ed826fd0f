package sim_test

import (
	"context"
	"strconv"
	"sync"
	"testing"
	"time"

	"crivo/services/keeper"
	"crivo/services/store"
	"crivo/streams"
)

// overwriting is an arbiter that lets the last decision win.
type overwriting struct {
	transactions

	mu   sync.Mutex
	over map[store.Key]store.Entry
}

func (o *overwriting) Decide(ctx context.Context, decides []store.Decide) ([]store.Outcome, error) {
	out, err := o.transactions.Decide(ctx, decides)
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := range out {
		if out[i].Status == store.DecidedBefore {
			out[i].Status, out[i].Entry.Event, out[i].Entry.DecidedAt = store.DecidedNow, decides[i].Event, decides[i].DecidedAt
			o.over[decides[i].Key] = out[i].Entry
		}
	}
	return out, err
}

func (o *overwriting) Get(ctx context.Context, key store.Key) (store.Entry, error) {
	o.mu.Lock()
	e, ok := o.over[key]
	o.mu.Unlock()
	if ok {
		return e, nil
	}
	return o.transactions.Get(ctx, key)
}

// samerun is a sweep that runs claims again and does not raise their run.
type samerun struct {
	keeper.Transactions
	truth transactions
}

func (s samerun) Raise(ctx context.Context, r store.Raise) (store.Entry, error) {
	e, err := s.truth.Get(ctx, r.Key)
	e.AcceptedAt, e.Deadline = r.AcceptedAt, r.Deadline
	return e, err
}

// blind is a sweep that finds nothing.
type blind struct{ keeper.Transactions }

func (blind) Overdue(context.Context, time.Time, int) ([]store.Entry, error) { return nil, nil }

// loseEnriched takes away what a sweep is there for: enriched events that nobody validated yet, while the broker still knows the
// submissions; and the guard, since what it decides needs no sweep.
func (w *world) loseEnriched() {
	w.unguarded = true
	time.AfterFunc(2*time.Second, func() {
		w.each("validate", func(name string) { w.broker.freeze(name, 3*time.Second) })
	})
	time.AfterFunc(4*time.Second, func() {
		w.broker.mu.Lock()
		defer w.broker.mu.Unlock()
		if s := w.broker.streams[streams.Enriched]; s != nil {
			s.forget(2 * time.Second)
		}
	})
}

// A sweep that is whole brings back even that.
func TestASweepBringsBackWhatTheBrokerLost(t *testing.T) {
	for seed := uint64(1); seed <= 3; seed++ {
		trial{seed: seed, broken: (*world).loseEnriched}.check(t)
	}
}

// What would break a promise must be seen, within the seeds that every test run tries.
func TestWhatIsBrokenIsSeen(t *testing.T) {
	if raced {
		t.Skip("what is broken is no race, and this takes a while")
	}
	for name, v := range map[string]trial{
		"an arbiter that overwrites": {broken: func(w *world) {
			w.truth.transactions = &overwriting{transactions: w.truth.transactions, over: map[store.Key]store.Entry{}}
		}},
		"a runner that acknowledges before it publishes": {broken: func(w *world) { w.broker.eager = true }},
		"an edge without a guard":                        {fair: true, broken: func(w *world) { w.unguarded = true }},
		"a sweep that does not raise the run": {broken: func(w *world) {
			w.loseEnriched()
			w.sweeps = func(t keeper.Transactions, truth transactions) keeper.Transactions { return samerun{t, truth} }
		}},
		"a sweep that never runs": {broken: func(w *world) {
			w.sweeps = func(t keeper.Transactions, _ transactions) keeper.Transactions { return blind{t} }
		}},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := uint64(1); seed <= seeds; seed++ {
				v.seed = seed
				if _, faults := v.run(t); len(faults) > 0 {
					t.Log("seed " + strconv.FormatUint(seed, 10) + ": " + faults[0])
					return
				}
			}
			t.Errorf("%d seeds see nothing wrong", seeds)
		})
	}
}
