// Package storetest holds one suite per port; every room that implements a port passes it.
package storetest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"crivo/services/enrich"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// Features checks a feature store against a model that keeps every event and counts anew each time. reopen must return a
// store on the same data after a sudden end of the former.
func Features(t *testing.T, reopen func(t *testing.T) enrich.Features) {
	ctx := context.Background()
	for _, seed := range []uint64{1, 2, 3} {
		t.Run(fmt.Sprint("windows are exact, seed ", seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 7))
			f, m := reopen(t), model{}
			tenant := fmt.Sprint("t", seed)
			for round := range 60 {
				batch := make([]enrich.Event, 1+random.IntN(8))
				for i := range batch {
					batch[i] = randomEvent(random, tenant, round)
				}
				got, err := f.Apply(ctx, batch)
				if err != nil {
					t.Fatal(err)
				}
				for i, e := range batch {
					if diff := cmp.Diff(m.apply(e), got[i]); diff != "" {
						t.Fatalf("round %d, %s: %s", round, e.Key, diff)
					}
				}
				if round%20 == 19 {
					f = reopen(t)
				}
			}
		})
	}
	t.Run("tenants and roles are apart", func(t *testing.T) {
		f := reopen(t)
		for i, key := range []string{"a/payer/x", "b/payer/x", "a/payee/x"} {
			got, err := f.Apply(ctx, []enrich.Event{{Key: fmt.Sprint("apart/", i), At: noon, Amount: 5, Entities: []enrich.Entity{{Role: "r", Key: key}}}})
			if err != nil || got[0][0].Counts[0] != 1 {
				t.Errorf("%s: %v, %v", key, got, err)
			}
		}
	})
}

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
		h := enrich.History{Counts: make([]int64, len(enrich.Windows)), Sums: make([]int64, len(enrich.Windows)), First: time.UnixMilli(1 << 60)}
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
