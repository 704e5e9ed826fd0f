// Package persist is the one arbiter: it completes each claim with its decision, once, and announces what the store holds,
// whoever put it there.
package persist

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"crivo/pkg/app"
	"crivo/pkg/failpoint"
	"crivo/pkg/stage"
	"crivo/pkg/txn"
	"crivo/services/store"
	"crivo/streams"
	"crivo/streams/event"
)

// Transactions completes claims. An error means that the outcome of all is unknown.
type Transactions interface {
	Decide(ctx context.Context, decides []store.Decide) ([]store.Outcome, error)
	Get(ctx context.Context, key store.Key) (store.Entry, error)
}

// Config is what the service needs.
type Config struct {
	app.Shell
	Transactions Transactions
	// Ping asks whether the store can be written: [store.Transactions]. Nil where another part of the process asks.
	Ping func(context.Context) error
}

// Stage turns verdicts into decisions.
type Stage struct {
	app.Shell
	Transactions Transactions
	metrics      *metrics
}

func newStage(cfg Config) Stage {
	return Stage{Shell: cfg.Shell, Transactions: cfg.Transactions, metrics: newMetrics(cfg.Metrics)}
}

// Run decides until ctx ends.
func Run(ctx context.Context, cfg Config) error {
	var watching sync.WaitGroup
	defer watching.Wait()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	if cfg.Ping != nil {
		watching.Go(func() { watch(ctx, cfg) })
	}
	s := newStage(cfg)
	r := streams.Runner(cfg.Shell, streams.Persist, s.Handle, nil)
	letter := r.Bury
	r.Bury = func(ctx context.Context, b stage.Burial) ([]stage.Output, error) { return s.bury(ctx, b, letter) }
	return r.Run(ctx)
}

// watchEvery is how often [watch] looks.
var watchEvery = time.Second

// watch looks at the store once a second: without traffic nothing else would find that it is away.
func watch(ctx context.Context, cfg Config) {
	for ok := true; ok; ok = stage.Sleep(ctx, watchEvery) == nil {
		try, cancel := context.WithTimeout(ctx, time.Second)
		err := cfg.Ping(try)
		cancel()
		switch {
		case err == nil:
			cfg.Health.Set("store", "")
		case ctx.Err() == nil:
			cfg.Health.Set("store", "the transaction store does not answer")
		}
	}
}

// Handle decides a batch in one write of the store. Calling it again finds the decisions of the first call and announces
// their bytes.
func (s Stage) Handle(ctx context.Context, batch []stage.Message) []stage.Result {
	out := make([]stage.Result, len(batch))
	var decides []store.Decide
	var idents []streams.Ident
	var at []int // decides[k] is of batch[at[k]]
	for i, m := range batch {
		ident, in, err := streams.Read[event.Scored](m)
		var d store.Decide
		if err == nil {
			in, err = s.whole(ctx, in)
		}
		if err == nil {
			d, err = s.decide(in)
		}
		if err != nil {
			out[i].Err = err
			continue
		}
		decides, idents, at = append(decides, d), append(idents, ident), append(at, i)
	}
	if len(decides) == 0 {
		return out
	}
	outcomes, err := s.write(ctx, decides)
	failpoint.Hit("persist", "written")
	for k, i := range at {
		if err != nil {
			out[i].Err = stage.Unavailable(err) // unknown: the repeat reads back
			continue
		}
		if out[i].Err = outcomes[k].Err; out[i].Err != nil {
			s.metrics.outcome("refused")
			continue // an attempt: three of them bury it
		}
		out[i] = s.announce(idents[k], outcomes[k])
	}
	return out
}

// leastWrite is how long the arbiter is given at least.
const leastWrite = 500 * time.Millisecond

// write asks the arbiter, for as long as what it is asked stays true: a decision that is made in time must not be stored long after
// its deadline. One that was not is made anew, as a late one.
func (s Stage) write(ctx context.Context, decides []store.Decide) ([]store.Outcome, error) {
	holds := time.Duration(math.MaxInt64) // where all are late anyway, for as long as the runner waits
	for _, d := range decides {
		if left := d.Claim.Deadline.Sub(d.DecidedAt); left >= 0 {
			holds = min(holds, max(left, leastWrite))
		}
	}
	ctx, cancel := context.WithTimeout(ctx, holds)
	defer cancel()
	return s.Transactions.Decide(ctx, decides)
}

// whole gives a burial that could not read its transaction the one that was claimed: the decision takes the place of the claim.
func (s Stage) whole(ctx context.Context, in event.Scored) (event.Scored, error) {
	if in.Tx.ID != "" {
		return in, nil
	}
	entry, err := s.Transactions.Get(ctx, store.Key{Tenant: in.Tenant, ID: in.ID})
	switch {
	case errors.Is(err, store.ErrNotFound):
		return in, nil
	case err != nil:
		return in, stage.Unavailable(err)
	case entry.Decided() || entry.Digest != in.Digest:
		return in, nil // the arbiter answers
	}
	if known, err := entry.Submitted(); err == nil {
		in.Tx = known.Tx
	}
	return in, nil
}

// decide builds the decided event of a verdict.
func (s Stage) decide(in event.Scored) (store.Decide, error) {
	now := txn.At(s.Clock.Now())
	by := event.ByPipeline
	if slices.ContainsFunc(in.Verdict.Reasons, func(r txn.Reason) bool { return r.Code == streams.Faulted }) {
		by = event.ByBurial
	}
	d := event.Decided{Scored: in, By: by, DecidedAt: now, Late: now.After(in.Deadline.Time)}
	data, err := event.Encode(d)
	if err != nil {
		return store.Decide{}, stage.Reject(err)
	}
	return store.DecideOf(d, data), nil
}

var errDigest = errors.New("the claim under this id belongs to another body")

// announce tells of the decision that the store holds, with its bytes, and wakes the edge that waits.
func (s Stage) announce(ident streams.Ident, o store.Outcome) stage.Result {
	s.metrics.outcome(o.Status)
	if o.Status == store.DigestConflict {
		return stage.Result{Err: stage.Reject(errDigest)}
	}
	if o.Status == store.DecidedNow {
		s.metrics.decisions.Made(o.Entry.AcceptedAt, o.Entry.DecidedAt, o.Entry.DecidedAt.After(ident.Deadline))
	}
	if ident.Reply != "" {
		// Best effort and at once: the edge reads the store when it hears nothing.
		_ = s.Conn.PublishMsg(&nats.Msg{Subject: ident.Reply, Header: ident.Header(), Data: o.Entry.Event})
	}
	return stage.Result{Outputs: []stage.Output{streams.Message(ident, streams.EventDecided, o.Entry.Event)}}
}

// bury gives persist's own poison its decision here, since no later step could: the claim is completed with review.
func (s Stage) bury(ctx context.Context, b stage.Burial, letter func(context.Context, stage.Burial) ([]stage.Output, error)) ([]stage.Output, error) {
	out, err := letter(ctx, b)
	if err != nil || errors.Is(b.Err, errDigest) {
		return out, err // another body's claim is none of this message's business
	}
	ident, err := streams.ReadIdent(b.Message.Header)
	if err != nil {
		return out, nil // nobody knows whom it was for
	}
	key := store.Key{Tenant: ident.Tenant, ID: ident.ID}
	entry, err := s.Transactions.Get(ctx, key)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, fmt.Errorf("bury: %w", err)
	}
	if err != nil || entry.Digest != ident.Digest {
		return out, nil
	}
	if entry.Decided() { // by a run that ended before it could tell
		return append(out, s.announce(ident, store.Outcome{Status: store.DecidedBefore, Entry: entry}).Outputs...), nil
	}
	scored := event.Scored{Verdict: streams.Fault(b.Step, b.Cause, txn.RuleSet{})}
	scored.Submitted, err = entry.Submitted()
	if err != nil {
		return nil, err
	}
	if txn.At(ident.AcceptedAt).Equal(txn.At(entry.AcceptedAt).Time) { // else it was promised anew, to who repeated it
		scored.Deadline = txn.At(ident.Deadline) // what was promised: the claim's may be the sweep's pace
	}
	d, err := s.decide(scored)
	if err != nil {
		return nil, err
	}
	outcomes, err := s.write(ctx, []store.Decide{d})
	if err != nil {
		return nil, fmt.Errorf("bury: %w", err)
	}
	if outcomes[0].Err != nil {
		return out, nil // not even that is taken: the letter tells, and the sweep will run the claim again
	}
	res := s.announce(ident, outcomes[0])
	return append(out, res.Outputs...), nil
}
