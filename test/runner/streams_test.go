package runner_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"crivo/pkg/stage"
	"crivo/services/broker"
	"crivo/streams"
)

// layout is small enough for a test's disk.
var layout = streams.Layout{Replicas: 1, SubmittedBytes: 1 << 20}

// everything is what Ensure makes of an empty broker, in order.
var everything = []string{"create stream TX_SUBMITTED", "create stream TX_ENRICHED", "create stream TX_VALIDATED", "create stream TX_SCORED",
	"create stream TX_DECIDED", "create stream TX_LABELED", "create stream DEADLETTERS", "create stream CONTROL",
	"create consumer enrich", "create consumer validate", "create consumer score", "create consumer persist", "create consumer notify",
	"create bucket ATTEMPTS", "create bucket LEASES"}

func TestEnsureMakesTheMapReal(t *testing.T) {
	t.Parallel()
	s := start(t, broker.Options{Dir: t.TempDir()})
	_, js := dial(t, s.InProcess())
	ensure := func(l streams.Layout, want ...string) {
		t.Helper()
		changes, err := streams.Diff(t.Context(), js, l)
		if err != nil {
			t.Fatal(err)
		}
		var would []string
		for _, c := range changes {
			would = append(would, c.Text)
		}
		done, err := streams.Ensure(t.Context(), js, l)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, would); diff != "" {
			t.Errorf("would do: %s", diff)
		}
		if diff := cmp.Diff(want, done); diff != "" {
			t.Errorf("did: %s", diff)
		}
	}
	ensure(layout, everything...)
	ensure(layout)

	larger := streams.Layout{Replicas: 1, SubmittedBytes: 2 << 20}
	ensure(larger, "update stream TX_SUBMITTED", "update stream TX_ENRICHED", "update stream TX_VALIDATED", "update stream TX_SCORED", "update stream TX_DECIDED")
	ensure(larger)
	if got := stream(t, js, streams.Submitted).Config.MaxBytes; got != 2<<20 {
		t.Errorf("the budget of the first stream is %d", got)
	}

	for _, err := range []error{js.DeleteStream(t.Context(), streams.Scored), js.DeleteConsumer(t.Context(), streams.Submitted, "enrich"),
		js.DeleteKeyValue(t.Context(), streams.AttemptsBucket)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	ensure(larger, "create stream TX_SCORED", "create consumer enrich", "create consumer persist", "create bucket ATTEMPTS")
	ensure(larger)
}

// provisioned is a broker with the layout's streams, and a connection to it.
func provisioned(t *testing.T) (*broker.Server, *nats.Conn, jetstream.JetStream) {
	t.Helper()
	s := start(t, broker.Options{Dir: t.TempDir()})
	nc, js := dial(t, s.InProcess())
	if _, err := streams.Ensure(t.Context(), js, layout); err != nil {
		t.Fatal(err)
	}
	return s, nc, js
}

// TestEnsurePutsRightWhatAnotherMade has an operator who changed what the layout decides, and what it leaves alone.
func TestEnsurePutsRightWhatAnotherMade(t *testing.T) {
	t.Parallel()
	_, _, js := provisioned(t)
	decided := stream(t, js, streams.Decided).Config
	decided.MaxAge, decided.Description = 0, "kept"
	notify := layout.Consumers()[streams.Decided]
	notify.MaxAckPending, notify.FilterSubject = 7, "tx.decided.acme"
	attempts := layout.Attempts()
	attempts.TTL = 0
	_, err1 := js.UpdateStream(t.Context(), decided)
	_, err2 := js.UpdateConsumer(t.Context(), streams.Decided, notify)
	_, err3 := js.UpdateKeyValue(t.Context(), attempts)
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	done, err := streams.Ensure(t.Context(), js, layout)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"update stream TX_DECIDED", "update consumer notify", "update bucket ATTEMPTS"}, done); diff != "" {
		t.Error(diff)
	}
	if done, err := streams.Ensure(t.Context(), js, layout); len(done) > 0 || err != nil {
		t.Errorf("again: %v, %v", done, err)
	}
}

// Of two keepers with different settings only the one that works may change what is there.
func TestMakeLeavesAloneWhatDiffers(t *testing.T) {
	t.Parallel()
	_, _, js := provisioned(t)
	if err := js.DeleteStream(t.Context(), streams.Scored); err != nil {
		t.Fatal(err)
	}
	done, err := streams.Make(t.Context(), js, streams.Layout{Replicas: 1, SubmittedBytes: 2 << 20})
	if diff := cmp.Diff([]string{"create stream TX_SCORED", "create consumer persist"}, done); diff != "" || err != nil {
		t.Error(diff, err)
	}
	if got := stream(t, js, streams.Submitted).Config.MaxBytes; got != layout.SubmittedBytes {
		t.Errorf("the budget became %d", got)
	}
}

// What was decided long ago need not go through once more where somebody deletes a consumer, and is told once more to nobody.
func TestAConsumerThatIsMadeAnewBeginsWithWhatIsRecent(t *testing.T) {
	t.Parallel()
	_, _, js := provisioned(t)
	for _, spec := range []stage.Spec{streams.Persist, streams.Notify} {
		_, err1 := js.Publish(t.Context(), strings.ReplaceAll(strings.ToLower(spec.Stream), "tx_", "tx.")+".acme", []byte("x"))
		if err := errors.Join(err1, js.DeleteConsumer(t.Context(), spec.Stream, spec.Durable)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := streams.Make(t.Context(), js, layout); err != nil {
		t.Fatal(err)
	}
	info := func(spec stage.Spec) *jetstream.ConsumerInfo {
		c, err := js.Consumer(t.Context(), spec.Stream, spec.Durable)
		if err != nil {
			t.Fatal(err)
		}
		return c.CachedInfo()
	}
	persist, notify := info(streams.Persist), info(streams.Notify)
	from := persist.Config.OptStartTime
	if from == nil || persist.Created.Sub(*from).Round(time.Minute) != 5*time.Minute || persist.NumPending != 1 {
		t.Errorf("persist: from %v, %d wait", from, persist.NumPending)
	}
	if notify.Config.DeliverPolicy != jetstream.DeliverAllPolicy || notify.NumPending != 1 {
		t.Errorf("notify: %v, %d wait", notify.Config.DeliverPolicy, notify.NumPending)
	}
	// What such a consumer was made with stays when something else is put right.
	slow := persist.Config
	slow.MaxAckPending = 7
	if _, err := js.UpdateConsumer(t.Context(), streams.Scored, slow); err != nil {
		t.Fatal(err)
	}
	done, err := streams.Ensure(t.Context(), js, layout)
	if diff := cmp.Diff([]string{"update consumer persist"}, done); diff != "" || err != nil {
		t.Error(diff, err)
	}
	if got := info(streams.Persist).Config; got.MaxAckPending == 7 || got.OptStartTime == nil {
		t.Errorf("%+v", got)
	}
}

// A consumer of another kind under a step's name is an operator's to delete; the rest is made all the same.
func TestAConsumerThatStandsInTheWayIsNamed(t *testing.T) {
	t.Parallel()
	_, _, js := provisioned(t)
	err1 := js.DeleteConsumer(t.Context(), streams.Submitted, "enrich")
	_, err2 := js.CreatePushConsumer(t.Context(), streams.Submitted, jetstream.ConsumerConfig{Durable: "enrich", DeliverSubject: "elsewhere"})
	if err := errors.Join(err1, err2, js.DeleteConsumer(t.Context(), streams.Decided, "notify")); err != nil {
		t.Fatal(err)
	}
	done, err := streams.Ensure(t.Context(), js, layout)
	if diff := cmp.Diff([]string{"create consumer notify"}, done); diff != "" || !streams.Refused(err) || !strings.Contains(err.Error(), "consumer enrich") {
		t.Error(diff, err)
	}
}

func TestEnsureSaysWhatItCannotDo(t *testing.T) {
	t.Parallel()
	s := start(t, broker.Options{Dir: t.TempDir()})
	nc, js := dial(t, s.InProcess())
	if done, err := streams.Ensure(t.Context(), js, streams.Layout{Replicas: 3, SubmittedBytes: 1 << 20}); err == nil || !strings.Contains(err.Error(), "TX_SUBMITTED") {
		t.Errorf("three replicas on one node: %v, %v", done, err)
	}
	nc.Close()
	if _, err := streams.Ensure(t.Context(), js, layout); err == nil {
		t.Error("without a connection: nothing said")
	}
}

func stream(t *testing.T, js jetstream.JetStream, name string) *jetstream.StreamInfo {
	t.Helper()
	s, err := js.Stream(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return s.CachedInfo()
}

func TestAFullStreamRefuses(t *testing.T) {
	t.Parallel()
	s := start(t, broker.Options{Dir: t.TempDir()})
	_, js := dial(t, s.InProcess())
	if _, err := streams.Ensure(t.Context(), js, streams.Layout{Replicas: 1, SubmittedBytes: 64 << 10}); err != nil {
		t.Fatal(err)
	}
	var err error
	stored := uint64(0)
	for ; err == nil && stored < 100; stored++ {
		_, err = js.Publish(t.Context(), "tx.submitted.acme", make([]byte, 4<<10))
	}
	if err == nil {
		t.Fatal("took more than its budget")
	}
	if got := stream(t, js, streams.Submitted).State; got.FirstSeq != 1 || got.Msgs != stored-1 {
		t.Errorf("%d of %d left, from %d", got.Msgs, stored-1, got.FirstSeq)
	}
}

func TestWatch(t *testing.T) {
	t.Parallel()
	o := broker.Options{Dir: t.TempDir(), Host: "127.0.0.1", Port: -1}
	s := start(t, o)
	o.Port = port(t, s)
	nc, _ := dialURL(t, s.URL())
	other, _ := dialURL(t, s.URL())
	var read atomic.Int64
	var last atomic.Int64
	var fail atomic.Bool
	began := time.Now()
	reload := func(context.Context) error {
		last.Store(int64(time.Since(began)))
		read.Add(1)
		if fail.Load() {
			return errDown
		}
		return nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	wait(t, "connected", func() bool { return nc.IsConnected() && other.IsConnected() })
	before := nc.NumSubscriptions()
	if err := streams.Watch(ctx, nc, zerolog.Nop(), reload, streams.TopicKeys, streams.TopicTenants); err != nil {
		t.Fatal(err)
	}
	if got := read.Load(); got != 1 {
		t.Fatalf("read %d times at once", got)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	for i, topic := range []string{streams.TopicKeys, streams.TopicTenants, streams.TopicKeys} {
		fail.Store(i == 1) // a reload that fails ends nothing
		before := read.Load()
		if err := streams.Changed(other, topic); err != nil {
			t.Fatal(err)
		}
		wait(t, "read after "+topic, func() bool { return read.Load() > before })
	}
	if err := errors.Join(streams.Changed(other, streams.TopicEndpoints), streams.Changed(other, streams.TopicKeys), other.Flush()); err != nil {
		t.Fatal(err)
	}
	wait(t, "read once more, for its own topic", func() bool { return read.Load() == 5 })

	s.Close()
	wait(t, "lost", func() bool { return !nc.IsConnected() })
	start(t, o)
	wait(t, "back", nc.IsConnected)
	back := time.Since(began)
	wait(t, "read after the reconnect", func() bool { return read.Load() > 5 })
	const reread = 10 * time.Second // when it reads without having been told
	if at := time.Duration(last.Load()); back < reread*3/4 && at >= reread {
		t.Errorf("back after %s, but read after %s: the reconnect was not noticed", back, at)
	}

	cancel()
	wait(t, "its subscriptions are left", func() bool { return nc.NumSubscriptions() == before })
}

func TestWatchReturnsTheFirstErrorAndGoesNoFurther(t *testing.T) {
	t.Parallel()
	s := start(t, broker.Options{Dir: t.TempDir()})
	nc, _ := dial(t, s.InProcess())
	var read atomic.Int64
	err := streams.Watch(t.Context(), nc, zerolog.Nop(), func(context.Context) error { read.Add(1); return errDown }, streams.TopicKeys)
	if !errors.Is(err, errDown) {
		t.Errorf("got %v", err)
	}
	if got := nc.NumSubscriptions(); got != 0 {
		t.Errorf("%d subscriptions stay", got)
	}
	nc.Close()
	if err := streams.Watch(t.Context(), nc, zerolog.Nop(), func(context.Context) error { return nil }, streams.TopicKeys); !errors.Is(err, nats.ErrConnectionClosed) {
		t.Errorf("on a closed connection: %v", err)
	}
}
