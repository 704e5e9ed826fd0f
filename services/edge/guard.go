package edge

import (
	"context"
	"errors"
	"fmt"
	"time"

	"crivo/pkg/failpoint"
	"crivo/pkg/stage"
	"crivo/pkg/txn"
	"crivo/services/store"
	"crivo/streams"
	"crivo/streams/event"
)

// Decider decides without the pipeline, in order and never failing: what it cannot learn is unknown to the rules. It must not
// change anything.
type Decider func(ctx context.Context, txs []event.Submitted) []event.Scored

const (
	// guardPause keeps a store that does not answer from being asked without a pause.
	guardPause   = 100 * time.Millisecond
	guardWrite   = 500 * time.Millisecond // for one group of decisions
	announceTime = 2 * time.Second
)

// guardAt is when the flow has had its time; what is undecided by then the edge decides on the spot.
func guardAt(s event.Submitted) time.Time {
	return s.AcceptedAt.Add(streams.Share(streams.ShareFlow, s.AcceptedAt.Time, s.Deadline.Time))
}

// watch has the guard look after a flight, until it has landed.
func (e *edge) watch(x *flight) {
	if e.Decider == nil {
		return
	}
	wait, _, _ := e.flights.due(x, e.Clock.Now())
	time.AfterFunc(wait, func() { e.guard(x) })
}

// guard decides a transaction that the pipeline is late with. It tries until somebody has decided it, or the sweep takes over.
func (e *edge) guard(x *flight) {
	for {
		wait, _, flying := e.flights.due(x, e.Clock.Now())
		switch {
		case !flying || e.life.Err() != nil:
			return
		case wait > 0: // run again meanwhile, under a later deadline
			time.AfterFunc(wait, func() { e.guard(x) })
			return
		}
		entry, err := e.guards.Do(e.life, x, errOverload)
		if err == nil {
			if entry.Decided() {
				e.tell(entry, x)
			}
			return
		}
		if stage.Sleep(e.life, guardPause) != nil {
			return
		}
	}
}

// writeGuards decides one group: the steps' cores, one read of the features, one commit. The arbiter answers with what it has,
// so a decision that was made meanwhile is found here too.
func (e *edge) writeGuards(xs []*flight) ([]store.Entry, error) {
	now := e.Clock.Now()
	out := make([]store.Entry, len(xs))
	var late []event.Submitted
	var at []int // late[k] is of xs[at[k]]
	for i, x := range xs {
		if _, s, flying := e.flights.due(x, now); flying {
			late, at = append(late, s), append(at, i)
		}
	}
	if len(late) == 0 {
		return out, nil
	}
	decides := make([]store.Decide, 0, len(late))
	for k, s := range e.Decider(e.life, late) {
		d, err := e.guarded(s)
		if err != nil {
			e.metrics.guarded.WithLabelValues("refused").Inc()
			continue
		}
		at[len(decides)] = at[k]
		decides = append(decides, d)
	}
	if len(decides) == 0 {
		return out, nil
	}
	ctx, cancel := context.WithTimeout(e.life, guardWrite)
	defer cancel()
	outcomes, err := e.Transactions.Decide(ctx, decides)
	if err != nil {
		e.metrics.guarded.WithLabelValues("unknown").Add(float64(len(decides)))
		return nil, fmt.Errorf("guard: %w", err)
	}
	failpoint.Hit("guard", "written")
	for k, o := range outcomes {
		if o.Err != nil || !o.Entry.Decided() {
			e.metrics.guarded.WithLabelValues("refused").Inc() // the pipeline buries it, or the sweep runs it again
			continue
		}
		e.metrics.guarded.WithLabelValues(o.Status).Inc()
		if o.Status == store.DecidedNow {
			d := decides[k]
			e.metrics.decisions.Made(d.Claim.AcceptedAt, d.DecidedAt, d.DecidedAt.After(d.Claim.Deadline))
		}
		out[at[k]] = o.Entry
		e.flights.heard(o.Entry.Key, o.Entry.Event, e.Clock.Now())
	}
	return out, nil
}

// guarded is the decision that the guard asks the arbiter for.
func (e *edge) guarded(s event.Scored) (store.Decide, error) {
	now := txn.At(e.Clock.Now())
	d := event.Decided{Scored: s, By: event.ByGuard, DecidedAt: now, Late: now.After(s.Deadline.Time)}
	data, err := event.Encode(d)
	if err != nil {
		return store.Decide{}, errors.New("guard: a decision cannot be written")
	}
	out := store.DecideOf(d, data)
	out.Unannounced = true
	return out, nil
}

// tell publishes a decision of the guard, or one that it found. What the broker does not take now the sweep announces. A submission
// that it may not have taken goes with it: the features count every payment that was decided.
func (e *edge) tell(entry store.Entry, x *flight) {
	s, trace, withheld := e.flights.newest(x)
	a := announcement{key: entry.Key, out: streams.Message(e.identOf(entry.Headless(), trace), streams.EventDecided, entry.Event)}
	if withheld {
		if out, err := e.message(s, trace); err == nil {
			a.submission = []stage.Output{out}
		}
	}
	ctx, cancel := context.WithTimeout(e.life, announceTime)
	defer cancel()
	_, _ = e.announces.Do(ctx, a, errOverload)
}

type announcement struct {
	key        store.Key
	out        stage.Output
	submission []stage.Output // none or one
}

func (e *edge) writeAnnouncements(all []announcement) ([]struct{}, error) {
	ctx, cancel := context.WithTimeout(e.life, announceTime)
	defer cancel()
	outputs, keys := make([]stage.Output, len(all)), make([]store.Key, len(all))
	var submissions []stage.Output
	for i, a := range all {
		outputs[i], keys[i], submissions = a.out, a.key, append(submissions, a.submission...)
	}
	if _, err := e.Publish(ctx, outputs); err != nil {
		return nil, err
	}
	if _, err := e.Publish(ctx, submissions); err != nil && !streams.Full(err) { // where there is no room they are not counted
		return nil, err // the sweep announces all of them once more, and submits them
	}
	return make([]struct{}, len(all)), e.Transactions.Announced(ctx, keys)
}
