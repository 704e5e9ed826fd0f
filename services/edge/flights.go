package edge

import (
	"sync"
	"time"

	"crivo/services/store"
)

// flights are the transactions that this edge accepted and has not yet heard a decision of. They are what admission counts
// and what waiters hang on.
type flights struct {
	mu      sync.Mutex
	byKey   map[store.Key]*flight
	latency time.Duration // smoothed, of decisions heard
}

type flight struct {
	accepted time.Time
	expires  time.Time
	done     chan struct{} // closed once event is set
	event    []byte
}

// lostAfter is how long past its deadline a flight is given up: its wake-up was lost, or the sweep has it now.
const lostAfter = 5 * time.Second

func newFlights() *flights { return &flights{byKey: map[store.Key]*flight{}} }

// start tracks a transaction; a repeat joins the flight that is there.
func (f *flights) start(key store.Key, accepted, deadline time.Time) *flight {
	f.mu.Lock()
	defer f.mu.Unlock()
	if x, ok := f.byKey[key]; ok {
		return x
	}
	x := &flight{accepted: accepted, expires: deadline.Add(lostAfter), done: make(chan struct{})}
	f.byKey[key] = x
	return x
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
	f.latency += (now.Sub(x.accepted) - f.latency) / 16
}

// drop ends a flight that never took off; its waiters read the store.
func (f *flights) drop(key store.Key) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.byKey, key)
}

// expire forgets what was lost.
func (f *flights) expire(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for key, x := range f.byKey {
		if now.After(x.expires) {
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
	return len(f.byKey), f.latency
}
