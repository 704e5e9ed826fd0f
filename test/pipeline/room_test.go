package pipeline_test

import (
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"crivo/services/feed"
	"crivo/streams"
	"crivo/test/system"
)

// A stream's budget is filled more than once with finished work: the oldest goes, and all is taken. Who comes faster than room is
// looked for is asked to come again.
func TestF07FinishedWorkMakesRoom(t *testing.T) {
	const budget = 2 << 20
	s := system.New(t, system.Options{NATS: true, Args: []string{"--stream-bytes", fmt.Sprint(budget)}})
	var sent, made atomic.Int64
	source, lock := feed.NewSynthetic("room", 1), sync.Mutex{}
	next := func() feed.Row {
		lock.Lock()
		defer lock.Unlock()
		return source.Next(time.Now())
	}
	var workers sync.WaitGroup
	for range 24 { // they share the disk's syncs
		workers.Go(func() {
			for sent.Load() < budget*3/2 && !t.Failed() {
				row := next()
				a, err := s.Ask(t.Context(), http.MethodPost, "/v1/transactions", row.Body, "Prefer", "wait=10")
				if err != nil || a.Status/100 != 2 {
					t.Errorf("after %d transactions: %d %s %v", made.Load(), a.Status, a.Body, err)
					return
				}
				sent.Add(stored)
				made.Add(1)
			}
		})
	}
	workers.Wait()
	if first := firstSequence(t, s); first < 2 {
		t.Errorf("%d transactions, and %s still begins at %d: the budget was not reached", made.Load(), streams.Submitted, first)
	}
}

// stored is less than what one transaction takes up in TX_SUBMITTED.
const stored = 1500

func firstSequence(t *testing.T, s *system.System) uint64 {
	t.Helper()
	_, js := s.Connect(t)
	stream, err := js.Stream(t.Context(), streams.Submitted)
	if err != nil {
		t.Fatal(err)
	}
	state := stream.CachedInfo().State
	t.Logf("%d messages of %d bytes, from sequence %d", state.Msgs, state.Bytes/max(1, state.Msgs), state.FirstSeq)
	return state.FirstSeq
}
