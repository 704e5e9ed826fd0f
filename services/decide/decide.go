// Package decide is the steps' pure cores in a row: what they would decide, without the pipeline between them. It reads
// features and lists, asks no provider and changes nothing.
package decide

import (
	"context"
	"slices"
	"time"

	"crivo/pkg/stage"
	"crivo/pkg/txn"
	"crivo/services/enrich"
	"crivo/services/rules"
	"crivo/services/score"
	"crivo/services/validate"
	"crivo/streams"
	"crivo/streams/event"
)

// Core is what the steps decide with.
type Core struct {
	Features enrich.Reader
	RuleSet  func() txn.RuleSet
	Validate validate.Stage
	Score    score.Stage
}

// Open makes a core that follows the list's file until ctx ends or it is closed.
func Open(ctx context.Context, features enrich.Reader, live *rules.Live, lists validate.Config, engine string) (c Core, closes func(), err error) {
	c = Core{Features: features, RuleSet: func() txn.RuleSet { return live.Current().Ref() }}
	if c.Score, err = score.New(live, engine); err != nil {
		return c, nil, err
	}
	c.Validate, closes = validate.Open(ctx, lists)
	return c, closes, nil
}

// Guard is the decision on transactions that the pipeline is late with, and says so: see edge.Decider. Where enrich has not come
// to a transaction, it has not come to others before it either, and the windows may be short of them.
func (c Core) Guard(ctx context.Context, txs []event.Submitted) []event.Scored {
	out, histories := c.decide(ctx, txs)
	for i := range out {
		why := []string{"guard: pipeline late"}
		if histories != nil && slices.ContainsFunc(histories[i], func(h enrich.History) bool { return h.Added }) {
			why = append(why, "features: behind")
		}
		out[i].Degraded = append(why, out[i].Degraded...)
	}
	return out
}

// Decide is what the pipeline would decide, in order, if no provider answered it: see edge.Decider.
func (c Core) Decide(ctx context.Context, txs []event.Submitted) []event.Scored {
	out, _ := c.decide(ctx, txs)
	return out
}

// decide returns the histories that it decided on too, nil where the feature store did not answer in time.
func (c Core) decide(ctx context.Context, txs []event.Submitted) ([]event.Scored, [][]enrich.History) {
	events := make([]enrich.Event, len(txs))
	for i, in := range txs {
		events[i] = enrich.EventOf(in, 0)
	}
	histories := c.peek(ctx, events, enrich.Patience(txs...))
	out := make([]event.Scored, len(txs))
	for i, in := range txs {
		var of []enrich.History
		if histories != nil {
			of = histories[i]
		}
		out[i] = c.one(ctx, in, events[i], of)
	}
	return out, histories
}

// peek returns nil where the feature store does not answer in time.
func (c Core) peek(ctx context.Context, events []enrich.Event, patience time.Duration) [][]enrich.History {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	histories, err := c.Features.Peek(ctx, events)
	if err != nil {
		return nil
	}
	return histories
}

// one decides a single transaction; one that makes a core panic gets what the pipeline would have given it, a review.
func (c Core) one(ctx context.Context, in event.Submitted, e enrich.Event, histories []enrich.History) (out event.Scored) {
	enriched := enrich.Add(in, e, histories, c.RuleSet())
	defer func() {
		if recover() != nil {
			out = faulted(enriched)
		}
	}()
	validated, err := c.Validate.Handle(ctx, enriched)
	if err != nil {
		return faulted(enriched)
	}
	if out, err = c.Score.Handle(ctx, validated); err != nil {
		return faulted(enriched)
	}
	return out
}

func faulted(in event.Enriched) event.Scored {
	return event.Scored{Validated: event.Validated{Enriched: in, Checks: []txn.Check{}}, Verdict: streams.Fault("guard", stage.CausePanic, in.RuleSet)}
}
