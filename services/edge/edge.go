// Package edge is the door: it authenticates, checks, seals, claims and publishes transactions that come by HTTP or NATS, and
// answers for them. A 2xx is said only once the claim is stored and the broker has the message.
package edge

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/time/rate"

	"crivo/pkg/app"
	"crivo/pkg/batch"
	"crivo/pkg/seal"
	"crivo/pkg/stage"
	"crivo/services/audit"
	"crivo/services/store"
	"crivo/streams"
)

// Transactions is the part of the transaction store that the edge calls. An error of Claim means that the outcome is unknown.
type Transactions interface {
	Claim(ctx context.Context, claims []store.Claim) ([]store.Claimed, error)
	Get(ctx context.Context, key store.Key) (store.Entry, error)
	Raise(ctx context.Context, r store.Raise) (store.Entry, error)
	Decide(ctx context.Context, decides []store.Decide) ([]store.Outcome, error)
	Announced(ctx context.Context, keys []store.Key) error
	Search(ctx context.Context, q store.Query) ([]store.Found, string, error)
	Dispose(ctx context.Context, key store.Key, d store.Disposition) (store.Entry, error)
	Ping(ctx context.Context) error
}

// Registry is what operators set and the edge serves.
type Registry interface {
	Tenants(ctx context.Context) ([]store.Tenant, error)
	PutTenant(ctx context.Context, t store.Tenant) error
	Keys(ctx context.Context) ([]store.APIKey, error)
	PutKey(ctx context.Context, k store.APIKey) error
	DeleteKey(ctx context.Context, tenant, id string) error
	Endpoints(ctx context.Context) ([]store.Endpoint, error)
	PutEndpoint(ctx context.Context, e store.Endpoint) error
	ChangeEndpoint(ctx context.Context, e store.Endpoint) error
	Replays(ctx context.Context) ([]store.Replay, error)
	PutReplay(ctx context.Context, r store.Replay) error
	DeleteEndpoint(ctx context.Context, tenant, id string) error
	ListPage(ctx context.Context, q store.ListQuery) ([]store.ListEntry, string, error)
	PutListEntry(ctx context.Context, e store.ListEntry) (store.ListEntry, error)
	DeleteListEntry(ctx context.Context, tenant, list, id string) error
	RuleSets(ctx context.Context) ([]store.RuleSet, error)
	RuleSet(ctx context.Context, name string, version int) (store.RuleSet, error)
	State(ctx context.Context, name string) ([]byte, error)
}

// Deliveries is what the edge shows of webhooks, and has sent once more.
type Deliveries interface {
	Get(ctx context.Context, tenant, id string) (store.Delivery, error)
	List(ctx context.Context, q store.DeliveryQuery) ([]store.Delivery, string, error)
	Insert(ctx context.Context, rows []store.Delivery) ([]bool, error)
	Resend(ctx context.Context, r store.Resend) error
}

// NATSKey makes the text of a .creds file that may request a tenant's intake by NATS and nothing else, good until a time unless that
// is zero, and what names it.
type NATSKey func(tenant string, until time.Time) (id string, creds []byte, err error)

// Config is what the service needs.
type Config struct {
	app.Shell
	Door         *Door
	Transactions Transactions
	Decider      Decider // nil: what the pipeline is late with is late
	DryRun       Decider // what a dry run asks
	Registry     Registry
	Deliveries   Deliveries
	Keys         *seal.Keyring
	Audit        audit.Record
	Instance     string // unique among edges
	MaxInFlight  int
	NATSKey      NATSKey        // nil: credentials for NATS are made elsewhere
	BootstrapKey string         // the key of tenant default with all roles
	Allow        []netip.Prefix // the operator's own addresses: webhooks may use plain http and any port there
	Version      string
}

// edge is a running service.
type edge struct {
	Config
	claims    *batch.Group[store.Claim, store.Claimed]
	publishes *batch.Group[stage.Output, struct{}]
	guards    *batch.Group[*flight, store.Entry]
	announces *batch.Group[announcement, struct{}]
	life      context.Context // outlives requests, ends with the edge
	listening context.Context // of event streams: ends when the edge drains
	hangUp    context.CancelFunc
	// broadcasts are what event streams hear.
	broadcasts *broadcasts
	gate       gate
	batches    *seats // for what is held in memory
	flights    *flights
	redrives   *rate.Limiter
	exports    *seats
	directory  *directory
	metrics    *metrics
	full       atomic.Bool
	stalled    atomic.Bool
	draining   atomic.Bool
}

// groupSize bounds one commit of claims and one batch of messages.
const groupSize = 128

// drainTime is how long requests under way may take once the edge shuts down.
const drainTime = 12 * time.Second

// landTime is how long the edge stays for what it accepted: the usual deadline.
const landTime = 2 * time.Second

// noticeTime is how long a draining edge says so before it stops listening: clients hear a 503 and not a cut connection.
const noticeTime = 200 * time.Millisecond

func newEdge(cfg Config) *edge {
	e := &edge{Config: cfg, life: context.Background(), flights: newFlights(), redrives: rate.NewLimiter(redriveRate, 1), metrics: newMetrics(cfg.Metrics),
		gate: newGate(), batches: newSeats(batchesAtOnce), exports: newSeats(maxExports), directory: &directory{registry: cfg.Registry, keys: cfg.Keys}}
	e.listening, e.hangUp = context.WithCancel(context.Background())
	e.broadcasts = newBroadcasts(streams.Decisions{JS: cfg.JS}, cfg.Log)
	e.claims = &batch.Group[store.Claim, store.Claimed]{Most: groupSize, Write: e.writeClaims, Size: e.metrics.group("claim"), Skip: true}
	e.publishes = &batch.Group[stage.Output, struct{}]{Most: groupSize, Write: e.writePublishes, Size: e.metrics.group("publish")}
	e.guards = &batch.Group[*flight, store.Entry]{Most: groupSize, Write: e.writeGuards, Size: e.metrics.group("guard")}
	e.announces = &batch.Group[announcement, struct{}]{Most: groupSize, Write: e.writeAnnouncements, Size: e.metrics.group("announce")}
	return e
}

// Run serves until ctx ends, then drains: it stops being ready, lets requests under way finish and publishes what it claimed.
func Run(ctx context.Context, cfg Config) error {
	e := newEdge(cfg)
	if app.Until(ctx, e.Shell, "the registry", e.bootstrap) != nil {
		return nil // ended before it was there
	}
	// Watchers and the decisions' inbox outlive ctx, so that requests under way still hear their answer while draining.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	e.life = life
	watch := func(context.Context) error {
		return streams.Watch(life, e.Conn, e.Log, e.directory.reload, streams.TopicKeys, streams.TopicTenants)
	}
	if app.Until(ctx, e.Shell, "keys and tenants", watch) != nil {
		return nil
	}
	heard, err := e.Conn.Subscribe(streams.EdgeSubject(e.Instance), e.hear)
	if err != nil {
		return fmt.Errorf("edge: %w", err)
	}
	defer func() { _ = heard.Unsubscribe() }()
	if err := heard.SetPendingLimits(1<<18, 1<<28); err != nil {
		return fmt.Errorf("edge: %w", err)
	}
	leave, err := e.intake(life)
	if err != nil {
		return fmt.Errorf("edge: %w", err)
	}
	var side sync.WaitGroup
	side.Go(func() { e.housekeeping(life) })
	side.Go(func() { e.watchFlow(life) })
	err = e.serve(ctx, leave)
	e.hangUp()
	e.broadcasts.running.Wait()
	e.claims.Close()
	e.publishes.Close()
	e.land()
	e.guards.Close()
	e.announces.Close()
	end()
	side.Wait()
	return err
}

// serve answers by the door until ctx ends and the last request is answered, those by NATS included.
func (e *edge) serve(ctx context.Context, leaveIntake func()) error {
	e.Door.serve(e.routes())
	select {
	case err := <-e.Door.ended:
		leaveIntake()
		return fmt.Errorf("edge: %w", err)
	case <-ctx.Done():
	}
	e.drain()
	var intake sync.WaitGroup
	intake.Go(leaveIntake)
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	_ = stage.Sleep(grace, noticeTime)
	err := e.Door.server.Shutdown(grace)
	if served := <-e.Door.ended; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	if err != nil {
		e.Door.Close()
	}
	intake.Wait()
	return nil
}

// drain refuses what is new and says so. Event streams end: their clients go to another edge.
func (e *edge) drain() {
	e.draining.Store(true)
	e.Health.Set(healthPart, "draining")
	e.hangUp()
}

// land waits until what was accepted here is decided, by the pipeline or by the guard, whose time comes before the deadline.
func (e *edge) land() {
	grace, cancel := context.WithTimeout(e.life, landTime)
	defer cancel()
	for e.Decider != nil {
		if n, _ := e.flights.load(); n == 0 || stage.Sleep(grace, watchEvery/10) != nil {
			return
		}
	}
}

// hear ends the flight of a decision that persist tells of.
func (e *edge) hear(m *nats.Msg) {
	if i, err := streams.ReadIdent(m.Header); err == nil {
		e.flights.heard(store.Key{Tenant: i.Tenant, ID: i.ID}, m.Data, e.Clock.Now())
		e.broadcasts.poke(i.Tenant)
	}
}

// housekeeping forgets lost flights and looks at the room in the streams and at the store, once a second.
func (e *edge) housekeeping(ctx context.Context) {
	again := map[string]time.Time{}
	for stage.Sleep(ctx, time.Second) == nil {
		e.flights.expire(e.Clock.Now())
		n, _ := e.flights.load()
		e.metrics.inFlight.Set(float64(n))
		e.checkRoom(ctx, again)
		e.checkStore(ctx)
	}
}

const (
	watchEvery = 100 * time.Millisecond
	watchMost  = 32 // look-ups in one round
)

// watchFlow asks the store about transactions that take long. A decision whose wake-up was lost is heard that way; while one is
// truly undecided for so long, nothing new is accepted, since it would come late as well.
func (e *edge) watchFlow(ctx context.Context) {
	for stage.Sleep(ctx, watchEvery) == nil {
		stalled := false
		for _, key := range e.flights.late(decideShare, e.Clock.Now(), watchMost) {
			try, cancel := context.WithTimeout(ctx, claimTime)
			entry, err := e.Transactions.Get(try, key)
			cancel()
			if err == nil && entry.Decided() {
				e.flights.heard(key, entry.Event, e.Clock.Now())
				continue
			}
			stalled = true
		}
		if e.stalled.Swap(stalled) != stalled {
			said := map[bool]string{true: "decisions take too long: new transactions are refused meanwhile", false: "decisions are in time again"}
			e.Log.Warn().Msg(said[stalled])
		}
		text := ""
		if stalled {
			text = "decisions take too long"
		}
		e.Health.Set("flow", text)
	}
}

const (
	// noRoom is the share of a stream's budget from which on nothing is accepted: what could not be decided must not come in.
	noRoom    = 0.9
	roomEvery = 5 * time.Second
)

// checkRoom asks about TX_SUBMITTED each time, as a word from the broker, and about the other streams not before their time.
func (e *edge) checkRoom(ctx context.Context, again map[string]time.Time) {
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	crowded := ""
	for _, step := range streams.Steps {
		if step.Stream != streams.Submitted && time.Now().Before(again[step.Stream]) {
			continue
		}
		stream, err := e.JS.Stream(ctx, step.Stream)
		if err != nil {
			delete(again, step.Stream)
			e.Health.Set("broker", "the broker does not answer, or has no "+step.Stream)
			return
		}
		info := stream.CachedInfo()
		again[step.Stream] = time.Now().Add(streams.Spare(info, noRoom, roomEvery))
		if info.Config.MaxBytes > 0 && float64(info.State.Bytes) > noRoom*float64(info.Config.MaxBytes) {
			crowded = step.Stream
		}
	}
	full, text := crowded != "", ""
	if full {
		text = crowded + " is full: new transactions are refused"
	}
	e.Health.Degrade("room", text)
	if e.full.Swap(full) != full {
		e.Log.Warn().Bool("full", full).Str("stream", crowded).Msg("room in the streams")
	}
	e.Health.Set("broker", "")
}

func (e *edge) checkStore(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	e.Health.Set("store", reason(e.Transactions.Ping(ctx), "the transaction store does not answer"))
}
