package runner_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"

	"crivo/pkg/stage"
)

var errBad = errors.New("bad")

func TestEachFate(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		fate    func(body string) error
		runs    int // of the bad message
		burial  string
		outcome string
	}{
		"a result":                   {fine, 1, "", "done"},
		"a rejected message":         {func(string) error { return stage.Reject(errBad) }, 1, "bad reject after 0", "buried_reject"},
		"an undecodable message":     {func(string) error { return stage.Undecodable(errBad) }, 1, "bad decode after 0", "buried_decode"},
		"an error without a mark":    {func(string) error { return errBad }, 1 + stage.MaxAttempts, "bad exhausted after 3", "buried_exhausted"},
		"a panic":                    {func(string) error { panic("bad") }, 1 + stage.MaxAttempts, "bad panic after 3", "buried_panic"},
		"an error that is wrapped":   {func(string) error { return fmt.Errorf("look-up: %w", stage.Reject(errBad)) }, 1, "bad reject after 0", "buried_reject"},
		"a rejection of a time-out":  {func(string) error { return stage.Reject(context.DeadlineExceeded) }, 1, "bad reject after 0", "buried_reject"},
		"a panic with an error":      {func(string) error { panic(errBad) }, 1 + stage.MaxAttempts, "bad panic after 3", "buried_panic"},
		"a time-out is an attempt":   {func(string) error { return context.DeadlineExceeded }, 1 + stage.MaxAttempts, "bad exhausted after 3", "buried_exhausted"},
		"a handler's broken off run": {func(string) error { return context.Canceled }, 1 + stage.MaxAttempts, "bad exhausted after 3", "buried_exhausted"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, patient)
			r.put(t, "bad")
			var c calls
			s := r.run(t, c.handle(tc.fate))
			r.settled(t, 1)
			if got := c.of("bad"); got != tc.runs {
				t.Errorf("ran %d times, want %d", got, tc.runs)
			}
			wait(t, tc.outcome, func() bool { return s.outcome(t, tc.outcome) == 1 })
			var burials, letters []string
			out := []string{"bad"}
			if tc.burial != "" {
				burials, letters, out = []string{tc.burial}, []string{"bad"}, []string{"fate of bad"}
			}
			if diff := cmp.Diff(burials, s.burials.list()); diff != "" {
				t.Errorf("burials: %s", diff)
			}
			if diff := cmp.Diff(letters, r.bodies(t, "DEAD")); diff != "" {
				t.Errorf("letters: %s", diff)
			}
			if diff := cmp.Diff(out, r.bodies(t, "OUT")); diff != "" {
				t.Errorf("outputs: %s", diff)
			}
			r.noRecords(t)
		})
	}
}

// noRecords waits until the bucket of attempts holds nothing.
func (r *rig) noRecords(t *testing.T) {
	t.Helper()
	kv, err := r.js.KeyValue(t.Context(), bucket)
	if err != nil {
		t.Fatal(err)
	}
	wait(t, "no records of attempts", func() bool {
		_, err := kv.Keys(t.Context())
		return errors.Is(err, jetstream.ErrNoKeysFound)
	})
}

func TestRetriesComeWithGrowingPauses(t *testing.T) {
	t.Parallel()
	r := newRig(t, patient)
	r.put(t, "bad")
	var c calls
	var at []time.Time
	s := r.run(t, c.handle(func(string) error { at = append(at, time.Now()); return errBad }))
	r.settled(t, 1)
	s.stop(t)
	for i := 1; i < len(at); i++ {
		if pause, least := at[i].Sub(at[i-1]), 50*time.Millisecond<<(i-1); pause < least {
			t.Errorf("run %d came after %s, want at least %s", i+1, pause, least)
		}
	}
	if got := s.outcome(t, "retried"); got != stage.MaxAttempts {
		t.Errorf("retried %d times", got)
	}
}

func TestAnErrorThatPassesIsForgotten(t *testing.T) {
	t.Parallel()
	r := newRig(t, patient)
	r.put(t, "moody")
	var c calls
	s := r.run(t, c.handle(func(string) error {
		if c.of("moody") < stage.MaxAttempts {
			return errBad
		}
		return nil
	}))
	r.settled(t, 1)
	if diff := cmp.Diff([]string{"moody"}, r.bodies(t, "OUT")); diff != "" || len(s.burials.list()) > 0 {
		t.Errorf("outputs %s, burials %v", diff, s.burials.list())
	}
	r.noRecords(t)
}

func TestF08OnlyThePoisonousOneOfABatchIsBuried(t *testing.T) {
	t.Parallel()
	good := []string{"a", "b", "c", "d"}
	for name, poison := range map[string]func() []stage.Result{
		"a panic":                      func() []stage.Result { panic("poison") },
		"another number of results":    func() []stage.Result { return nil },
		"more results than messages":   func() []stage.Result { return make([]stage.Result, 99) },
		"a panic in a worker of Each":  nil,
		"a panic with a runtime error": func() []stage.Result { var none []stage.Result; return none[3:4] },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, patient)
			r.put(t, "a", "b", "poison", "c", "d")
			var c calls
			whole := c.handle(fine)
			each := stage.Each(4, func(_ context.Context, m stage.Message) ([]stage.Output, error) {
				if string(m.Data) == "poison" {
					panic("poison")
				}
				return []stage.Output{output(m)}, nil
			})
			s := r.run(t, func(ctx context.Context, batch []stage.Message) []stage.Result {
				if poison == nil {
					return each(ctx, batch)
				}
				if slices.ContainsFunc(batch, func(m stage.Message) bool { return string(m.Data) == "poison" }) {
					return poison()
				}
				return whole(ctx, batch)
			})
			r.settled(t, 5)
			if diff := cmp.Diff([]string{"poison panic after 3"}, s.burials.list()); diff != "" {
				t.Error(diff)
			}
			got := r.bodies(t, "OUT")
			slices.Sort(got)
			if diff := cmp.Diff(append(slices.Clone(good), "fate of poison"), got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// killed leaves the record that a process leaves which died of its n-th recorded run.
func (r *rig) killed(t *testing.T, sequence uint64, n int, cause string) {
	t.Helper()
	kv := stage.KV{JS: r.js, Bucket: bucket}
	if err := kv.Put(t.Context(), r.record(t, sequence), n, cause); err != nil {
		t.Fatal(err)
	}
}

// record names a message's record.
func (r *rig) record(t *testing.T, sequence uint64) string {
	t.Helper()
	s, err := r.js.Stream(t.Context(), r.spec.Stream)
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.GetMsg(t.Context(), sequence)
	if err != nil {
		t.Fatal(err)
	}
	return stage.AttemptKey(r.spec.Step, sequence, m.Time)
}

// deliver makes all messages ones that were delivered before, as after the end of a process that held them.
func (r *rig) deliver(t *testing.T, n int) {
	t.Helper()
	c, err := r.js.Consumer(t.Context(), r.spec.Stream, r.spec.Durable)
	if err != nil {
		t.Fatal(err)
	}
	batch, err := c.Fetch(n, jetstream.FetchMaxWait(within))
	if err != nil {
		t.Fatal(err)
	}
	for m := range batch.Messages() {
		if err := m.Nak(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestF14AMessageThatKillsItsProcessIsBuriedAlone(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		records int
		last    string
		runs    int
		burials []string
	}{
		"killed three times":           {3, stage.CauseCrash, 0, []string{"killer crash after 3"}},
		"killed twice":                 {2, stage.CauseCrash, 1, nil},
		"panicked three times":         {3, stage.CausePanic, 0, []string{"killer panic after 3"}},
		"failed three times":           {3, stage.CauseExhausted, 0, []string{"killer exhausted after 3"}},
		"a record without a cause":     {3, "", 0, []string{"killer crash after 3"}},
		"a record of an unknown cause": {4, "rejected\nand more", 0, []string{"killer crash after 4"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, patient)
			r.put(t, "a", "killer", "b")
			r.deliver(t, 3)
			r.killed(t, 2, tc.records, tc.last)
			var c calls
			s := r.run(t, c.handle(fine))
			r.settled(t, 3)
			if got := c.of("killer"); got != tc.runs {
				t.Errorf("the killer ran %d times more", got)
			}
			if c.of("a") != 1 || c.of("b") != 1 {
				t.Errorf("its batch mates ran %d and %d times", c.of("a"), c.of("b"))
			}
			for _, batch := range c.all() {
				if len(batch) > 1 {
					t.Errorf("%d messages that were delivered before ran together", len(batch))
				}
			}
			if diff := cmp.Diff(tc.burials, s.burials.list()); diff != "" {
				t.Error(diff)
			}
			r.noRecords(t)
		})
	}
}

// TestEveryDeathOfAProcessIsOneAttempt kills four processes by one message: each is a connection that closes in its handler.
func TestEveryDeathOfAProcessIsOneAttempt(t *testing.T) {
	t.Parallel()
	r := newRig(t, hasty)
	r.put(t, "a", "killer", "b")
	for range 1 + stage.MaxAttempts { // the first run, in a batch, is not recorded
		dies(t, r, "killer")
	}
	var c calls
	s := r.run(t, c.handle(fine))
	r.settled(t, 3)
	if diff := cmp.Diff([]string{"killer crash after 3"}, s.burials.list()); diff != "" {
		t.Error(diff)
	}
	if got := c.of("killer"); got != 0 {
		t.Errorf("the killer ran %d times more", got)
	}
	got := r.bodies(t, "OUT")
	slices.Sort(got)
	if diff := cmp.Diff([]string{"a", "b", "fate of killer"}, got); diff != "" {
		t.Error(diff)
	}
}

// dies runs a process of its own that ends, like one that is killed, when its handler meets body.
func dies(t *testing.T, r *rig, body string) {
	t.Helper()
	nc, js := dial(t, r.server.InProcess())
	died, over := make(chan struct{}), make(chan struct{})
	own := &rig{server: r.server, nc: nc, js: js, spec: r.spec}
	s := own.prepare(stage.Each(0, func(ctx context.Context, m stage.Message) ([]stage.Output, error) {
		if string(m.Data) == body {
			nc.Close()
			close(died)
			<-over
		}
		return []stage.Output{output(m)}, nil
	})).start(t)
	<-died
	close(over)
	s.stop(t)
}

func TestTheBurialIsStoredBeforeTheMessageIsGivenUp(t *testing.T) {
	t.Parallel()
	for name, missing := range map[string]string{"the letter cannot be stored": "DEAD", "the fate cannot be stored": "OUT"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, watched)
			if err := r.js.DeleteStream(t.Context(), missing); err != nil {
				t.Fatal(err)
			}
			r.put(t, "bad")
			var c calls
			s := r.run(t, c.handle(func(string) error { return stage.Reject(errBad) }))
			wait(t, "not ready", func() bool { return s.told("cannot publish") })
			outlast(t, r, func(i jetstream.ConsumerInfo) {
				if i.NumAckPending != 1 || i.AckFloor.Stream != 0 || i.NumRedelivered != 0 {
					t.Fatalf("before its burial: %d under way, floor %d, %d again", i.NumAckPending, i.AckFloor.Stream, i.NumRedelivered)
				}
			})
			r.stream(t, missing, map[string]string{"DEAD": "dead.*", "OUT": "out.*"}[missing])
			r.settled(t, 1)
			if dead, out := r.bodies(t, "DEAD"), r.bodies(t, "OUT"); len(dead) != 1 || len(out) != 1 {
				t.Errorf("letters %v, fates %v", dead, out)
			}
			if got := s.outcome(t, "buried_reject"); got != 1 {
				t.Errorf("counted %d", got)
			}
			wait(t, "ready again", func() bool { return s.reasons.last() == "" })
		})
	}
}

func TestABurialThatCannotBeMadeYetIsTriedAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t, patient)
	r.put(t, "bad", "good")
	var c calls
	s := r.prepare(c.handle(func(body string) error {
		if body == "bad" {
			return stage.Reject(errBad)
		}
		return nil
	}))
	tries, bury := 0, s.Bury
	s.Bury = func(ctx context.Context, b stage.Burial) ([]stage.Output, error) {
		switch tries++; tries {
		case 1, 3, 4, 5: // more often than a message has attempts
			return nil, errDown
		case 2:
			panic("it cannot be read here either")
		}
		return bury(ctx, b)
	}
	s.start(t)
	r.settled(t, 2)
	if diff := cmp.Diff([]string{"bad reject after 1"}, s.burials.list()); diff != "" {
		t.Error(diff)
	}
	r.noRecords(t)
	if diff := cmp.Diff([]string{"bad"}, r.bodies(t, "DEAD")); diff != "" {
		t.Error(diff)
	}
	if got := c.of("good"); got != 1 {
		t.Errorf("the good one ran %d times", got)
	}
}

func TestAnIncompleteRunnerSaysSo(t *testing.T) {
	t.Parallel()
	r := newRig(t, patient)
	for name, spoil := range map[string]func(*stage.Runner){
		"no handler":          func(r *stage.Runner) { r.Handle = nil },
		"no way to bury":      func(r *stage.Runner) { r.Bury = nil },
		"no attempts":         func(r *stage.Runner) { r.Attempts = nil },
		"no clock":            func(r *stage.Runner) { r.Now = nil },
		"no metrics":          func(r *stage.Runner) { r.Metrics = nil },
		"no broker":           func(r *stage.Runner) { r.JS = nil },
		"no batch":            func(r *stage.Runner) { r.Spec.Batch = 0 },
		"too large a batch":   func(r *stage.Runner) { r.Spec.Batch = 1001 },
		"no time to answer":   func(r *stage.Runner) { r.Spec.AckWait = 0 },
		"a closed connection": func(x *stage.Runner) { nc, js := dial(t, r.server.InProcess()); nc.Close(); x.JS = js },
	} {
		t.Run(name, func(t *testing.T) {
			s := r.prepare(func(context.Context, []stage.Message) []stage.Result { return nil })
			spoil(&s.Runner)
			ctx, cancel := context.WithTimeout(t.Context(), within)
			defer cancel()
			if err := s.Run(ctx); err == nil || ctx.Err() != nil {
				t.Errorf("ended with %v", err)
			}
		})
	}
}
