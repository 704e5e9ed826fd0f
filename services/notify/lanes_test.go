package notify_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crivo/services/notify"
	"crivo/services/store"
	"crivo/streams"
)

// holding is a receiver's handler that answers nobody until it is told to.
func holding(release <-chan bool) func(http.ResponseWriter, *http.Request, int) {
	return func(_ http.ResponseWriter, r *http.Request, _ int) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}
}

func TestW17AnEndpointThatHangsStopsNoOther(t *testing.T) {
	w := newWorld(t)
	release := make(chan bool)
	hanging := newReceiver(t, holding(release))
	healthy := newReceiver(t, nil)
	w.endpoint("hanging", hanging.URL)
	w.endpoint("healthy", healthy.URL)
	w.run()
	w.decide(ids("x", 100)...)
	w.until("the hanging one has all it takes at once", func() bool { return len(hanging.all()) == 32 })
	w.decide(ids("y", 100)...)
	w.ended("healthy", 200, store.Delivered)
	if n := len(hanging.all()); n != 32 {
		t.Errorf("%d requests at once to one endpoint", n)
	}
	close(release)
	w.ended("hanging", 200, store.Delivered)
}

// The others of W17: of many endpoints one hangs, one answers errors and one is slow, and the rest get all there is meanwhile.
// How fast is measured by test/load/webhooks.
func TestW17TheHealthyGetAllWhileOthersAreSick(t *testing.T) {
	const decisions, healthy = 40, 5
	w := newWorld(t)
	w.config.Schedule = nil
	release := make(chan bool)
	hold := holding(release)
	hanging, failing := newReceiver(t, hold), newReceiver(t, status(http.StatusInternalServerError))
	slow := newReceiver(t, func(_ http.ResponseWriter, req *http.Request, n int) {
		if n%10 == 0 {
			hold(nil, req, n)
		}
	})
	w.endpoint("hanging", hanging.URL)
	w.endpoint("failing", failing.URL)
	w.endpoint("slow", slow.URL)
	r := newReceiver(t, nil)
	for i := range healthy {
		w.endpoint(fmt.Sprint("e", i), fmt.Sprint(r.URL, "/", i))
	}
	w.run()
	w.decide(ids("x", decisions)...)
	for i := range healthy {
		w.ended(fmt.Sprint("e", i), decisions, store.Delivered)
	}
	if n := len(hanging.all()); n > 32 {
		t.Errorf("%d requests at once to the one that hangs", n)
	}
	w.isBreaker("failing", store.BreakerOpen)
	for _, row := range w.rows("hanging") {
		if len(row.Attempts) > 0 {
			t.Errorf("an attempt that hangs has ended: %+v", row.Attempts)
		}
	}
	close(release)
	w.ended("slow", decisions, store.Delivered)
	w.ended("hanging", decisions, store.Delivered)
}

func TestAPausedEndpointWaitsAndThenDelivers(t *testing.T) {
	w := newWorld(t)
	r := newReceiver(t, nil)
	e := w.endpoint("e", r.URL, func(e *store.Endpoint) { e.Status = "paused" })
	w.run()
	w.decide(ids("x", 20)...)
	w.ended("e", 20, store.Pending)
	polls := w.deliveries.polls.Load()
	w.until("a poll", func() bool { return w.deliveries.polls.Load() > polls+1 })
	if n := len(r.all()); n != 0 {
		t.Fatalf("%d requests", n)
	}
	e.Status = "active"
	w.put(e)
	w.ended("e", 20, store.Delivered)
}

func TestADrainFinishesAttemptsAndHandsTheRestBack(t *testing.T) {
	w := newWorld(t)
	set(t, notify.DrainTime, within)
	release := make(chan bool)
	r := newReceiver(t, holding(release))
	w.endpoint("e", r.URL)
	stop := w.run()
	w.decide(ids("x", 100)...)
	w.until("attempts under way", func() bool { return len(r.all()) == 32 && len(w.rows("e")) == 100 })
	w.drains(stop)
	close(release)
	stop()
	// Until what waits is taken out of the lane, a little more may go out.
	tried := len(r.all())
	if tried == 100 {
		t.Error("nothing was handed back")
	}
	for _, row := range w.rows("e") {
		if row.Status == store.Delivered {
			tried--
		} else if row.Status != store.Pending || len(row.Attempts) > 0 {
			t.Errorf("%+v", row)
		}
	}
	if tried != 0 {
		t.Errorf("%d attempts made are not recorded", tried)
	}
	left := 100 - len(r.all())
	if n, err := w.deliveries.Lease(t.Context(), "e", time.Now().Add(time.Second), time.Now().Add(time.Minute), 1000); err != nil || len(n) != left {
		t.Errorf("%d of %d can be leased, %v", len(n), left, err)
	}
}

// drains begins to stop the service and waits until it takes nothing in any more.
func (w *world) drains(stop func()) {
	w.Helper()
	busy := w.config.Conn.NumSubscriptions() // the pull and the watch of endpoints among them
	go stop()
	w.until("nothing is taken in any more", func() bool { return w.config.Conn.NumSubscriptions() <= busy-2 })
}

// W20: a row that waited longer than its lease is another's by now, whatever this process still remembers of it: at its turn
// in the lane it is dropped, at a drain it is not handed back.
func TestW20ARowWhoseLeaseRanOutInItsLaneIsNotTouched(t *testing.T) {
	for name, drained := range map[string]bool{"at its turn": false, "at a drain": true} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			release := make(chan bool)
			r := newReceiver(t, holding(release))
			w.endpoint("e", r.URL)
			stop := w.run()
			w.decide(ids("x", 40)...)
			w.until("a full lane", func() bool { return len(r.all()) == 32 && len(w.rows("e")) == 40 })
			w.deliveries.away.Store(true) // this process finds nothing due meanwhile
			w.ahead.Store(int64(time.Hour))
			others, err := w.deliveries.Lease(t.Context(), "e", time.Now().Add(time.Hour), time.Now().Add(2*time.Hour), 1000)
			if err != nil || len(others) != 40 {
				t.Fatal(len(others), err)
			}
			for i := range others {
				others[i].Status = store.Delivered
			}
			w.must(w.deliveries.Update(t.Context(), others))
			want := 32
			if !drained {
				w.deliveries.away.Store(false)
				w.decide("last") // in the lane behind all others
				w.until("its row", func() bool { return len(w.rows("e")) == 41 })
				want = 33
			} else {
				w.drains(stop)
			}
			close(release)
			if !drained {
				w.ended("e", 41, store.Delivered)
			}
			stop()
			if n := len(r.all()); n != want {
				t.Errorf("%d requests, want %d: the rest were another's to make", n, want)
			}
			for _, row := range w.rows("e") {
				if row.Status != store.Delivered {
					t.Fatalf("what another delivered is %s again", row.Status)
				}
			}
		})
	}
}

// W20: while a POST is under way its lease outlasts whatever it may take, and no other process sends it too.
func TestW20ASlowPostIsNotSentAgainMeanwhile(t *testing.T) {
	w := newWorld(t)
	release := make(chan bool)
	r := newReceiver(t, func(http.ResponseWriter, *http.Request, int) { <-release })
	w.endpoint("e", r.URL)
	w.run()
	w.another()
	w.decide("x")
	w.until("a POST", func() bool { return len(r.all()) == 1 })
	row := w.rows("e")[0]
	if left := row.LeasedUntil.Sub(row.CreatedAt); left <= w.config.Timeout {
		t.Errorf("leased for %v, an attempt may take %v", left, w.config.Timeout)
	}
	for range 3 {
		w.polled()
	}
	if n := len(r.all()); n != 1 {
		t.Errorf("%d requests at once", n)
	}
	close(release)
	w.ended("e", 1, store.Delivered)
	w.polled()
	if n := len(r.all()); n != 1 {
		t.Errorf("%d requests", n)
	}
}

func TestAStoreThatIsAwayLosesNothing(t *testing.T) {
	w := newWorld(t)
	r := newReceiver(t, nil)
	w.endpoint("e", r.URL)
	w.run()
	w.decide("before")
	w.ended("e", 1, store.Delivered)
	w.deliveries.away.Store(true)
	w.decide(ids("x", 20)...)
	w.until("not ready", func() bool {
		reasons := w.config.Health.Reasons()
		return reasons["notify"] != "" && reasons["deliveries"] != ""
	})
	w.deliveries.away.Store(false)
	w.ended("e", 21, store.Delivered)
	w.until("ready", func() bool { return len(w.config.Health.Reasons()) == 0 })
	if n := len(r.all()); n != 21 {
		t.Errorf("%d requests", n)
	}
	letters, err := w.js.Stream(t.Context(), "DEADLETTERS")
	if err != nil || letters.CachedInfo().State.Msgs != 0 {
		t.Errorf("something innocent was buried: %v, %v", letters.CachedInfo().State, err)
	}
}

func TestW21ARestartedBrokerStopsNothing(t *testing.T) {
	w := newWorld(t)
	r := newReceiver(t, nil)
	w.endpoint("e", r.URL)
	w.run()
	w.decide("before")
	w.ended("e", 1, store.Delivered)
	w.server.Close()
	w.until("not ready", func() bool { return strings.Contains(fmt.Sprint(w.config.Health.Reasons()), "broker") })
	w.insert("e", time.UnixMilli(0)) // due while the broker is away
	w.ended("e", 2, store.Delivered)
	w.restartBroker()
	w.until("connected", w.config.Conn.IsConnected)
	w.decide("after")
	w.ended("e", 3, store.Delivered)
}

// W21: the broker comes back on an empty disk. The keeper makes the streams again; what was owed is sent, and so is what is new.
func TestW21ABrokerThatComesBackEmptyStopsNothing(t *testing.T) {
	w := newWorld(t)
	r := newReceiver(t, nil)
	w.endpoint("e", r.URL)
	w.run()
	w.decide("before")
	w.ended("e", 1, store.Delivered)
	w.server.Close()
	w.until("not ready", func() bool { return strings.Contains(fmt.Sprint(w.config.Health.Reasons()), "broker") })
	w.must(os.RemoveAll(filepath.Join(w.dir, "nats")))
	w.insert("e", time.UnixMilli(0)) // due while the broker is away
	w.ended("e", 2, store.Delivered)
	w.restartBroker()
	w.until("connected", w.config.Conn.IsConnected)
	w.until("streams", func() bool {
		_, err := streams.Ensure(t.Context(), w.js, streams.Layout{Replicas: 1, SubmittedBytes: 64 << 20})
		return err == nil
	})
	w.decide("after")
	w.ended("e", 3, store.Delivered)
}

// A row that waited too long in its lane to be tried within its lease is due again at once: else a slow receiver would get nothing
// until the leases of all that waited ran out.
func TestWhatWaitedTooLongInItsLaneIsDueAtOnce(t *testing.T) {
	w := newWorld(t)
	w.freeze()
	release := make(chan bool)
	r := newReceiver(t, holding(release))
	w.endpoint("e", r.URL)
	w.run()
	w.decide(ids("x", 40)...)
	w.until("a full lane", func() bool { return len(r.all()) == 32 && len(w.rows("e")) == 40 })
	w.later(11 * time.Second)
	close(release)
	w.ended("e", 40, store.Delivered)
	if n := len(r.all()); n != 40 {
		t.Errorf("%d requests", n)
	}
}

// An attempt that the shutdown cuts off is not the receiver's failure: it is on no record, and made again.
func TestAnAttemptThatADrainCutsIsNoneOfTheSchedule(t *testing.T) {
	w := newWorld(t)
	set(t, notify.DrainTime, 100*time.Millisecond)
	r := newReceiver(t, func(_ http.ResponseWriter, req *http.Request, _ int) { <-req.Context().Done() })
	w.endpoint("e", r.URL)
	stop := w.run()
	w.decide("x")
	w.until("an attempt", func() bool { return len(r.all()) == 1 })
	stop()
	if row := w.rows("e")[0]; row.Status != store.Pending || len(row.Attempts) != 0 {
		t.Errorf("%+v", row)
	}
}
