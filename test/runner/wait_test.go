package runner_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"

	"crivo/pkg/stage"
)

var errDown = errors.New("the store is down")

func TestADependencyThatIsDownCostsNoMessageAnAttempt(t *testing.T) {
	t.Parallel()
	r := newRig(t, watched)
	const many = 900 // more than a runner holds at once
	r.putMany(t, many)
	var up atomic.Bool
	var c calls
	s := r.run(t, c.handle(func(string) error {
		if !up.Load() {
			return stage.Unavailable(errDown)
		}
		return nil
	}))
	wait(t, "not ready", func() bool { return s.told("unavailable") })
	held := 0
	outlast(t, r, func(i jetstream.ConsumerInfo) { held = max(held, i.NumAckPending) })
	if held > 4*r.spec.Batch {
		t.Errorf("went on pulling: %d under way", held)
	}
	if got := r.told(t); got.NumRedelivered > 0 || got.AckFloor.Stream > 0 {
		t.Errorf("while it waited: %d came again, %d acknowledged", got.NumRedelivered, got.AckFloor.Stream)
	}
	up.Store(true)
	r.settled(t, many)
	if most := c.most(); most != 1 {
		t.Errorf("a message was delivered %d times", most)
	}
	if got := s.burials.list(); len(got) > 0 {
		t.Errorf("buried %v", got)
	}
	if got := len(r.bodies(t, "OUT")); got != many {
		t.Errorf("%d outputs", got)
	}
	wait(t, "ready again", func() bool { return s.reasons.last() == "" })
}

// A process that alone lost its way to the store must not keep from another what that one could do.
func TestWhatADependencyKeepsTooLongIsGivenBack(t *testing.T) {
	t.Parallel()
	r := newRig(t, patient)
	r.spec.Batch = 16
	const many = 100 // more than a runner holds at once
	r.putMany(t, many)
	var up atomic.Bool
	var late atomic.Int64
	cut := r.prepare(stage.Each(0, func(_ context.Context, m stage.Message) ([]stage.Output, error) {
		if !up.Load() {
			return nil, stage.Unavailable(errDown)
		}
		late.Add(1)
		return []stage.Output{output(m)}, nil
	}))
	cut.Patience = time.Second
	cut.start(t)
	wait(t, "as much as it takes", func() bool { i := r.info(t); return i.NumAckPending >= 2*r.spec.Batch && i.NumWaiting == 0 })
	end := time.Now().Add(3 * cut.Patience)
	wait(t, "more than its patience", func() bool { return time.Now().After(end) })
	if got := cut.outcome(t, "given_back"); got > 0 {
		t.Errorf("%d given back, and nobody asked", got)
	}
	_, js := dial(t, r.server.InProcess())
	var c calls
	other := (&rig{server: r.server, js: js, spec: r.spec}).run(t, c.handle(fine))
	r.settled(t, many) // by the other alone
	up.Store(true)
	wait(t, "ready again", func() bool { return cut.reasons.last() == "" })
	cut.stop(t)
	if got := late.Load(); got != 1 {
		t.Errorf("%d were run that it held no more, and one to ask by", got)
	}
	if got := len(r.bodies(t, "OUT")); got != many {
		t.Errorf("%d outputs", got)
	}
	if got := append(cut.burials.list(), other.burials.list()...); len(got) > 0 {
		t.Errorf("buried %v", got)
	}
	r.noRecords(t)
}

// outlast lets more than two AckWaits pass, watching on the way.
func outlast(t *testing.T, r *rig, watch func(jetstream.ConsumerInfo)) {
	t.Helper()
	end := time.Now().Add(5 * r.spec.AckWait / 2)
	wait(t, "two AckWaits and more", func() bool {
		if i := r.info(t); i.Name != "" {
			watch(i)
		}
		return time.Now().After(end)
	})
}

func TestARepeatThatFindsItsDependencyDownKeepsItsRecord(t *testing.T) {
	t.Parallel()
	r := newRig(t, patient)
	r.put(t, "moody")
	r.deliver(t, 1)
	r.killed(t, 1, 2, stage.CauseCrash)
	var up atomic.Bool
	var c calls
	s := r.run(t, c.handle(func(string) error {
		if !up.Load() {
			return stage.Unavailable(errDown)
		}
		return errBad
	}))
	kv := stage.KV{JS: r.js, Bucket: bucket}
	wait(t, "not ready", func() bool { return s.told("unavailable") })
	wait(t, "the record of before", func() bool {
		n, last, err := kv.Get(t.Context(), r.record(t, 1))
		return n == 2 && last == stage.CauseCrash && err == nil
	})
	up.Store(true)
	r.settled(t, 1)
	if diff := cmp.Diff([]string{"moody exhausted after 3"}, s.burials.list()); diff != "" {
		t.Error(diff)
	}
}

func TestAPanicAfterAnOutageIsAnAttemptOfItsOwn(t *testing.T) {
	t.Parallel()
	r := newRig(t, patient)
	r.put(t, "a", "poison", "b")
	var up atomic.Bool
	var c calls
	s := r.run(t, c.handle(func(body string) error {
		if !up.Load() {
			return stage.Unavailable(errDown)
		}
		if body == "poison" {
			panic(body)
		}
		return nil
	}))
	wait(t, "not ready", func() bool { return s.told("unavailable") })
	up.Store(true)
	r.settled(t, 3)
	if diff := cmp.Diff([]string{"poison panic after 3"}, s.burials.list()); diff != "" {
		t.Error(diff)
	}
	got := r.bodies(t, "OUT")
	slices.Sort(got)
	if diff := cmp.Diff([]string{"a", "b", "fate of poison"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestOneWhoseDependencyIsDownDoesNotHoldItsBatchMates(t *testing.T) {
	t.Parallel()
	r := newRig(t, patient)
	r.put(t, "first", "a", "needs it", "b")
	var up atomic.Bool
	var c calls
	r.run(t, c.handle(func(body string) error {
		switch {
		case body == "first": // so that the others arrive and go together
			wait(t, "the others in hand", func() bool { return r.info(t).NumAckPending == 4 })
		case body == "needs it" && !up.Load():
			return stage.Unavailable(errDown)
		}
		return nil
	}))
	wait(t, "the others done", func() bool { return len(r.bodies(t, "OUT")) == 3 && r.info(t).NumAckPending == 1 })
	up.Store(true)
	r.settled(t, 4)
	if diff := cmp.Diff([]string{"first", "a", "b", "needs it"}, r.bodies(t, "OUT")); diff != "" {
		t.Error(diff)
	}
}

func TestF08ANewerSchemaIsHeldUntilTheUpgrade(t *testing.T) {
	t.Parallel()
	r := newRig(t, patient)
	r.put(t, "old", "new", "old too")
	var c calls
	old := r.run(t, c.handle(func(body string) error {
		if body == "new" {
			return stage.Hold(errors.New("schema 2"))
		}
		return nil
	}))
	wait(t, "not ready", func() bool { return old.told("newer schema") })
	wait(t, "the others done", func() bool { return len(r.bodies(t, "OUT")) == 2 && r.info(t).NumAckPending == 1 })
	if got := old.reasons.last(); !strings.Contains(got, "newer schema") {
		t.Errorf("the process is ready: %q", got)
	}
	old.stop(t)
	if i := r.told(t); i.AckFloor.Stream > 1 || len(old.burials.list()) > 0 || len(r.bodies(t, "DEAD")) > 0 {
		t.Errorf("floor %d, burials %v", i.AckFloor.Stream, old.burials.list())
	}
	if got := old.outcome(t, "held"); got != 1 {
		t.Errorf("held %d", got)
	}
	r.run(t, c.handle(fine))
	r.settled(t, 3)
	if diff := cmp.Diff([]string{"old", "old too", "new"}, r.bodies(t, "OUT")); diff != "" {
		t.Error(diff)
	}
}

// TestAHeldMessageUsesUpNoAttempt has one that comes back to the old version.
func TestAHeldMessageUsesUpNoAttempt(t *testing.T) {
	t.Parallel()
	r := newRig(t, patient)
	r.put(t, "new")
	r.deliver(t, 1)
	r.killed(t, 1, 2, stage.CauseExhausted)
	var c calls
	s := r.run(t, c.handle(func(string) error { return stage.Hold(errors.New("schema 2")) }))
	wait(t, "held", func() bool { return s.outcome(t, "held") > 0 })
	r.noRecords(t)
	if got := s.burials.list(); len(got) > 0 {
		t.Errorf("buried %v", got)
	}
}

func TestReasonsOfAStepDoNotHideEachOther(t *testing.T) {
	t.Parallel()
	r := newRig(t, patient)
	r.put(t, "new", "needs it")
	var up atomic.Bool
	var c calls
	s := r.run(t, c.handle(func(body string) error {
		switch {
		case body == "new":
			return stage.Hold(errors.New("schema 2"))
		case !up.Load():
			return stage.Unavailable(errDown)
		}
		return nil
	}))
	wait(t, "both reasons", func() bool {
		got := s.reasons.last()
		return strings.Contains(got, "newer schema") && strings.Contains(got, "unavailable")
	})
	up.Store(true)
	wait(t, "the one that stays", func() bool {
		got := s.reasons.last()
		return strings.Contains(got, "newer schema") && !strings.Contains(got, "unavailable")
	})
}

func TestASlowHandlerIsNotGivenItsMessagesAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t, watched)
	const many = 600 // more than one batch: those that wait in line are kept in progress too
	r.putMany(t, many)
	slow := make(chan struct{})
	var c calls
	whole := c.handle(fine)
	r.run(t, func(ctx context.Context, batch []stage.Message) []stage.Result {
		<-slow
		return whole(ctx, batch)
	})
	outlast(t, r, func(i jetstream.ConsumerInfo) {
		if i.NumRedelivered > 0 {
			t.Fatalf("%d came again", i.NumRedelivered)
		}
	})
	close(slow)
	r.settled(t, many)
	if most := c.most(); most != 1 {
		t.Errorf("a message was delivered %d times", most)
	}
}

func TestAHandlersContextEndsButNotWithTheDrain(t *testing.T) {
	t.Parallel()
	r := newRig(t, patient)
	r.put(t, "a")
	began, goOn, ended := make(chan time.Time, 1), make(chan struct{}), make(chan error, 1)
	s := r.run(t, stage.Each(0, func(ctx context.Context, m stage.Message) ([]stage.Output, error) {
		deadline, _ := ctx.Deadline()
		began <- deadline
		<-goOn
		ended <- ctx.Err()
		return []stage.Output{output(m)}, nil
	}))
	if (<-began).IsZero() {
		t.Error("no deadline")
	}
	s.end()
	close(goOn)
	if err := <-ended; err != nil {
		t.Errorf("the drain cut the handler: %v", err)
	}
	s.stop(t)
	r.settled(t, 1)
}
