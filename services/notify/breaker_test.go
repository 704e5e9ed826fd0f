package notify_test

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/prometheus/client_golang/prometheus"

	"crivo/services/store"
	"crivo/services/store/memory"
	"crivo/streams"
)

// breaker is what an edge would show.
func (w *world) breaker(endpoint string) string {
	w.Helper()
	text, _ := w.registry.State(w.Context(), store.BreakersState)
	all, err := store.ReadBreakers(text)
	w.must(err)
	if b, ok := all[endpoint]; ok {
		return b.State
	}
	return store.BreakerClosed
}

// stands puts what another process left of breakers.
func (w *world) stands(all map[string]store.Breaker) {
	w.Helper()
	text, err := json.Marshal(all)
	w.must(err)
	w.must(w.registry.PutState(w.Context(), store.BreakersState, text))
}

func (w *world) isBreaker(endpoint, state string) {
	w.Helper()
	w.until("a breaker "+state, func() bool { return w.breaker(endpoint) == state })
}

// polled waits until every process has looked for what is due.
func (w *world) polled() {
	w.Helper()
	before := w.deliveries.polls.Load()
	w.until("polls", func() bool { return w.deliveries.polls.Load() > before+9 })
}

// freeze stops the clock, so that only later moves it: however slow this machine is, nothing is due before its time.
func (w *world) freeze() { w.frozen.Store(time.Now().UnixNano()) }

// later moves the clock on.
func (w *world) later(by time.Duration) { w.ahead.Add(int64(by)) }

// types counts what a receiver was told, by event type.
func (r *receiver) types(t *testing.T) map[string]int {
	t.Helper()
	out := map[string]int{}
	for _, g := range r.all() {
		var body struct {
			Type string `json:"type"`
		}
		if err := json.Unmarshal(g.body, &body); err != nil {
			t.Fatal(err)
		}
		out[body.Type]++
	}
	return out
}

// W18, with two processes: what failed opens the breaker, what is owed waits untried, one probe an interval whichever process
// makes it, a success closes it.
func TestW18ABreakerOpensProbesAndCloses(t *testing.T) {
	w := newWorld(t)
	w.freeze()
	w.config.Schedule = nil
	var healthy atomic.Bool
	answers := make(chan bool)
	var probing atomic.Bool
	broken := newReceiver(t, func(rw http.ResponseWriter, _ *http.Request, _ int) {
		if probing.Load() {
			<-answers
		}
		if !healthy.Load() {
			rw.WriteHeader(http.StatusInternalServerError)
		}
	})
	watcher := newReceiver(t, nil)
	w.endpoint("e", broken.URL)
	w.endpoint("watcher", watcher.URL, func(e *store.Endpoint) { e.Events = []string{"endpoint.*"} })
	w.run()
	w.another()
	w.decide(ids("x", 100)...)
	w.isBreaker("e", store.BreakerOpen)
	waiting := func() (tried int) {
		for _, row := range w.rows("e") {
			tried += len(row.Attempts)
		}
		return tried
	}
	w.until("all tries ended", func() bool { return len(w.rows("e")) == 100 && waiting() == len(broken.all()) })
	w.polled()
	sent := len(broken.all())
	if sent < 10 || sent == 100 {
		t.Errorf("%d requests", sent)
	}
	w.decide(ids("y", 20)...)
	w.until("rows that wait", func() bool { return len(w.rows("e")) == 120 })
	w.polled()
	if n := len(broken.all()); n != sent {
		t.Errorf("%d requests while open", n-sent)
	}
	w.ended("watcher", 1, store.Delivered)
	probing.Store(true)
	for range 2 {
		sent++
		w.later(11 * time.Second)
		w.until("a probe", func() bool { return len(broken.all()) == sent })
		w.isBreaker("e", store.BreakerHalfOpen)
		w.polled()
		if n := len(broken.all()); n != sent {
			t.Errorf("%d probes at once", n-sent+1)
		}
		answers <- true
		w.isBreaker("e", store.BreakerOpen)
	}
	for _, row := range w.rows("e") {
		if row.Status != store.Pending || len(row.Attempts) > 2 {
			t.Errorf("%s after %d attempts", row.Status, len(row.Attempts))
		}
	}
	if w.polled(); waiting() != sent {
		t.Errorf("%d attempts for %d requests", waiting(), sent)
	}
	healthy.Store(true)
	w.later(11 * time.Second)
	close(answers)
	w.isBreaker("e", store.BreakerClosed)
	w.ended("watcher", 2, store.Delivered) // what was under way when the clock leaps would lose its lease, and come twice
	w.later(10 * time.Minute)              // whoever was tried twice is due again
	w.ended("e", 120, store.Delivered)
	if got := fmt.Sprint(watcher.types(t)); got != "map[endpoint.breaker_closed:1 endpoint.breaker_opened:1]" {
		t.Error(got)
	}
	for _, g := range watcher.all() {
		if !strings.Contains(string(g.body), `"data":{"endpoint_id":"e"}`) {
			t.Errorf("%s", g.body)
		}
	}
	if n := len(broken.types(t)); n != 1 {
		t.Errorf("the broken one heard of itself: %v", broken.types(t))
	}
}

func TestW18FewerFailuresThanTheThresholdOpenNothing(t *testing.T) {
	w := newWorld(t)
	w.config.Schedule = []time.Duration{0}
	r := newReceiver(t, func(rw http.ResponseWriter, _ *http.Request, n int) {
		if n > 30 {
			rw.WriteHeader(http.StatusInternalServerError)
		}
	})
	w.endpoint("e", r.URL)
	w.run()
	w.decide(ids("x", 30)...)
	w.ended("e", 30, store.Delivered)
	w.decide(ids("y", 20)...)
	w.until("the rest", func() bool { return len(r.all()) == 50 })
	if got := w.breaker("e"); got != store.BreakerClosed {
		t.Error(got)
	}
}

func TestW18TheBreakerOfADeadProberIsProbedByAnother(t *testing.T) {
	w := newWorld(t)
	r := newReceiver(t, nil)
	w.endpoint("e", r.URL)
	now := time.Now()
	w.stands(map[string]store.Breaker{"e": {State: store.BreakerHalfOpen, Since: now.UnixMilli(), Until: now.Add(time.Hour).UnixMilli()}})
	w.run()
	w.decide("x")
	w.until("a row", func() bool { return len(w.rows("e")) == 1 })
	w.polled()
	if n := len(r.all()); n != 0 {
		t.Errorf("%d requests beside the probe", n)
	}
	w.later(2 * time.Hour)
	w.ended("e", 1, store.Delivered)
	w.isBreaker("e", store.BreakerClosed)
}

func TestW18AnEndpointThatFailsForDaysIsDisabled(t *testing.T) {
	w := newWorld(t)
	r, watcher := newReceiver(t, status(http.StatusInternalServerError)), newReceiver(t, nil)
	w.endpoint("e", r.URL)
	w.endpoint("watcher", watcher.URL, func(e *store.Endpoint) { e.Events = []string{"endpoint.disabled"} })
	now := time.Now()
	w.stands(map[string]store.Breaker{"e": {State: store.BreakerOpen, Since: now.Add(-121 * time.Hour).UnixMilli(), Until: now.UnixMilli()}})
	w.config.Schedule = nil
	w.run()
	w.decide(ids("x", 20)...)
	w.until("disabled", func() bool { return w.endpointStatus("e") == "disabled" })
	w.until("nothing is owed", func() bool { // what was decided after that made no row
		rows := w.rows("e")
		return len(rows) > 0 && !slices.ContainsFunc(rows, func(r store.Delivery) bool { return r.Status != store.Skipped })
	})
	w.ended("watcher", 1, store.Delivered)
	if n, body := len(r.all()), string(watcher.all()[0].body); n != 1 || !strings.Contains(body, `"data":{"endpoint_id":"e","cause":"failing"}`) {
		t.Errorf("%d requests, told %s", n, body)
	}
	w.isBreaker("e", store.BreakerClosed) // it would begin afresh
}

// W07: the others hear of it, once; the endpoint itself does not.
func TestW07OthersAreToldOfADisabledEndpoint(t *testing.T) {
	w := newWorld(t)
	gone, watcher := newReceiver(t, status(http.StatusGone)), newReceiver(t, nil)
	e := w.endpoint("e", gone.URL, func(e *store.Endpoint) { e.Status = "paused" }) // until all rows are there
	w.endpoint("watcher", watcher.URL, func(e *store.Endpoint) { e.Events = []string{"endpoint.*"} })
	w.endpoint("default", watcher.URL+"/default")
	w.endpoint("deaf", watcher.URL, func(e *store.Endpoint) { e.Events = []string{"transaction.disposed"} })
	w.endpoint("stranger", watcher.URL, func(e *store.Endpoint) { e.Tenant = "u" })
	w.run()
	w.decide(ids("x", 5)...)
	w.ended("e", 5, store.Pending)
	e.Status = "active"
	w.put(e)
	w.ended("e", 5, store.Skipped)
	w.ended("watcher", 1, store.Delivered)
	w.until("disabled", func() bool { return w.endpointStatus("e") == "disabled" })
	w.polled()
	w.ended("default", 5, store.Delivered) // decisions: who asks for nothing else hears of nothing else
	all := slices.DeleteFunc(watcher.all(), func(g got) bool { return g.path == "/default" })
	if len(all) != 1 || !strings.Contains(string(all[0].body), `"type":"endpoint.disabled"`) ||
		!strings.Contains(string(all[0].body), `"data":{"endpoint_id":"e","cause":"gone"}`) {
		t.Errorf("%d: %s", len(all), all[0].body)
	}
}

// W09, by a clock that is moved on: the ten tries of three days, each within a fifth of its pause, then an end that others hear of.
func TestW09TenTriesOverThreeDaysThenAnEvent(t *testing.T) {
	w := newWorld(t)
	w.freeze()
	w.config.Schedule = nil // the default
	r, watcher := newReceiver(t, status(http.StatusServiceUnavailable)), newReceiver(t, nil)
	w.endpoint("e", r.URL)
	w.endpoint("watcher", watcher.URL, func(e *store.Endpoint) { e.Events = []string{"delivery.*"} })
	w.run()
	w.decide("x")
	pauses := []time.Duration{5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour, 10 * time.Hour, 14 * time.Hour,
		20 * time.Hour, 24 * time.Hour}
	for i, pause := range pauses {
		w.until(fmt.Sprint("attempt ", i+1), func() bool { rows := w.rows("e"); return len(rows) == 1 && len(rows[0].Attempts) == i+1 })
		row := w.rows("e")[0]
		if got := row.NextAttemptAt.Sub(row.Attempts[i].StartedAt.Time); got < pause*8/10-time.Millisecond || got > pause*12/10+time.Millisecond {
			t.Errorf("pause %d is %v, the schedule says %v", i+1, got, pause)
		}
		w.later(row.NextAttemptAt.Sub(w.config.Clock.Now()) + time.Millisecond)
	}
	row := w.ended("e", 1, store.Exhausted)[0]
	w.later(30 * 24 * time.Hour)
	w.polled()
	if n := len(r.all()); n != 10 || len(row.Attempts) != 10 || row.Attempts[9].NextAttemptAt != nil {
		t.Errorf("%d requests, %d attempts", n, len(row.Attempts))
	}
	w.until("an event", func() bool { return len(watcher.all()) > 0 })
	want := fmt.Sprintf(`"data":{"endpoint_id":"e","delivery_id":%q,"transaction_id":"x","attempts":10}`, row.ID)
	if body := string(watcher.all()[0].body); !strings.Contains(body, `"type":"delivery.exhausted"`) || !strings.Contains(body, want) {
		t.Errorf("told %s", body)
	}
}

// What could not be told has not come to pass: it is tried again, and then others hear of it.
func TestW09AnEndThatCannotBeToldIsNone(t *testing.T) {
	w := newWorld(t)
	w.freeze()
	w.config.Schedule = []time.Duration{0}
	r, watcher := newReceiver(t, status(http.StatusServiceUnavailable)), newReceiver(t, nil)
	w.endpoint("e", r.URL)
	w.endpoint("watcher", watcher.URL, func(e *store.Endpoint) { e.Events = []string{"delivery.*"} })
	w.deliveries.loses.Store(new("delivery.exhausted"))
	w.run()
	w.decide("x")
	w.until("a telling that fails", func() bool { return w.deliveries.lost.Load() > 0 })
	if row := w.rows("e")[0]; row.Status != store.Pending {
		t.Errorf("its row is %s, and nobody was told", row.Status)
	}
	w.deliveries.loses.Store(nil)
	w.until("an event", func() bool { w.later(time.Minute); return len(watcher.all()) > 0 })
	w.ended("e", 1, store.Exhausted)
}

// Two endpoints that fail and hear of everything tell each other of what befell a decision, and of nothing else.
func TestNothingIsToldOfATelling(t *testing.T) {
	w := newWorld(t)
	w.config.Schedule = []time.Duration{0}
	r := newReceiver(t, status(http.StatusInternalServerError))
	for _, id := range []string{"a", "b"} {
		w.endpoint(id, r.URL, func(e *store.Endpoint) { e.Events = []string{"transaction.*", "delivery.*", "endpoint.*"} })
	}
	w.run()
	w.decide("x")
	for range 2 {
		for _, id := range []string{"a", "b"} {
			w.ended(id, 2, store.Exhausted)
		}
		w.polled()
	}
	if got := fmt.Sprint(r.types(t)); got != "map[delivery.exhausted:2 transaction.decided:2]" {
		t.Error(got)
	}
}

// An insert that ended in an error may have made its rows: they do not wait until their lease runs out, which takes longer than
// this test has patience.
func TestRowsOfAnInsertThatSeemedToFailAreDueAtOnce(t *testing.T) {
	w := newWorld(t)
	r := newReceiver(t, nil)
	w.endpoint("e", r.URL)
	w.deliveries.lies.Store(true)
	w.run()
	w.decide(ids("x", 20)...)
	w.ended("e", 20, store.Delivered)
	if n := len(r.all()); n != 20 {
		t.Errorf("%d requests", n)
	}
}

// reread waits until the process under test knows what another one left of breakers.
func (w *world) reread(open int) {
	w.Helper()
	w.must(streams.Changed(w.config.Conn, streams.TopicEndpoints))
	w.until(fmt.Sprint(open, " breakers known to be open"), func() bool {
		families, err := w.config.Metrics.(prometheus.Gatherer).Gather()
		w.must(err)
		for _, f := range families {
			if f.GetName() == "crivo_webhook_breakers_open" {
				return int(f.GetMetric()[0].GetGauge().GetValue()) == open
			}
		}
		return false
	})
}

// A receiver that fails for a moment and comes back is as good as before: what was counted then must not let a single failure open
// its breaker, however much later.
func TestW18OneFailureLongAfterARecoveryOpensNothing(t *testing.T) {
	for name, c := range map[string]struct{ recovers func(w *world) }{
		"by itself": {func(w *world) {}},
		"known from another process": {func(w *world) {
			now := time.Now()
			w.stands(map[string]store.Breaker{"e": {State: store.BreakerOpen, Since: now.UnixMilli(), Until: now.Add(time.Hour).UnixMilli()}})
			w.reread(1)
			w.stands(nil)
			w.reread(0)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.config.Schedule = []time.Duration{0}
			var sick atomic.Bool
			r := newReceiver(t, func(rw http.ResponseWriter, _ *http.Request, _ int) {
				if sick.Load() {
					rw.WriteHeader(http.StatusInternalServerError)
				}
			})
			w.endpoint("e", r.URL)
			w.run()
			tried := 0
			try := func(prefix string, n int, fails bool) {
				sick.Store(fails)
				w.decide(ids(prefix, n)...)
				tried += n
				w.until("all tried", func() bool {
					return len(w.rows("e")) == tried && !slices.ContainsFunc(w.rows("e"), func(d store.Delivery) bool { return len(d.Attempts) == 0 })
				})
			}
			try("fails", 9, true)
			c.recovers(w)
			try("arrives", 40, false)
			try("fails-again", 1, true)
			w.polled()
			if got := w.breaker("e"); got != store.BreakerClosed {
				t.Error(got)
			}
		})
	}
}

// Whoever moves a breaker may end before it has told of it: a probe tells again what is not known to have been told.
func TestW18ABreakersEventsAreToldThoughWhoMovedItDied(t *testing.T) {
	w := newWorld(t)
	w.freeze()
	w.config.Schedule = nil
	var healthy atomic.Bool
	r, watcher := newReceiver(t, func(rw http.ResponseWriter, _ *http.Request, _ int) {
		if !healthy.Load() {
			rw.WriteHeader(http.StatusInternalServerError)
		}
	}), newReceiver(t, nil)
	w.endpoint("e", r.URL)
	w.endpoint("watcher", watcher.URL, func(e *store.Endpoint) { e.Events = []string{"endpoint.*"} })
	now := w.config.Clock.Now().UnixMilli()
	w.stands(map[string]store.Breaker{"e": {State: store.BreakerOpen, Since: now, Until: now}}) // and nobody heard of it
	w.config.States = &dying{Registry: w.registry}
	w.run()
	w.decide(ids("x", 3)...)
	for n := 1; n < 3; n++ {
		w.until("a probe", func() bool { return len(r.all()) == n })
		w.isBreaker("e", store.BreakerOpen)
		w.ended("watcher", 1, store.Delivered)
		w.later(11 * time.Second)
	}
	healthy.Store(true)
	w.isBreaker("e", store.BreakerClosed)
	w.ended("watcher", 2, store.Delivered)
	if got := fmt.Sprint(watcher.types(t)); got != "map[endpoint.breaker_closed:1 endpoint.breaker_opened:1]" {
		t.Error(got)
	}
}

// dying are states whose every closed breaker is the last thing that is done: written, and nobody is left to hear of it.
type dying struct{ *memory.Registry }

func (d *dying) SwapState(ctx context.Context, name string, from, to []byte) error {
	err := d.Registry.SwapState(ctx, name, from, to)
	if string(to) == "{}" && err == nil {
		return errAway
	}
	return err
}

// What is paused, disabled or gone is sent nothing: its breaker closes, so that it begins afresh if ever it is again.
func TestW18WhatIsSentNothingHasNoOpenBreaker(t *testing.T) {
	w := newWorld(t)
	w.config.Schedule = []time.Duration{0}
	r := newReceiver(t, status(http.StatusInternalServerError))
	e := w.endpoint("e", r.URL, func(e *store.Endpoint) { e.Status = "paused" })
	now := time.Now()
	long := store.Breaker{State: store.BreakerOpen, Since: now.Add(-121 * time.Hour).UnixMilli(), Until: now.UnixMilli()}
	w.stands(map[string]store.Breaker{"e": long, "gone": long})
	w.run()
	w.isBreaker("gone", store.BreakerClosed)
	w.isBreaker("e", store.BreakerClosed)
	e.Status = "active"
	w.put(e)
	w.decide("x")
	w.ended("e", 1, store.Exhausted)
	w.polled()
	if got := w.endpointStatus("e"); got != "active" {
		t.Errorf("%s after one failure", got)
	}
}

// W18: a probe that cannot be signed leaves the breaker open, and the next one is not kept waiting.
func TestW18AProbeThatCannotBeSignedDidNotSucceed(t *testing.T) {
	w := newWorld(t)
	r := newReceiver(t, nil)
	now := w.config.Clock.Now().UnixMilli()
	w.stands(map[string]store.Breaker{"e": {State: store.BreakerOpen, Since: now, Until: now}})
	w.endpoint("e", r.URL, func(e *store.Endpoint) { e.Secrets = nil })
	w.run()
	w.decide("x")
	w.until("a try", func() bool { rows := w.rows("e"); return len(rows) == 1 && len(rows[0].Attempts) == 1 })
	w.isBreaker("e", store.BreakerOpen)
	if n := len(r.all()); n != 0 {
		t.Errorf("%d requests", n)
	}
}
