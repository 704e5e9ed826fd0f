package notify_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"crivo/pkg/app"
	"crivo/pkg/seal"
	"crivo/pkg/stage"
	"crivo/pkg/txn"
	"crivo/pkg/webhook"
	"crivo/services/broker"
	"crivo/services/notify"
	"crivo/services/store"
	"crivo/services/store/memory"
	"crivo/services/store/sqlite"
	"crivo/streams"
	"crivo/streams/event"
)

// within is how long a fact may take to show, on a machine that does much else.
const within = 30 * time.Second

var local = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

// quick are three tries, as fast as rows are looked for.
var quick = []time.Duration{0, time.Millisecond, time.Millisecond}

// world is a broker, the stores, and the notify service under test.
type world struct {
	testing.TB
	dir        string
	server     *broker.Server
	url        string
	js         jetstream.JetStream
	config     notify.Config
	registry   *memory.Registry
	deliveries *fragile
	secrets    map[string]webhook.Secret // by endpoint
	ahead      atomic.Int64              // of the machine's clock
	frozen     atomic.Int64              // when the machine's clock stands still, Unix ns; 0: it goes
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{TB: t, dir: t.TempDir(), registry: memory.NewRegistry(), secrets: map[string]webhook.Secret{}}
	clock := app.NewClock(func() time.Time {
		now := time.Now()
		if at := w.frozen.Load(); at != 0 {
			now = time.Unix(0, at)
		}
		return now.Add(time.Duration(w.ahead.Load()))
	})
	w.startBroker(-1)
	health, metrics := &app.Health{}, prometheus.NewRegistry()
	nc, err := app.Connect(app.Connection{URL: w.url, Name: "notify", Inbox: "_INBOX", Log: zerolog.Nop(), Health: health})
	w.must(err)
	t.Cleanup(nc.Close)
	w.js, err = jetstream.New(nc)
	w.must(err)
	_, err = streams.Ensure(t.Context(), w.js, streams.Layout{Replicas: 1, SubmittedBytes: 64 << 20})
	w.must(err)
	keys, err := seal.Open(filepath.Join(w.dir, "keys"), true)
	w.must(err)
	w.must(keys.Add("t"))
	db, err := sqlite.OpenDeliveries(filepath.Join(w.dir, "deliveries.db"), sqlite.Options{})
	w.must(err)
	t.Cleanup(func() { _ = db.Close() })
	w.deliveries = &fragile{Deliveries: db}
	w.config = notify.Config{Deliveries: w.deliveries, Endpoints: w.registry, States: w.registry, Keys: keys, Audit: w.registry.Record, Schedule: quick,
		Timeout: 4 * within, Allow: local, Version: "1.2.3", Shell: app.Shell{Name: "notify", Conn: nc, JS: w.js, Clock: clock,
			Log: zerolog.Nop(), Metrics: metrics, Health: health, Steps: stage.NewMetrics(metrics)}}
	return w
}

func (w *world) startBroker(port int) {
	w.Helper()
	s, err := broker.Start(broker.Options{Dir: filepath.Join(w.dir, "nats"), Host: "127.0.0.1", Port: port})
	w.must(err)
	w.server, w.url = s, s.URL()
	w.Cleanup(s.Close)
}

// restartBroker starts it again on the same port and folder, once nobody else has the port.
func (w *world) restartBroker() {
	w.Helper()
	at, err := url.Parse(w.url)
	w.must(err)
	port, err := strconv.Atoi(at.Port())
	w.must(err)
	w.until("a free port", func() bool {
		l, err := net.Listen("tcp", at.Host)
		return err == nil && l.Close() == nil
	})
	w.startBroker(port)
}

// set gives a setting another value until the test ends.
func set[T any](t testing.TB, setting *T, value T) {
	was := *setting
	*setting = value
	t.Cleanup(func() { *setting = was })
}

// run delivers until the test ends, or stop is called.
func (w *world) run() (stop func()) {
	w.Helper()
	return w.process(w.config)
}

// another is run for one more process on the same broker and stores.
func (w *world) another() (stop func()) {
	w.Helper()
	cfg := w.config
	cfg.Metrics = prometheus.NewRegistry()
	cfg.Steps = stage.NewMetrics(cfg.Metrics)
	return w.process(cfg)
}

func (w *world) process(cfg notify.Config) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- notify.Run(ctx, cfg) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			w.Error(err)
		}
	})
	w.Cleanup(stop)
	return stop
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// until waits for a fact.
func (w *world) until(what string, fact func() bool) {
	w.Helper()
	for give := time.Now().Add(within); !fact(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(give) {
			w.Fatalf("never: %s", what)
		}
	}
}

// endpoint registers where webhooks go; change is made to it first.
func (w *world) endpoint(id, address string, change ...func(*store.Endpoint)) store.Endpoint {
	w.Helper()
	e := w.unannounced(id, address, change...)
	w.must(streams.Changed(w.config.Conn, streams.TopicEndpoints))
	return e
}

// unannounced puts an endpoint into the registry and tells nobody.
func (w *world) unannounced(id, address string, change ...func(*store.Endpoint)) store.Endpoint {
	w.Helper()
	box, err := w.config.Keys.Box("t")
	w.must(err)
	w.secrets[id] = webhook.NewSecret()
	sealed, err := store.SealSecret(box, id, w.secrets[id])
	w.must(err)
	e := store.Endpoint{ID: id, Tenant: "t", URL: address, Payload: "thin", Status: "active", Secrets: []store.Secret{sealed}, CreatedAt: txn.At(at.Add(-time.Hour))}
	for _, c := range change {
		c(&e)
	}
	w.must(w.registry.PutEndpoint(w.Context(), e))
	return e
}

func (w *world) put(e store.Endpoint) {
	w.Helper()
	w.must(w.registry.PutEndpoint(w.Context(), e))
	w.must(streams.Changed(w.config.Conn, streams.TopicEndpoints))
}

func (w *world) endpointStatus(id string) string {
	all, err := w.registry.Endpoints(w.Context())
	w.must(err)
	for _, e := range all {
		if e.ID == id {
			return e.Status
		}
	}
	return "gone"
}

// at is when test transactions are accepted.
var at = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func decision(id string) event.Decided {
	var d event.Decided
	d.Submitted = event.Submitted{Schema: event.Schema, Tenant: "t", ID: id, Run: 1, ClaimedAt: txn.At(at), AcceptedAt: txn.At(at),
		Deadline: txn.At(at.Add(2 * time.Second)), Digest: "1.digest", Tx: txn.Sealed{ID: id, Type: "pix", Amount: 1}}
	d.Verdict = txn.Verdict{Decision: txn.Review, Score: 45, RiskBand: "medium", RuleSet: txn.RuleSet{Name: "default", Version: 7, Digest: "sha256:0"},
		Reasons: []txn.Reason{{Code: "B", Text: "ação <&> 😀", Rule: "b", Points: 25, Inputs: map[string]any{"z": 9007199254740991.0, "a": "x"}}, {Code: "A"}}}
	d.Engine, d.By, d.DecidedAt = "1.0.0", event.ByPipeline, txn.At(at.Add(9*time.Millisecond))
	return d
}

// decide publishes decisions as persist does.
func (w *world) decide(ids ...string) {
	w.Helper()
	outputs := make([]stage.Output, len(ids))
	for i, id := range ids {
		outputs[i] = w.announcement(id)
	}
	for ; len(outputs) > 500; outputs = outputs[500:] {
		w.publish(outputs[:500])
	}
	w.publish(outputs)
}

func (w *world) announcement(id string) stage.Output {
	w.Helper()
	data, err := event.Encode(decision(id))
	w.must(err)
	ident := streams.Ident{Tenant: "t", ID: id, Run: 1, AcceptedAt: at, Deadline: at.Add(2 * time.Second), Digest: "1.digest"}
	return streams.Message(ident, streams.EventDecided, data)
}

func (w *world) publish(outputs []stage.Output) {
	w.Helper()
	_, err := stage.Publish(w.Context(), w.js, outputs)
	w.must(err)
}

func ids(prefix string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("%s%04d", prefix, i)
	}
	return out
}

// rows are an endpoint's, oldest first.
func (w *world) rows(endpoint string) []store.Delivery {
	w.Helper()
	found, next, err := w.deliveries.List(w.Context(), store.DeliveryQuery{Tenant: "t", EndpointID: endpoint, Limit: 10_000})
	if err != nil || next != "" {
		w.Fatal(next, err)
	}
	return found
}

// ended waits until all n rows of an endpoint have a status, and returns them.
func (w *world) ended(endpoint string, n int, status string) []store.Delivery {
	w.Helper()
	var rows []store.Delivery
	defer func() {
		if w.Failed() {
			w.Logf("its breaker is %s", w.breaker(endpoint))
			for _, r := range rows[:min(len(rows), 3)] {
				w.Logf("of %d rows: %s, next %v, leased %v, %+v", len(rows), r.Status, r.NextAttemptAt, r.LeasedUntil, r.Attempts)
			}
		}
	}()
	w.until(fmt.Sprintf("%d rows of %s %s", n, endpoint, status), func() bool {
		rows = w.rows(endpoint)
		count := 0
		for _, r := range rows {
			if r.Status == status {
				count++
			}
		}
		return count == n && len(rows) == n
	})
	return rows
}

// fragile is a delivery store that can be away.
type fragile struct {
	store.Deliveries
	away  atomic.Bool
	lies  atomic.Bool            // says that an insert failed which did not
	loses atomic.Pointer[string] // the type whose rows are not inserted
	lost  atomic.Int64
	polls atomic.Int64
}

var errAway = errors.New("the store is away")

func (f *fragile) Insert(ctx context.Context, rows []store.Delivery) ([]bool, error) {
	if f.away.Load() {
		return nil, errAway
	}
	if kind := f.loses.Load(); kind != nil && rows[0].Type == *kind {
		f.lost.Add(1)
		return nil, errAway
	}
	added, err := f.Deliveries.Insert(ctx, rows)
	if f.lies.CompareAndSwap(true, false) {
		return nil, errAway
	}
	return added, err
}

func (f *fragile) DueEndpoints(ctx context.Context, now time.Time) ([]string, error) {
	f.polls.Add(1)
	if f.away.Load() {
		return nil, errAway
	}
	return f.Deliveries.DueEndpoints(ctx, now)
}

// got is one request as a receiver saw it.
type got struct {
	path   string
	header http.Header
	body   []byte
}

// receiver keeps what it gets, and answers as it is told.
type receiver struct {
	*httptest.Server
	mu   sync.Mutex
	seen []got
}

// newReceiver answers each request by answer; nil is 204.
func newReceiver(t testing.TB, answer func(w http.ResponseWriter, req *http.Request, n int)) *receiver {
	r := &receiver{}
	r.Server = httptest.NewServer(r.handler(answer))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) handler(answer func(w http.ResponseWriter, req *http.Request, n int)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return
		}
		r.mu.Lock()
		r.seen = append(r.seen, got{req.URL.Path, req.Header, body})
		n := len(r.seen)
		r.mu.Unlock()
		if answer == nil {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		answer(w, req, n)
	})
}

func (r *receiver) all() []got {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]got(nil), r.seen...)
}

func status(code int) func(http.ResponseWriter, *http.Request, int) {
	return func(w http.ResponseWriter, _ *http.Request, _ int) { w.WriteHeader(code) }
}
