package app

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"
)

// Clock tells the broker's time. A machine's own clock decides nothing: between two syncs the time is carried on by what has passed,
// whoever sets the machine's clock meanwhile. The zero value is the machine's clock until the first sync.
type Clock struct {
	start   atomic.Pointer[start] // nil until one asked for the first sync
	offset  atomic.Pointer[correction]
	ahead   atomic.Int64     // nanoseconds of the broker's clock before the machine's at the last sync
	synced  atomic.Int64     // Unix nanoseconds of the last sync that held, 0 for none
	machine func() time.Time // nil: this machine's
	passing func() time.Time // only what passes between two of it counts; nil: time.Now

	mu sync.Mutex // one sync at a time
}

// start is the machine's time when the first sync began, and the reading that tells what has passed since then.
type start struct{ at, read time.Time }

// correction is the offset to the machine's clock, and what of an older, larger one is still to be taken back.
type correction struct {
	offset time.Duration
	excess time.Duration
	since  time.Time
}

// NewClock returns a clock on top of machine; nil is time.Now.
func NewClock(machine func() time.Time) *Clock { return &Clock{machine: machine} }

const (
	syncEvery   = 5 * time.Second
	syncTries   = 4 // the try with the shortest way counts
	syncTimeout = time.Second
	goodTrip    = 2 * time.Millisecond // wrong by a millisecond at most: no further try
	// What has passed does not count a machine's sleep, so the broker is asked at once where it parts from the machine's clock.
	lookEvery = 250 * time.Millisecond
	parted    = 50 * time.Millisecond
	// step is the largest backward correction that is taken slowly: the clock then runs at half its pace and never back.
	// Beyond it the clock was plainly wrong and is set at once.
	step = time.Second
)

// Now returns the broker's time as best known. A nil Clock is the machine's.
func (c *Clock) Now() time.Time {
	if c == nil {
		return time.Now()
	}
	now := c.local()
	k := c.offset.Load()
	if k == nil {
		return now
	}
	return now.Add(k.at(now))
}

// Offset tells how far the broker's clock is ahead of the machine's, and since when that is known; a zero time is never.
func (c *Clock) Offset() (time.Duration, time.Time) {
	at := c.synced.Load()
	if at == 0 {
		return 0, time.Time{}
	}
	return time.Duration(c.ahead.Load()), time.Unix(0, at)
}

// local is the machine's time when the first sync began and what has passed since then.
func (c *Clock) local() time.Time {
	s := c.start.Load()
	if s == nil {
		return c.wall()
	}
	return s.at.Add(c.read().Sub(s.read))
}

func (c *Clock) wall() time.Time {
	if c.machine != nil {
		return c.machine().Round(0)
	}
	return machineNow().Round(0)
}

func (c *Clock) read() time.Time {
	if c.passing != nil {
		return c.passing()
	}
	return time.Now()
}

func (k *correction) at(now time.Time) time.Duration {
	return k.offset + max(0, k.excess-now.Sub(k.since)/2)
}

// Keep holds the clock to the broker's until ctx ends, by asking for a stream's state every few seconds. It returns after
// the first sync that held, so that nothing is timed before; wait for done to know that it ended.
func (c *Clock) Keep(ctx context.Context, nc *nats.Conn, stream string) (done <-chan struct{}, err error) {
	if err := c.Sync(ctx, nc, stream); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(lookEvery)
		defer tick.Stop()
		for asked, apart := time.Now(), c.apart(); ; {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			part := (c.apart() - apart).Abs() >= parted
			if !part && time.Since(asked) < syncEvery {
				continue
			}
			if c.Sync(ctx, nc, stream) == nil || !part {
				asked, apart = time.Now(), c.apart() // else the old offset stays good; a lost connection is said elsewhere
			}
		}
	}()
	return ended, nil
}

// apart is how far the machine's clock is before what it was plus what has passed.
func (c *Clock) apart() time.Duration { return c.wall().Sub(c.local()) }

// Sync measures the offset once. The error means that the broker did not tell its time; the clock then goes on as it was.
func (c *Clock) Sync(ctx context.Context, nc *nats.Conn, stream string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.begin()
	var best sample
	var fail error
	for range syncTries {
		s, err := c.ask(ctx, nc, stream)
		if err != nil {
			fail = err
			continue
		}
		if best.trip == 0 || s.trip < best.trip {
			best = s
		}
		if best.trip <= goodTrip {
			break
		}
	}
	if best.trip == 0 {
		if c.offset.Load() == nil {
			c.start.Store(nil) // still the machine's
		}
		return fmt.Errorf("broker's time: %w", fail)
	}
	c.adopt(best)
	return nil
}

// begin reads the machine's clock for the last time, before the first sync asks: one that is set meanwhile is none of our business.
func (c *Clock) begin() {
	if c.offset.Load() == nil {
		c.start.Store(&start{c.wall(), c.read()})
	}
}

// sample is one measured offset and how long the question was on its way: half of that is the most it can be wrong.
type sample struct{ offset, trip time.Duration }

func (c *Clock) ask(ctx context.Context, nc *nats.Conn, stream string) (sample, error) {
	ctx, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	sent := c.local()
	answer, err := nc.RequestWithContext(ctx, "$JS.API.STREAM.INFO."+stream, nil)
	if err != nil {
		return sample{}, err
	}
	trip := max(1, c.local().Sub(sent))
	var info struct {
		Time time.Time `json:"ts"`
	}
	if err := json.Unmarshal(answer.Data, &info); err != nil {
		return sample{}, err
	}
	if info.Time.IsZero() {
		return sample{}, errors.New("no time in the answer")
	}
	return sample{info.Time.Sub(sent.Add(trip / 2)), trip}, nil
}

// adopt takes a sample over. What lies within its error is noise; forward goes at once; a little backward goes slowly.
func (c *Clock) adopt(s sample) {
	now := c.local()
	old := c.offset.Load()
	switch {
	case old == nil:
		c.offset.Store(&correction{offset: s.offset})
	case (s.offset - old.offset).Abs() <= s.trip/2:
	default:
		next := &correction{offset: s.offset, since: now}
		if excess := old.at(now) - s.offset; excess > 0 && excess <= step {
			next.excess = excess
		}
		c.offset.Store(next)
	}
	c.ahead.Store(int64(c.offset.Load().offset - c.apart()))
	c.synced.Store(now.UnixNano())
}
