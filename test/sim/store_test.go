package sim_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"crivo/services/enrich"
	"crivo/services/store"
	"crivo/services/store/memory"
)

// transactions is what the simulated stores stand on: see keeper.Transactions, edge.Transactions, persist.Transactions.
type transactions interface {
	Claim(ctx context.Context, claims []store.Claim) ([]store.Claimed, error)
	Get(ctx context.Context, key store.Key) (store.Entry, error)
	Raise(ctx context.Context, r store.Raise) (store.Entry, error)
	Decide(ctx context.Context, decides []store.Decide) ([]store.Outcome, error)
	Overdue(ctx context.Context, t time.Time, limit int) ([]store.Entry, error)
	Unannounced(ctx context.Context, t time.Time, limit int) ([]store.Entry, error)
	Announced(ctx context.Context, keys []store.Key) error
	Undecided(ctx context.Context, keys []store.Key) ([]store.Key, error)
	Search(ctx context.Context, q store.Query) ([]store.Found, string, error)
	Dispose(ctx context.Context, key store.Key, d store.Disposition) (store.Entry, error)
	Ping(ctx context.Context) error
}

// recorded remembers every decision that a store ever held, and since when.
type recorded struct {
	transactions
	refuses func(store.Decide) bool // what the store will never take

	mu        sync.Mutex
	claimed   map[store.Key]time.Time // when it was
	decisions map[store.Key][]string  // distinct, in order
	held      map[store.Key]time.Time // since when there is a decision, whatever its stamp says
	behind    map[store.Key]bool      // written when whoever asked for it had given up
}

func newRecorded(t transactions) *recorded {
	return &recorded{transactions: t, claimed: map[store.Key]time.Time{}, decisions: map[store.Key][]string{}, held: map[store.Key]time.Time{},
		behind: map[store.Key]bool{}}
}

func (r *recorded) Claim(ctx context.Context, claims []store.Claim) ([]store.Claimed, error) {
	out, err := r.transactions.Claim(ctx, claims)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range out {
		if r.claimed[c.Entry.Key].IsZero() {
			r.claimed[c.Entry.Key] = time.Now()
		}
	}
	return out, err
}

func (r *recorded) Decide(ctx context.Context, decides []store.Decide) ([]store.Outcome, error) {
	out := make([]store.Outcome, len(decides))
	for i, d := range decides {
		if r.refuses != nil && r.refuses(d) {
			out[i].Err = store.ErrRefused
			continue
		}
		one, err := r.transactions.Decide(ctx, decides[i:i+1])
		if err != nil {
			return nil, err
		}
		out[i] = one[0]
		if e := out[i].Entry; e.Decided() {
			r.mu.Lock()
			if held := r.decisions[e.Key]; len(held) == 0 || held[len(held)-1] != string(e.Event) {
				r.decisions[e.Key] = append(held, string(e.Event))
			}
			if r.held[e.Key].IsZero() {
				r.held[e.Key] = time.Now()
			}
			r.mu.Unlock()
		}
	}
	return out, nil
}

// decided tells whether a decision of an id stands.
func (r *recorded) decided(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.held[store.Key{Tenant: tenant, ID: id}].IsZero()
}

// late notes that a decision came to stand when whoever asked for it had given up.
func (r *recorded) late(o store.Outcome) {
	if o.Status == store.DecidedNow {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.behind[o.Entry.Key] = true
	}
}

// sky is whether the stores can be reached at all.
type sky struct {
	mu    sync.Mutex
	down  time.Time // refuses until then
	hangs time.Time // does not answer until then

	writes atomic.Int64 // under way, also those that nobody waits for any more
}

func (s *sky) is() (down, hangs bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	return now.Before(s.down), now.Before(s.hangs)
}

// handle is one incarnation's way to the stores; it leads nowhere once that is dead.
type handle struct {
	w    *world
	name string
	dead atomic.Bool
}

var (
	errDead = errors.New("the process is dead")
	errDown = errors.New("the store is down")
)

// call makes one call of a store. write does n things, any of which may be done when the call fails; nil is a read. What is done
// late is done after the caller gave up: it is under way in the store.
func (h *handle) call(ctx context.Context, thing string, n int, write func(i int)) error {
	d, o := h.w.dice, h.w.odds()
	thing = h.name + " " + thing
	if n > 0 {
		h.w.sky.writes.Add(1)
		defer h.w.sky.writes.Add(-1)
	}
	if err := h.pass(ctx, d.between(100*time.Microsecond, 3*time.Millisecond, "store "+thing)); err != nil {
		return err
	}
	switch down, hangs := h.w.sky.is(); {
	case down:
		return errDown
	case hangs:
		return h.silence(ctx)
	case d.hits(o.storeFails, "fails "+thing):
		h.w.tracef("%s fails", thing)
		return errDown
	case d.hits(o.storeHangs, "hangs "+thing):
		h.hang(thing, n, write)
		return h.silence(ctx)
	}
	for i := range n {
		write(i)
	}
	if n > 0 && d.hits(o.storeCrash, "dies "+thing) {
		h.w.tracef("%s is written, and its writer dies", thing)
		h.w.kill(h.name)
		return errDead
	}
	return h.pass(ctx, d.between(10*time.Microsecond, 500*time.Microsecond, "answer "+thing))
}

// silence is no answer at all, until the caller gives up or, at last, the driver does.
func (h *handle) silence(ctx context.Context) error {
	if err := h.pass(ctx, time.Minute); err != nil {
		return err
	}
	return errDown
}

// hang has each write happen now, later, or never.
func (h *handle) hang(thing string, n int, write func(i int)) {
	for i := range n {
		one := fmt.Sprintf("%s %d", thing, i)
		switch h.w.dice.about("hung " + one).IntN(3) {
		case 0:
			write(i)
			h.w.tracef("%s is written and not heard of", one)
		case 1:
			h.w.sky.writes.Add(1)
			time.AfterFunc(h.w.dice.between(0, 4*time.Second, "late "+one), func() {
				write(i)
				h.w.sky.writes.Add(-1)
				h.w.tracef("%s is written late", one)
			})
		default:
			h.w.tracef("%s is not written", one)
		}
	}
}

// pass lets time pass; the error is the caller's end.
func (h *handle) pass(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	if h.dead.Load() {
		return errDead
	}
	return nil
}

// The transaction store. What it did is decided before its answer is under way.

func (h *handle) Claim(ctx context.Context, claims []store.Claim) ([]store.Claimed, error) {
	out := make([]store.Claimed, len(claims))
	err := h.call(ctx, "claim "+keysOf(claims, func(c store.Claim) store.Key { return c.Key }), len(claims), func(i int) {
		one, _ := h.w.truth.Claim(context.Background(), claims[i:i+1])
		out[i] = one[0]
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (h *handle) Decide(ctx context.Context, decides []store.Decide) ([]store.Outcome, error) {
	if h.w.stuck != nil && slices.ContainsFunc(decides, h.w.stuck) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	out := make([]store.Outcome, len(decides))
	var over atomic.Bool
	defer over.Store(true)
	err := h.call(ctx, "decide "+keysOf(decides, func(d store.Decide) store.Key { return d.Key }), len(decides), func(i int) {
		one, _ := h.w.truth.Decide(context.Background(), decides[i:i+1])
		if out[i] = one[0]; over.Load() {
			h.w.truth.late(one[0])
		}
	})
	if err != nil {
		return nil, err
	}
	for _, o := range out {
		h.w.tracef("%s: decide %s is %q run %d %v", h.name, o.Entry.ID, o.Status, o.Entry.Run, o.Err)
	}
	return out, nil
}

func (h *handle) Raise(ctx context.Context, r store.Raise) (store.Entry, error) {
	var e store.Entry
	var guard error
	if err := h.call(ctx, "raise "+r.ID, 1, func(int) { e, guard = h.w.truth.Raise(context.Background(), r) }); err != nil {
		return store.Entry{}, err
	}
	h.w.tracef("%s: raise %s from %d: %v", h.name, r.ID, r.FromRun, guard)
	return e, guard
}

func (h *handle) Announced(ctx context.Context, keys []store.Key) error {
	return h.call(ctx, "announced "+keysOf(keys, func(k store.Key) store.Key { return k }), 1, func(int) { _ = h.w.truth.Announced(context.Background(), keys) })
}

func (h *handle) Get(ctx context.Context, key store.Key) (store.Entry, error) {
	if err := h.call(ctx, "get "+key.ID, 0, nil); err != nil {
		return store.Entry{}, err
	}
	return h.w.truth.Get(ctx, key)
}

func (h *handle) Dispose(ctx context.Context, key store.Key, d store.Disposition) (store.Entry, error) {
	var e store.Entry
	var guard error
	if err := h.call(ctx, "dispose "+key.ID, 1, func(int) { e, guard = h.w.truth.Dispose(context.Background(), key, d) }); err != nil {
		return store.Entry{}, err
	}
	return e, guard
}

func (h *handle) Overdue(ctx context.Context, t time.Time, limit int) ([]store.Entry, error) {
	if err := h.call(ctx, "overdue", 0, nil); err != nil {
		return nil, err
	}
	return h.w.truth.Overdue(ctx, t, limit)
}

func (h *handle) Unannounced(ctx context.Context, t time.Time, limit int) ([]store.Entry, error) {
	if err := h.call(ctx, "unannounced", 0, nil); err != nil {
		return nil, err
	}
	return h.w.truth.Unannounced(ctx, t, limit)
}

func (h *handle) Undecided(ctx context.Context, keys []store.Key) ([]store.Key, error) {
	if err := h.call(ctx, "undecided", 0, nil); err != nil {
		return nil, err
	}
	return h.w.truth.Undecided(ctx, keys)
}

func (h *handle) Search(ctx context.Context, q store.Query) ([]store.Found, string, error) {
	if err := h.call(ctx, "search", 0, nil); err != nil {
		return nil, "", err
	}
	return h.w.truth.Search(ctx, q)
}

func (h *handle) Ping(ctx context.Context) error { return h.call(ctx, "ping", 0, nil) }

func keysOf[T any](all []T, key func(T) store.Key) string {
	ids := make([]string, len(all))
	for i, x := range all {
		ids[i] = key(x).ID
	}
	return strings.Join(ids, " ")
}

// deliveries is the delivery store: rows are made, and none is ever sent, since the one endpoint is paused.
type deliveries struct {
	*memory.Deliveries
	h *handle
}

func (d deliveries) Insert(ctx context.Context, rows []store.Delivery) ([]bool, error) {
	if d.h.w.garbles != nil {
		for i := range rows {
			d.h.w.garbles(&rows[i])
		}
	}
	var out []bool
	err := d.h.call(ctx, "insert "+keysOf(rows, func(r store.Delivery) store.Key { return store.Key{ID: r.TransactionID} }), 1, func(int) {
		out, _ = d.Deliveries.Insert(context.Background(), rows)
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// features is a feature store without windows: how often and how much, ever. A poisoned transaction makes the step that counts
// it panic.
type features struct {
	mu      sync.Mutex
	applied map[string]bool
	counts  map[string]int64
	sums    map[string]int64
	first   map[string]time.Time
}

func newFeatures() *features {
	return &features{applied: map[string]bool{}, counts: map[string]int64{}, sums: map[string]int64{}, first: map[string]time.Time{}}
}

func (f *features) read(e enrich.Event, count bool) []enrich.History {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]enrich.History, len(e.Entities))
	for i, entity := range e.Entities {
		if count && !f.applied[e.Key] {
			f.counts[entity.Key]++
			f.sums[entity.Key] += e.Amount
		}
		h := enrich.History{Known: true, First: e.At}
		for range enrich.Windows {
			h.Counts, h.Sums = append(h.Counts, f.counts[entity.Key]), append(h.Sums, f.sums[entity.Key])
		}
		out[i] = h
	}
	f.applied[e.Key] = f.applied[e.Key] || count
	return out
}

// seen is one incarnation's way to the features.
type seen struct{ h *handle }

func (s seen) Apply(ctx context.Context, events []enrich.Event) ([][]enrich.History, error) {
	return s.ask(ctx, events, true)
}

func (s seen) Peek(ctx context.Context, events []enrich.Event) ([][]enrich.History, error) {
	return s.ask(ctx, events, false)
}

func (s seen) ask(ctx context.Context, events []enrich.Event, count bool) ([][]enrich.History, error) {
	d := s.h.w.dice
	if len(events) == 0 {
		return nil, nil
	}
	thing := s.h.name + " features " + events[0].Key
	wait := d.between(50*time.Microsecond, time.Millisecond, thing)
	if d.hits(s.h.w.odds().featureFails, "slow "+thing) {
		wait = d.between(50*time.Millisecond, time.Second, "how slow "+thing)
	}
	if err := s.h.pass(ctx, wait); err != nil {
		return nil, err
	}
	out := make([][]enrich.History, len(events))
	for i, e := range events {
		if count && strings.HasSuffix(e.Key, poisonsEnrich) {
			panic("poison")
		}
		out[i] = s.h.w.features.read(e, count)
	}
	return out, nil
}

// What the end of an id does.
const (
	poisonsEnrich  = "-panics"
	poisonsPersist = "-refused"
)
