package keeper

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"crivo/pkg/stage"
	"crivo/pkg/txn"
	"crivo/services/store"
	"crivo/streams"
	"crivo/streams/event"
)

// putBack completes claims whose decision stands in TX_DECIDED and not in the store, as after a restored backup: bytes as they
// were. It compares what is new since the last round, and all of it at the first.
func (k *keeper) putBack(ctx context.Context) error {
	info, _, err := k.info(ctx, streams.Decided)
	if err != nil {
		return err
	}
	if !info.Created.Equal(k.created) {
		k.created, k.swept = info.Created, 0
	}
	if k.swept > 0 {
		return nil // persist stores before it publishes: only a store that was replaced meanwhile lacks any, and that is a restart
	}
	last := info.State.LastSeq
	err = k.scan(ctx, streams.Decided, info.State.FirstSeq, last, func(batch []jetstream.Msg) error {
		decides, err := k.lacking(ctx, batch)
		if err != nil || len(decides) == 0 {
			return err
		}
		k.metrics.found("decision put back", len(decides))
		_, err = k.Transactions.Decide(ctx, decides)
		return err
	})
	if err == nil {
		k.swept = max(1, last)
	}
	return err
}

// lacking returns the decisions of a batch that the store does not hold.
func (k *keeper) lacking(ctx context.Context, batch []jetstream.Msg) ([]store.Decide, error) {
	byKey := map[store.Key]jetstream.Msg{}
	var keys []store.Key
	for _, m := range batch {
		if i, err := streams.ReadIdent(m.Headers()); err == nil {
			key := store.Key{Tenant: i.Tenant, ID: i.ID}
			byKey[key] = m
			keys = append(keys, key)
		}
	}
	missing, err := k.Transactions.Undecided(ctx, keys)
	if err != nil {
		return nil, err
	}
	var out []store.Decide
	for _, key := range missing {
		d, err := event.Decode[event.Decided](byKey[key].Data())
		if err != nil {
			continue // a decision that this version cannot read is a later version's
		}
		out = append(out, decideOf(d, byKey[key].Data()))
	}
	return out, nil
}

func decideOf(d event.Decided, data []byte) store.Decide {
	codes := make([]string, len(d.Verdict.Reasons))
	for i, r := range d.Verdict.Reasons {
		codes[i] = r.Code
	}
	return store.Decide{Event: data, Decision: d.Verdict.Decision, Reasons: codes, DecidedAt: d.DecidedAt.Time,
		Claim: store.Claim{Key: store.Key{Tenant: d.Tenant, ID: d.ID}, Digest: d.Digest, Run: d.Run, ClaimedAt: d.ClaimedAt.Time,
			AcceptedAt: d.AcceptedAt.Time, Deadline: d.Deadline.Time}}
}

// sweep starts claims again whose deadline passed and that nobody decided: the run is raised and the transaction published anew.
// In normal operation it finds nothing.
func (k *keeper) sweep(ctx context.Context) error {
	now := txn.At(k.Clock.Now()).Time
	overdue, err := k.Transactions.Overdue(ctx, now.Add(-patience), sweepAtOnce)
	if err != nil || len(overdue) == 0 {
		return err
	}
	deadlines, err := k.deadlines(ctx)
	if err != nil {
		return err
	}
	var outputs []stage.Output
	for _, e := range overdue {
		if now.Before(e.Deadline.Add(patience << min(e.Run-1, 10))) {
			continue
		}
		raised, err := k.Transactions.Raise(ctx, store.Raise{Key: e.Key, FromRun: e.Run, AcceptedAt: e.AcceptedAt,
			Deadline: now.Add(deadlines[e.Tenant])})
		if errors.Is(err, store.ErrChanged) || errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		out, err := again(raised, raised.AcceptedAt.Add(deadlines[e.Tenant]))
		if err != nil {
			return err
		}
		outputs = append(outputs, out)
	}
	k.metrics.found("claim run again", len(outputs))
	return k.publish(ctx, outputs)
}

// deadlines returns each tenant's.
func (k *keeper) deadlines(ctx context.Context) (map[string]time.Duration, error) {
	tenants, err := k.Tenants(ctx)
	if err != nil {
		return nil, err
	}
	out := make(map[string]time.Duration, len(tenants))
	for _, t := range tenants {
		out[t.ID] = time.Duration(t.DeadlineMS) * time.Millisecond
	}
	return out, nil
}

// again is the submission of a claim under its present run. The claim's new deadline paces the sweep; the event keeps the one
// that was promised, so that the decision is marked late.
func again(e store.Entry, promised time.Time) (stage.Output, error) {
	s := event.Submitted{Schema: event.Schema, Tenant: e.Tenant, ID: e.ID, Run: e.Run, ClaimedAt: txn.At(e.ClaimedAt),
		AcceptedAt: txn.At(e.AcceptedAt), Deadline: txn.At(promised), Digest: e.Digest}
	if err := e.Transaction(&s.Tx); err != nil {
		return stage.Output{}, err
	}
	data, err := event.Encode(s)
	if err != nil {
		return stage.Output{}, err
	}
	return streams.Message(streams.Ident{Tenant: e.Tenant, ID: e.ID, Run: e.Run, AcceptedAt: e.AcceptedAt, Deadline: promised,
		Digest: e.Digest}, streams.EventSubmitted, data), nil
}

// announce publishes decisions whose announcement is not known to have happened.
func (k *keeper) announce(ctx context.Context) error {
	silent, err := k.Transactions.Unannounced(ctx, k.Clock.Now().Add(-sweepEvery), sweepAtOnce)
	if err != nil || len(silent) == 0 {
		return err
	}
	outputs, keys := make([]stage.Output, len(silent)), make([]store.Key, len(silent))
	for i, e := range silent {
		outputs[i] = streams.Message(streams.Ident{Tenant: e.Tenant, ID: e.ID, Run: e.Run, AcceptedAt: e.AcceptedAt, Deadline: e.Deadline,
			Digest: e.Digest}, streams.EventDecided, e.Event)
		keys[i] = e.Key
	}
	k.metrics.found("decision announced", len(keys))
	if err := k.publish(ctx, outputs); err != nil {
		return err
	}
	return k.Transactions.Announced(ctx, keys)
}

// publish stores outputs in groups.
func (k *keeper) publish(ctx context.Context, outputs []stage.Output) error {
	for len(outputs) > 0 {
		n := min(len(outputs), 128)
		try, cancel := context.WithTimeout(ctx, 2*time.Second)
		_, err := stage.Publish(try, k.JS, outputs[:n])
		cancel()
		if err != nil {
			return fmt.Errorf("publish: %w", err)
		}
		outputs = outputs[n:]
	}
	return nil
}

// scan reads a stream's messages from first to last in batches, with a reader of its own that leaves no trace.
func (k *keeper) scan(ctx context.Context, name string, first, last uint64, each func([]jetstream.Msg) error) error {
	if first > last || last == 0 {
		return nil
	}
	reader, err := k.JS.OrderedConsumer(ctx, name, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverByStartSequencePolicy,
		OptStartSeq: first})
	if err != nil {
		return fmt.Errorf("scan %s: %w", name, err)
	}
	for ctx.Err() == nil {
		fetched, err := reader.Fetch(256, jetstream.FetchMaxWait(time.Second))
		if err != nil {
			return fmt.Errorf("scan %s: %w", name, err)
		}
		var batch []jetstream.Msg
		end := false
		for m := range fetched.Messages() {
			batch = append(batch, m)
			if meta, err := m.Metadata(); err == nil && (meta.Sequence.Stream >= last || meta.NumPending == 0) {
				end = true
				break
			}
		}
		if len(batch) > 0 {
			if err := each(batch); err != nil {
				return err
			}
		}
		if end || len(batch) == 0 {
			return nil
		}
	}
	return ctx.Err()
}
