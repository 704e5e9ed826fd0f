package edge

import (
	"sync"
	"time"

	"crivo/services/store"
	"crivo/streams"
	"crivo/streams/event"
)

// flights are the transactions that this edge accepted and has not yet heard a decision of. They are what admission counts
// and what waiters hang on.
type flights struct {
	mu       sync.Mutex
	byKey    map[store.Key]*flight
	boarding int           // between admission and the start of their flights
	latency  time.Duration // smoothed, of decisions heard
}

type flight struct {
	submitted event.Submitted // its newest run
	trace     string
	withheld  bool          // its submission is not known to have reached the broker
	done      chan struct{} // closed once event is set
	event     []byte
}

func (x *flight) accepted() time.Time { return x.submitted.AcceptedAt.Time }
func (x *flight) expires() time.Time  { return x.submitted.Deadline.Add(lostAfter) }

// lostAfter is how long past its deadline a flight is given up: its wake-up was lost, or the sweep has it now.
const lostAfter = 5 * time.Second

func newFlights() *flights { return &flights{byKey: map[store.Key]*flight{}} }

// board takes a seat for a transaction that is about to be claimed; false when most are taken. The seat is free again by
// leave.
func (f *flights) board(most int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.byKey)+f.boarding >= most {
		return false
	}
	f.boarding++
	return true
}

func (f *flights) leave() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.boarding--
}

// start tracks a transaction; a repeat joins the flight that is there, and a renewed deadline is its own. One that was given up
// by now has no guard any more: a new one takes its place.
func (f *flights) start(s event.Submitted, trace string, now time.Time) (x *flight, fresh bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	key := store.Key{Tenant: s.Tenant, ID: s.ID}
	if x, ok := f.byKey[key]; ok && !now.After(x.expires()) {
		if s.Run > x.submitted.Run {
			x.submitted, x.trace = s, trace
		}
		return x, false
	}
	x = &flight{submitted: s, trace: trace, withheld: true, done: make(chan struct{})}
	f.byKey[key] = x
	return x, true
}

// due tells how long the guard still leaves a flight alone, and its newest run; false when it has landed or is given up.
func (f *flights) due(x *flight, now time.Time) (wait time.Duration, s event.Submitted, flying bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s = x.submitted
	if f.byKey[store.Key{Tenant: s.Tenant, ID: s.ID}] != x || now.After(x.expires()) {
		return 0, s, false
	}
	return guardAt(s).Sub(now), s, true
}

// published notes that the broker has a flight's submission.
func (f *flights) published(x *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	x.withheld = false
}

// newest is a flight's newest run, its trace, and whether its submission is not known to have reached the broker.
func (f *flights) newest(x *flight) (s event.Submitted, trace string, withheld bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return x.submitted, x.trace, x.withheld
}

// get returns the flight of key, nil when there is none.
func (f *flights) get(key store.Key) *flight {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.byKey[key]
}

// heard ends a flight with the decided event.
func (f *flights) heard(key store.Key, event []byte, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	x, ok := f.byKey[key]
	if !ok {
		return
	}
	delete(f.byKey, key)
	x.event = event
	close(x.done)
	f.latency += (now.Sub(x.accepted()) - f.latency) / 16
}

// drop ends a flight that never took off; whoever joined it reads the store.
func (f *flights) drop(key store.Key) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.byKey, key)
}

// late returns up to most of those that are undecided for longer than a share of the time that they were promised.
func (f *flights) late(share float64, now time.Time, most int) []store.Key {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []store.Key
	for key, x := range f.byKey {
		long := streams.Share(share, x.accepted(), x.submitted.Deadline.Time)
		if len(out) < most && now.Sub(x.accepted()) > long {
			out = append(out, key)
		}
	}
	return out
}

// expire forgets what was lost.
func (f *flights) expire(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for key, x := range f.byKey {
		if now.After(x.expires()) {
			delete(f.byKey, key)
		}
	}
	if len(f.byKey) == 0 {
		f.latency = 0
	}
}

// load returns how many are under way and how long decisions take of late.
func (f *flights) load() (int, time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.byKey) + f.boarding, f.latency
}
