// Package event holds the events of the pipeline, one type per step. Each holds the previous one, so an event alone tells the
// whole story and a step needs no memory. They travel as JSON with a schema number; golden files pin the wire.
package event

import "crivo/pkg/txn"

// Schema is the number this build writes. It reads this one and the one before; a newer one is held (see [Decode]).
const Schema = 1

// Submitted is an accepted transaction, sealed.
type Submitted struct {
	Schema     int        `json:"schema"`
	Tenant     string     `json:"tenant"`
	ID         string     `json:"id"`
	Run        int        `json:"run"` // 1 for the first; raised by a late repeat, the sweep or a redrive
	ClaimedAt  txn.Time   `json:"claimed_at"`
	AcceptedAt txn.Time   `json:"accepted_at"`
	Deadline   txn.Time   `json:"deadline"`
	Digest     string     `json:"digest"`             // keyed, names its key
	TimeZone   string     `json:"time_zone,omitzero"` // the tenant's, for night hours; IANA name, empty: the system's
	Tx         txn.Sealed `json:"tx"`
}

// Enriched adds what is known of the entities in the transaction.
type Enriched struct {
	Submitted
	Features map[string]Value `json:"features"` // "payer.count_5m" → value
	RuleSet  txn.RuleSet      `json:"rule_set"` // the version that score must use
	Degraded []string         `json:"degraded"` // "<what>: <class>"
}

// Value is one feature: a number that may be unknown. Unknown is not zero. On the wire it is the bare number, or null.
type Value struct {
	Known  bool
	Number float64
}

// Validated adds what lists and providers say.
type Validated struct {
	Enriched
	Checks []txn.Check `json:"checks"`
}

// Scored adds the verdict. A burial makes one too, with decision review and reason PROCESSING_FAULT.
type Scored struct {
	Validated
	Verdict txn.Verdict `json:"verdict"`
	Engine  string      `json:"engine"`
}

// Who made a decision.
const (
	ByPipeline = "pipeline"
	ByGuard    = "guard"
	ByBurial   = "burial"
)

// Decided is the decision as stored and announced: the winner's bytes are the same in store, stream and webhook.
type Decided struct {
	Scored
	By        string   `json:"by"`
	DecidedAt txn.Time `json:"decided_at"`
	Late      bool     `json:"late"`
}

// Public returns the answer that clients see.
func (d Decided) Public() txn.Decision {
	out := txn.Decision{
		ID: d.ID, Status: "decided", Verdict: d.Verdict, Checks: d.Checks, Degraded: d.Degraded, Engine: d.Engine,
		Late: d.Late, AcceptedAt: d.AcceptedAt, DecidedAt: d.DecidedAt,
		LatencyMS: d.DecidedAt.Sub(d.AcceptedAt.Time).Milliseconds(),
	}
	if out.Reasons == nil {
		out.Reasons = []txn.Reason{}
	}
	if out.Checks == nil {
		out.Checks = []txn.Check{}
	}
	if out.Degraded == nil {
		out.Degraded = []string{}
	}
	return out
}
