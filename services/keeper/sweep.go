package keeper

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"crivo/pkg/stage"
	"crivo/pkg/txn"
	"crivo/services/store"
	"crivo/streams"
	"crivo/streams/event"
)

// putBack completes claims whose decision stands in TX_DECIDED and not in the store, as after a restored backup: bytes as they
// were. It compares the whole stream, once after a start, after the stream was made anew, and after the store was replaced: persist
// stores before it publishes, so only a store that was replaced lacks any.
func (k *keeper) putBack(ctx context.Context) error {
	info, stream, err := k.info(ctx, streams.Decided)
	if err != nil {
		return err
	}
	replaced, err := k.replaced(ctx, stream, info.State)
	if err != nil || !replaced && info.Created.Equal(k.compared) {
		return err
	}
	if replaced {
		k.Log.Warn().Msg("the transaction store lacks decisions that it had: an older one was put in its place")
		k.compared = time.Time{}
	}
	err = k.scan(ctx, streams.Decided, info.State.FirstSeq, info.State.LastSeq, func(batch []jetstream.Msg) error {
		decides, err := k.lacking(ctx, stream, batch)
		if err != nil || len(decides) == 0 {
			return err
		}
		if _, err := k.Transactions.Decide(ctx, decides); err != nil {
			return err
		}
		k.metrics.found("decision put back", len(decides))
		return nil
	})
	if err == nil {
		k.compared = info.Created
	}
	return err
}

// glance is how many of the newest decisions tell in each round whether the store is still the one it was.
const glance = 4

// replaced tells whether the store lacks what it had at the last look, and looks at the newest decisions for the next.
func (k *keeper) replaced(ctx context.Context, stream jetstream.Stream, state jetstream.StreamState) (bool, error) {
	var newest []store.Key
	for n := range min(glance, state.Msgs) {
		m, err := stream.GetMsg(ctx, state.LastSeq-n)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			return false, err
		}
		if i, err := streams.ReadIdent(m.Header); err == nil {
			newest = append(newest, store.Key{Tenant: i.Tenant, ID: i.ID})
		}
	}
	had := slices.Clone(k.held)
	if len(had)+len(newest) == 0 {
		return false, nil
	}
	lacking, err := k.Transactions.Undecided(ctx, append(had, newest...))
	if err != nil {
		return false, err
	}
	lacks := func(key store.Key) bool { return slices.Contains(lacking, key) }
	if slices.ContainsFunc(k.held, lacks) {
		k.held = nil
		return true, nil
	}
	k.held = slices.DeleteFunc(newest, lacks)
	return false, nil
}

// lacking returns the decisions of a batch that the store does not hold.
func (k *keeper) lacking(ctx context.Context, stream jetstream.Stream, batch []jetstream.Msg) ([]store.Decide, error) {
	keys, sequences, _, err := identities(batch)
	if err != nil {
		return nil, err
	}
	missing, err := k.Transactions.Undecided(ctx, keys)
	if err != nil {
		return nil, err
	}
	var out []store.Decide
	for _, key := range missing {
		m, err := stream.GetMsg(ctx, sequences[key])
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue // grew too old meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("decision of %s/%s: %w", key.Tenant, key.ID, err)
		}
		d, err := event.Decode[event.Decided](m.Data)
		if err != nil {
			continue // a decision that this version cannot read is a later version's
		}
		out = append(out, store.DecideOf(d, m.Data))
	}
	return out, nil
}

// identities returns the transactions of a batch, the first message of each, and the batch's last sequence. A message that
// names none has no decision to wait for.
func identities(batch []jetstream.Msg) (keys []store.Key, first map[store.Key]uint64, last uint64, err error) {
	first = make(map[store.Key]uint64, len(batch))
	for _, m := range batch {
		meta, err := m.Metadata()
		if err != nil {
			return nil, nil, 0, err
		}
		last = meta.Sequence.Stream
		i, err := streams.ReadIdent(m.Headers())
		if err != nil {
			continue
		}
		key := store.Key{Tenant: i.Tenant, ID: i.ID}
		if _, ok := first[key]; !ok {
			first[key] = last
			keys = append(keys, key)
		}
	}
	return keys, first, last, nil
}

// sweep starts claims again whose deadline passed and that nobody decided: the run is raised and the transaction published anew.
// In normal operation it finds nothing.
func (k *keeper) sweep(ctx context.Context) error {
	now := txn.At(k.Clock.Now()).Time
	ripe, err := k.ripe(ctx, now)
	if err != nil || len(ripe) == 0 {
		return err
	}
	tenants, err := k.tenants(ctx)
	if err != nil {
		return err
	}
	until := time.Now().Add(k.Every) // of a slow store: the next round goes on, and all else has its turn meanwhile
	// The first alone tells whether anything can be published.
	for n := 1; len(ripe) > 0 && time.Now().Before(until); n = sweepGroup {
		n = min(n, len(ripe))
		if err := k.runAgain(ctx, now, ripe[:n], tenants, until); err != nil {
			return err
		}
		ripe = ripe[n:]
	}
	return nil
}

func (k *keeper) runAgain(ctx context.Context, now time.Time, ripe []store.Entry, tenants map[string]store.Tenant, until time.Time) (err error) {
	var whole, broken []stage.Output // one stream each
	for i, e := range ripe {
		if i > 0 && time.Now().After(until) {
			break
		}
		raised, raiseErr := k.Transactions.Raise(ctx, store.Raise{Key: e.Key, FromRun: e.Run, AcceptedAt: e.AcceptedAt,
			Deadline: now.Add(tenants[e.Tenant].Deadline())})
		if errors.Is(raiseErr, store.ErrChanged) || errors.Is(raiseErr, store.ErrNotFound) {
			continue
		}
		if err = raiseErr; err != nil {
			break // what was raised so far is published all the same
		}
		promised := raised.AcceptedAt.Add(tenants[e.Tenant].Deadline())
		if out, err := again(raised, promised, tenants[e.Tenant].TimeZone); err == nil {
			whole = append(whole, out)
		} else if out, err := unreadable(raised, promised); err == nil {
			broken = append(broken, out)
		}
	}
	k.metrics.found("claim run again", len(whole)+len(broken))
	return errors.Join(err, k.publish(ctx, whole), k.publish(ctx, broken))
}

// ripe returns claims that were left to the pipeline for long enough. Those that wait longer, having run more often, must not
// stand in the way of others, so it looks further where they fill what it sees.
func (k *keeper) ripe(ctx context.Context, now time.Time) ([]store.Entry, error) {
	for limit := sweepAtOnce; ; limit *= 2 {
		overdue, err := k.Transactions.Overdue(ctx, now.Add(-patience), limit)
		if err != nil {
			return nil, err
		}
		found := len(overdue)
		ripe := slices.DeleteFunc(overdue, func(e store.Entry) bool { return now.Before(e.Deadline.Add(patience << min(e.Run-1, 10))) })
		if found < limit || len(ripe) >= sweepAtOnce/2 || limit >= sweepLooks {
			return ripe[:min(len(ripe), sweepAtOnce)], nil
		}
	}
}

// tenants returns all of them by id.
func (k *keeper) tenants(ctx context.Context) (map[string]store.Tenant, error) {
	all, err := k.Tenants(ctx)
	if err != nil {
		return nil, err
	}
	out := make(map[string]store.Tenant, len(all))
	for _, t := range all {
		out[t.ID] = t
	}
	return out, nil
}

// again is the submission of a claim under its present run. The claim's new deadline paces the sweep; the event keeps the one
// that was promised, so that the decision is marked late.
func again(e store.Entry, promised time.Time, zone string) (stage.Output, error) {
	s, err := e.Submitted()
	if err != nil {
		return stage.Output{}, err
	}
	s.Deadline, s.TimeZone = txn.At(promised), zone
	data, err := event.Encode(s)
	if err != nil {
		return stage.Output{}, err
	}
	return streams.Message(ident(e, promised), streams.EventSubmitted, data), nil
}

// unreadable gets a claim decided whose body cannot be read any more: a verdict of review, as for a message that was buried.
func unreadable(e store.Entry, promised time.Time) (stage.Output, error) {
	var s event.Scored
	s.Submitted = e.Headless()
	s.Deadline = txn.At(promised)
	s.Verdict = streams.Fault("keeper", stage.CauseDecode, txn.RuleSet{})
	data, err := event.Encode(s)
	if err != nil {
		return stage.Output{}, err
	}
	return streams.Message(ident(e, promised), streams.EventScored, data), nil
}

func ident(e store.Entry, deadline time.Time) streams.Ident {
	return streams.Ident{Tenant: e.Tenant, ID: e.ID, Run: e.Run, AcceptedAt: e.AcceptedAt, Deadline: deadline, Digest: e.Digest}
}

// announce publishes decisions whose announcement is not known to have happened: guards made them while the broker was away. So it
// may lack their submissions as well, by which the features count them. One that it took long ago goes the whole way again, to no
// effect.
func (k *keeper) announce(ctx context.Context) error {
	silent, err := k.Transactions.Unannounced(ctx, k.Clock.Now().Add(-sweepEvery), sweepAtOnce)
	if err != nil || len(silent) == 0 {
		return err
	}
	outputs, keys := make([]stage.Output, len(silent)), make([]store.Key, len(silent))
	var submissions []stage.Output
	for i, e := range silent {
		outputs[i] = streams.Message(ident(e, e.Deadline), streams.EventDecided, e.Event)
		keys[i] = e.Key
		if out, err := submission(e); err == nil {
			submissions = append(submissions, out)
		}
	}
	if err := k.publish(ctx, outputs); err != nil {
		return err
	}
	if err := k.publish(ctx, submissions); err != nil && !streams.Full(err) { // where there is no room they are not counted
		return err
	}
	k.metrics.found("decision announced", len(keys))
	return k.Transactions.Announced(ctx, keys)
}

// submission is what a decided transaction was accepted as.
func submission(e store.Entry) (stage.Output, error) {
	d, err := event.Decode[event.Decided](e.Event)
	if err != nil {
		return stage.Output{}, err
	}
	data, err := event.Encode(d.Submitted)
	if err != nil {
		return stage.Output{}, err
	}
	return streams.Message(ident(e, d.Deadline.Time), streams.EventSubmitted, data), nil
}

// publish stores outputs in groups.
func (k *keeper) publish(ctx context.Context, outputs []stage.Output) error {
	for len(outputs) > 0 {
		n := min(len(outputs), sweepGroup)
		try, cancel := context.WithTimeout(ctx, 2*time.Second)
		_, err := k.Publish(try, outputs[:n])
		cancel()
		if err != nil {
			return fmt.Errorf("publish: %w", err)
		}
		outputs = outputs[n:]
	}
	return nil
}

const (
	scanAhead = 1024 // messages without their bodies: some 300 KiB
	// scanPatience is how long a scan waits for the next message that the stream said it has.
	scanPatience = 2 * time.Second
)

// scan reads the headers of a stream's messages from first to last in batches, with a reader of its own that the broker forgets
// by itself. It returns nil only when it has seen all of them that are still there.
func (k *keeper) scan(ctx context.Context, name string, first, last uint64, each func([]jetstream.Msg) error) error {
	if first > last || last == 0 { // a stream that never had a message starts at 0
		return nil
	}
	reader, err := k.JS.OrderedConsumer(ctx, name, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverByStartSequencePolicy,
		OptStartSeq: first, HeadersOnly: true, InactiveThreshold: 30 * time.Second, MaxResetAttempts: 1})
	if err != nil {
		return fmt.Errorf("scan %s: %w", name, err)
	}
	messages, err := reader.Messages(jetstream.PullMaxMessages(scanAhead))
	if err != nil {
		return fmt.Errorf("scan %s: %w", name, err)
	}
	defer context.AfterFunc(ctx, messages.Stop)() // the reader makes itself anew by no time of ours
	defer messages.Stop()
	for end := false; !end; {
		var batch []jetstream.Msg
		if batch, end, err = next(ctx, messages, last); err != nil {
			return fmt.Errorf("scan %s: %w", name, err)
		}
		if err := each(batch); err != nil {
			return err
		}
	}
	return nil
}

// next reads one batch and tells whether last, or the stream's end, is in it.
func next(ctx context.Context, messages jetstream.MessagesContext, last uint64) (batch []jetstream.Msg, end bool, err error) {
	for len(batch) < scanAhead && !end {
		wait, cancel := context.WithTimeout(ctx, scanPatience)
		m, err := messages.Next(jetstream.NextContext(wait))
		cancel()
		if err != nil {
			return nil, false, err
		}
		meta, err := m.Metadata()
		if err != nil {
			return nil, false, err
		}
		batch = append(batch, m)
		end = meta.Sequence.Stream >= last || meta.NumPending == 0
	}
	return batch, end, nil
}
