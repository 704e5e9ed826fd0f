package edge_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"crivo/pkg/app"
	"crivo/pkg/seal"
	"crivo/pkg/txn"
	"crivo/services/broker"
	"crivo/services/edge"
	"crivo/services/store"
	"crivo/services/store/memory"
	"crivo/streams"
	"crivo/streams/event"
)

// within is how long a fact may take to show.
const within = 30 * time.Second

const bootstrap = "bootstrap-key-of-the-tests"

// clock is one that a test sets.
type clock struct {
	mu    sync.Mutex
	now   time.Time
	began time.Time
}

func newClock() *clock {
	now := time.Now()
	return &clock{now: now, began: now}
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// transactions is a store that a test can break. Each hook stands before the real call; an error of it is the answer.
type transactions struct {
	edge.Transactions
	mu     sync.Mutex
	before map[string]func(context.Context) error
	claims int
}

func (s *transactions) breaks(call string, with func(context.Context) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before[call] = with
}

func (s *transactions) hook(ctx context.Context, call string) error {
	s.mu.Lock()
	hook := s.before[call]
	s.mu.Unlock()
	if hook == nil {
		return nil
	}
	return hook(ctx)
}

func (s *transactions) Claim(ctx context.Context, claims []store.Claim) ([]store.Claimed, error) {
	s.mu.Lock()
	s.claims += len(claims)
	s.mu.Unlock()
	if err := s.hook(ctx, "claim"); err != nil {
		return nil, err
	}
	return s.Transactions.Claim(ctx, claims)
}

func (s *transactions) Get(ctx context.Context, key store.Key) (store.Entry, error) {
	if err := s.hook(ctx, "get"); err != nil {
		return store.Entry{}, err
	}
	return s.Transactions.Get(ctx, key)
}

func (s *transactions) Raise(ctx context.Context, r store.Raise) (store.Entry, error) {
	if err := s.hook(ctx, "raise"); err != nil {
		return store.Entry{}, err
	}
	return s.Transactions.Raise(ctx, r)
}

func (s *transactions) Decide(ctx context.Context, decides []store.Decide) ([]store.Outcome, error) {
	if err := s.hook(ctx, "decide"); err != nil {
		return nil, err
	}
	return s.Transactions.Decide(ctx, decides)
}

func (s *transactions) Search(ctx context.Context, q store.Query) ([]store.Found, string, error) {
	if err := s.hook(ctx, "search"); err != nil {
		return nil, "", err
	}
	return s.Transactions.Search(ctx, q)
}

func (s *transactions) Dispose(ctx context.Context, key store.Key, d store.Disposition) (store.Entry, error) {
	if err := s.hook(ctx, "dispose"); err != nil {
		return store.Entry{}, err
	}
	return s.Transactions.Dispose(ctx, key, d)
}

func (s *transactions) Ping(ctx context.Context) error {
	if err := s.hook(ctx, "ping"); err != nil {
		return err
	}
	return s.Transactions.Ping(ctx)
}

func (s *transactions) claimed() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.claims
}

var errDown = errors.New("down for the test")

func down(context.Context) error { return errDown }

// rig is what edges stand on: a broker, stores, keys.
type rig struct {
	t        testing.TB
	server   *broker.Server
	js       jetstream.JetStream
	memory   *memory.Transactions
	store    *transactions
	registry *memory.Registry
	keys     *seal.Keyring
	clock    *clock
	audit    func(context.Context, store.Act) error
}

func newRig(t testing.TB) *rig {
	t.Helper()
	dir := t.TempDir()
	server, err := broker.Start(broker.Options{Dir: filepath.Join(dir, "nats")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	keys, err := seal.Open(filepath.Join(dir, "keyset.json"), true)
	if err != nil {
		t.Fatal(err)
	}
	m := memory.NewTransactions()
	r := &rig{t: t, server: server, memory: m, registry: memory.NewRegistry(), keys: keys, clock: newClock(),
		store: &transactions{Transactions: m, before: map[string]func(context.Context) error{}}}
	r.audit = r.registry.Record
	r.js = r.jetStream(r.connect())
	for _, c := range streams.DefaultLayout.Streams() {
		if _, err := r.js.CreateStream(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func (r *rig) connect() *nats.Conn {
	r.t.Helper()
	nc, err := r.server.Connect()
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(nc.Close)
	return nc
}

func (r *rig) jetStream(nc *nats.Conn) jetstream.JetStream {
	r.t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		r.t.Fatal(err)
	}
	return js
}

// stream makes TX_SUBMITTED as the layout wants it, but for one change.
func (r *rig) stream(change func(*jetstream.StreamConfig)) {
	r.t.Helper()
	c := streams.DefaultLayout.Streams()[0]
	change(&c)
	if _, err := r.js.CreateOrUpdateStream(r.t.Context(), c); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) dropStream() {
	r.t.Helper()
	if err := r.js.DeleteStream(r.t.Context(), streams.Submitted); err != nil {
		r.t.Fatal(err)
	}
}

// submitted returns the messages in TX_SUBMITTED.
func (r *rig) submitted() []event.Submitted {
	r.t.Helper()
	stream, err := r.js.Stream(r.t.Context(), streams.Submitted)
	if err != nil {
		r.t.Fatal(err)
	}
	var out []event.Submitted
	state := stream.CachedInfo().State
	for n := state.FirstSeq; state.Msgs > 0 && n <= state.LastSeq; n++ {
		m, err := stream.GetMsg(r.t.Context(), n)
		if err != nil {
			r.t.Fatal(err)
		}
		s, err := event.Decode[event.Submitted](m.Data)
		if err != nil {
			r.t.Fatal(err)
		}
		out = append(out, s)
	}
	return out
}

// decide completes a transaction as the pipeline would, and tells the edge named instance.
func (r *rig) decide(key store.Key, instance string) {
	r.t.Helper()
	data := decide(r.t, r.memory, key)
	if instance == "" {
		return
	}
	h := streams.Ident{Tenant: key.Tenant, ID: key.ID, Run: 1}.Header()
	if err := r.js.Conn().PublishMsg(&nats.Msg{Subject: streams.EdgeSubject(instance), Header: h, Data: data}); err != nil {
		r.t.Fatal(err)
	}
}

// decide puts a decision into a store and returns it.
func decide(t testing.TB, in *memory.Transactions, key store.Key) []byte {
	t.Helper()
	entry, err := in.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	d := decidedEvent(entry.Claim)
	data, err := event.Encode(d)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.Decide(t.Context(), []store.Decide{{Claim: entry.Claim, Event: data, Decision: txn.Approve, DecidedAt: d.DecidedAt.Time}}); err != nil {
		t.Fatal(err)
	}
	return data
}

func decidedEvent(c store.Claim) event.Decided {
	var d event.Decided
	d.Submitted = event.Submitted{Schema: event.Schema, Tenant: c.Tenant, ID: c.ID, Run: c.Run, ClaimedAt: txn.At(c.ClaimedAt),
		AcceptedAt: txn.At(c.AcceptedAt), Deadline: txn.At(c.Deadline), Digest: c.Digest}
	d.Verdict = txn.Verdict{Decision: txn.Approve, RiskBand: "low", Reasons: []txn.Reason{}}
	d.By, d.DecidedAt = event.ByPipeline, txn.At(c.AcceptedAt.Add(9*time.Millisecond))
	return d
}

func (r *rig) config(instance string) edge.Config {
	nc := r.connect()
	return edge.Config{
		Shell: app.Shell{Name: "edge", Conn: nc, JS: r.jetStream(nc), Clock: app.NewClock(r.clock.Now), Log: zerolog.Nop(),
			Metrics: prometheus.NewRegistry(), Health: &app.Health{}},
		Transactions: r.store, Registry: r.registry, Deliveries: memory.NewDeliveries(), Keys: r.keys, Instance: instance,
		Audit: r.audit, MaxInFlight: 1000, BootstrapKey: bootstrap, Version: "test",
	}
}

// running is one edge on real sockets.
type running struct {
	*rig
	edge.Config
	url  string
	key  string
	stop func()             // drains and waits
	end  context.CancelFunc // only begins to drain
	done chan struct{}
}

// edge starts an edge and waits until it serves; change may alter its configuration.
func (r *rig) edge(instance string, change ...func(*edge.Config)) *running {
	r.t.Helper()
	e := r.start(instance, change...)
	e.await("the edge to serve", e.serves)
	return e
}

// serves tells whether the edge answers by its routes.
func (e *running) serves() bool {
	a, err := e.ask(http.MethodGet, "/openapi.json", "")
	return err == nil && a.status == http.StatusOK
}

func (r *rig) start(instance string, change ...func(*edge.Config)) *running {
	r.t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		r.t.Fatal(err)
	}
	cfg := r.config(instance)
	for _, c := range change {
		c(&cfg)
	}
	if cfg.Door, err = edge.OpenDoor(edge.Doorway{Listener: listener, Health: cfg.Health, Log: cfg.Log}); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(cfg.Door.Close)
	ctx, end := context.WithCancel(context.Background())
	e := &running{rig: r, Config: cfg, url: "http://" + listener.Addr().String(), key: cfg.BootstrapKey, end: end, done: make(chan struct{})}
	go func() {
		defer close(e.done)
		if err := edge.Run(ctx, cfg); err != nil {
			r.t.Error(err)
		}
	}()
	e.stop = func() { end(); <-e.done }
	r.t.Cleanup(e.stop)
	return e
}

func (r *rig) await(what string, fact func() bool) {
	r.t.Helper()
	for give := time.Now().Add(within); !fact(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(give) {
			r.t.Fatalf("waited in vain for %s", what)
		}
	}
}

// answer is what an edge said.
type answer struct {
	status int
	header http.Header
	body   string
	// repeats counts refusals of a slow machine before it: what was claimed by then is rightly called a repeat.
	repeats int
}

func (a answer) member(name string) string {
	var m map[string]any
	if json.Unmarshal([]byte(a.body), &m) != nil || m[name] == nil {
		return ""
	}
	return fmt.Sprint(m[name])
}

// slug is the problem's, empty when it is none.
func (a answer) slug() string {
	if a.header.Get("Content-Type") != "application/problem+json" {
		return ""
	}
	return strings.TrimPrefix(a.member("type"), "urn:crivo:")
}

func (e *running) ask(method, path, body string, headers ...string) (answer, error) {
	return ask(http.DefaultClient, e.url, e.key, method, path, body, headers...)
}

func (e *running) do(method, path, body string, headers ...string) answer {
	e.t.Helper()
	a, err := e.ask(method, path, body, headers...)
	if err != nil {
		e.t.Fatal(err)
	}
	return a
}

func (e *running) post(body string, headers ...string) answer {
	e.t.Helper()
	return e.do(http.MethodPost, "/v1/transactions", body, headers...)
}

// patient posts again while this machine is too slow for the budgets of an edge, which then says that the store or the broker does
// not answer; wanted is what the test has broken itself.
func (e *running) patient(body string, wanted ...string) (a answer) {
	e.t.Helper()
	repeats := 0
	e.await("an answer in time", func() bool {
		a = e.post(body)
		a.repeats = repeats
		repeats++
		slug := a.slug()
		return slices.Contains(wanted, slug) || slug != "store" && slug != "broker"
	})
	return a
}

func ask(client *http.Client, url, key, method, path, body string, headers ...string) (answer, error) {
	req, err := http.NewRequest(method, url+path, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	return answer{status: res.StatusCode, header: res.Header, body: string(data)}, err
}

// raw opens a connection and sends text on it; what comes back is read as HTTP.
func (e *running) raw(text string) (net.Conn, *bufio.Reader) {
	e.t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(e.url, "http://"))
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(within)); err != nil {
		e.t.Fatal(err)
	}
	if _, err := io.WriteString(c, text); err != nil {
		e.t.Fatal(err)
	}
	return c, bufio.NewReader(c)
}

func read(t testing.TB, from *bufio.Reader) answer {
	t.Helper()
	res, err := http.ReadResponse(from, nil)
	if err != nil {
		t.Fatal(err)
	}
	var body bytes.Buffer
	if _, err := body.ReadFrom(res.Body); err != nil {
		t.Fatal(err)
	}
	return answer{status: res.StatusCode, header: res.Header, body: body.String()}
}

// payment is a valid body, the same one for the same id.
func (r *rig) payment(id string) string { return paymentAt(id, r.clock.began) }

func paymentAt(id string, at time.Time) string {
	return fmt.Sprintf(`{"id":%q,"type":"pix","amount":13725,"currency":"BRL","created_at":%q,"payer":{"document":"529.982.247-25"}}`,
		id, at.UTC().Format(time.RFC3339Nano))
}
