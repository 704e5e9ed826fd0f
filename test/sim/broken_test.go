package sim_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"crivo/pkg/txn"
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

// slow is an arbiter that writes long after it was asked, while whoever asked waits.
type slow struct {
	transactions
	by time.Duration
}

func (s slow) Decide(ctx context.Context, decides []store.Decide) ([]store.Outcome, error) {
	time.Sleep(s.by)
	return s.transactions.Decide(ctx, decides)
}

// blind is a sweep that finds nothing.
type blind struct{ keeper.Transactions }

func (blind) Overdue(context.Context, time.Time, int) ([]store.Entry, error) { return nil, nil }

// forgetful keeps what a keeper notes, and says that it did not.
type forgetful struct{ states keeper.State }

func (f forgetful) PutState(ctx context.Context, name string, value []byte) error {
	return errors.Join(errDown, f.states.PutState(ctx, name, value))
}

func (forgetful) State(context.Context, string) ([]byte, error) { return nil, store.ErrNotFound }

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
	for name, v := range map[string]struct {
		trial
		sees string // what its fault says
	}{
		"an arbiter that overwrites": {trial{broken: func(w *world) {
			w.truth.transactions = &overwriting{transactions: w.truth.transactions, over: map[store.Key]store.Entry{}}
		}}, "I2: the store held 2 decisions"},
		"a runner that acknowledges before it publishes": {trial{broken: func(w *world) { w.broker.eager = true }}, "is decided and not announced"},
		"an edge without a guard":                        {trial{fair: true, broken: func(w *world) { w.unguarded = true }}, "I4: "},
		"an edge that accepts what is not in the flow":   {trial{orphan: true, broken: func(w *world) { w.broker.silent = true }}, "I4: "},
		"a sweep that does not raise the run": {trial{broken: func(w *world) {
			w.loseEnriched()
			w.sweeps = func(t keeper.Transactions, truth transactions) keeper.Transactions { return samerun{t, truth} }
		}}, "undecided"},
		"a sweep that never runs": {trial{broken: func(w *world) {
			w.sweeps = func(t keeper.Transactions, _ transactions) keeper.Transactions { return blind{t} }
		}}, "undecided"},
		"a keeper that remembers nothing of a broker's disk": {trial{broken: func(w *world) { w.forgetful = true }}, "is not announced again"},
		"decisions that come to stand long after their stamp": {trial{broken: func(w *world) {
			w.truth.transactions = slow{w.truth.transactions, 3 * time.Second}
		}}, "and is not late"},
		"guards whose decisions come to stand late": {trial{fair: true, broken: func(w *world) {
			w.truth.transactions = slow{w.truth.transactions, time.Second}
		}}, "I4: "},
		"a step that buries what is no poison": {trial{broken: func(w *world) {
			w.truth.refuses = func(d store.Decide) bool { return strings.HasPrefix(d.ID, "t03") && d.Decision != txn.Review }
		}}, "is no poison and was buried by persist: exhausted"},
		"a count of attempts that runs ahead": {trial{broken: func(w *world) { w.broker.counts = true }}, "is no poison"},
		"a webhook with another score": {trial{broken: func(w *world) {
			w.garbles = func(row *store.Delivery) {
				row.Body = bytes.Replace(row.Body, []byte(`"score":`), []byte(`"score":1`), 1)
			}
		}}, "I8: the webhook"},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := uint64(1); seed <= seeds; seed++ {
				v.seed = seed
				_, faults := v.run(t)
				if i := slices.IndexFunc(faults, func(f string) bool { return strings.Contains(f, v.sees) }); i >= 0 {
					t.Log("seed " + strconv.FormatUint(seed, 10) + ": " + faults[i])
					return
				}
			}
			t.Errorf("%d seeds see nothing wrong", seeds)
		})
	}
}
