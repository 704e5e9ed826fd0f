// Package enrich adds what is known of the entities in a transaction: how often and how much each of them paid or was paid in
// the windows that rules look at. It pins the rule-set version that the transaction will be judged by.
package enrich

import (
	"context"
	"time"

	"crivo/pkg/app"
	"crivo/pkg/failpoint"
	"crivo/pkg/stage"
	"crivo/pkg/txn"
	"crivo/streams"
	"crivo/streams/event"
)

// Windows are (t−W, t] in event time, the current transaction included.
var Windows = []Window{{"5m", 5 * time.Minute}, {"1h", time.Hour}, {"24h", 24 * time.Hour}, {"30d", 30 * 24 * time.Hour}}

// Window is one span that counts and sums are kept for.
type Window struct {
	Name string
	Span time.Duration
}

// Event is one transaction as the feature store sees it. Entities name keys that start with the tenant and hold tokens.
type Event struct {
	Key      string // tenant/id: applied once
	Sequence uint64 // in TX_SUBMITTED
	At       time.Time
	Amount   int64 // minor units
	Entities []Entity
}

// Entity is one of a transaction's parties: its role, and the key that its history is kept under.
type Entity struct{ Role, Key string }

// History is what an entity's windows hold as of an event, the event included.
type History struct {
	Known  bool      // false: the store lacks some of it, and nothing else is told
	Since  time.Time // what happened before may be lacking; zero: nothing does
	Counts []int64   // by window, in the order of Windows
	Sums   []int64
	First  time.Time // of the oldest event that the store remembers
	Added  bool      // the store has not counted the event yet: others that came before it may lack too
}

// reaches tells whether the history lacks nothing that lies within span before at.
func (h History) reaches(at time.Time, span time.Duration) bool {
	return h.Known && !at.Add(-span).Before(h.Since)
}

// Count adds an event to what was read as of its time.
func (h *History) Count(e Event) {
	h.Added = true
	for w := range h.Counts {
		h.Counts[w]++
		h.Sums[w] += e.Amount
	}
	if h.First.IsZero() || e.At.Before(h.First) {
		h.First = time.UnixMilli(e.At.UnixMilli())
	}
}

// Features keeps entities' histories.
type Features interface {
	// Apply adds each event once and returns the histories of its entities as of its own time, in order. A repeat adds
	// nothing and reads the same windows. An error means that any of the events may not have been added.
	Apply(ctx context.Context, events []Event) ([][]History, error)
}

// Reader reads histories and adds nothing to them.
type Reader interface {
	// Peek returns what Apply would, and whether it had to add the event.
	Peek(ctx context.Context, events []Event) ([][]History, error)
}

// Config is what the service needs.
type Config struct {
	app.Shell
	Features Features
	RuleSet  func() txn.RuleSet // what to pin
}

// Stage enriches a batch with one call of the feature store.
type Stage struct {
	Features Features
	RuleSet  func() txn.RuleSet
}

// Run enriches until ctx ends.
func Run(ctx context.Context, cfg Config) error {
	if ready(ctx, cfg) != nil {
		return nil // only the end of ctx
	}
	defer tend(ctx, cfg)()
	s := Stage{cfg.Features, cfg.RuleSet}
	return streams.Runner(cfg.Shell, streams.Enrich, s.Handle, nil).Run(ctx)
}

// Handle enriches a batch. A feature store that fails, is slow or lacks history leaves its features unknown, and the event says so.
func (s Stage) Handle(ctx context.Context, batch []stage.Message) []stage.Result {
	out := make([]stage.Result, len(batch))
	ins, idents := make([]event.Submitted, len(batch)), make([]streams.Ident, len(batch))
	var events []Event
	for i, m := range batch {
		idents[i], ins[i], out[i].Err = streams.Read[event.Submitted](m)
		if out[i].Err == nil {
			events = append(events, EventOf(ins[i], m.Sequence))
		}
	}
	histories, err := s.apply(ctx, events, Patience(ins...))
	k := 0
	for i := range batch {
		if out[i].Err != nil {
			continue
		}
		var of []History
		if err == nil {
			of = histories[k]
		}
		out[i].Outputs, out[i].Err = streams.Announce(idents[i], streams.EventEnriched, Add(ins[i], events[k], of, s.RuleSet()))
		k++
	}
	return out
}

// Add is a transaction with what its entities' histories tell; nil are those of a store that did not answer.
func Add(in event.Submitted, e Event, histories []History, set txn.RuleSet) event.Enriched {
	out := event.Enriched{Submitted: in, RuleSet: set, Degraded: []string{}}
	if histories == nil {
		out.Features, out.Degraded = values(e, make([]History, len(e.Entities))), append(out.Degraded, "features: unavailable")
		return out
	}
	if out.Features = values(e, histories); incomplete(out.Features) {
		out.Degraded = append(out.Degraded, "features: incomplete")
	}
	return out
}

// Patience is what the feature store gets for a batch: the share of the transaction that has the least time.
func Patience(batch ...event.Submitted) time.Duration {
	out := mostPatience
	for _, s := range batch {
		if d := streams.Share(streams.ShareEnrich, s.AcceptedAt.Time, s.Deadline.Time); d > 0 {
			out = min(out, d)
		}
	}
	return out
}

// mostPatience is the share of the longest deadline that a tenant may have.
const mostPatience = 250 * time.Millisecond

func (s Stage) apply(ctx context.Context, events []Event, patience time.Duration) ([][]History, error) {
	if len(events) == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	histories, err := s.Features.Apply(ctx, events)
	failpoint.Hit("enrich", "applied")
	return histories, err
}

// EventOf reads the entities of a transaction: payer, payee, device and terminal, each by the best name that it has.
func EventOf(s event.Submitted, sequence uint64) Event {
	e := Event{Key: s.Tenant + "/" + s.ID, Sequence: sequence, At: s.Tx.CreatedAt.Time, Amount: s.Tx.Amount}
	add := func(role, key string) {
		if key != "" {
			e.Entities = append(e.Entities, Entity{role, s.Tenant + "/" + role + "/" + key})
		}
	}
	add("payer", partyKey(&s.Tx.Payer))
	add("payee", partyKey(s.Tx.Payee))
	if d := s.Tx.Device; d != nil {
		add("device", d.ID)
	}
	if m := s.Tx.Merchant; m != nil {
		add("terminal", m.TerminalID)
	}
	return e
}

func partyKey(p *txn.SealedParty) string {
	switch {
	case p == nil:
		return ""
	case p.Document != nil:
		return p.Document.Token
	case p.CustomerID != "":
		return p.CustomerID
	case p.Account != nil && p.Account.Token != "":
		return p.Account.Token
	case p.PixKey != nil:
		return p.PixKey.Token
	}
	return ""
}

// names are the features of one role, spelled once: count and sum by window, then first_seen_s.
func names(role string) []string {
	out := make([]string, 0, 2*len(Windows)+1)
	for _, w := range Windows {
		out = append(out, role+".count_"+w.Name, role+".sum_"+w.Name)
	}
	return append(out, role+".first_seen_s")
}

func values(e Event, histories []History) map[string]event.Value {
	out := make(map[string]event.Value, len(e.Entities)*(2*len(Windows)+1))
	for i, entity := range e.Entities {
		n, h := names(entity.Role), histories[i]
		for w, window := range Windows {
			if h.reaches(e.At, window.Span) {
				out[n[2*w]] = event.Value{Known: true, Number: float64(h.Counts[w])}
				out[n[2*w+1]] = event.Value{Known: true, Number: float64(h.Sums[w])}
			} else {
				out[n[2*w]], out[n[2*w+1]] = event.Value{}, event.Value{}
			}
		}
		// Whether an entity is a stranger needs the longest memory there is.
		if last := n[2*len(Windows)]; h.reaches(e.At, Windows[len(Windows)-1].Span) {
			out[last] = event.Value{Known: true, Number: max(0, e.At.Sub(h.First).Seconds())}
		} else {
			out[last] = event.Value{}
		}
	}
	return out
}

func incomplete(features map[string]event.Value) bool {
	for _, v := range features {
		if !v.Known {
			return true
		}
	}
	return false
}
