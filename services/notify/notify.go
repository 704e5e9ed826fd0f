// Package notify tells clients of decisions: one signed delivery per endpoint, kept in a row before it is tried, a lane of its
// own for every endpoint, retried for days.
package notify

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"crivo/pkg/app"
	"crivo/pkg/batch"
	"crivo/pkg/failpoint"
	"crivo/pkg/seal"
	"crivo/pkg/stage"
	"crivo/services/audit"
	"crivo/services/owed"
	"crivo/services/store"
	"crivo/streams"
	"crivo/streams/event"
)

// Deliveries keeps what is owed.
type Deliveries interface {
	Insert(ctx context.Context, rows []store.Delivery) ([]bool, error)
	Lease(ctx context.Context, endpoint string, now, until time.Time, limit int) ([]store.Delivery, error)
	DueEndpoints(ctx context.Context, now time.Time) ([]string, error)
	Update(ctx context.Context, rows []store.Delivery) error
	Cancel(ctx context.Context, tenant, endpoint, status string) (int, error)
}

// Endpoints is where webhooks go.
type Endpoints interface {
	Endpoints(ctx context.Context) ([]store.Endpoint, error)
	ChangeEndpoint(ctx context.Context, e store.Endpoint) error
}

// DefaultSchedule is when a delivery is tried: at once, then after these pauses; Standard Webhooks' example, 75 h in all.
var DefaultSchedule = []time.Duration{0, 5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour,
	10 * time.Hour, 14 * time.Hour, 20 * time.Hour, 24 * time.Hour}

// Config is what the service needs.
type Config struct {
	app.Shell
	Deliveries Deliveries
	Endpoints  Endpoints
	States     States
	Keys       *seal.Keyring
	Audit      audit.Record
	Schedule   []time.Duration // empty: DefaultSchedule
	Timeout    time.Duration   // of one attempt, all in all; 0: 15 s
	Allow      []netip.Prefix  // the operator's own addresses: any port, plain http too
	Resolver   *net.Resolver   // of receivers' names; nil: the system's
	Version    string
}

// leaseBeyond is how much longer than an attempt a lease lasts, so that a slow POST is never sent twice at once.
const leaseBeyond = 15 * time.Second

// writeTime is how long writing a row back may take.
const writeTime = 5 * time.Second

// drainTime is how long attempts under way may take once the service shuts down.
var drainTime = 5 * time.Second

type notifier struct {
	Config
	client    *client
	metrics   *metrics
	endpoints atomic.Pointer[map[string]store.Endpoint] // by id
	reading   sync.Mutex
	readAt    time.Time                                // when the last reading of endpoints began
	broken    atomic.Pointer[map[string]store.Breaker] // by endpoint id; who is not in it is closed
	moving    sync.Mutex
	updates   *batch.Group[store.Delivery, struct{}]

	mu       sync.Mutex
	lanes    map[string]*lane
	doubtful []store.Delivery // rows that may have been made
	closing  bool             // nothing is begun any more
	work     sync.WaitGroup
	hard     context.Context // ends when attempts under way must stop

	disabling sync.Mutex
}

// Run delivers until ctx ends, then lets attempts under way finish and hands the rest back.
func Run(ctx context.Context, cfg Config) error {
	if len(cfg.Schedule) == 0 {
		cfg.Schedule = DefaultSchedule
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 15 * time.Second
	}
	hard, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	n := &notifier{Config: cfg, client: newClient(cfg), metrics: newMetrics(cfg.Metrics), lanes: map[string]*lane{}, hard: hard}
	n.updates = &batch.Group[store.Delivery, struct{}]{Most: 256, Write: n.writeUpdates}
	watch := func(ctx context.Context) error {
		return streams.Watch(ctx, cfg.Conn, cfg.Log, n.reload, streams.TopicEndpoints)
	}
	if app.Until(ctx, cfg.Shell, "the endpoints", watch) != nil {
		return nil // ended before they were there
	}
	polling := make(chan struct{})
	go func() {
		defer close(polling)
		n.poll(ctx)
	}()
	err := streams.Runner(cfg.Shell, streams.Notify, n.Handle, nil).Run(ctx)
	<-polling
	timeout := time.AfterFunc(drainTime, cancel)
	defer timeout.Stop()
	n.close()
	return err
}

// known makes sure that every endpoint made before a time is known: an announcement of it may still be under way.
func (n *notifier) known(ctx context.Context, before time.Time) error {
	n.reading.Lock()
	defer n.reading.Unlock()
	if n.readAt.After(before) {
		return nil
	}
	return n.read(ctx)
}

// beside does something that close waits for.
func (n *notifier) beside(do func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.closing {
		n.work.Go(do)
	}
}

func (n *notifier) reload(ctx context.Context) error {
	n.reading.Lock()
	defer n.reading.Unlock()
	return n.read(ctx)
}

// read reads the endpoints again, cancels what is owed to those that are gone, and forgets the breakers of those that are sent
// nothing: paused, disabled or gone, whoever did it and when.
func (n *notifier) read(ctx context.Context) error {
	began := n.Clock.Now()
	all, err := n.Endpoints.Endpoints(ctx)
	if err != nil {
		return err
	}
	if err := n.rereadBreakers(ctx); err != nil {
		return err
	}
	n.readAt = began
	next := make(map[string]store.Endpoint, len(all))
	for _, e := range all {
		next[e.ID] = e
	}
	before := n.endpoints.Swap(&next)
	for id := range *n.broken.Load() {
		if next[id].Status != "active" {
			n.forget(ctx, id)
		}
	}
	if before == nil {
		return nil
	}
	for id, e := range *before {
		if _, ok := next[id]; !ok {
			// Beside, since much may be owed to it. Unheard, each row is cancelled when it is due.
			n.beside(func() { _, _ = n.Deliveries.Cancel(n.hard, e.Tenant, id, store.Cancelled) })
		}
	}
	return nil
}

// Handle makes the rows that a batch of decisions owes, in one write, and hands them to their lanes. A repeat finds its rows
// there and makes none.
func (n *notifier) Handle(ctx context.Context, batch []stage.Message) []stage.Result {
	out := make([]stage.Result, len(batch))
	decided := make([]event.Decided, len(batch))
	var newest time.Time
	for i, m := range batch {
		if decided[i], out[i].Err = event.Decode[event.Decided](m.Data); decided[i].AcceptedAt.After(newest) {
			newest = decided[i].AcceptedAt.Time
		}
	}
	if err := n.known(ctx, newest); err != nil {
		return unavailable(out, err)
	}
	var rows []store.Delivery
	now := n.Clock.Now()
	for i, d := range decided {
		if out[i].Err != nil {
			continue
		}
		made, err := n.owed(d, now)
		rows, out[i].Err = append(rows, made...), err
	}
	if err := n.owe(ctx, rows); err != nil {
		return unavailable(out, err)
	}
	return out
}

// owe makes rows and hands those that are new to their lanes. After an error any of them may be there.
func (n *notifier) owe(ctx context.Context, rows []store.Delivery) error {
	if len(rows) == 0 {
		return nil
	}
	added, err := n.Deliveries.Insert(ctx, rows)
	failpoint.Hit("notify", "inserted")
	if err != nil {
		n.doubt(rows)
		return err
	}
	fresh := rows[:0]
	for i, r := range rows {
		if added[i] {
			fresh = append(fresh, r)
		}
	}
	n.offer(ctx, fresh)
	return nil
}

// unavailable holds everything that is not at fault itself.
func unavailable(out []stage.Result, err error) []stage.Result {
	for i := range out {
		if out[i].Err == nil {
			out[i].Err = stage.Unavailable(err)
		}
	}
	return out
}

// owed returns the rows that a decision owes.
func (n *notifier) owed(d event.Decided, now time.Time) ([]store.Delivery, error) {
	bodies := map[string][]byte{}
	return n.owing(owed.Occasion{Tenant: d.Tenant, Kind: owed.TypeDecided, Key: d.ID, Transaction: d.ID, At: d.DecidedAt.Time,
		Body: func(form string) ([]byte, error) { return bodyFor(form, d, bodies) }}, now)
}

// owing returns a row for every endpoint that wants to hear of an occasion. What cannot go out at once is nobody's from the start.
func (n *notifier) owing(o owed.Occasion, now time.Time) ([]store.Delivery, error) {
	rows, err := owed.Rows(n.Keys, maps.Values(*n.endpoints.Load()), o, now)
	if errors.Is(err, owed.ErrBody) {
		return nil, stage.Reject(err)
	}
	if err != nil {
		return nil, stage.Unavailable(err)
	}
	for i, r := range rows {
		if _, ok := n.sending(r.EndpointID); ok {
			rows[i].LeasedUntil = now.Add(n.Timeout + leaseBeyond)
		}
	}
	return rows, nil
}

// thin is the default payload: what happened, nothing personal, the rest by query.
type thin struct {
	ID       string   `json:"id"`
	Decision string   `json:"decision"`
	Score    int      `json:"score"`
	RiskBand string   `json:"risk_band"`
	Reasons  []string `json:"reasons"`
}

// bodyFor returns the bytes to deliver; the same payload form is made once per event.
func bodyFor(form string, d event.Decided, made map[string][]byte) ([]byte, error) {
	if b, ok := made[form]; ok {
		return b, nil
	}
	public := d.Public()
	var data any = &public
	if form != "full" {
		codes := make([]string, len(public.Reasons))
		for i, r := range public.Reasons {
			codes[i] = r.Code
		}
		data = &thin{d.ID, public.Verdict.Decision, public.Score, public.RiskBand, codes}
	}
	body, err := owed.Envelope(owed.TypeDecided, d.DecidedAt, data)
	made[form] = body
	return body, err
}

// writeUpdates is one group of rows written back.
func (n *notifier) writeUpdates(rows []store.Delivery) ([]struct{}, error) {
	ctx, cancel := context.WithTimeout(context.Background(), writeTime)
	defer cancel()
	return make([]struct{}, len(rows)), n.Deliveries.Update(ctx, rows)
}

var errFull = errors.New("too many rows wait to be written")
