package edge

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-json-experiment/json"

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

// accept is the one way in, for HTTP and NATS alike: decode, seal, claim, publish. The returned error is one of the table's.
func (e *edge) accept(ctx context.Context, tenant store.Tenant, body []byte, trace string) (acceptance, error) {
	now := e.Clock.Now()
	tx, err := txn.Decode(body, now)
	if err != nil {
		return acceptance{}, err
	}
	box, err := e.Keys.Box(tenant.ID)
	if err != nil {
		return acceptance{}, fmt.Errorf("keys of %s: %w", tenant.ID, err)
	}
	claim, err := claimOf(box, tenant, tx, now)
	if err != nil {
		return acceptance{}, err
	}
	if !e.admits() {
		return acceptance{}, errBroker
	}
	bounded, cancel := context.WithTimeout(ctx, claimTime)
	claimed, err := e.claims.Do(bounded, claim, errOverload)
	cancel()
	if err != nil {
		return acceptance{}, refusal(err, errStore)
	}
	if claimed.Won {
		return e.publish(ctx, claim, trace, false)
	}
	return e.repeat(ctx, tenant, box, tx, claimed.Entry, trace)
}

// refusal keeps a refusal and calls anything else by the dependency that failed.
func refusal(err, dependency error) error {
	if errors.Is(err, errOverload) {
		return err
	}
	return fmt.Errorf("%w: %w", dependency, err)
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
		Deadline: at.Add(time.Duration(tenant.DeadlineMS) * time.Millisecond), Body: body}, nil
}

// repeat answers for an id that stands in the store already.
func (e *edge) repeat(ctx context.Context, tenant store.Tenant, box txn.Sealer, tx txn.Transaction, entry store.Entry, trace string) (acceptance, error) {
	same, err := txn.SameDigest(box, entry.Digest, tx)
	switch {
	case err != nil:
		return acceptance{}, fmt.Errorf("digest: %w", err)
	case !same:
		return acceptance{}, errConflict
	case entry.Decided():
		return acceptance{key: entry.Key, event: entry.Event, replayed: true}, nil
	}
	return e.adopt(ctx, tenant, entry, trace)
}

// adopt takes over an undecided claim, whoever made it: it is published again under its run, which the broker drops if it has
// it; past its deadline it gets a new run and a new deadline first.
func (e *edge) adopt(ctx context.Context, tenant store.Tenant, entry store.Entry, trace string) (acceptance, error) {
	now := txn.At(e.Clock.Now()).Time
	if now.After(entry.Deadline) {
		bounded, cancel := context.WithTimeout(ctx, claimTime)
		defer cancel()
		raised, err := e.Transactions.Raise(bounded, store.Raise{Key: entry.Key, FromRun: entry.Run, AcceptedAt: now,
			Deadline: now.Add(time.Duration(tenant.DeadlineMS) * time.Millisecond)})
		if err != nil && !errors.Is(err, store.ErrChanged) {
			return acceptance{}, refusal(err, errStore)
		}
		entry = raised
	}
	if entry.Decided() {
		return acceptance{key: entry.Key, event: entry.Event, replayed: true}, nil
	}
	return e.publish(ctx, entry.Claim, trace, true)
}

// publish announces a claim; what is not acknowledged in time is refused, and the claim stays for a repeat or the sweep.
func (e *edge) publish(ctx context.Context, c store.Claim, trace string, replayed bool) (acceptance, error) {
	out, err := submission(c, streams.EdgeSubject(e.Instance), trace)
	if err != nil {
		return acceptance{}, err
	}
	f := e.flights.start(c.Key, c.AcceptedAt, c.Deadline)
	bounded, cancel := context.WithTimeout(ctx, publishTime)
	defer cancel()
	if _, err := e.publishes.Do(bounded, out, errOverload); err != nil {
		e.flights.drop(c.Key)
		return acceptance{}, refusal(err, errBroker)
	}
	return acceptance{key: c.Key, flight: f, replayed: replayed}, nil
}

func submission(c store.Claim, reply, trace string) (stage.Output, error) {
	s := event.Submitted{Schema: event.Schema, Tenant: c.Tenant, ID: c.ID, Run: c.Run, ClaimedAt: txn.At(c.ClaimedAt),
		AcceptedAt: txn.At(c.AcceptedAt), Deadline: txn.At(c.Deadline), Digest: c.Digest}
	if err := (store.Entry{Claim: c}).Transaction(&s.Tx); err != nil {
		return stage.Output{}, err
	}
	data, err := event.Encode(s)
	if err != nil {
		return stage.Output{}, err
	}
	return streams.Message(streams.Ident{Tenant: c.Tenant, ID: c.ID, Run: c.Run, AcceptedAt: c.AcceptedAt, Deadline: c.Deadline,
		Digest: c.Digest, Reply: reply, Trace: trace}, streams.EventSubmitted, data), nil
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
	give := time.Now().Add(publishTime)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), publishTry)
		_, err := stage.Publish(ctx, e.JS, outputs)
		cancel()
		if err == nil {
			e.breaker.RecordSuccess()
			return make([]struct{}, len(outputs)), nil
		}
		e.breaker.RecordFailure()
		if time.Now().Add(publishTry).After(give) {
			return nil, err
		}
	}
}

// admits refuses while the broker is known not to answer; now and then one group tries.
func (e *edge) admits() bool { return !e.breaker.IsOpen() || e.breaker.TryAcquirePermit() }

// admit tells, before a body is read, whether there is room for one more transaction.
func (e *edge) admit() error {
	n, latency := e.flights.load()
	switch {
	case e.draining.Load():
		return errDraining
	case e.full.Load():
		return errNoRoom
	case n >= e.MaxInFlight:
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
func (e *edge) await(ctx context.Context, a acceptance, wait time.Duration) ([]byte, error) {
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
			return a.flight.event, nil
		case <-ctx.Done():
			timer.Stop()
			return nil, nil
		case <-timer.C:
		}
		if entry, err := e.Transactions.Get(ctx, a.key); err == nil && entry.Decided() {
			return entry.Event, nil
		}
	}
}
