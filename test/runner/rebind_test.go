package runner_test

import (
	"context"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"crivo/pkg/stage"
	"crivo/services/broker"
)

func TestADrainFinishesWhatWasPulled(t *testing.T) {
	t.Parallel()
	r := newRig(t, watched)
	const many = 2000
	r.putMany(t, many)
	began, goOn := make(chan struct{}), make(chan struct{})
	var c calls
	whole := c.handle(fine)
	s := r.run(t, func(ctx context.Context, batch []stage.Message) []stage.Result {
		select {
		case began <- struct{}{}:
		case <-goOn:
		}
		<-goOn
		return whole(ctx, batch)
	})
	<-began
	s.end()
	close(goOn)
	s.stop(t)
	done := len(r.bodies(t, "OUT"))
	if done == 0 || done == many {
		t.Errorf("%d of %d done by the end", done, many)
	}
	// What the broker had sent when the subscription ended may have met nobody: it comes again after AckWait.
	wait(t, "all acknowledged that came out", func() bool { return r.info(t).AckFloor.Stream == uint64(done) })
	if got := s.outcome(t, "done"); got != done {
		t.Errorf("counted %d of %d", got, done)
	}
	r.run(t, c.handle(fine))
	r.settled(t, many)
	if got := len(r.bodies(t, "OUT")); got != many {
		t.Errorf("%d outputs", got)
	}
	for i := range done {
		if got := c.of(strconv.Itoa(i)); got != 1 {
			t.Errorf("%d was finished in the drain, and yet ran %d times", i, got)
		}
	}
}

func TestAConsumerThatIsMissingIsWaitedFor(t *testing.T) {
	t.Parallel()
	r := newRig(t, patient)
	for name, tc := range map[string]struct{ lose, bring func() }{
		"the consumer": {func() { _ = r.js.DeleteConsumer(t.Context(), "IN", "sift") }, func() { r.consumer(t) }},
		"the stream":   {func() { _ = r.js.DeleteStream(t.Context(), "IN") }, func() { r.provision(t) }},
	} {
		t.Run(name, func(t *testing.T) {
			tc.lose()
			var c calls
			s := r.run(t, c.handle(fine))
			wait(t, "not ready", func() bool { return s.told("waiting for consumer sift") })
			tc.bring()
			wait(t, "ready", func() bool { return s.reasons.last() == "" })
			r.put(t, name)
			wait(t, "work", func() bool { return c.of(name) == 1 })
		})
	}
}

func TestADeletedConsumerIsBoundAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t, patient)
	var c calls
	s := r.run(t, c.handle(fine))
	r.put(t, "a")
	r.settled(t, 1)
	if err := r.js.DeleteConsumer(t.Context(), "IN", "sift"); err != nil {
		t.Fatal(err)
	}
	wait(t, "not ready", func() bool { return s.told("waiting for consumer sift") })
	r.consumer(t) // from the stream's beginning: what was done comes again
	r.put(t, "b")
	r.settled(t, 2)
	wait(t, "ready", func() bool { return s.reasons.last() == "" })
	got := r.bodies(t, "OUT")
	slices.Sort(got)
	if diff := cmp.Diff([]string{"a", "b"}, got); diff != "" {
		t.Errorf("outputs: %s", diff)
	}
	if got := s.counted(t, "crivo_step_duplicates_total", "sift"); got < 1 {
		t.Error("none of the outputs was there already")
	}
}

// outside is a rig whose broker listens, so that it can go away and come back at the same address.
func outside(t *testing.T) (r *rig, o broker.Options) {
	t.Helper()
	o = broker.Options{Dir: t.TempDir(), Host: "127.0.0.1", Port: -1}
	r = &rig{server: start(t, o), spec: spec}
	r.spec.AckWait = hasty // what the broker had delivered when it went away comes again
	o.Port = port(t, r.server)
	r.nc, r.js = dialURL(t, r.server.URL())
	r.provision(t)
	return r, o
}

func TestARestartOfTheBrokerIsSurvived(t *testing.T) {
	t.Parallel()
	r, o := outside(t)
	var c calls
	s := r.run(t, c.handle(fine))
	r.put(t, "before")
	r.settled(t, 1)
	r.server.Close()
	r.server = start(t, o)
	wait(t, "the broker", func() bool { return r.info(t).Name == "sift" })
	r.put(t, "after")
	r.settled(t, 2)
	if diff := cmp.Diff([]string{"before", "after"}, r.bodies(t, "OUT")); diff != "" {
		t.Error(diff)
	}
	if got := s.burials.list(); len(got) > 0 {
		t.Errorf("buried %v", got)
	}
}

// TestWorkInHandSurvivesARestartOfTheBroker closes the broker while a handler runs.
func TestWorkInHandSurvivesARestartOfTheBroker(t *testing.T) {
	t.Parallel()
	r, o := outside(t)
	const many = 300
	r.putMany(t, many)
	began, goOn := make(chan struct{}), make(chan struct{})
	var c calls
	whole := c.handle(fine)
	s := r.run(t, func(ctx context.Context, batch []stage.Message) []stage.Result {
		select {
		case began <- struct{}{}:
		case <-goOn:
		}
		<-goOn
		return whole(ctx, batch)
	})
	<-began
	r.server.Close()
	close(goOn)
	wait(t, "not ready", func() bool { return s.told("cannot publish") })
	r.server = start(t, o)
	r.settled(t, many)
	if got := len(r.bodies(t, "OUT")); got != many {
		t.Errorf("%d outputs of %d", got, many)
	}
	if got := s.burials.list(); len(got) > 0 {
		t.Errorf("buried %v", got)
	}
	wait(t, "ready", func() bool { return s.reasons.last() == "" })
}

// A machine that was reset may lack the end of a stream. Its sequences are given anew, and a word about what they were before
// must not settle what they are now.
func TestALateAcknowledgementIsNotTakenForAnotherMessage(t *testing.T) {
	t.Parallel()
	r, o := outside(t)
	r.spec.AckWait = patient
	r.consumer(t)
	before := o
	before.Dir = t.TempDir()
	began, goOn := make(chan string), make(chan struct{})
	s := r.run(t, stage.Each(0, func(_ context.Context, m stage.Message) ([]stage.Output, error) {
		began <- string(m.Data)
		<-goOn
		return []stage.Output{{Subject: "out.a", ID: string(m.Data), Data: m.Data}}, nil
	}))
	r.server.Close()
	if err := os.CopyFS(before.Dir, os.DirFS(o.Dir)); err != nil {
		t.Fatal(err)
	}
	r.server = start(t, o)
	wait(t, "the broker", func() bool { return r.info(t).Name == "sift" })
	r.put(t, "lost")
	<-began
	r.server.Close()
	r.server = start(t, before)
	wait(t, "the broker of before", func() bool { return r.info(t).Name == "sift" })
	r.put(t, "new")
	wait(t, "new is in hand too", func() bool { return r.info(t).Delivered.Stream == 1 })
	goOn <- struct{}{} // lost is done
	if body := <-began; body != "new" {
		t.Errorf("%s is handled", body)
	}
	if err := r.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	if i := r.told(t); i.AckFloor.Stream != 0 || i.NumAckPending != 1 {
		t.Errorf("settled up to %d, %d under way", i.AckFloor.Stream, i.NumAckPending)
	}
	close(goOn)
	go func() {
		for range began {
		}
	}()
	r.settled(t, 1)
	s.stop(t)
	close(began)
	if diff := cmp.Diff([]string{"lost", "new"}, r.bodies(t, "OUT")); diff != "" {
		t.Error(diff)
	}
	if got := s.burials.list(); len(got) > 0 {
		t.Errorf("buried %v", got)
	}
}

func TestABrokerThatLostItsDiskIsWaitedFor(t *testing.T) {
	t.Parallel()
	r, o := outside(t)
	var c calls
	s := r.run(t, c.handle(fine))
	r.put(t, "before")
	r.settled(t, 1)
	r.server.Close()
	o.Dir = t.TempDir()
	r.server = start(t, o)
	wait(t, "not ready", func() bool { return s.told("waiting for consumer sift") })
	r.provision(t)
	r.put(t, "after")
	r.settled(t, 1)
	if diff := cmp.Diff([]string{"after"}, r.bodies(t, "OUT")); diff != "" {
		t.Error(diff)
	}
	wait(t, "ready", func() bool { return s.reasons.last() == "" })
}

func TestARunnerEndsWhileItsBrokerIsAway(t *testing.T) {
	t.Parallel()
	r, _ := outside(t)
	var c calls
	s := r.run(t, c.handle(fine))
	r.put(t, "before")
	r.settled(t, 1)
	r.server.Close()
	wait(t, "lost", func() bool { return !r.nc.IsConnected() })
	s.stop(t)
}

func TestTwoRunnersShareTheWork(t *testing.T) {
	t.Parallel()
	r := newRig(t, patient)
	const many = 2000
	var mine, others atomic.Int64
	count := func(n *atomic.Int64) stage.Handler {
		return stage.Each(0, func(_ context.Context, m stage.Message) ([]stage.Output, error) {
			n.Add(1)
			return []stage.Output{output(m)}, nil
		})
	}
	r.run(t, count(&mine))
	_, js := dial(t, r.server.InProcess())
	(&rig{server: r.server, js: js, spec: r.spec}).run(t, count(&others))
	wait(t, "both ask", func() bool { return r.info(t).NumWaiting == 2 })
	r.putMany(t, many)
	r.settled(t, many)
	if mine.Load() == 0 || others.Load() == 0 || mine.Load()+others.Load() != many {
		t.Errorf("%d and %d of %d", mine.Load(), others.Load(), many)
	}
}

func TestAMessageIsFoundByItsRecordWhoeverHasIt(t *testing.T) {
	t.Parallel()
	r := newRig(t, patient)
	kv := stage.KV{JS: r.js, Bucket: bucket}
	for n := 1; n <= 3; n++ {
		if err := kv.Put(t.Context(), "sift/7", n, stage.CauseCrash); err != nil {
			t.Fatal(err)
		}
		if got, cause, err := kv.Get(t.Context(), "sift/7"); got != n || cause != stage.CauseCrash || err != nil {
			t.Errorf("%s: %d %s, %v", strconv.Itoa(n), got, cause, err)
		}
	}
	if err := kv.Forget(t.Context(), "sift/7"); err != nil {
		t.Fatal(err)
	}
	if got, cause, err := kv.Get(t.Context(), "sift/7"); got != 0 || cause != "" || err != nil {
		t.Errorf("forgotten: %d %q, %v", got, cause, err)
	}
	if _, _, err := (&stage.KV{JS: r.js, Bucket: "NONE"}).Get(t.Context(), "sift/7"); err == nil {
		t.Error("a bucket that is missing holds nothing")
	}
	raw, err := r.js.KeyValue(t.Context(), bucket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := raw.PutString(t.Context(), "sift/7", "rubbish"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := kv.Get(t.Context(), "sift/7"); err == nil {
		t.Error("rubbish was read")
	}
}
