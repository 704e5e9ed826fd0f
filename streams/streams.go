// Package streams is the map: every stream, subject, consumer, header and message id of the pipeline, once. Whoever needs a
// name takes it from here; the keeper provisions it, the others wait and bind.
package streams

import (
	"fmt"
	"regexp"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"

	"crivo/pkg/stage"
)

// Streams.
const (
	Submitted   = "TX_SUBMITTED"
	Enriched    = "TX_ENRICHED"
	Validated   = "TX_VALIDATED"
	Scored      = "TX_SCORED"
	Decided     = "TX_DECIDED"
	Labeled     = "TX_LABELED"
	DeadLetters = "DEADLETTERS"
	Control     = "CONTROL"
)

// AttemptsBucket is the KV bucket that counts attempts of messages that were delivered before.
const AttemptsBucket = "ATTEMPTS"

// LeasesBucket is the KV bucket of leases, each gone LeaseTime after it was last renewed.
const (
	LeasesBucket = "LEASES"
	LeaseTime    = 5 * time.Second
)

// Events, the second token of a subject tx.<event>.<tenant>.
const (
	EventSubmitted = "submitted"
	EventEnriched  = "enriched"
	EventValidated = "validated"
	EventScored    = "scored"
	EventDecided   = "decided"
	EventRejected  = "rejected" // core only, no stream
	EventIntake    = "intake"   // request-reply, no stream
)

// Headers of every pipeline message. Times are Unix milliseconds of the broker's clock.
const (
	HeaderTenant     = "Crivo-Tenant"
	HeaderID         = "Crivo-Id"
	HeaderRun        = "Crivo-Run"
	HeaderAcceptedAt = "Crivo-Accepted-At"
	HeaderDeadline   = "Crivo-Deadline"
	HeaderDigest     = "Crivo-Digest"
	HeaderReply      = "Crivo-Reply" // the edge instance that waits: subject edge.<instance>
	HeaderTrace      = "traceparent"
)

// AckWait is how long a message may stay unacknowledged before it is delivered again; in-progress is said every third of it.
const AckWait = 800 * time.Millisecond

// The steps: what each reads, under which durable, how much at once.
var (
	Enrich   = spec("enrich", Submitted)
	Validate = spec("validate", Enriched)
	Score    = spec("score", Validated)
	Persist  = spec("persist", Scored)
	Notify   = spec("notify", Decided)
)

// Steps in the order of the flow.
var Steps = []stage.Spec{Enrich, Validate, Score, Persist, Notify}

func spec(step, stream string) stage.Spec {
	return stage.Spec{Step: step, Stream: stream, Durable: step, Batch: 128, MaxAckPending: 1024, AckWait: AckWait}
}

// Subject is where event of tenant is published.
func Subject(event, tenant string) string { return "tx." + event + "." + tenant }

// EdgeSubject is where the edge instance hears of decisions it waits for.
func EdgeSubject(instance string) string { return "edge." + instance }

// MessageID makes repeats of one event within the broker's window one message. A decision has no run: there is one.
func MessageID(tenant, id, event string, run int) string {
	if event == EventDecided {
		return tenant + "/" + id + "/" + event
	}
	return tenant + "/" + id + "/" + event + "/" + strconv.Itoa(run)
}

// Ident is the identity that a message's headers carry, so that even an undecodable body can be answered for.
type Ident struct {
	Tenant     string
	ID         string
	Run        int
	AcceptedAt time.Time
	Deadline   time.Time
	Digest     string
	Reply      string
	Trace      string
}

// Header writes the identity as message headers.
func (i Ident) Header() nats.Header {
	h := nats.Header{
		HeaderTenant: {i.Tenant}, HeaderID: {i.ID}, HeaderRun: {strconv.Itoa(i.Run)},
		HeaderAcceptedAt: {strconv.FormatInt(i.AcceptedAt.UnixMilli(), 10)},
		HeaderDeadline:   {strconv.FormatInt(i.Deadline.UnixMilli(), 10)},
		HeaderDigest:     {i.Digest},
	}
	if i.Reply != "" {
		h[HeaderReply] = []string{i.Reply}
	}
	if i.Trace != "" {
		h[HeaderTrace] = []string{i.Trace}
	}
	return h
}

// What a tenant's name and a transaction's id look like (DESIGN §2, §5): neither holds what separates the parts of a key or a
// subject's tokens, except the dot of an id, which is in no subject.
var (
	tenantName    = regexp.MustCompile(`^[a-z0-9-]{1,32}$`)
	transactionID = regexp.MustCompile(`^[A-Za-z0-9._:-]{1,64}$`)
)

// ReadIdent reads the identity back; the error names the first header that is missing or malformed.
func ReadIdent(h nats.Header) (Ident, error) {
	i := Ident{Tenant: h.Get(HeaderTenant), ID: h.Get(HeaderID), Digest: h.Get(HeaderDigest),
		Reply: h.Get(HeaderReply), Trace: h.Get(HeaderTrace)}
	if !tenantName.MatchString(i.Tenant) {
		return i, fmt.Errorf("identity: %s is no tenant's name", HeaderTenant)
	}
	if !transactionID.MatchString(i.ID) {
		return i, fmt.Errorf("identity: %s is no transaction's id", HeaderID)
	}
	run, err := strconv.Atoi(h.Get(HeaderRun))
	if err != nil || run < 1 {
		return i, fmt.Errorf("identity: %s is no run", HeaderRun)
	}
	i.Run = run
	for _, at := range []struct {
		name string
		to   *time.Time
	}{{HeaderAcceptedAt, &i.AcceptedAt}, {HeaderDeadline, &i.Deadline}} {
		ms, err := strconv.ParseInt(h.Get(at.name), 10, 64)
		if err != nil {
			return i, fmt.Errorf("identity: %s is no time", at.name)
		}
		*at.to = time.UnixMilli(ms).UTC()
	}
	return i, nil
}

// Message is what announces event with data for the transaction that i names.
func Message(i Ident, event string, data []byte) stage.Output {
	return stage.Output{Subject: Subject(event, i.Tenant), ID: MessageID(i.Tenant, i.ID, event, i.Run), Header: i.Header(), Data: data}
}
