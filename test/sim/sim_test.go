// Package sim_test runs the whole system in simulated time: the real edges, steps and keeper, talking through the real client
// library to a simulated broker and to simulated stores, under faults that a seed chooses.
package sim_test

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"testing"
	"testing/synctest"
	"time"
)

// seeds are tried by every run of the tests; CRIVO_SIM_SEEDS for more.
const seeds = 150

// variant breaks something on purpose before a run.
type variant func(w *world)

// run is one seed: everything starts, clients send during the storm, and after it all must come to rest and agree.
func run(t *testing.T, seed uint64, calm, loud bool, broken variant) (r report, faults []string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, seed, odds{})
		w.loud = loud
		if broken != nil {
			broken(w)
		}
		if err := w.clients.connect(); err != nil {
			t.Fatal(err)
		}
		for _, role := range w.roles {
			w.start(role)
		}
		time.Sleep(500 * time.Millisecond)
		weather := w.forecast()
		if calm {
			weather = w.calm()
		}
		w.broker.brew(weather.odds)
		ctx, cancel := context.WithCancel(context.Background())
		w.clients.crowd(ctx, 10, storm)
		w.blow(weather.events)
		w.clients.done.Wait()
		w.settle(2 * time.Minute)
		r = w.judge()
		cancel()
		w.stop()
		faults = w.errs
	})
	// Pools of the client library keep timers, which must not reach the next bubble: two collections empty them.
	runtime.GC()
	runtime.GC()
	return r, faults
}

// stop kills everything for good.
func (w *world) stop() {
	w.mu.Lock()
	w.over = true
	w.mu.Unlock()
	for _, p := range w.all {
		w.kill(p.name)
	}
	w.clients.nats.Close()
	w.ended.Wait()
}

func check(t *testing.T, seed uint64, calm bool) report {
	t.Helper()
	loud := os.Getenv("CRIVO_SIM_SEED") != ""
	r, faults := run(t, seed, calm, loud, nil)
	for _, f := range faults {
		t.Errorf("seed %d: %s", seed, f)
	}
	return r
}

func setting(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// Without a fault everything is accepted at once and decided in time.
func TestWithoutFaults(t *testing.T) {
	r := check(t, 1, true)
	if r.accepted != 10 || r.decided != 10 || r.late != 0 {
		t.Errorf("%+v", r)
	}
}

func TestSeeds(t *testing.T) {
	from, n := uint64(1), setting(t, "CRIVO_SIM_SEEDS", seeds)
	if seed := setting(t, "CRIVO_SIM_SEED", 0); seed != 0 {
		from, n = seed, 1
	}
	var all report
	for seed := from; seed < from+n; seed++ {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			r := check(t, seed, false)
			all.accepted += r.accepted
			all.decided += r.decided
			all.late += r.late
			all.guarded += r.guarded
			all.buried += r.buried
			all.letters += r.letters
			all.unclaimed += r.unclaimed
			all.silenced += r.silenced
		})
	}
	t.Log(fmt.Sprintf("%+v", all))
}
