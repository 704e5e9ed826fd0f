package enrich_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"crivo/pkg/app"
	"crivo/pkg/stage"
	"crivo/pkg/txn"
	"crivo/services/broker"
	"crivo/services/enrich"
	"crivo/streams"
	"crivo/streams/event"
)

// within is how long a fact may take to show.
const within = 30 * time.Second

// flow is a broker with the streams of the pipeline, and what a service gets from its process.
type flow struct {
	app.Shell
	ctx context.Context
}

func start(t *testing.T) flow {
	t.Helper()
	s, err := broker.Start(broker.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	nc, err := s.Connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	f := flow{app.Shell{Conn: nc, JS: js, Health: &app.Health{}, Steps: stage.NewMetrics(prometheus.NewRegistry())}, ctx}
	f.provision(t)
	return f
}

func (f flow) provision(t *testing.T) {
	t.Helper()
	if _, err := streams.Ensure(f.ctx, f.JS, streams.Layout{Replicas: 1, SubmittedBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
}

func (f flow) publish(t *testing.T, events ...event.Submitted) {
	t.Helper()
	for group := range slices.Chunk(events, 256) {
		var outputs []stage.Output
		for _, e := range group {
			out, err := streams.Announce(ident(e), streams.EventSubmitted, e)
			if err != nil {
				t.Fatal(err)
			}
			outputs = append(outputs, out...)
		}
		if _, err := stage.Publish(f.ctx, f.JS, outputs); err != nil {
			t.Fatal(err)
		}
	}
}

// acknowledge settles the next n messages of enrich's consumer, as a process did whose files are lost.
func (f flow) acknowledge(t *testing.T, n int) {
	t.Helper()
	c, err := f.JS.Consumer(f.ctx, streams.Submitted, streams.Enrich.Durable)
	if err != nil {
		t.Fatal(err)
	}
	last := c.CachedInfo().Delivered.Stream
	through := last + uint64(n)
	for last < through {
		before := last
		batch, err := c.Fetch(int(min(through-last, 128)), jetstream.FetchMaxWait(within))
		if err != nil {
			t.Fatal(err)
		}
		for m := range batch.Messages() {
			meta, err := m.Metadata()
			if err != nil {
				t.Fatal(err)
			}
			last = max(last, meta.Sequence.Stream) // one that comes again is behind it
			if err := m.Ack(); err != nil {
				t.Fatal(err)
			}
		}
		if last == before || batch.Error() != nil {
			t.Fatalf("%d messages missing: %v", through-last, batch.Error())
		}
	}
	until(t, "all is acknowledged", func() bool {
		info, err := c.Info(f.ctx)
		return err == nil && info.AckFloor.Stream == through
	})
}

// enriched waits for the first event that enrich publishes.
func (f flow) enriched(t *testing.T) *jetstream.RawStreamMsg {
	t.Helper()
	s, err := f.JS.Stream(f.ctx, streams.Enriched)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(within); ; {
		m, err := s.GetMsg(f.ctx, 1)
		if err == nil {
			return m
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func (f flow) created(t *testing.T) time.Time {
	t.Helper()
	s, err := f.JS.Stream(f.ctx, streams.Submitted)
	if err != nil {
		t.Fatal(err)
	}
	return s.CachedInfo().Created
}

func (f flow) catchUp(t *testing.T, c *counting) {
	t.Helper()
	c.events = nil
	if err := enrich.CatchUp(f.ctx, enrich.Config{Shell: f.Shell, Features: c}, c); err != nil {
		t.Fatal(err)
	}
}

// seen returns how many payments of payer p the store knows at the time of one more, that one included.
func seen(t *testing.T, c *counting, id string, seconds int) int64 {
	t.Helper()
	got, err := c.Apply(context.Background(), []enrich.Event{enrich.EventOf(submitted(id, seconds), 0)})
	if err != nil {
		t.Fatal(err)
	}
	return got[0][0].Counts[0]
}

func payments(from, to int) []event.Submitted {
	var out []event.Submitted
	for i := from; i < to; i++ {
		out = append(out, submitted(fmt.Sprint("id-", i), i))
	}
	return out
}

func TestAFreshStoreIsRebuiltUpToWhatWasAcknowledged(t *testing.T) {
	f, dir := start(t), t.TempDir()
	f.publish(t, payments(0, 4)...)
	if _, err := f.JS.Publish(f.ctx, "tx.submitted.t", []byte("no event")); err != nil {
		t.Fatal(err)
	}
	f.publish(t, payments(4, 8)...)
	f.acknowledge(t, 7) // six payments and what was buried
	c := store(t, dir)
	f.catchUp(t, c)
	if at := c.Position(); len(c.events) != 6 || at.Sequence != 7 || !at.Created.Equal(f.created(t)) {
		t.Errorf("%d events, position %+v", len(c.events), at)
	}
	f.catchUp(t, c)
	if len(c.events) != 0 {
		t.Errorf("%d events applied again", len(c.events))
	}
	f.acknowledge(t, 2)
	f.catchUp(t, c)
	if len(c.events) != 2 {
		t.Errorf("%d events, want what was acknowledged since", len(c.events))
	}
	if got := seen(t, c, "next", 60); got != 9 {
		t.Errorf("%d payments seen, want 9", got)
	}
}

func TestARecreatedStreamStartsOverAndCountsNothingTwice(t *testing.T) {
	f, dir := start(t), t.TempDir()
	f.publish(t, payments(0, 5)...)
	f.acknowledge(t, 5)
	c := store(t, dir)
	f.catchUp(t, c)
	first := f.created(t)
	if err := f.JS.DeleteStream(f.ctx, streams.Submitted); err != nil {
		t.Fatal(err)
	}
	f.provision(t)
	f.publish(t, payments(3, 7)...) // two of them came before
	f.acknowledge(t, 4)
	f.catchUp(t, c)
	if at := c.Position(); len(c.events) != 4 || at.Sequence != 4 || at.Created.Equal(first) || !at.Created.Equal(f.created(t)) {
		t.Errorf("%d events, position %+v", len(c.events), at)
	}
	if got := seen(t, c, "next", 60); got != 8 {
		t.Errorf("%d payments seen, want 8", got)
	}
}

func TestWhatTheStreamHasLostIsPassedOver(t *testing.T) {
	f, dir := start(t), t.TempDir()
	f.publish(t, payments(0, 6)...)
	f.acknowledge(t, 4)
	s, err := f.JS.Stream(f.ctx, streams.Submitted)
	if err != nil {
		t.Fatal(err)
	}
	for _, sequence := range []uint64{1, 3, 4} {
		if err := s.DeleteMsg(f.ctx, sequence); err != nil {
			t.Fatal(err)
		}
	}
	c := store(t, dir)
	f.catchUp(t, c)
	if len(c.events) != 1 || c.events[0].Key != "t/id-1" {
		t.Errorf("applied %v", c.events)
	}
	if err := s.Purge(f.ctx); err != nil {
		t.Fatal(err)
	}
	f.catchUp(t, c)
	if len(c.events) != 0 {
		t.Errorf("applied %v", c.events)
	}
}

// A lost folder is rebuilt from a stream that no longer holds it all: no window that reaches beyond it is called known.
func TestWhatTheStreamNoLongerHoldsIsNotCalledNone(t *testing.T) {
	f, dir := start(t), t.TempDir()
	f.publish(t, payments(0, 6)...)
	f.acknowledge(t, 6)
	s, err := f.JS.Stream(f.ctx, streams.Submitted)
	if err != nil {
		t.Fatal(err)
	}
	whole := store(t, dir)
	f.catchUp(t, whole)
	if err := s.Purge(f.ctx, jetstream.WithPurgeSequence(4)); err != nil {
		t.Fatal(err)
	}
	oldest, err := s.GetMsg(f.ctx, 4)
	if err != nil {
		t.Fatal(err)
	}
	since := func(c *counting) time.Time {
		t.Helper()
		f.catchUp(t, c)
		c.Whole()
		got, err := c.Peek(f.ctx, []enrich.Event{enrich.EventOf(submitted("next", 60), 0)})
		if err != nil {
			t.Fatal(err)
		}
		return got[0][0].Since
	}
	if at := since(whole); !at.IsZero() {
		t.Errorf("a store that has it all lacks what was before %v", at)
	}
	lost := t.TempDir()
	for range 2 { // a start more changes nothing
		c := store(t, lost)
		if at := since(c); !at.Equal(oldest.Time.Add(5 * time.Minute)) {
			t.Errorf("nothing is lacking from %v on, the oldest message is of %v", at, oldest.Time)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRunRebuildsThenEnriches(t *testing.T) {
	f, dir := start(t), t.TempDir()
	f.publish(t, payments(0, 3)...)
	f.acknowledge(t, 2)
	ctx, stop := context.WithCancel(f.ctx)
	done := make(chan error, 1)
	c := store(t, dir)
	go func() {
		done <- enrich.Run(ctx, enrich.Config{Shell: f.Shell, Features: c, RuleSet: func() txn.RuleSet { return pinned }})
	}()
	e, err := event.Decode[event.Enriched](f.enriched(t).Data)
	if err != nil || e.ID != "id-2" || e.Features["payer.count_5m"] != (event.Value{Known: true, Number: 3}) {
		t.Errorf("got %+v, %v", e, err)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if reasons := f.Health.Reasons(); len(reasons) > 0 {
		t.Errorf("not ready: %v", reasons)
	}
}

// rebuilt is a store that tells, at every call, what a reader beside it knows and what the health says.
type rebuilt struct {
	*counting
	health *app.Health
	known  []bool
	said   []string
}

func (r *rebuilt) Apply(ctx context.Context, events []enrich.Event) ([][]enrich.History, error) {
	got, err := r.Peek(ctx, events[:1])
	if err != nil {
		return nil, err
	}
	r.known, r.said = append(r.known, got[0][0].Known), append(r.said, r.health.Reasons()["features"])
	return r.counting.Apply(ctx, events)
}

func TestNobodyKnowsAStoreThatIsBeingRebuilt(t *testing.T) {
	f := start(t)
	f.publish(t, payments(0, 130)...)
	f.acknowledge(t, 129)
	ctx, stop := context.WithCancel(f.ctx)
	r := &rebuilt{counting: store(t, t.TempDir()), health: f.Health}
	done := make(chan error, 1)
	go func() {
		done <- enrich.Run(ctx, enrich.Config{Shell: f.Shell, Features: r, RuleSet: func() txn.RuleSet { return pinned }})
	}()
	f.enriched(t)
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	for i, known := range r.known {
		if known != (r.said[i] == "") {
			t.Errorf("call %d of %d: known %v, health says %q", i+1, len(r.known), known, r.said[i])
		}
	}
	if n := len(r.said); n < 2 || r.said[0] != "catching up" || r.said[n-1] != "" {
		t.Errorf("health said %q", r.said)
	}
}

func TestAStoreOfAnEmptyStreamIsWholeAtOnce(t *testing.T) {
	f := start(t)
	c := store(t, t.TempDir())
	ctx, stop := context.WithCancel(f.ctx)
	done := make(chan error, 1)
	go func() {
		done <- enrich.Run(ctx, enrich.Config{Shell: f.Shell, Features: c, RuleSet: func() txn.RuleSet { return pinned }})
	}()
	first := enrich.EventOf(submitted("first", 0), 0)
	for {
		got, err := c.Peek(f.ctx, []enrich.Event{first})
		if err != nil || f.ctx.Err() != nil {
			t.Fatal(err, f.ctx.Err())
		}
		if h := got[0][0]; h.Known {
			if h.Counts[0] != 1 {
				t.Errorf("got %+v", h)
			}
			break
		}
		_ = stage.Sleep(f.ctx, time.Millisecond)
	}
	stop()
	if err := <-done; err != nil || c.calls != 0 {
		t.Error(c.calls, err)
	}
}
