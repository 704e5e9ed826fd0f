package keeper_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/prometheus/client_golang/prometheus"

	"crivo/pkg/stage"
	"crivo/pkg/txn"
	"crivo/services/store"
	"crivo/streams"
)

// told lists whose decisions are in TX_DECIDED.
func (w *world) told() (out []string) {
	w.Helper()
	s, err := w.js.Stream(w.Context(), streams.Decided)
	if err != nil {
		return nil
	}
	state := s.CachedInfo().State
	for n := state.FirstSeq; state.Msgs > 0 && n <= state.LastSeq; n++ {
		m, err := s.GetMsg(w.Context(), n)
		w.must(err)
		i, err := streams.ReadIdent(m.Header)
		w.must(err)
		out = append(out, i.ID)
	}
	slices.Sort(out)
	return out
}

// The broker loses its disk after persist stored decisions and before notify took up all of them.
func TestWhatALostBrokerHadToTellIsToldAgain(t *testing.T) {
	w := newWorld(t)
	recent, old := newClaim("recent"), newClaim("old")
	old.AcceptedAt = start.Add(-time.Hour)
	w.claim(recent, old)
	w.decide(false, recent, old)
	stop := w.run()
	w.until("a note of the place", func() bool {
		_, err := w.notes.State(w.Context(), "keeper/heard")
		return err == nil
	})
	w.rounds(3)
	if got := w.told(); len(got) != 0 {
		t.Fatalf("told without a reason: %v", got)
	}
	stop()
	w.must(w.js.DeleteStream(w.Context(), streams.Decided))
	w.forward(3 * time.Minute)
	w.registry = prometheus.NewRegistry()
	w.shell.Metrics = w.registry
	w.run()
	w.until("the recent one", func() bool { return slices.Equal(w.told(), []string{"recent"}) })
	w.rounds(3)
	if got := w.told(); len(got) != 1 {
		t.Errorf("told %v", got)
	}
}

// Another keeper told again what a lost broker had to tell, and noted it. Whose turn comes after it goes by that note, and not by what
// it knew of an earlier turn.
func TestATurnGoesByTheNewestNote(t *testing.T) {
	w := newWorld(t)
	c := newClaim("a")
	w.claim(c)
	w.decide(false, c)
	w.run()
	w.until("a note of the place", func() bool {
		_, err := w.notes.State(t.Context(), "keeper/heard")
		return err == nil
	})
	w.rounds(2)
	bucket, err := w.js.KeyValue(t.Context(), streams.LeasesBucket)
	w.must(err)
	ctx, noted := context.WithCancel(t.Context())
	var another sync.WaitGroup
	another.Go(func() {
		for ok := true; ok; ok = stage.Sleep(ctx, 100*time.Millisecond) == nil {
			_, _ = bucket.Put(ctx, "keeper", []byte("another"))
		}
	})
	defer another.Wait()
	defer noted()
	w.until("another's turn", func() bool { return w.gauge("crivo_keeper_works") == 0 })
	w.must(w.js.DeleteStream(t.Context(), streams.Decided))
	w.provision()
	s, err := w.js.Stream(t.Context(), streams.Decided)
	w.must(err)
	note, err := json.Marshal(map[string]txn.Time{"created": txn.At(s.CachedInfo().Created), "until": txn.At(start)})
	w.must(err)
	w.must(w.notes.PutState(t.Context(), "keeper/heard", note))
	noted()
	another.Wait()
	w.must(bucket.Delete(t.Context(), "keeper"))
	w.until("its turn again", func() bool { return w.gauge("crivo_keeper_works") == 1 })
	w.rounds(3)
	if got := w.told(); len(got) != 0 {
		t.Errorf("told again: %v", got)
	}
}

// While notify has something left to take up, the place stays before it, however long that takes.
func TestThePlaceWaitsForNotify(t *testing.T) {
	w := newWorld(t)
	if _, err := streams.Ensure(t.Context(), w.js, w.layout); err != nil {
		t.Fatal(err)
	}
	c := newClaim("a")
	w.claim(c)
	w.decide(false, c)
	w.publish(outputs(streams.EventDecided, func(c store.Claim) []byte { return decided(c, txn.Approve) }, claims("x", 3))...)
	w.acknowledge(streams.Notify, 1)
	stop := w.run()
	defer stop()
	s, err := w.js.Stream(t.Context(), streams.Decided)
	w.must(err)
	second, err := s.GetMsg(t.Context(), 2)
	w.must(err)
	w.forward(time.Since(start) + time.Hour) // messages bear the broker's time, which is the machine's here
	var until time.Time
	w.until("a place at the oldest one that notify has not acknowledged", func() bool {
		data, err := w.notes.State(t.Context(), "keeper/heard")
		var place struct {
			Until time.Time `json:"until"`
		}
		if err != nil || json.Unmarshal(data, &place) != nil {
			return false
		}
		until = place.Until
		return until.Equal(second.Time.UTC().Truncate(time.Millisecond))
	})
	w.rounds(3)
	w.acknowledge(streams.Notify, 2)
	w.forward(time.Since(start) + 2*time.Hour)
	w.until("a place that moves on", func() bool {
		data, err := w.notes.State(t.Context(), "keeper/heard")
		var place struct {
			Until time.Time `json:"until"`
		}
		return err == nil && json.Unmarshal(data, &place) == nil && place.Until.After(until)
	})
}
