package notify

import (
	"context"
	"errors"
	"maps"
	"strconv"
	"time"

	"github.com/failsafe-go/failsafe-go/circuitbreaker"
	"github.com/go-json-experiment/json"

	"crivo/services/owed"
	"crivo/services/store"
	"crivo/streams"
)

// An endpoint's breaker opens once most of its attempts fail. While it is open what is owed waits, untried, and one row at a time
// is tried as a probe; a probe that succeeds closes it. Each process counts what became of its own attempts; that a breaker is
// open is kept in the store, where a guarded swap decides who probes. So all processes wait, one probes, and every edge can tell.
const (
	breakerTries   = 10          // an endpoint is judged by so many attempts at least,
	breakerFailing = 0.7         // of which this share failed,
	breakerWindow  = time.Minute // all of them within this
	probeEvery     = 10 * time.Second
	// giveUp is how long an endpoint may fail without a single success before it is disabled: beyond the 75 h that a delivery is
	// tried, and a long weekend.
	giveUp = 5 * 24 * time.Hour
)

// States keeps what all processes know of breakers.
type States interface {
	State(ctx context.Context, name string) ([]byte, error)
	SwapState(ctx context.Context, name string, from, to []byte) error
}

// newJudge counts attempts; once it has opened by its count it is of no more use.
func newJudge() circuitbreaker.CircuitBreaker[any] {
	return circuitbreaker.NewBuilder[any]().WithFailureRateThreshold(breakerFailing, breakerTries, breakerWindow).WithDelay(giveUp).Build()
}

// judged lets the end of an attempt move its endpoint's breaker; probing is what stood while a probe was made, else zero.
func (n *notifier) judged(ctx context.Context, e store.Endpoint, ok bool, probing store.Breaker) {
	now := n.Clock.Now()
	open := store.Breaker{State: store.BreakerOpen, Since: now.UnixMilli(), Until: now.Add(probeEvery).UnixMilli()}
	if probing != (store.Breaker{}) {
		_ = n.tellMoved(ctx, e, owed.TypeBreakerOpened, probing.Since) // again: who opened it may have ended before it told
		if ok {
			// Before it is moved: told twice is one event, told never would be none.
			if n.tellMoved(ctx, e, owed.TypeBreakerClosed, probing.Since) != nil {
				return // the next probe closes it
			}
			n.move(ctx, e, probing, store.Breaker{})
			return
		}
		open.Since = probing.Since
		n.move(ctx, e, probing, open)
		if now.Sub(time.UnixMilli(open.Since)) > giveUp {
			n.disable(e, causeFailing, e.ID+"/"+strconv.FormatInt(open.Since, 10))
		}
		return
	}
	if _, broken := n.breaker(e.ID); broken {
		return // it was under way already
	}
	if n.lane(e.ID).opens(ok) && n.move(ctx, e, store.Breaker{}, open) {
		_ = n.tellMoved(ctx, e, owed.TypeBreakerOpened, open.Since) // each probe tells again
	}
}

// opens counts an attempt and tells whether with it most have failed; whatever comes of that, it counts afresh from then on. A
// success opens nothing, even where it makes the tries enough to judge by: the receiver is there.
func (l *lane) opens(ok bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if ok {
		l.judge.RecordSuccess()
	} else {
		l.judge.RecordFailure()
	}
	if l.judge.IsClosed() {
		return false
	}
	l.judge = newJudge()
	return !ok
}

// afresh forgets what was counted.
func (l *lane) afresh() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.judge = newJudge()
}

// move swaps a breaker; unheard, the next attempt moves it.
func (n *notifier) move(ctx context.Context, e store.Endpoint, from, to store.Breaker) bool {
	moved, err := n.swap(ctx, e.ID, from, to)
	if err != nil {
		n.Log.Warn().Err(err).Str("endpoint", e.ID).Msg("breaker cannot be moved")
	}
	if moved && (from == store.Breaker{} || to == store.Breaker{}) {
		_ = streams.Changed(n.Conn, streams.TopicEndpoints)
	}
	return moved
}

// tellMoved tells that the breaker which opened at since did so, or closed.
func (n *notifier) tellMoved(ctx context.Context, e store.Endpoint, event string, since int64) error {
	return n.tell(ctx, e, event, e.ID+"/"+strconv.FormatInt(since, 10), aboutEndpoint{EndpointID: e.ID})
}

// probe tries one row of an endpoint whose breaker is open, where its time has come and no other process does.
func (n *notifier) probe(ctx context.Context, e store.Endpoint, b store.Breaker) {
	now := n.Clock.Now()
	if now.UnixMilli() < b.Until {
		return
	}
	until := now.Add(n.Timeout + leaseBeyond)
	probing := store.Breaker{State: store.BreakerHalfOpen, Since: b.Since, Until: until.UnixMilli()}
	if won, err := n.swap(ctx, e.ID, b, probing); !won || err != nil {
		return // the next poll tries again
	}
	rows, err := n.Deliveries.Lease(ctx, e.ID, now, until, 1)
	if err != nil || len(rows) == 0 {
		_, _ = n.swap(ctx, e.ID, probing, b) // unheard, it is taken for dead
		return
	}
	n.work.Go(func() { n.deliver(e, rows[0], probing) })
}

// breaker tells what stands of an endpoint that is not closed.
func (n *notifier) breaker(endpoint string) (store.Breaker, bool) {
	b, broken := (*n.broken.Load())[endpoint]
	return b, broken
}

// swap replaces an endpoint's breaker, zero being closed, and tells whether from stood until then.
func (n *notifier) swap(ctx context.Context, endpoint string, from, to store.Breaker) (bool, error) {
	n.moving.Lock()
	defer n.moving.Unlock()
	for {
		text, all, err := n.readBreakers(ctx)
		if err != nil || all[endpoint] != from {
			return false, err
		}
		if all[endpoint] = to; to == (store.Breaker{}) {
			delete(all, endpoint)
		}
		next, err := json.Marshal(all, json.Deterministic(true))
		if err != nil {
			return false, err
		}
		switch err := n.States.SwapState(ctx, store.BreakersState, text, next); {
		case errors.Is(err, store.ErrChanged):
			continue // another endpoint's was moved meanwhile, or this one's
		case err != nil:
			return false, err
		}
		n.broke(all)
		return true, nil
	}
}

// forget closes the breaker of an endpoint that is sent nothing any more, so that it begins afresh if ever it is again.
func (n *notifier) forget(ctx context.Context, endpoint string) {
	if b, broken := n.breaker(endpoint); broken {
		_, _ = n.swap(ctx, endpoint, b, store.Breaker{}) // unheard, the first probe closes it
	}
}

// rereadBreakers takes over what other processes did.
func (n *notifier) rereadBreakers(ctx context.Context) error {
	n.moving.Lock()
	defer n.moving.Unlock()
	_, _, err := n.readBreakers(ctx)
	return err
}

func (n *notifier) readBreakers(ctx context.Context) (text []byte, all map[string]store.Breaker, err error) {
	text, err = n.States.State(ctx, store.BreakersState)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, nil, err
	}
	if all, err = store.ReadBreakers(text); err != nil {
		return nil, nil, err
	}
	n.broke(all)
	return text, all, nil
}

// broke is what all know from now on. An endpoint whose breaker closed is judged afresh.
func (n *notifier) broke(all map[string]store.Breaker) {
	known := maps.Clone(all) // the caller goes on to change it
	if before := n.broken.Load(); before != nil {
		for id := range *before {
			if _, still := known[id]; !still {
				n.lane(id).afresh() // before its attempts are counted again
			}
		}
	}
	n.broken.Store(&known)
	n.metrics.broken.Set(float64(len(known)))
}
