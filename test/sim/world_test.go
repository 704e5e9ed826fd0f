package sim_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"crivo/pkg/app"
	"crivo/pkg/seal"
	"crivo/pkg/stage"
	"crivo/pkg/txn"
	"crivo/services/decide"
	"crivo/services/edge"
	"crivo/services/enrich"
	"crivo/services/keeper"
	"crivo/services/notify"
	"crivo/services/persist"
	"crivo/services/rules"
	"crivo/services/score"
	"crivo/services/store"
	"crivo/services/store/memory"
	"crivo/services/validate"
	"crivo/streams"
)

// shared is what all runs have in common, because it is dear to make and has no state that time could change.
var shared = sync.OnceValues(func() (common, error) {
	dir, err := os.MkdirTemp("", "sim")
	if err != nil {
		return common{}, err
	}
	defer func() { _ = os.RemoveAll(dir) }() // what was read stays in memory
	keys, err := seal.Open(filepath.Join(dir, "keyset.json"), true)
	if err != nil {
		return common{}, err
	}
	if err := keys.Add(tenant); err != nil {
		return common{}, err
	}
	set, err := rules.Default()
	if err != nil {
		return common{}, err
	}
	live := rules.NewLive(set)
	scoring, err := score.New(live, engine)
	return common{keys, live, scoring}, err
})

type common struct {
	keys    *seal.Keyring
	rules   *rules.Live
	scoring score.Stage
}

const (
	tenant    = "default"
	engine    = "sim"
	bootstrap = "bootstrap-key-of-the-simulation"
	endpoint  = "paused"
)

// world is one run: the real processes, and what they stand on.
type world struct {
	common
	t         *testing.T
	dice      *dice
	broker    *broker
	truth     *recorded // the transaction store itself
	sky       *sky
	features  *features
	rows      *memory.Deliveries
	registry  *memory.Registry
	clients   *clients
	sweeps    func(keeper.Transactions, transactions) keeper.Transactions // what the keeper sees, for one that is broken on purpose
	roles     []string                                                    // who takes part
	unguarded bool                                                        // edges leave everything to the pipeline, on purpose
	forgetful bool                                                        // the keeper notes what it does not know again, on purpose
	garbles   func(row *store.Delivery)                                   // what becomes of webhooks, on purpose
	batchFrom int
	stuck     func(store.Decide) bool  // what is never answered, in a test of its own
	skews     map[string]*atomic.Int64 // how wrong the clock of a role's machine is, in nanoseconds
	loud      bool
	began     time.Time

	mu      sync.Mutex
	running map[string]*process // by the incarnation's name
	deaths  map[string]int      // by service, of those that did not end by themselves
	all     []*process
	ended   sync.WaitGroup
	errs    []string
	over    bool // nothing is started again
}

// process is one incarnation of a service.
type process struct {
	name   string // service and number: persist-b#3
	role   string // persist-b
	handle *handle
	conn   *nats.Conn
	clock  *app.Clock
	end    context.CancelFunc
	ended  bool   // by itself
	door   *pipes // an edge's
}

// roles are the processes, in the order in which they are started. Some runs lack the last ones.
var roles = []string{"keeper", "enrich", "validate", "score", "persist-a", "notify", "edge-a", "edge-b", "persist-b", "keeper-b", "enrich-b"}

func newWorld(t *testing.T, seed uint64, loud bool) *world {
	t.Helper()
	c, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{common: c, t: t, loud: loud, dice: newDice(seed), sky: &sky{}, features: newFeatures(), rows: memory.NewDeliveries(),
		registry: memory.NewRegistry(), running: map[string]*process{}, deaths: map[string]int{}, began: time.Now()}
	w.truth = newRecorded(memory.NewTransactions())
	w.truth.refuses = func(d store.Decide) bool {
		return strings.HasSuffix(d.ID, poisonsPersist) && d.Decision != txn.Review
	}
	w.broker = newBroker(w.dice)
	w.broker.trace, w.broker.crash = w.tracef, func(name string) {
		w.broker.severLocked(name)
		go w.kill(name)
	}
	w.roles = roles[:w.dice.about("roles").IntN(5)+len(roles)-4]
	w.batchFrom = [...]int{0, 2, 8}[w.dice.about("batches").IntN(3)]
	w.skews = map[string]*atomic.Int64{}
	if w.dice.hits(0.5, "skewed") {
		for _, role := range w.roles {
			w.skews[role] = &atomic.Int64{}
			w.skews[role].Store(int64(w.dice.between(-10*time.Second, 10*time.Second, "skew of "+role)))
		}
	}
	w.clients = newClients(w)
	ctx := context.Background()
	_ = w.registry.PutTenant(ctx, store.Tenant{ID: tenant, DeadlineMS: 2000, TimeZone: "America/Sao_Paulo"})
	_ = w.registry.PutEndpoint(ctx, store.Endpoint{ID: endpoint, Tenant: tenant, URL: "https://example.com/", Payload: "thin", Status: "paused"})
	return w
}

// open starts everything.
func (w *world) open() {
	if err := w.clients.connect(); err != nil {
		w.fault("client: %v", err)
	}
	for _, role := range w.roles {
		w.start(role)
	}
}

// stop kills everything for good.
func (w *world) stop() {
	w.mu.Lock()
	w.over = true
	w.mu.Unlock()
	for _, p := range w.all {
		w.kill(p.name)
	}
	w.clients.nats.Close()
	w.ended.Wait()
	w.broker.end()
}

// odds are today's.
func (w *world) odds() odds {
	w.broker.mu.Lock()
	defer w.broker.mu.Unlock()
	return w.broker.odds
}

// tracef tells what happens, when, if a run is watched.
func (w *world) tracef(format string, args ...any) {
	if w.loud {
		w.t.Logf("%12s %s", time.Since(w.began), fmt.Sprintf(format, args...))
	}
}

// start runs a new incarnation of a role, unless one lives.
func (w *world) start(role string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		return
	}
	number := 1
	for _, p := range w.all {
		if p.role == role {
			number++
			if w.running[p.name] != nil {
				return
			}
		}
	}
	p := &process{name: fmt.Sprintf("%s#%d", role, number), role: role}
	p.handle = &handle{w: w, name: p.name}
	health := &app.Health{}
	conn, err := app.Connect(app.Connection{Name: p.name, Inbox: streams.InboxPrefix(service(role)), Log: zerolog.Nop(), Health: health,
		Extra: []nats.Option{nats.InProcessServer(door{w.broker, p.name}), nats.ReconnectJitter(0, 0)}})
	if err != nil {
		w.errs = append(w.errs, err.Error())
		return
	}
	js, err := app.JetStream(conn)
	if err != nil {
		w.errs = append(w.errs, err.Error())
		return
	}
	metrics := prometheus.NewRegistry()
	p.clock = app.NewClock(func() time.Time {
		if skew := w.skews[role]; skew != nil {
			return time.Now().Add(time.Duration(skew.Load()))
		}
		return time.Now()
	})
	shell := app.Shell{Name: service(role), Conn: conn, JS: js, Clock: p.clock, Log: zerolog.Nop(), Metrics: metrics, Health: health,
		Steps: stage.NewMetrics(metrics), BatchFrom: w.batchFrom}
	ctx, end := context.WithCancel(context.Background())
	p.conn, p.end = conn, end
	if service(role) == "edge" {
		p.door = newPipes()
	}
	w.running[p.name] = p
	w.all = append(w.all, p)
	w.tracef("%s starts", p.name)
	w.ended.Go(func() {
		err := w.run(ctx, p, shell)
		if !p.handle.dead.Load() && (ctx.Err() == nil || err != nil) {
			w.fault("%s ended by itself: %v", p.name, err)
		}
		w.mu.Lock()
		p.ended = true
		w.mu.Unlock()
		w.kill(p.name) // where it was told to end, and did
	})
}

// service is the process that plays a role: there may be several of it.
func service(role string) string { name, _, _ := strings.Cut(role, "-"); return name }

// run is what the service's main does.
func (w *world) run(ctx context.Context, p *process, s app.Shell) error {
	keeping, stop := context.WithCancel(context.Background())
	defer stop()
	var kept <-chan struct{} // nil: no clock is wrong
	err := app.Until(ctx, s, "the broker and its streams", func(ctx context.Context) (err error) {
		if s.Name == "keeper" {
			if _, err := streams.Make(ctx, s.JS, streams.DefaultLayout); err != nil {
				return err
			}
		}
		if len(w.skews) > 0 {
			kept, err = s.Clock.Keep(keeping, s.Conn, streams.Submitted)
		}
		return err
	})
	if err != nil {
		return nil // told to end before it began
	}
	if kept != nil {
		defer func() { stop(); <-kept }()
	}
	return w.serve(ctx, p, s)
}

func (w *world) serve(ctx context.Context, p *process, s app.Shell) error {
	switch s.Name {
	case "keeper":
		cfg := keeper.Config{Shell: s, Transactions: w.swept(p.handle), Layout: streams.DefaultLayout, Tenants: w.registry.Tenants,
			State: w.registry, Holder: p.name}
		if w.forgetful {
			cfg.State = forgetful{w.registry}
		}
		return keeper.Run(ctx, cfg)
	case "enrich":
		return enrich.Run(ctx, enrich.Config{Shell: s, Features: seen{p.handle}, RuleSet: func() txn.RuleSet { return w.rules.Current().Ref() }})
	case "validate":
		return validate.Run(ctx, validate.Config{Shell: s, Keys: w.keys})
	case "score":
		return score.Run(ctx, score.Config{Shell: s, Rules: w.rules, Engine: engine})
	case "persist":
		return persist.Run(ctx, persist.Config{Shell: s, Transactions: p.handle})
	case "notify":
		return notify.Run(ctx, notify.Config{Shell: s, Deliveries: deliveries{w.rows, p.handle}, Endpoints: w.registry, States: w.registry, Keys: w.keys, Audit: w.registry.Record})
	}
	core, closes, err := decide.Open(ctx, seen{p.handle}, w.rules, validate.Config{Shell: s, Keys: w.keys}, engine)
	if err != nil {
		return err
	}
	defer closes()
	door, err := edge.OpenDoor(edge.Doorway{Listener: p.door, Health: s.Health, Log: s.Log})
	if err != nil {
		return err
	}
	defer door.Close()
	guard := core.Guard
	if w.unguarded {
		guard = nil
	}
	return edge.Run(ctx, edge.Config{Shell: s, Door: door, Transactions: p.handle, Decider: guard, Registry: w.registry,
		Deliveries: w.rows, Keys: w.keys, Audit: w.registry.Record, Instance: strings.ReplaceAll(p.name, "#", "-"), MaxInFlight: 1000, BootstrapKey: bootstrap})
}

func (w *world) swept(h *handle) keeper.Transactions {
	if w.sweeps != nil {
		return w.sweeps(h, w.truth)
	}
	return h
}

// kill ends an incarnation as SIGKILL does: from now on nothing that it still does reaches anybody. It is started again after a
// while.
func (w *world) kill(name string) {
	w.mu.Lock()
	p := w.running[name]
	delete(w.running, name)
	if p != nil && !p.ended {
		w.deaths[service(p.role)]++
	}
	w.mu.Unlock()
	if p == nil {
		return
	}
	w.tracef("%s is killed", name)
	p.handle.dead.Store(true)
	w.broker.sever(name)
	if p.door != nil {
		p.door.slam()
	}
	p.end()
	w.ended.Go(p.conn.Close)
	time.AfterFunc(w.dice.between(50*time.Millisecond, 2*time.Second, "restart "+name), func() { w.start(p.role) })
}

// tell ends an incarnation as SIGTERM does: it drains, and is killed only where it does not end.
func (w *world) tell(name string) {
	w.mu.Lock()
	p := w.running[name]
	w.mu.Unlock()
	if p != nil {
		w.tracef("%s is told to end", name)
		p.end()
		time.AfterFunc(15*time.Second, func() { w.kill(name) })
	}
}

// player is the living incarnation of a role, nil for none.
func (w *world) player(role string) *process {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.running {
		if p.role == role {
			return p
		}
	}
	return nil
}

// fault records what must not happen.
func (w *world) fault(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.errs = append(w.errs, fmt.Sprintf(format, args...))
}

// pipes is a listener whose connections stay in the process.
type pipes struct {
	dial   chan net.Conn
	closed chan struct{}
	once   sync.Once

	mu   sync.Mutex
	open []net.Conn
}

func newPipes() *pipes { return &pipes{dial: make(chan net.Conn), closed: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.dial:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error { p.once.Do(func() { close(p.closed) }); return nil }
func (*pipes) Addr() net.Addr { return &net.UnixAddr{} }

// connect is a client's dial.
func (p *pipes) connect(ctx context.Context) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case p.dial <- there:
		p.mu.Lock()
		p.open = append(p.open, here)
		p.mu.Unlock()
		return here, nil
	case <-p.closed:
		return nil, io.ErrClosedPipe
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// slam ends everything that is open.
func (p *pipes) slam() {
	_ = p.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.open {
		_ = c.Close()
	}
}

// httpTo is a client of one edge role, whoever plays it.
func (w *world) httpTo(role string) *http.Client {
	return &http.Client{Timeout: 15 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			if p := w.player(role); p != nil {
				return p.door.connect(ctx)
			}
			return nil, errAway
		}}}
}
