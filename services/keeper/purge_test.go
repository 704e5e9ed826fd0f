package keeper_test

import (
	"bytes"
	"slices"
	"testing"

	"crivo/pkg/stage"
	"crivo/services/store"
	"crivo/streams"
)

// each is the size of a test's messages: some 350 of them, with their headers, fill a MiB.
var each = bytes.Repeat([]byte("x"), 2600)

func big(store.Claim) []byte { return each }

func eventOf(spec stage.Spec) string {
	return map[string]string{streams.Submitted: streams.EventSubmitted, streams.Enriched: streams.EventEnriched, streams.Validated: streams.EventValidated,
		streams.Scored: streams.EventScored, streams.Decided: streams.EventDecided}[spec.Stream]
}

// full provisions a stream that n messages fill, of which the first are acknowledged and decided, but for the one at open.
func (w *world) full(spec stage.Spec, n, acknowledged, decided, open int) {
	w.Helper()
	w.provision()
	all := claims("x", n)
	w.claim(all...)
	done := slices.Clone(all[:decided])
	if open >= 0 {
		done = slices.Delete(done, open, open+1)
	}
	w.decide(false, done...)
	w.publish(outputs(eventOf(spec), big, all)...)
	w.acknowledge(spec, acknowledged)
	w.fill(spec.Stream, 0.9)
}

func TestFinishedWorkMakesRoom(t *testing.T) {
	const n = 300
	for name, c := range map[string]struct {
		spec                        stage.Spec
		acknowledged, decided, open int // open is the place of one that is undecided, -1 for none
		least, most                 int // messages that are left
	}{
		"all submitted finished: about half is left": {streams.Enrich, n, n, -1, 150, 190},
		"all enriched finished":                      {streams.Validate, n, n, -1, 150, 190},
		"all validated finished":                     {streams.Score, n, n, -1, 150, 190},
		"all scored finished":                        {streams.Persist, n, n, -1, 150, 190},
		"all decided announced":                      {streams.Notify, n, n, -1, 150, 190},
		"the front undecided: all stays":             {streams.Enrich, n, n, 0, n, n},
		"the front of scored undecided: all stays":   {streams.Persist, n, n, 0, n, n},
		"one behind undecided: up to it goes":        {streams.Validate, n, n, 40, n - 40, n - 40},
		"none acknowledged: all stays":               {streams.Enrich, 0, n, -1, n, n},
		"some acknowledged: no more than they go":    {streams.Notify, 30, n, -1, n - 30, n - 30},
		"nothing decided: all stays":                 {streams.Score, n, 0, -1, n, n},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.full(c.spec, n, c.acknowledged, c.decided, c.open)
			w.run()
			if c.least < n {
				w.until("a purge", func() bool { return w.found("messages purged") > 0 })
			}
			w.rounds(1)
			state := w.state(c.spec.Stream)
			if left := int(state.Msgs); left < c.least || left > c.most {
				t.Errorf("%d messages left, want %d to %d", left, c.least, c.most)
			}
			if got := w.found("messages purged"); got != n-int(state.Msgs) {
				t.Errorf("%d counted as purged, %d are gone", got, n-int(state.Msgs))
			}
			if at := w.metric("crivo_replay_horizon_seconds", c.spec.Stream); int64(at) != state.FirstTime.Unix() {
				t.Errorf("horizon %v, the oldest message is of %v", at, state.FirstTime)
			}
		})
	}
}

// fill sets the layout's budget so that a stream is full to share.
func (w *world) fill(stream string, share float64) {
	w.Helper()
	used := float64(w.state(stream).Bytes)
	for _, c := range (streams.Layout{SubmittedBytes: 1}).Streams() {
		if c.Name == stream {
			w.layout.SubmittedBytes = int64(used / share / float64(c.MaxBytes))
		}
	}
}

func TestAStreamWithRoomIsLeftAlone(t *testing.T) {
	w := newWorld(t)
	w.full(streams.Enrich, 300, 300, 300, -1)
	w.fill(streams.Submitted, 0.69)
	w.run()
	w.rounds(2)
	if n := w.state(streams.Submitted).Msgs; n != 300 {
		t.Errorf("%d left", n)
	}
}

// Every durable must have done with a message, also one that came later.
func TestTheSlowestDurableHoldsThePurge(t *testing.T) {
	w := newWorld(t)
	w.provision()
	shadow := w.layout.Consumers()[streams.Validated]
	shadow.Name, shadow.Durable = "shadow", "shadow"
	_, err := w.js.CreateOrUpdateConsumer(w.Context(), streams.Validated, shadow)
	w.must(err)
	all := claims("x", 300)
	w.claim(all...)
	w.decide(false, all...)
	w.publish(outputs(streams.EventValidated, big, all)...)
	w.acknowledge(streams.Score, len(all))
	slow := streams.Score
	slow.Durable = "shadow"
	w.acknowledge(slow, 20)
	w.fill(streams.Validated, 0.9)
	w.run()
	w.until("a purge", func() bool { return w.state(streams.Validated).FirstSeq == 21 })
	w.rounds(2)
	if first := w.state(streams.Validated).FirstSeq; first != 21 {
		t.Errorf("purged up to %d", first)
	}
	w.acknowledge(slow, 280)
	// The keeper may look while half of that has come in: it is content with less than 70 %.
	w.until("room", func() bool { return w.state(streams.Validated).Msgs < 300*70/90 })
}

// What is undecided holds the purge only until it is decided.
func TestRoomIsMadeOnceTheFrontIsDecided(t *testing.T) {
	w := newWorld(t)
	w.provision()
	all := claims("x", 300)
	w.claim(all...)
	w.decide(false, all[1:]...)
	w.publish(outputs(streams.EventSubmitted, big, all)...)
	w.publish(stage.Output{Subject: streams.Subject(streams.EventSubmitted, "t"), ID: "nobody's", Data: each})
	w.acknowledge(streams.Enrich, len(all)+1)
	w.fill(streams.Submitted, 0.9)
	w.run()
	w.rounds(2)
	if n := w.state(streams.Submitted).Msgs; n != 301 {
		t.Fatalf("%d left", n)
	}
	w.decide(false, all[0])
	w.until("room", func() bool { return w.state(streams.Submitted).Msgs < 200 })
}

func TestNothingIsPurgedWithoutTheStoresWord(t *testing.T) {
	w := newWorld(t)
	w.full(streams.Notify, 300, 300, 300, -1)
	w.store.away.Store(true)
	w.run()
	w.rounds(2)
	if n := w.state(streams.Decided).Msgs; n != 300 {
		t.Fatalf("%d left: purged without the store's word", n)
	}
	w.store.away.Store(false)
	w.until("room", func() bool { return w.state(streams.Decided).Msgs < 200 })
}
