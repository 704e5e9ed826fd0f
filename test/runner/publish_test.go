package runner_test

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"crivo/pkg/stage"
)

func outputs(ids ...string) []stage.Output {
	out := make([]stage.Output, len(ids))
	for i, id := range ids {
		out[i] = stage.Output{Subject: "out.a", ID: id, Header: nats.Header{"Who": {id}}, Data: []byte(id)}
	}
	return out
}

func TestPublish(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		before, now []string
		duplicates  int
		want        []string
	}{
		"nothing":                           {nil, nil, 0, nil},
		"one":                               {nil, []string{"a"}, 0, []string{"a"}},
		"one that is there":                 {[]string{"a"}, []string{"a"}, 1, []string{"a"}},
		"a few":                             {nil, many(3), 0, many(3)},
		"a few, one of which is there":      {[]string{"1"}, many(3), 1, []string{"1", "0", "2"}},
		"an atomic batch":                   {nil, many(20), 0, many(20)},
		"a batch that is there":             {many(20), many(20), 20, many(20)},
		"a batch, one of which is there":    {[]string{"19"}, many(20), 1, append([]string{"19"}, many(19)...)},
		"a batch with one id twice":         {nil, append(many(20), "7"), 1, many(20)},
		"more than one atomic batch may be": {nil, many(1001), 0, many(1001)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, patient)
			if _, err := stage.Publish(t.Context(), r.js, outputs(tc.before...)); err != nil {
				t.Fatal(err)
			}
			duplicates, err := stage.Publisher{JS: r.js, BatchFrom: 16}.Publish(t.Context(), outputs(tc.now...))
			if err != nil || duplicates != tc.duplicates {
				t.Errorf("%d duplicates, %v; want %d", duplicates, err, tc.duplicates)
			}
			if diff := cmp.Diff(tc.want, r.bodies(t, "OUT")); diff != "" {
				t.Error(diff)
			}
			for _, m := range r.messages(t, "OUT") {
				if m.Header.Get("Who") != string(m.Data) || m.Header.Get(nats.MsgIdHdr) != string(m.Data) {
					t.Errorf("%s has headers %v", m.Data, m.Header)
				}
			}
		})
	}
}

func many(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = strconv.Itoa(i)
	}
	return out
}

func TestPublishLeavesItsOutputsAsTheyWere(t *testing.T) {
	t.Parallel()
	r := newRig(t, patient)
	out := outputs(many(20)...)
	if _, err := (stage.Publisher{JS: r.js, BatchFrom: 16}).Publish(t.Context(), out); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(outputs(many(20)...), out); diff != "" {
		t.Error(diff)
	}
}

func TestPublishSaysWhatIsNotStored(t *testing.T) {
	t.Parallel()
	r := newRig(t, patient)
	over, cancel := context.WithCancel(t.Context())
	cancel()
	for name, tc := range map[string]struct {
		ctx context.Context
		out []stage.Output
	}{
		"no stream takes it":             {t.Context(), []stage.Output{{Subject: "nowhere", ID: "a"}}},
		"no stream takes one of them":    {t.Context(), append(outputs("b"), stage.Output{Subject: "nowhere", ID: "a"})},
		"no stream takes one of a batch": {t.Context(), append(outputs(many(20)...), stage.Output{Subject: "nowhere", ID: "a"})},
		"there is no time":               {over, outputs("c")},
		"there is no time for a batch":   {over, outputs(many(20)...)},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(tc.ctx, 2*time.Second)
			defer cancel()
			if _, err := stage.Publish(ctx, r.js, tc.out); err == nil {
				t.Error("said nothing")
			}
		})
	}
}

func TestOutputsAreStoredBeforeTheInputIsAcknowledged(t *testing.T) {
	t.Parallel()
	r := newRig(t, watched)
	if err := r.js.DeleteStream(t.Context(), "OUT"); err != nil {
		t.Fatal(err)
	}
	r.put(t, "a", "b", "c")
	var c calls
	s := r.run(t, c.handle(fine))
	wait(t, "not ready", func() bool { return s.told("cannot publish") })
	outlast(t, r, func(i jetstream.ConsumerInfo) {
		if i.AckFloor.Stream != 0 || i.NumAckPending != 3 || i.NumRedelivered != 0 {
			t.Fatalf("floor %d, %d under way, %d again", i.AckFloor.Stream, i.NumAckPending, i.NumRedelivered)
		}
	})
	r.stream(t, "OUT", "out.*")
	r.settled(t, 3)
	got := r.bodies(t, "OUT")
	slices.Sort(got)
	if diff := cmp.Diff([]string{"a", "b", "c"}, got); diff != "" {
		t.Error(diff)
	}
	if got := len(c.all()); got > 3 {
		t.Errorf("the handler ran %d times for what only had to be published", got)
	}
	wait(t, "ready", func() bool { return s.reasons.last() == "" })
}

// TestADeathBetweenPublishAndAcknowledgementRepeatsNothing has a process that ends when its outputs are stored.
func TestADeathBetweenPublishAndAcknowledgementRepeatsNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t, hasty)
	r.put(t, "a", "b")
	nc, js := dial(t, r.server.InProcess())
	stored := make(chan error, 10)
	doomed := (&rig{server: r.server, nc: nc, js: js, spec: r.spec}).run(t, func(ctx context.Context, batch []stage.Message) []stage.Result {
		var out []stage.Output
		for _, m := range batch {
			out = append(out, output(m))
		}
		_, err := stage.Publish(ctx, js, out)
		if slices.ContainsFunc(batch, func(m stage.Message) bool { return string(m.Data) == "b" }) {
			nc.Close()
		}
		stored <- err
		return make([]stage.Result, len(batch))
	})
	wait(t, "both stored", func() bool { return len(r.bodies(t, "OUT")) == 2 })
	wait(t, "dead", nc.IsClosed)
	doomed.stop(t)
	close(stored)
	for err := range stored {
		if err != nil {
			t.Fatal(err)
		}
	}
	if got := r.told(t).NumAckPending; got == 0 {
		t.Fatal("acknowledged by the dead")
	}
	var c calls
	s := r.run(t, c.handle(fine))
	r.settled(t, 2)
	if diff := cmp.Diff([]string{"a", "b"}, r.bodies(t, "OUT")); diff != "" {
		t.Error(diff)
	}
	if got := s.counted(t, "crivo_step_duplicates_total", "sift"); got < c.of("a")+c.of("b") || c.of("b") < 1 {
		t.Errorf("%d outputs were there already; b ran %d times", got, c.of("b"))
	}
	if got := s.outcome(t, "repeated"); got < 1 {
		t.Errorf("counted %d repeats", got)
	}
}

func TestLoadMakesBatches(t *testing.T) {
	t.Parallel()
	r := newRig(t, patient)
	want := many(128 * 8)
	r.putMany(t, len(want))
	first := make(chan struct{})
	var c calls
	whole := c.handle(fine)
	s := r.run(t, func(ctx context.Context, batch []stage.Message) []stage.Result {
		<-first
		return whole(ctx, batch)
	})
	wait(t, "a backlog in hand", func() bool { return r.info(t).NumAckPending >= 2*r.spec.Batch })
	close(first)
	r.settled(t, uint64(len(want)))
	largest := 0
	for _, batch := range c.all() {
		largest = max(largest, len(batch))
	}
	if largest != r.spec.Batch {
		t.Errorf("at most %d at once, want %d", largest, r.spec.Batch)
	}
	got := r.bodies(t, "OUT")
	if !slices.Equal(got, want) {
		t.Error("outputs are not in the order of inputs")
	}
	wait(t, "all counted", func() bool { return s.outcome(t, "done") == len(want) })
}

func TestALoneMessagePassesAtOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t, patient)
	var c calls
	r.run(t, c.handle(fine))
	for i := range 5 {
		r.put(t, strconv.Itoa(i))
		wait(t, "its output", func() bool { return len(r.bodies(t, "OUT")) == i+1 })
	}
	if got := len(c.all()); got != 5 {
		t.Errorf("%d calls", got)
	}
}

// A stream without a leader answers nothing: what it never acknowledged does not hold the client's places for ever.
func TestWhatIsNeverAcknowledgedMakesRoom(t *testing.T) {
	t.Parallel()
	r := newRig(t, patient)
	if _, err := r.nc.Subscribe("silent", func(*nats.Msg) {}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := stage.Publish(ctx, r.js, []stage.Output{{Subject: "silent", ID: "a"}, {Subject: "silent", ID: "b"}}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	wait(t, "room", func() bool { return r.js.PublishAsyncPending() == 0 })
}
