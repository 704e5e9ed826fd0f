package edge

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/time/rate"

	"crivo/pkg/txn"
	"crivo/services/store"
	"crivo/streams"
)

// Routes is the router without anything behind it, to be walked.
func Routes() chi.Router { return (&edge{}).routes() }

// Served is an edge without its listener, its watchers and its inbox.
type Served struct{ e *edge }

// Serve makes the first key and reads the directory; what it writes goes to cfg's stores and broker.
func Serve(ctx context.Context, cfg Config) (Served, error) {
	e := newEdge(cfg)
	e.life = ctx
	if err := e.bootstrap(ctx); err != nil {
		return Served{}, err
	}
	return Served{e}, e.directory.reload(ctx)
}

// Server is the server with all its deadlines.
func (s Served) Server() *http.Server { return server(s.e.routes(), nil, s.e.Log) }

// Reload reads the directory again, as a change elsewhere makes it.
func (s Served) Reload(ctx context.Context) error { return s.e.directory.reload(ctx) }

// Heard is a decision's message.
func (s Served) Heard(key store.Key, event []byte) { s.e.flights.heard(key, event, s.e.Clock.Now()) }

// Listen has listeners hear of source.
func (s Served) Listen(source decisions) { s.e.broadcasts.source = source }

// Drain is what the end of Run's context does first.
func (s Served) Drain() { s.e.drain() }

// Close waits for what is being written.
func (s Served) Close() {
	s.e.hangUp()
	s.e.broadcasts.running.Wait()
	s.e.claims.Close()
	s.e.publishes.Close()
	s.e.guards.Close()
	s.e.announces.Close()
}

// The parts with rules of their own.
var (
	PreferWait  = preferWait
	Bearer      = bearer
	Traceparent = traceparent
	ExportKind  = exportKind
	Harmless    = harmless
)

// URLAllowed judges a webhook URL where allow are the operator's own addresses.
func URLAllowed(url string, allow ...netip.Prefix) error {
	return (&edge{Config: Config{Allow: allow}}).urlAllowed(url)
}

// EndpointFaults reads and judges the body of a change to an endpoint.
func EndpointFaults(body string) error {
	var c endpointChange
	if err := c.members().decode([]byte(body)); err != nil {
		return err
	}
	return orNil(c.faults(func(url string) error { return (&edge{}).urlAllowed(url) }))
}

// Flights is the book of what is under way.
type Flights struct {
	f    *flights
	runs map[store.Key]int
}

// NewFlights returns an empty book.
func NewFlights() Flights { return Flights{newFlights(), map[store.Key]int{}} }

// Board takes a seat.
func (f Flights) Board(most int) bool { return f.f.board(most) }

// Leave gives it back.
func (f Flights) Leave() { f.f.leave() }

// Start is the next run of key; it returns the channel that ends with the decision.
func (f Flights) Start(key store.Key, accepted, deadline time.Time) (done <-chan struct{}, event func() []byte, fresh bool) {
	f.runs[key]++
	s := store.Claim{Key: key, Run: f.runs[key], AcceptedAt: accepted, Deadline: deadline}.Headless()
	x, fresh := f.f.start(s, "", accepted)
	return x.done, func() []byte { return x.event }, fresh
}

// Heard ends a flight.
func (f Flights) Heard(key store.Key, event []byte, now time.Time) { f.f.heard(key, event, now) }

// Late tells how many are undecided for too long.
func (f Flights) Late(now time.Time) int { return len(f.f.late(decideShare, now, 10)) }

// Expire forgets what was lost.
func (f Flights) Expire(now time.Time) { f.f.expire(now) }

// Load tells how many are under way and how long decisions take.
func (f Flights) Load() (int, time.Duration) { return f.f.load() }

// Gate is what keeps claims from being made while the broker is away.
type Gate struct{ g gate }

// NewGate returns an open gate.
func NewGate() Gate { return Gate{newGate()} }

// Admits tells whether one more may try, and whether as a probe.
func (g Gate) Admits() (ok, probe bool) { return g.g.admits() }

// Published, Failed and Settle are what becomes of a publish.
func (g Gate) Published() { g.g.published() }

// Failed counts a publish that was not acknowledged.
func (g Gate) Failed() { g.g.failed() }

// Settle ends a probe.
func (g Gate) Settle() { g.g.settle() }

// LetterWish reads a filter and a cursor, as a URL's query and as JSON's where.
func LetterWish(query url.Values, where, cursor string) (url, body streams.LetterQuery, limit int, urlErr, bodyErr error) {
	url, limit, urlErr = letterQuery(query)
	if body, bodyErr = letterWhere(jsontext.Value(where)); bodyErr == nil {
		bodyErr = readLetterCursor(cursor, &body)
	}
	return url, body, limit, urlErr, bodyErr
}

// LetterCursor is the cursor of a place.
func LetterCursor(next, last uint64) *string { return letterCursor(next, last) }

// Faults is err as faults, nil when it is none.
func Faults(err error) txn.Faults {
	var f txn.Faults
	errors.As(err, &f)
	return f
}

// Allowance is one key's rate, in requests a second.
func Allowance(perSecond float64) (allow func() error) {
	m := &member{limiter: rate.NewLimiter(rate.Limit(perSecond), 1)}
	return m.allow
}

// After is how long an error says to stay away.
func After(err error) time.Duration {
	var l later
	errors.As(err, &l)
	return l.after
}
