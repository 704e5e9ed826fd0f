package app_test

import (
	"testing"
	"time"

	"crivo/pkg/app"
)

// machine is a clock that moves when it is told to.
type machine struct{ now time.Time }

func (m *machine) read() time.Time { return m.now }

func (m *machine) pass(d time.Duration) { m.now = m.now.Add(d) }

func newMachine() *machine {
	return &machine{time.Date(2026, 11, 22, 23, 5, 11, 0, time.UTC)}
}

// trip is the way of every sample here: what differs by half of it or less is noise.
const trip = 2 * time.Millisecond

func TestTheClockAdoptsTheBrokersTime(t *testing.T) {
	for name, tc := range map[string]struct {
		first, then time.Duration // offsets as measured
		passed      time.Duration // after the second
		want        time.Duration // of Now to the machine's clock
	}{
		"the first is taken at once, ahead":           {10 * time.Minute, 10 * time.Minute, 0, 10 * time.Minute},
		"the first is taken at once, behind":          {-10 * time.Minute, -10 * time.Minute, 0, -10 * time.Minute},
		"noise ahead is ignored":                      {time.Second, time.Second + trip/2, time.Hour, time.Second},
		"noise behind is ignored":                     {time.Second, time.Second - trip/2, time.Hour, time.Second},
		"forward at once":                             {0, 300 * time.Millisecond, 0, 300 * time.Millisecond},
		"a little backward: not at once":              {0, -300 * time.Millisecond, 0, 0},
		"a little backward: at half the pace":         {0, -300 * time.Millisecond, 200 * time.Millisecond, -100 * time.Millisecond},
		"a little backward: all of it in the end":     {0, -300 * time.Millisecond, 600 * time.Millisecond, -300 * time.Millisecond},
		"a little backward: and no further":           {0, -300 * time.Millisecond, time.Hour, -300 * time.Millisecond},
		"a second backward is still a little":         {0, -time.Second, 0, 0},
		"more than a second backward is set at once ": {0, -1001 * time.Millisecond, 0, -1001 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine()
			c := app.NewClock(m.read).Passing(m.read)
			c.Adopt(tc.first, trip)
			c.Adopt(tc.then, trip)
			m.pass(tc.passed)
			if got := c.Now().Sub(m.now); got != tc.want {
				t.Errorf("off by %s, want %s", got, tc.want)
			}
		})
	}
}

func TestTheClockNeverRunsBackWithinASecond(t *testing.T) {
	m := newMachine()
	c := app.NewClock(m.read).Passing(m.read)
	c.Adopt(0, trip)
	last := c.Now()
	for i, offset := range []time.Duration{-100, -300, 50, -900, -905, -200, -600, 0} {
		c.Adopt(offset*time.Millisecond, trip)
		for range 40 {
			now := c.Now()
			if now.Before(last) {
				t.Fatalf("offset %d: %s back", i, last.Sub(now))
			}
			last = now
			m.pass(3 * time.Millisecond)
		}
	}
}

// Whoever sets the machine's clock changes nothing but how far it is off.
func TestAMachineThatIsSetChangesNothing(t *testing.T) {
	m, passing := newMachine(), newMachine()
	c := app.NewClock(m.read).Passing(passing.read)
	c.Adopt(time.Second, trip)
	right := c.Now()
	m.pass(-time.Hour)
	if got := c.Now(); !got.Equal(right) {
		t.Errorf("went by %s", got.Sub(right))
	}
	m.pass(time.Minute)
	passing.pass(time.Minute)
	if got := c.Now(); !got.Equal(right.Add(time.Minute)) {
		t.Errorf("a minute took %s", got.Sub(right))
	}
	c.Adopt(time.Second, trip)
	if offset, _ := c.Offset(); offset != time.Hour+time.Second {
		t.Errorf("the machine is said to be %s off", offset)
	}
}

func TestAClockWithoutASyncIsTheMachines(t *testing.T) {
	m := newMachine()
	c := app.NewClock(m.read).Passing(m.read)
	if got := c.Now(); !got.Equal(m.now) {
		t.Errorf("tells %s", got)
	}
	if offset, at := c.Offset(); offset != 0 || !at.IsZero() {
		t.Errorf("offset %s since %s", offset, at)
	}
	m.pass(time.Minute)
	c.Adopt(time.Second, trip)
	if offset, at := c.Offset(); offset != time.Second || !at.Equal(m.now) {
		t.Errorf("offset %s since %s", offset, at)
	}
	m.pass(time.Minute)
	c.Adopt(time.Second+trip/2, trip) // noise, and yet a sync that held
	if offset, at := c.Offset(); offset != time.Second || !at.Equal(m.now) {
		t.Errorf("after noise: offset %s since %s", offset, at)
	}
	var none *app.Clock
	if before := time.Now(); none.Now().Before(before) {
		t.Error("no clock is not the machine's")
	}
}
