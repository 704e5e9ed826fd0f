// Package store holds the shapes that ports speak in. Each port is declared by the step that calls it; the rooms below
// implement them, one per technology, and storetest holds the suites that all of them pass.
package store

import (
	"errors"
	"fmt"
	"time"

	"github.com/go-json-experiment/json"

	"crivo/pkg/txn"
	"crivo/streams/event"
)

// ErrNotFound is returned where a single thing was asked for and there is none.
var ErrNotFound = errors.New("not found")

// ErrCursor is returned for a cursor that no page gave out.
var ErrCursor = errors.New("bad cursor")

// ErrRefused is what became of one item that the store will never take as it is; nothing of it was written.
var ErrRefused = errors.New("refused by the store")

// ErrChanged is returned by guarded updates whose guard no longer holds.
var ErrChanged = errors.New("changed meanwhile")

// Key names a transaction.
type Key struct{ Tenant, ID string }

// Claim is the transaction document's first form: what the edge holds on to before it publishes.
type Claim struct {
	Key
	Digest     string
	Run        int
	ClaimedAt  time.Time // first acceptance, never changed
	AcceptedAt time.Time // renewed when the run is raised
	Deadline   time.Time
	Body       []byte // the sealed transaction as JSON (txn.Sealed); nil once decided, the event holds it
}

// Entry is the transaction document as stored.
type Entry struct {
	Claim
	Event       []byte // the whole decided event (event.Decided), nil while undecided
	DecidedAt   time.Time
	Unannounced bool         // decided, but its announcement is not known to have been published
	Disposition *Disposition // nil unless a review was closed
}

// Disposition is how an analyst closed a review. The decision stays as it was.
type Disposition struct {
	Outcome string // approved, declined
	By      string // key id
	At      time.Time
	Note    []byte // sealed under the tenant's keys, see SealNote; nil: none
}

// What a search asks of a review's disposition: none, or one of the two outcomes.
const (
	Open     = "open"
	Approved = "approved"
	Declined = "declined"
)

// Decided tells whether the transaction has its decision.
func (e Entry) Decided() bool { return e.Event != nil }

// Claimed is the outcome of one claim: won, or what stood there before, or ErrRefused.
type Claimed struct {
	Won   bool
	Entry Entry // what stands now; a won claim's own
	Err   error // ErrRefused: nothing stands
}

// Decide asks to complete a claim where it has no decision, and to insert it whole where the claim is missing.
type Decide struct {
	Claim                // identity, digest, times and body of what was decided
	Event       []byte   // event.Decided as JSON
	Decision    string   // approve, review, decline: indexed
	Reasons     []string // codes: indexed
	Tokens      []string // what it is found by, see Tokens: indexed
	DecidedAt   time.Time
	Unannounced bool
}

// Decision outcomes.
const (
	DecidedNow     = "decided"  // this call's event is the decision
	DecidedBefore  = "before"   // another event is: Entry.Event holds its bytes
	DigestConflict = "conflict" // the claim belongs to another body: nothing written
)

// Outcome is what became of one Decide.
type Outcome struct {
	Status string
	Entry  Entry
	Err    error // ErrRefused: nothing was written, Status is empty
}

// Raise starts another run of an undecided transaction.
type Raise struct {
	Key
	FromRun    int
	AcceptedAt time.Time
	Deadline   time.Time
}

// Tenant is one customer of the installation.
type Tenant struct {
	ID         string   `json:"id"`
	DeadlineMS int      `json:"deadline_ms"` // 1000–5000, 2000 by default
	TimeZone   string   `json:"time_zone"`   // IANA, America/Sao_Paulo by default
	CreatedAt  txn.Time `json:"created_at"`
}

// Deadline is how long after its acceptance a transaction of the tenant is to be decided.
func (t Tenant) Deadline() time.Duration { return time.Duration(t.DeadlineMS) * time.Millisecond }

// APIKey is a credential of a tenant; the secret itself is never stored.
type APIKey struct {
	ID        string    `json:"id"`
	Tenant    string    `json:"tenant"`
	Hash      string    `json:"-"` // keyed hash of the secret
	Roles     []string  `json:"roles"`
	Rate      float64   `json:"rate,omitzero"` // requests a second, 0 = no limit
	Source    string    `json:"-"`             // "env" for the key made from CRIVO_API_KEY
	CreatedAt txn.Time  `json:"created_at"`
	ExpiresAt *txn.Time `json:"expires_at,omitzero"`
}

// Endpoint is where a tenant wants its webhooks.
type Endpoint struct {
	ID          string            `json:"id"`
	Tenant      string            `json:"-"`
	URL         string            `json:"url"`
	Events      []string          `json:"events"` // empty: all about transactions
	Description string            `json:"description,omitzero"`
	Payload     string            `json:"payload"` // thin, full
	Headers     map[string]string `json:"headers,omitzero"`
	Status      string            `json:"status"` // active, paused, disabled
	Breaker     string            `json:"-"`      // as shown; it is kept apart, see Breaker
	Secrets     []Secret          `json:"-"`
	CreatedAt   txn.Time          `json:"created_at"`
	Version     int               `json:"-"` // counts changes, see Registry.ChangeEndpoint
}

// Secret is a signing secret, sealed under the tenant's keys; Until is zero for the current one.
type Secret struct {
	Sealed []byte    `json:"sealed"`
	Until  time.Time `json:"until"`
}

// Delivery states.
const (
	Pending   = "pending"
	Delivered = "delivered"
	Exhausted = "exhausted"
	Skipped   = "skipped"
	Cancelled = "cancelled"
)

// DeliveryStates are all that a delivery can be in.
var DeliveryStates = []string{Pending, Delivered, Exhausted, Skipped, Cancelled}

// Delivery is one webhook owed to one endpoint. Body is what is sent, byte for byte.
type Delivery struct {
	ID            string // "dlv_…", unique
	Tenant        string
	EndpointID    string
	TransactionID string
	WebhookID     string // the receiver's key for repeats
	Type          string // transaction.decided, …
	Body          []byte
	Status        string
	Attempts      []Attempt
	NextAttemptAt time.Time
	LeasedUntil   time.Time
	Held          time.Time // the lease under which it is written back; not stored
	CreatedAt     time.Time
	Trigger       string // of the next attempt where it is asked for (manual, replay, test); empty: the schedule's
	Was           string // status before it was asked for
	Replay        string // the last replay that asked for it
}

// TestEvent is the type of the event that says nothing but that it arrived.
const TestEvent = "endpoint.test"

// Triggers of attempts.
const (
	Auto   = "auto"   // the schedule's
	Manual = "manual" // one more, asked for by hand
	Again  = "replay" // part of a replay: the schedule begins anew
	Test   = "test"   // one, to see whether it arrives
)

// Resend asks for one more attempt of a delivery, whatever became of it.
type Resend struct {
	Tenant, ID string
	Trigger    string // Manual, Again
	Replay     string // id of the replay that asks
	At         time.Time
}

// Span selects deliveries of one endpoint by when they were made, oldest first: From included, To not. After is the id of the
// last row seen, which was made at From.
type Span struct {
	Tenant, EndpointID string
	From, To           time.Time
	After              string
	Limit              int
}

// Replay is a task: every delivery of an endpoint that was made in a time is sent once more. An endpoint has one at a time.
type Replay struct {
	ID         string    `json:"id"` // "rpl_…"
	Tenant     string    `json:"tenant"`
	EndpointID string    `json:"endpoint_id"`
	Status     string    `json:"status"` // running, done, cancelled
	From       txn.Time  `json:"from"`   // included
	To         txn.Time  `json:"to"`     // not included
	Only       string    `json:"only,omitzero"`
	Matched    int       `json:"matched"`
	Enqueued   int       `json:"enqueued"`
	CreatedAt  txn.Time  `json:"created_at"`
	EndedAt    *txn.Time `json:"ended_at,omitzero"`
	LastAt     txn.Time  `json:"last_at"` // when the last row that was looked at was made
	LastID     string    `json:"last_id"` // its id
	Version    int       `json:"-"`       // counts changes, see Registry.PutReplay
}

// States of a replay.
const (
	ReplayRunning   = "running"
	ReplayDone      = "done"
	ReplayCancelled = "cancelled"
)

// Attempt is the record of one request.
type Attempt struct {
	Number        int       `json:"number"`
	Trigger       string    `json:"trigger"` // auto, manual, replay, test
	StartedAt     txn.Time  `json:"started_at"`
	DNSMS         int64     `json:"dns_ms"`
	ConnectMS     int64     `json:"connect_ms"`
	TLSMS         int64     `json:"tls_ms"`
	FirstByteMS   int64     `json:"first_byte_ms"`
	DurationMS    int64     `json:"duration_ms"`
	Status        int       `json:"status,omitzero"`
	Error         string    `json:"error,omitzero"` // class: timeout, dns, connect, tls, blocked, redirect, secret, …
	Response      string    `json:"response,omitzero"`
	NextAttemptAt *txn.Time `json:"next_attempt_at,omitzero"`
}

// DeliveryQuery selects deliveries of one tenant, newest first; zero fields do not filter. Cursor is opaque.
type DeliveryQuery struct {
	Tenant, EndpointID, TransactionID, Status string
	Limit                                     int
	Cursor                                    string
}

// ListEntry is one value on a list of a tenant.
type ListEntry struct {
	ID        string    `json:"id"` // "ent_…"
	Tenant    string    `json:"-"`
	List      string    `json:"list"`
	Kind      string    `json:"kind"` // what the value is: see package lists
	Value     string    `json:"-"`    // as sealed transactions show it: a token under the tenant's keys, or clear where those are
	Reason    string    `json:"reason"`
	AddedBy   string    `json:"added_by"` // key id
	CreatedAt txn.Time  `json:"created_at"`
	ExpiresAt *txn.Time `json:"expires_at,omitzero"`
}

// ListQuery selects entries of one list, newest first. Cursor is opaque.
type ListQuery struct {
	Tenant, List string
	Limit        int
	Cursor       string
}

// RuleSet is one version of a rule set, for ever.
type RuleSet struct {
	Name      string   `json:"name"`
	Version   int      `json:"version"`
	Digest    string   `json:"digest"` // sha256:… of Source
	Source    []byte   `json:"-"`      // the YAML file
	CreatedAt txn.Time `json:"created_at"`
}

// Act is one operator's or analyst's deed for the audit log.
type Act struct {
	At     txn.Time       `json:"at"`
	Actor  string         `json:"actor"`  // key id, "cli", "system"
	Tenant string         `json:"tenant"` // "" for the installation
	Action string         `json:"action"` // endpoint.create, key.delete, …
	Target string         `json:"target"`
	Detail map[string]any `json:"detail,omitzero"` // never a secret, never personal data
}

// Submitted is the event that announces an undecided claim under its present run; its body must be readable.
func (c Claim) Submitted() (event.Submitted, error) {
	s := c.Headless()
	if err := json.Unmarshal(c.Body, &s.Tx); err != nil {
		return s, fmt.Errorf("claim %s/%s: body unreadable", c.Tenant, c.ID)
	}
	return s, nil
}

// Headless is Submitted without the transaction, for a claim whose body cannot be read.
func (c Claim) Headless() event.Submitted {
	return event.Submitted{Schema: event.Schema, Tenant: c.Tenant, ID: c.ID, Run: c.Run, ClaimedAt: txn.At(c.ClaimedAt),
		AcceptedAt: txn.At(c.AcceptedAt), Deadline: txn.At(c.Deadline), Digest: c.Digest}
}

// DecideOf asks for d, whose bytes are data, to be the decision.
func DecideOf(d event.Decided, data []byte) Decide {
	codes := make([]string, len(d.Verdict.Reasons))
	for i, r := range d.Verdict.Reasons {
		codes[i] = r.Code
	}
	return Decide{Event: data, Decision: d.Verdict.Decision, Reasons: codes, Tokens: Tokens(&d.Tx), DecidedAt: d.DecidedAt.Time,
		Claim: Claim{Key: Key{Tenant: d.Tenant, ID: d.ID}, Digest: d.Digest, Run: d.Run, ClaimedAt: d.ClaimedAt.Time,
			AcceptedAt: d.AcceptedAt.Time, Deadline: d.Deadline.Time}}
}
