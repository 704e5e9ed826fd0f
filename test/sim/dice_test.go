package sim_test

import (
	"hash/fnv"
	"math/rand/v2"
	"sync"
	"time"
)

// dice makes every choice of a run. A choice is a function of the seed, of what it is about and of how often that was asked
// before, so it does not depend on which goroutine came first.
type dice struct {
	seed uint64

	mu    sync.Mutex
	asked map[string]uint64
}

func newDice(seed uint64) *dice { return &dice{seed: seed, asked: map[string]uint64{}} }

// about returns the numbers of the next choice about a thing.
func (d *dice) about(thing string) *rand.Rand {
	d.mu.Lock()
	n := d.asked[thing]
	d.asked[thing]++
	d.mu.Unlock()
	h := fnv.New64a()
	_, _ = h.Write([]byte(thing))
	return rand.New(rand.NewPCG(d.seed, h.Sum64()+n*0x9e3779b97f4a7c15))
}

// hits tells whether something of a probability happens.
func (d *dice) hits(p float64, thing string) bool { return p > 0 && d.about(thing).Float64() < p }

// between returns a time from least up to most. Its nanoseconds make it unlikely that two things happen at once, which leaves
// their order to the seed and not to the scheduler.
func (d *dice) between(least, most time.Duration, thing string) time.Duration {
	return least + time.Duration(d.about(thing).Int64N(int64(most-least)))
}
