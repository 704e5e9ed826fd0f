// Package storetest holds one suite per port; every room that implements a port passes it.
package storetest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"crivo/services/enrich"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// Features checks a feature store against a model that keeps every event and counts anew each time. reopen must return a
// store on the same data after a sudden end of the former; beside another process's handle on the data of f, or f itself where
// there can be one only.
func Features(t *testing.T, reopen func(t *testing.T) enrich.Features, beside func(t *testing.T, f enrich.Features) enrich.Features) {
	for _, seed := range []uint64{1, 2, 3} {
		t.Run(fmt.Sprint("windows are exact, seed ", seed), func(t *testing.T) { exact(t, seed, reopen) })
	}
	t.Run("tenants and roles are apart", func(t *testing.T) { apart(t, reopen(t)) })
	for name, events := range map[string][]enrich.Event{
		"many at one moment":   series(90, 0, func(i int) (time.Duration, int64) { return time.Duration(i%3) * 5 * time.Minute, int64(i) }),
		"the first comes last": series(60, 0, func(i int) (time.Duration, int64) { return -time.Duration(i) * 7 * time.Minute, int64(i) }),
		"late by days":         series(90, 11, func(i int) (time.Duration, int64) { return time.Duration(i*37%90) * 8 * time.Hour, int64(i) }),
		"sums beyond 53 bits": series(40, 12, func(i int) (time.Duration, int64) {
			return time.Duration(i) * time.Second, 1_000_000_000_000_000 - int64(i)
		}),
		"nothing to add":                series(20, 13, func(i int) (time.Duration, int64) { return time.Duration(i*7%20) * time.Minute, 0 }),
		"more than two longest windows": series(250, 14, func(i int) (time.Duration, int64) { return time.Duration(i) * 14 * time.Hour, int64(i) }),
		"the same, a month out of order": series(250, 15, func(i int) (time.Duration, int64) {
			return time.Duration(i)*14*time.Hour - time.Duration(i%5)*7*24*time.Hour, int64(i)
		}),
		"from the epoch on": series(8, 21, func(i int) (time.Duration, int64) { return time.Unix(0, 0).Sub(noon) + time.Duration(i)*time.Minute, 5 }),
		"as many two windows late": series(8, 19, func(i int) (time.Duration, int64) {
			return time.Duration(i)*time.Hour - time.Duration(i%2)*61*24*time.Hour, 5
		}),
		"some that come two windows late, again and again": series(120, 20, func(i int) (time.Duration, int64) {
			return time.Duration(i)*24*time.Hour - time.Duration(i*7%5)*17*24*time.Hour, int64(i)
		}),
		"a total beyond 64 bits":          series(12, 16, func(i int) (time.Duration, int64) { return time.Duration(i) * 20 * 24 * time.Hour, 1<<62 - int64(i) }),
		"a total beyond 64 bits, shifted": series(8, 17, func(i int) (time.Duration, int64) { return -time.Duration(i) * 4 * time.Minute, 1<<61 - int64(i) }),
		"a quiet year, then again": series(8, 18, func(i int) (time.Duration, int64) {
			return time.Duration(i/4)*365*24*time.Hour + time.Duration(i)*time.Hour, 5
		}),
	} {
		t.Run(name, func(t *testing.T) { inOrder(t, reopen(t), events) })
	}
	t.Run("who only reads is told what is not counted yet", func(t *testing.T) { told(t, reopen(t)) })
	t.Run("many at once", func(t *testing.T) {
		f := reopen(t)
		atOnce(t, []enrich.Features{f, beside(t, f)})
	})
}

func exact(t *testing.T, seed uint64, reopen func(t *testing.T) enrich.Features) {
	random := rand.New(rand.NewPCG(seed, 7))
	f, m := reopen(t), model{}
	tenant := fmt.Sprint("t", seed)
	for round := range 60 {
		batch := make([]enrich.Event, 1+random.IntN(8))
		for i := range batch {
			batch[i] = randomEvent(random, tenant, round)
		}
		got := apply(t, f, batch)
		for i, e := range batch {
			if diff := cmp.Diff(m.apply(e), got[i]); diff != "" {
				t.Fatalf("round %d, %s: %s", round, e.Key, diff)
			}
		}
		if round%20 == 19 {
			f = reopen(t)
		}
	}
}

func apart(t *testing.T, f enrich.Features) {
	for i, key := range []string{"a/payer/x", "b/payer/x", "a/payee/x", "a/payer/x/y", "a/payer/x:t", "a-b/payer/x"} {
		e := enrich.Event{Key: fmt.Sprint("apart/", i), At: noon, Amount: 5, Entities: []enrich.Entity{{Role: "r", Key: key}}}
		if got := apply(t, f, []enrich.Event{e}); got[0][0].Counts[0] != 1 {
			t.Errorf("%s: %v", key, got)
		}
	}
}

func told(t *testing.T, f enrich.Features) {
	e := series(1, 22, func(int) (time.Duration, int64) { return 0, 5 })
	for _, counted := range []bool{false, true} {
		got, err := f.(enrich.Reader).Peek(t.Context(), e)
		if err != nil {
			t.Fatal(err)
		}
		for i, h := range got[0] {
			if h.Added == counted {
				t.Errorf("%s, counted %v: %+v", e[0].Entities[i].Role, counted, h)
			}
		}
		apply(t, f, e)
	}
}

// series makes n events of two entities.
func series(n int, name int, at func(i int) (after time.Duration, amount int64)) []enrich.Event {
	out := make([]enrich.Event, n)
	for i := range out {
		after, amount := at(i)
		out[i] = enrich.Event{Key: fmt.Sprint("t/", name, "-", i), At: noon.Add(after), Amount: amount, Entities: []enrich.Entity{
			{Role: "payer", Key: fmt.Sprint("t/payer/", name)}, {Role: "terminal", Key: fmt.Sprint("t/terminal/", i%2)}}}
	}
	return out
}

// inOrder applies events in two batches and one by one, and recent ones once more: an event is kept by id for the longest window.
func inOrder(t *testing.T, f enrich.Features, events []enrich.Event) {
	m, newest := model{}, noon
	batches := [][]enrich.Event{events[:len(events)/4], events[len(events)/4 : len(events)/2]}
	for i := len(events) / 2; i < len(events); i++ {
		batches = append(batches, events[i:i+1], events[i-i%9:i-i%9+1])
	}
	for _, batch := range batches {
		if _, again := m[batch[0].Key]; again && !batch[0].At.After(newest.Add(-enrich.Windows[len(enrich.Windows)-1].Span)) {
			continue
		}
		got := apply(t, f, batch)
		for i, e := range batch {
			if e.At.After(newest) {
				newest = e.At
			}
			if diff := cmp.Diff(reaching(m.apply(e), got[i], e.At), reaching(got[i], got[i], e.At)); diff != "" {
				t.Fatalf("%s at %v: %s", e.Key, e.At, diff)
			}
		}
	}
}

// reaching leaves of histories what a store on whose word they are compared still tells: it may forget what is older than
// two longest windows before an entity's newest event, and then says so. First is compared where it tells of a longest window.
func reaching(histories, told []enrich.History, at time.Time) []enrich.History {
	out := make([]enrich.History, len(histories))
	for i, h := range histories {
		out[i] = enrich.History{Known: told[i].Known, First: h.First}
		for w, window := range enrich.Windows {
			if at.Add(-window.Span).Before(told[i].Since) {
				out[i].First = time.Time{}
				continue
			}
			out[i].Counts, out[i].Sums = append(out[i].Counts, h.Counts[w]), append(out[i].Sums, h.Sums[w])
		}
	}
	return out
}

// atOnce has many goroutines apply overlapping batches in different orders; then every window is what it would be had one
// applied them.
func atOnce(t *testing.T, handles []enrich.Features) {
	random := rand.New(rand.NewPCG(4, 7))
	events, m := make([]enrich.Event, 400), model{}
	for i := range events {
		events[i] = enrich.Event{Key: fmt.Sprint("t/", i), At: noon.Add(time.Duration(random.IntN(3000)) * time.Second), Amount: int64(random.IntN(1000)),
			Entities: []enrich.Entity{{Role: "payer", Key: fmt.Sprint("t/payer/", i%7)}, {Role: "terminal", Key: "t/terminal/all"}}}
		m.apply(events[i])
	}
	var all sync.WaitGroup
	for worker := range 8 {
		order := random.Perm(len(events))
		all.Go(func() {
			for len(order) > 0 {
				n := min(len(order), 4)
				batch := make([]enrich.Event, n)
				for i := range batch {
					batch[i] = events[order[i]]
				}
				order = order[n:]
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				if _, err := handles[worker%len(handles)].Apply(ctx, batch); err != nil {
					t.Error(err)
				}
				cancel()
			}
		})
	}
	all.Wait()
	for i, got := range apply(t, handles[0], events) {
		if diff := cmp.Diff(m.apply(events[i]), got); diff != "" {
			t.Fatalf("%s: %s", events[i].Key, diff)
		}
	}
}

// apply applies events; what is read of a single one before and after must be the same, by whoever only reads.
func apply(t *testing.T, f enrich.Features, events []enrich.Event) [][]enrich.History {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	reader := f.(enrich.Reader)
	before, err := reader.Peek(ctx, events)
	if err != nil {
		t.Fatal(err)
	}
	got, err := f.Apply(ctx, events)
	if err != nil {
		t.Fatal(err)
	}
	after, err := reader.Peek(ctx, events)
	if err != nil {
		t.Fatal(err)
	}
	if len(events) == 1 {
		for when, peeked := range map[string][][]enrich.History{"before": before, "after": after} {
			if diff := cmp.Diff(reaching(got[0], got[0], events[0].At), reaching(peeked[0], got[0], events[0].At)); diff != "" {
				t.Fatalf("peeked %s %s: %s", when, events[0].Key, diff)
			}
		}
	}
	return got
}

// patience is for a store on a busy machine.
const patience = 10 * time.Second

// randomEvent lies within 25 days, mostly in order; one in ten is a repeat of an earlier key.
func randomEvent(r *rand.Rand, tenant string, round int) enrich.Event {
	at := noon.Add(time.Duration(round) * 10 * time.Hour).Add(-time.Duration(r.IntN(3)*r.IntN(400)) * time.Minute)
	n := r.IntN(1 << 20)
	if r.IntN(10) == 0 {
		n = r.IntN(4)
		at = noon.Add(time.Duration(n) * time.Hour)
	}
	e := enrich.Event{Key: fmt.Sprintf("%s/%d", tenant, n), At: at.Truncate(time.Second), Amount: int64(r.IntN(1000)), Sequence: uint64(n)}
	for _, role := range []string{"payer", "terminal"} {
		e.Entities = append(e.Entities, enrich.Entity{Role: role, Key: fmt.Sprintf("%s/%s/%d", tenant, role, n%3)})
	}
	if n < 4 {
		e.Amount = int64(n) // a repeat is the same event
	}
	return e
}

// model is the specification: every event kept, every window counted by looking at all.
type model map[string]enrich.Event

func (m model) apply(e enrich.Event) []enrich.History {
	if _, ok := m[e.Key]; !ok {
		m[e.Key] = e
	}
	out := make([]enrich.History, len(e.Entities))
	for i, entity := range e.Entities {
		h := enrich.History{Known: true, Counts: make([]int64, len(enrich.Windows)), Sums: make([]int64, len(enrich.Windows)), First: time.UnixMilli(1 << 60)}
		for _, x := range m {
			for _, y := range x.Entities {
				if y.Key != entity.Key {
					continue
				}
				if x.At.Before(h.First) {
					h.First = time.UnixMilli(x.At.UnixMilli())
				}
				for w, window := range enrich.Windows {
					if !x.At.After(e.At) && x.At.After(e.At.Add(-window.Span)) {
						h.Counts[w]++
						h.Sums[w] += x.Amount
					}
				}
			}
		}
		out[i] = h
	}
	return out
}
