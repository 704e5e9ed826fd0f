package sim_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-json-experiment/json"

	"crivo/pkg/txn"
	"crivo/services/store"
)

// patience is how long, after the storm, the sweep may take to bring everything to rest: it doubles its own with each run. It is
// less than the broker's window of 2 min, after which a repeat under the same run would count again.
const patience = 100 * time.Second

// variant breaks something on purpose before a run.
type variant func(w *world)

// trial is one run.
type trial struct {
	seed   uint64
	calm   bool // without faults
	fair   bool // the store and the edges are spared, and nothing is poison
	orphan bool // nothing fails but edges, which have no guards, and nothing is poison
	loud   bool // tells all that happens
	broken variant
}

// run starts everything, has clients send during the storm, and then all must come to rest and agree.
func (r trial) run(t *testing.T) (out report, faults []string) {
	t.Helper()
	bubble(t, func(t *testing.T) {
		w := newWorld(t, r.seed, r.loud)
		w.unguarded = r.orphan
		if r.broken != nil {
			r.broken(w)
		}
		w.open()
		time.Sleep(500 * time.Millisecond)
		var over weather
		switch {
		case r.orphan:
			over = w.orphaning()
		case !r.calm:
			over = w.forecast(r.fair)
		}
		w.broker.brew(over.odds)
		w.clients.crowd(context.Background(), r.crowd(w), storm, !r.fair && !r.orphan)
		w.blow(over.events)
		w.clients.done.Wait()
		w.settle(patience)
		out = w.judge()
		switch {
		case r.orphan:
			w.inTime(w.clients.accepted())
		case r.fair:
			w.inTime(w.truth.claimed)
		}
		w.stop()
		faults = w.errs
	})
	return out, faults
}

// bubble runs do in simulated time. The client library pools timers, and one of this bubble must not reach the next: two collections
// empty the pools.
func bubble(t *testing.T, do func(t *testing.T)) {
	t.Helper()
	defer func() { // also after one that failed, which ends the test
		runtime.GC()
		runtime.GC()
	}()
	synctest.Test(t, do)
}

// crowd is how many transactions there are.
func (r trial) crowd(w *world) int {
	if r.calm {
		return 10
	}
	return 5 + w.dice.about("crowd").IntN(12)
}

func (r trial) check(t *testing.T) report {
	t.Helper()
	out, faults := r.run(t)
	for _, f := range faults {
		t.Errorf("seed %d: %s", r.seed, f)
	}
	if len(faults) > 0 && !r.loud {
		t.Logf("watch it: CRIVO_SIM_SEED=%d go test -count 1 -run Seeds -v ./test/sim/", r.seed)
	}
	return out
}

// setting is a number in the environment.
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
	r := trial{seed: 1, calm: true}.check(t)
	if r.Accepted != 10 || r.Decided != 10 || r.Late != 0 {
		t.Errorf("%+v", r)
	}
}

// As long as the store answers and the edge that accepted lives, every decision is made in time, whatever becomes of the broker
// and of the steps: the guard makes it.
func TestInTime(t *testing.T) {
	for seed := range setting(t, "CRIVO_SIM_SEEDS", seeds) / 4 {
		trial{seed: seed + 1, fair: true, loud: os.Getenv("CRIVO_SIM_LOUD") != ""}.check(t)
	}
}

// As long as the store, the broker and the steps live, the pipeline decides in time whatever was accepted, whatever becomes of the
// edge that did: nobody's guard helps here.
func TestInTimeWithoutTheEdge(t *testing.T) {
	for seed := range setting(t, "CRIVO_SIM_SEEDS", seeds) / 4 {
		trial{seed: seed + 1, orphan: true, loud: os.Getenv("CRIVO_SIM_LOUD") != ""}.check(t)
	}
}

// One may be set while a process asks the broker for the first time.
func TestAClockThatIsSetAtAStartChangesNothing(t *testing.T) {
	const most, step = 10 * time.Millisecond, 250 * time.Microsecond
	for after := time.Duration(0); after < most; after += step {
		bubble(t, func(t *testing.T) {
			w := newWorld(t, 1, false)
			skew := &atomic.Int64{}
			w.skews["edge-a"] = skew
			w.roles = []string{"keeper"}
			w.open()
			time.Sleep(500 * time.Millisecond)
			w.start("edge-a")
			time.Sleep(after)
			skew.Store(int64(-time.Hour)) // back, so that the question seems to have taken no time
			time.Sleep(100 * time.Millisecond)
			if off := time.Until(w.player("edge-a").clock.Now()); off.Abs() > 10*time.Millisecond {
				t.Errorf("set after %s: wrong by %s", after, off)
			}
			w.stop()
		})
	}
}

// A machine's clock may be set at any moment: the time goes on as before.
func TestAClockThatIsSetChangesNothing(t *testing.T) {
	for _, step := range []time.Duration{time.Hour, -time.Hour} {
		bubble(t, func(t *testing.T) {
			w := newWorld(t, 1, false)
			skew := &atomic.Int64{}
			w.skews["edge-a"] = skew
			w.open()
			time.Sleep(time.Second)
			clock := w.player("edge-a").clock
			if off := time.Until(clock.Now()); off.Abs() > 10*time.Millisecond {
				t.Errorf("wrong by %s before", off)
			}
			skew.Store(int64(step))
			for range 4 {
				if off := time.Until(clock.Now()); off.Abs() > 10*time.Millisecond {
					t.Errorf("set by %s: wrong by %s", step, off)
				}
				time.Sleep(200 * time.Millisecond)
			}
			w.stop()
		})
	}
}

// A store that does not answer in a burial holds the step up for as long as one that does not answer a handler, not for ever.
func TestABurialIsBounded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, 1, false)
		w.unguarded = true // or the guard would decide it
		var burials atomic.Int64
		w.stuck = func(d store.Decide) bool { return d.Decision == txn.Review && burials.Add(1) == 1 }
		w.open()
		time.Sleep(500 * time.Millisecond)
		w.clients.insist("t0"+poisonsPersist, 0)
		time.Sleep(2 * time.Second)
		if burials.Load() != 1 {
			t.Errorf("%d burials began", burials.Load())
		}
		time.Sleep(30 * time.Second)
		if left := w.unsettled(); left != "" {
			t.Error(left)
		}
		w.stop()
	})
}

// Seeds worth keeping, with what they bring. Another weather or another crowd gives them another meaning; what one of them found has
// a test of its own above.
func TestNamedSeeds(t *testing.T) {
	for name, seed := range map[string]uint64{
		"two power cuts, then five decisions in one batch":              62,
		"claims that wait behind one that hangs are written much later": 81,
		"a late acknowledgement meets another message of its sequence":  11436,
		"the streams go between a keeper's making and its first look":   68593,
		"a machine's clock is set while its first question is answered": 133038,
	} {
		t.Run(name, func(t *testing.T) { t.Logf("%+v", trial{seed: seed}.check(t)) })
	}
}

// Whatever a seed brings, nothing that was accepted is lost or decided twice. CRIVO_SIM_SEEDS is how many are tried, beginning with
// CRIVO_SIM_FROM; CRIVO_SIM_SEED shows one.
func TestSeeds(t *testing.T) {
	if seed := setting(t, "CRIVO_SIM_SEED", 0); seed != 0 {
		t.Logf("%+v", trial{seed: seed, loud: true}.check(t))
		return
	}
	from, n := setting(t, "CRIVO_SIM_FROM", 1), setting(t, "CRIVO_SIM_SEEDS", seeds)
	shards := uint64(runtime.GOMAXPROCS(0))
	if os.Getenv(sharded) != "" || n < 2*shards {
		t.Log(all + try(t, from, n))
		return
	}
	// Processors are not equally fast: each takes small pieces while there are any.
	piece := min(max(n/(8*shards), 1), 500)
	var sum report
	var mu sync.Mutex
	var next uint64
	take := func(r report) (first, most uint64) {
		mu.Lock()
		defer mu.Unlock()
		sum.add(r)
		first, most = from+next, min(piece, n-next)
		next += most
		return first, most
	}
	var shardsDone sync.WaitGroup
	for range shards {
		shardsDone.Go(func() {
			for first, most := take(report{}); most > 0; {
				first, most = take(shard(t, first, most))
			}
		})
	}
	shardsDone.Wait()
	t.Logf("%d seeds from %d: %+v", n, from, sum)
}

const (
	sharded = "CRIVO_SIM_SHARD"
	all     = "all of them: " // begins the line that a shard ends with
)

// try runs seeds one after the other and returns what they came to: bubbles of one process share pools.
func try(t *testing.T, from, n uint64) string {
	t.Helper()
	var sum report
	for seed := from; seed < from+n; seed++ {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) { sum.add(trial{seed: seed}.check(t)) })
	}
	data, err := json.Marshal(&sum)
	if err != nil {
		t.Error(err)
	}
	return string(data)
}

// shard tries seeds in a process of its own.
func shard(t *testing.T, from, n uint64) (r report) {
	self, err := os.Executable()
	if err != nil {
		t.Error(err)
		return r
	}
	timeout := "0"
	if end, ok := t.Deadline(); ok {
		timeout = time.Until(end).String()
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestSeeds$", "-test.v", "-test.count=1", "-test.timeout="+timeout)
	// The bubble collects after each seed anyway, and what it frees is needed again at once.
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1", "GOGC=1000", "GODEBUG=madvdontneed=0", sharded+"=1", fmt.Sprintf("CRIVO_SIM_FROM=%d", from), fmt.Sprintf("CRIVO_SIM_SEEDS=%d", n))
	out, err := cmd.CombinedOutput()
	_, sum, found := bytes.Cut(out, []byte(all))
	sum, _, _ = bytes.Cut(sum, []byte("\n"))
	if err != nil || !found || json.Unmarshal(sum, &r) != nil {
		t.Errorf("seeds %d to %d: %v\n%s", from, from+n-1, err, quiet(string(out)))
	}
	return r
}

// quiet drops the lines of what went well.
func quiet(out string) string {
	var kept strings.Builder
	for line := range strings.Lines(out) {
		if !strings.HasPrefix(line, "=== RUN") && !strings.HasPrefix(strings.TrimSpace(line), "--- PASS") {
			kept.WriteString(line)
		}
	}
	return kept.String()
}
