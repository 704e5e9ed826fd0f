package edge

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"crivo/pkg/failpoint"
	"crivo/pkg/stage"
	"crivo/pkg/txn"
	"crivo/services/store"
	"crivo/streams"
	"crivo/streams/event"
)

const (
	claimTime   = 225 * time.Millisecond // a store that is down is refused within 250 ms
	publishTime = 600 * time.Millisecond
	publishTry  = 250 * time.Millisecond
	// publishPause keeps a broker that refuses at once from being asked without a pause.
	publishPause = 25 * time.Millisecond
	// decideShare of the deadline is how long decisions may take of late before new transactions are refused.
	decideShare = 0.5
)

// acceptance is what the edge answers for a transaction that it took or had taken.
type acceptance struct {
	key      store.Key
	flight   *flight // nil when decided
	event    []byte  // event.Decided, when decided
	replayed bool
}

// accept is the one way in, for HTTP and NATS alike: decode, then claim. The returned error is one of the table's.
func (e *edge) accept(ctx context.Context, tenant store.Tenant, body []byte, trace string) (acceptance, error) {
	tx, err := txn.Decode(body, e.Clock.Now())
	if err != nil {
		return acceptance{}, err
	}
	return e.claim(ctx, tenant, tx, trace)
}

// claim takes in what was decoded: seal, claim, publish. The deadline runs from here.
func (e *edge) claim(ctx context.Context, tenant store.Tenant, tx txn.Transaction, trace string) (acceptance, error) {
	if !e.flights.board(e.MaxInFlight) {
		return acceptance{}, errOverload
	}
	leave := sync.OnceFunc(e.flights.leave)
	defer leave()
	box, err := e.Keys.Box(tenant.ID)
	if err != nil {
		return acceptance{}, fmt.Errorf("keys of %s: %w", tenant.ID, err)
	}
	claim, err := claimOf(box, tenant, tx, e.Clock.Now())
	if err != nil {
		return acceptance{}, err
	}
	admitted, probe := e.gate.admits()
	if !admitted {
		return acceptance{}, errBroker
	}
	if probe {
		defer e.gate.settle()
	}
	// From here on the claim stands, whoever hung up: it must be published, or it would be decided late by the sweep.
	ctx = context.WithoutCancel(ctx)
	// The store's budget is one, for the claim and for raising the run of what it found. A claim whose turn to be written does not
	// come within it is never written, and so not decided late.
	bounded, cancel := context.WithTimeout(ctx, claimTime)
	defer cancel()
	claimed, err := e.claims.Do(bounded, claim, errOverload)
	switch {
	case err != nil:
		return acceptance{}, refusal(err, errStore)
	case claimed.Err != nil:
		return acceptance{}, fmt.Errorf("claim: %w", claimed.Err)
	case claimed.Won:
		failpoint.Hit("edge", "claimed")
		return e.publish(ctx, submission{claim, tenant, trace, false, leave})
	}
	if same, err := txn.SameDigest(box, claimed.Entry.Digest, tx); err != nil || !same {
		return acceptance{}, different(err)
	}
	entry, err := e.current(bounded, tenant, claimed.Entry)
	switch {
	case err != nil:
		return acceptance{}, refusal(err, errStore)
	case entry.Decided():
		return acceptance{key: entry.Key, event: entry.Event, replayed: true}, nil
	}
	return e.publish(ctx, submission{entry.Claim, tenant, trace, true, leave})
}

// refusal keeps a refusal of the table and calls anything else by the dependency that failed.
func refusal(err, dependency error) error {
	if errors.Is(err, errOverload) || errors.Is(err, errNoRoom) {
		return err
	}
	return fmt.Errorf("%w: %w", dependency, err)
}

// different is what a digest says that is not the same; one that cannot be compared is a fault of its own.
func different(err error) error {
	if err != nil {
		return fmt.Errorf("digest: %w", err)
	}
	return errConflict
}

func claimOf(box txn.Sealer, tenant store.Tenant, tx txn.Transaction, now time.Time) (store.Claim, error) {
	digest, err := txn.Digest(box, tx)
	if err != nil {
		return store.Claim{}, err
	}
	sealed, err := txn.Seal(box, tenant.ID, tx)
	if err != nil {
		return store.Claim{}, err
	}
	body, err := json.Marshal(&sealed, json.Deterministic(true))
	if err != nil {
		return store.Claim{}, errors.New("sealed transaction cannot be written")
	}
	at := txn.At(now).Time
	return store.Claim{Key: store.Key{Tenant: tenant.ID, ID: tx.ID}, Digest: digest, Run: 1, ClaimedAt: at, AcceptedAt: at,
		Deadline: at.Add(tenant.Deadline()), Body: body}, nil
}

// current returns an entry that a repeat found, ready to be published again under its run, whoever claimed it: the broker
// drops what it has. Beyond the time that its client was promised an undecided one is accepted anew first, even where the sweep
// runs it again: the deadline that the sweep gave it is the sweep's pace, and nobody's promise.
func (e *edge) current(ctx context.Context, tenant store.Tenant, entry store.Entry) (store.Entry, error) {
	now := txn.At(e.Clock.Now()).Time
	if entry.Decided() || !now.After(entry.AcceptedAt.Add(tenant.Deadline())) {
		return entry, nil
	}
	return e.raise(ctx, tenant, entry, now)
}

// raise gives an undecided entry another run, accepted anew at now.
func (e *edge) raise(ctx context.Context, tenant store.Tenant, entry store.Entry, now time.Time) (store.Entry, error) {
	raised, err := e.Transactions.Raise(ctx, store.Raise{Key: entry.Key, FromRun: entry.Run, AcceptedAt: now, Deadline: now.Add(tenant.Deadline())})
	if errors.Is(err, store.ErrChanged) {
		return e.current(ctx, tenant, raised) // somebody else raised it, or it is decided
	}
	return raised, err
}

// submission is a claim that is about to be announced.
type submission struct {
	store.Claim
	tenant   store.Tenant
	trace    string
	replayed bool
	leave    func() // its seat: from its start on the flight counts
}

// publish announces a claim. What is not acknowledged in time is refused; the claim stays for a repeat, the guard or the sweep.
func (e *edge) publish(ctx context.Context, c submission) (acceptance, error) {
	s, err := c.Submitted()
	if err != nil {
		return acceptance{}, err
	}
	s.TimeZone = c.tenant.TimeZone
	out, err := e.message(s, c.trace)
	if err != nil {
		return acceptance{}, err
	}
	f, fresh := e.flights.start(s, c.trace, e.Clock.Now())
	c.leave()
	if fresh {
		e.watch(f)
	}
	bounded, cancel := context.WithTimeout(ctx, publishTime)
	defer cancel()
	if _, err := e.publishes.Do(bounded, out, errOverload); err != nil {
		if fresh && e.Decider == nil {
			e.flights.drop(c.Key)
		}
		return acceptance{}, refusal(err, errBroker)
	}
	failpoint.Hit("edge", "published")
	e.flights.published(f)
	return acceptance{key: c.Key, flight: f, replayed: c.replayed}, nil
}

func (e *edge) message(s event.Submitted, trace string) (stage.Output, error) {
	data, err := event.Encode(s)
	if err != nil {
		return stage.Output{}, err
	}
	return streams.Message(e.identOf(s, trace), streams.EventSubmitted, data), nil
}

// identOf is the identity that a transaction of this edge travels under.
func (e *edge) identOf(s event.Submitted, trace string) streams.Ident {
	return streams.Ident{Tenant: s.Tenant, ID: s.ID, Run: s.Run, AcceptedAt: s.AcceptedAt.Time, Deadline: s.Deadline.Time, Digest: s.Digest,
		Reply: streams.EdgeSubject(e.Instance), Trace: trace}
}

// writeClaims is one group of claims: one commit.
func (e *edge) writeClaims(claims []store.Claim) ([]store.Claimed, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	out, err := e.Transactions.Claim(ctx, claims)
	e.Health.Set("store", reason(err, "the transaction store does not answer"))
	return out, err
}

// writePublishes is one group of submissions: one atomic batch, tried again with the same ids while the budget lasts.
func (e *edge) writePublishes(outputs []stage.Output) ([]struct{}, error) {
	whole, end := context.WithTimeout(context.Background(), publishTime)
	defer end()
	for {
		try, cancel := context.WithTimeout(whole, publishTry)
		_, err := e.Publish(try, outputs)
		cancel()
		if err == nil {
			e.gate.published()
			return make([]struct{}, len(outputs)), nil
		}
		if streams.Full(err) {
			e.full.Store(true) // until housekeeping finds room again
			return nil, errNoRoom
		}
		e.gate.failed()
		if stage.Sleep(whole, publishPause) != nil {
			return nil, err
		}
	}
}

// admit tells, before a body is read, whether there is room for one more transaction.
func (e *edge) admit() error {
	n, latency := e.flights.load()
	switch {
	case e.draining.Load():
		return errDraining
	case e.full.Load():
		return errNoRoom
	case n >= e.MaxInFlight, e.stalled.Load():
		return errOverload
	case n > 256 && latency > time.Duration(decideShare*float64(2*time.Second)):
		return errOverload
	}
	return nil
}

func reason(err error, text string) string {
	if err == nil {
		return ""
	}
	return text
}

// public turns a stored event into the answer that clients see; equal events give equal bytes.
func public(stored []byte) ([]byte, error) {
	d, err := event.Decode[event.Decided](stored)
	if err != nil {
		return nil, fmt.Errorf("stored decision: %w", err)
	}
	answer := d.Public()
	return json.Marshal(&answer, json.Deterministic(true))
}

// await returns the decided event of an accepted transaction, or nil when it is not decided within wait. It is woken by the
// decision's own message and looks into the store now and then in case that was lost.
func (e *edge) await(ctx context.Context, a acceptance, wait time.Duration) []byte {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	var done chan struct{}
	if a.flight != nil {
		done = a.flight.done
	}
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, 500*time.Millisecond) {
		timer := time.NewTimer(pause)
		select {
		case <-done:
			timer.Stop()
			return a.flight.event
		case <-ctx.Done():
			timer.Stop()
			select {
			case <-done: // both at once
				return a.flight.event
			default:
				return nil
			}
		case <-timer.C:
		}
		look, cancel := context.WithTimeout(ctx, claimTime) // a read that hangs hears of no decision
		entry, err := e.Transactions.Get(look, a.key)
		cancel()
		if err == nil && entry.Decided() {
			return entry.Event
		}
	}
}
