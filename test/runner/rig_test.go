// Package runner_test runs the runner, the map of streams and the process shell against a real broker in the process: pkg and
// streams may not import one.
package runner_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"crivo/pkg/app"
	"crivo/pkg/stage"
	"crivo/services/broker"
)

const (
	within = 30 * time.Second // how long a fact may take to show; a loaded machine needs it
	bucket = "ATTEMPTS"
)

var spec = stage.Spec{Step: "sift", Stream: "IN", Durable: "sift", Batch: 128, MaxAckPending: 1024, AckWait: patient}

// How long the broker waits for a word before it delivers again.
const (
	patient = 10 * time.Second       // where nothing is to come again, whatever else the machine does
	watched = 2 * time.Second        // where a test outlasts it to see that nothing does
	hasty   = 200 * time.Millisecond // where a test waits for what comes again
)

// rig is a broker with the streams around one step.
type rig struct {
	server *broker.Server
	nc     *nats.Conn
	js     jetstream.JetStream
	spec   stage.Spec
}

func start(t testing.TB, o broker.Options) *broker.Server {
	t.Helper()
	s, err := broker.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func newRig(t testing.TB, ackWait time.Duration) *rig {
	t.Helper()
	r := &rig{server: start(t, broker.Options{Dir: t.TempDir()}), spec: spec}
	r.spec.AckWait = ackWait
	r.nc, r.js = dial(t, r.server.InProcess())
	r.provision(t)
	return r
}

// dial connects as every process does, so that a broker that goes away is one that comes back.
func dial(t testing.TB, how nats.Option) (*nats.Conn, jetstream.JetStream) {
	t.Helper()
	return dialURL(t, "", how)
}

func dialURL(t testing.TB, url string, extra ...nats.Option) (*nats.Conn, jetstream.JetStream) {
	t.Helper()
	nc, err := app.Connect(app.Connection{URL: url, Name: "test", Inbox: "_INBOX_test", Log: zerolog.Nop(), Extra: extra})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	wait(t, "a connection", nc.IsConnected)
	js, err := app.JetStream(nc)
	if err != nil {
		t.Fatal(err)
	}
	return nc, js
}

func (r *rig) provision(t testing.TB) {
	t.Helper()
	r.stream(t, "IN", "in.*")
	r.stream(t, "OUT", "out.*")
	r.stream(t, "DEAD", "dead.*")
	if _, err := r.js.CreateOrUpdateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: bucket}); err != nil {
		t.Fatal(err)
	}
	r.consumer(t)
}

func (r *rig) stream(t testing.TB, name, subject string) {
	t.Helper()
	_, err := r.js.CreateOrUpdateStream(t.Context(), jetstream.StreamConfig{Name: name, Subjects: []string{subject},
		Storage: jetstream.FileStorage, AllowAtomicPublish: true})
	if err != nil {
		t.Fatal(err)
	}
}

func (r *rig) consumer(t testing.TB) {
	t.Helper()
	_, err := r.js.CreateOrUpdateConsumer(t.Context(), r.spec.Stream, jetstream.ConsumerConfig{Durable: r.spec.Durable,
		AckPolicy: jetstream.AckExplicitPolicy, AckWait: r.spec.AckWait, MaxDeliver: -1, MaxAckPending: r.spec.MaxAckPending})
	if err != nil {
		t.Fatal(err)
	}
}

// put stores inputs whose bodies are bodies.
func (r *rig) put(t testing.TB, bodies ...string) {
	t.Helper()
	for _, b := range bodies {
		if _, err := r.js.Publish(t.Context(), "in.a", []byte(b)); err != nil {
			t.Fatal(err)
		}
	}
}

func (r *rig) putMany(t testing.TB, n int) {
	t.Helper()
	outputs := make([]stage.Output, n)
	for i := range outputs {
		outputs[i] = stage.Output{Subject: "in.a", ID: "in/" + strconv.Itoa(i), Data: []byte(strconv.Itoa(i))}
	}
	for part := range slices.Chunk(outputs, 500) {
		if _, err := stage.Publish(t.Context(), r.js, part); err != nil {
			t.Fatal(err)
		}
	}
}

// bodies returns what a stream holds, in order.
func (r *rig) bodies(t testing.TB, stream string) []string {
	t.Helper()
	var out []string
	for _, m := range r.messages(t, stream) {
		out = append(out, string(m.Data))
	}
	return out
}

func (r *rig) messages(t testing.TB, stream string) []*jetstream.RawStreamMsg {
	t.Helper()
	s, err := r.js.Stream(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	state := s.CachedInfo().State
	var out []*jetstream.RawStreamMsg
	for seq := max(1, state.FirstSeq); seq <= state.LastSeq; seq++ {
		m, err := s.GetMsg(t.Context(), seq)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, m)
	}
	return out
}

// info is the consumer's state, the zero value while the broker cannot tell.
func (r *rig) info(t testing.TB) jetstream.ConsumerInfo {
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	c, err := r.js.Consumer(ctx, r.spec.Stream, r.spec.Durable)
	if err != nil {
		return jetstream.ConsumerInfo{}
	}
	return *c.CachedInfo()
}

// told is the consumer's state once the broker can tell.
func (r *rig) told(t testing.TB) (i jetstream.ConsumerInfo) {
	t.Helper()
	wait(t, "the consumer's state", func() bool { i = r.info(t); return i.Name != "" })
	return i
}

// settled waits until the first n inputs are acknowledged or given up and nothing is under way.
func (r *rig) settled(t testing.TB, n uint64) {
	t.Helper()
	wait(t, fmt.Sprintf("%d settled", n), func() bool {
		i := r.info(t)
		return i.AckFloor.Stream >= n && i.NumAckPending == 0 && i.NumPending == 0
	})
}

// wait polls until is holds.
func wait(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if is() {
			return
		}
	}
	t.Fatalf("not within %s: %s", within, what)
}

// step is a runner under test with everything it told.
type step struct {
	stage.Runner
	registry *prometheus.Registry
	reasons  *notes
	burials  *notes
	end      context.CancelFunc
	ended    chan error
}

// notes is a list that several goroutines write.
type notes struct {
	mu  sync.Mutex
	all []string
}

func (n *notes) add(s string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.all = append(n.all, s)
}

func (n *notes) list() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.all)
}

func (n *notes) last() string {
	all := n.list()
	if len(all) == 0 {
		return ""
	}
	return all[len(all)-1]
}

// prepare returns a runner that was not started, so that a test can change it.
func (r *rig) prepare(handle stage.Handler) *step {
	s := &step{registry: prometheus.NewRegistry(), reasons: &notes{}, burials: &notes{}, ended: make(chan error, 1)}
	s.Runner = stage.Runner{JS: r.js, Spec: r.spec, Handle: handle, Metrics: stage.NewMetrics(s.registry), Log: zerolog.Nop(), Now: time.Now,
		NotReady: s.reasons.add, Attempts: &stage.KV{JS: r.js, Bucket: bucket}, Bury: s.bury, BatchFrom: r.server.BatchFrom()}
	return s
}

// bury makes a letter and, after it, what the flow goes on with.
func (s *step) bury(_ context.Context, b stage.Burial) ([]stage.Output, error) {
	s.burials.add(fmt.Sprintf("%s %s after %d", b.Message.Data, b.Cause, b.Attempts))
	id := strconv.FormatUint(b.Message.Sequence, 10)
	return []stage.Output{{Subject: "dead." + b.Cause, ID: "dead/" + id, Data: b.Message.Data},
		{Subject: "out.a", ID: "fate/" + id, Data: slices.Concat([]byte("fate of "), b.Message.Data)}}, nil
}

func (s *step) start(t testing.TB) *step {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s.end = cancel
	go func() { s.ended <- s.Run(ctx) }()
	t.Cleanup(func() { s.stop(t) })
	return s
}

// stop ends the runner and waits for it; a second time it does nothing.
func (s *step) stop(t testing.TB) {
	t.Helper()
	if s.end == nil {
		return
	}
	s.end()
	s.end = nil
	select {
	case err := <-s.ended:
		if err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
			t.Errorf("the runner ended with %v", err)
		}
	case <-time.After(within):
		t.Error("the runner did not end")
	}
}

func (r *rig) run(t testing.TB, handle stage.Handler) *step {
	t.Helper()
	return r.prepare(handle).start(t)
}

// counted is what a collector of the runner holds for the step and, where it has outcomes, one of them.
func (s *step) counted(t testing.TB, name, outcome string) int {
	t.Helper()
	families, err := s.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetValue() == outcome {
					return int(m.GetCounter().GetValue())
				}
			}
		}
	}
	return 0
}

func (s *step) outcome(t testing.TB, outcome string) int {
	return s.counted(t, "crivo_step_messages_total", outcome)
}

func (s *step) told(substring string) bool {
	return slices.ContainsFunc(s.reasons.list(), func(r string) bool { return strings.Contains(r, substring) })
}

// calls records the batches that a handler got, as "body×deliveries".
type calls struct {
	mu      sync.Mutex
	batches [][]stage.Message
}

func (c *calls) add(batch []stage.Message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.batches = append(c.batches, slices.Clone(batch))
}

func (c *calls) all() [][]stage.Message {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.batches)
}

func (c *calls) of(body string) int {
	n := 0
	for _, batch := range c.all() {
		for _, m := range batch {
			if string(m.Data) == body {
				n++
			}
		}
	}
	return n
}

func (c *calls) most() (deliveries uint64) {
	for _, batch := range c.all() {
		for _, m := range batch {
			deliveries = max(deliveries, m.Deliveries)
		}
	}
	return deliveries
}

// handle makes a handler of what each body deserves; nil is an output.
func (c *calls) handle(fate func(body string) error) stage.Handler {
	each := stage.Each(0, func(_ context.Context, m stage.Message) ([]stage.Output, error) {
		if err := fate(string(m.Data)); err != nil {
			return nil, err
		}
		return []stage.Output{output(m)}, nil
	})
	return func(ctx context.Context, batch []stage.Message) []stage.Result {
		c.add(batch)
		return each(ctx, batch)
	}
}

func fine(string) error { return nil }

func output(m stage.Message) stage.Output {
	return stage.Output{Subject: "out.a", ID: "out/" + string(m.Data), Data: m.Data}
}

func port(t testing.TB, s *broker.Server) int {
	t.Helper()
	u, err := url.Parse(s.URL())
	if err != nil {
		t.Fatal(err)
	}
	p, err := strconv.Atoi(u.Port())
	if err != nil {
		t.Fatal(err)
	}
	return p
}
