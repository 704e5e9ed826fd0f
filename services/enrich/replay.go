package enrich

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"

	"crivo/pkg/stage"
	"crivo/streams"
	"crivo/streams/event"
)

// Source is the state of the stream that histories come from.
type Source struct {
	Created   time.Time // another one is another stream
	First     uint64    // the oldest message still there
	Since     time.Time // events that the stream no longer holds happened before; zero: it holds all
	Acked     uint64    // everything up to it has been enriched
	Delivered uint64    // nothing above it has been
}

// ahead is how far event time may lie after arrival (txn refuses more).
const ahead = 5 * time.Minute

func sourceOf(ctx context.Context, cfg Config) (Source, error) {
	stream, err := cfg.JS.Stream(ctx, streams.Submitted)
	if err != nil {
		return Source{}, err
	}
	consumer, err := stream.Consumer(ctx, streams.Enrich.Durable)
	if err != nil {
		return Source{}, err
	}
	info, state := consumer.CachedInfo(), stream.CachedInfo().State
	s := Source{Created: stream.CachedInfo().Created, First: state.FirstSeq, Acked: info.AckFloor.Stream, Delivered: info.Delivered.Stream}
	switch {
	case state.FirstSeq <= 1:
	case state.Msgs > 0:
		s.Since = state.FirstTime.Add(ahead)
	default:
		s.Since = state.LastTime.Add(ahead)
	}
	return s, nil
}

const (
	replayBatch = 64  // events per call of the store: some milliseconds
	fetchBatch  = 512 // messages per request to the broker
	fetchTime   = 5 * time.Second
	replayTime  = time.Second
	replayTries = 20 // of a batch that the store does not take, a quarter of a second apart
	replayPause = 250 * time.Millisecond
	absentTries = 20 // of a message that a lagging replica of the stream may not have yet
	absentPause = 50 * time.Millisecond
)

// replay applies the stream's messages after a sequence up to another and returns how many. What no longer stands there is
// passed over, and so is what cannot be read: it was buried.
func replay(ctx context.Context, cfg Config, after, through uint64) (int, error) {
	n, absent := 0, 0
	for next := after + 1; next <= through; {
		events, last, err := fetch(ctx, cfg.JS, next, through)
		if err != nil {
			return n, err
		}
		if last < next {
			there, err := holds(ctx, cfg.JS, next, through)
			switch absent++; {
			case err != nil:
				return n, err
			case !there:
				return n, nil
			case absent == absentTries:
				return n, fmt.Errorf("messages from %d: the stream has them, and whoever is asked has not", next)
			}
			if err := stage.Sleep(ctx, absentPause); err != nil {
				return n, err
			}
			continue
		}
		next, absent = last+1, 0
		for ; len(events) > 0; events = events[min(replayBatch, len(events)):] {
			batch := events[:min(replayBatch, len(events))]
			if err := insist(ctx, cfg.Features, batch); err != nil {
				return n, err
			}
			n += len(batch)
		}
	}
	return n, nil
}

// fetch reads one portion and the highest sequence that it covers: below next where the broker has none of it.
func fetch(ctx context.Context, js jetstream.JetStream, next, through uint64) (events []Event, last uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	messages, err := streams.GetBatch(ctx, js, streams.Submitted, int(min(fetchBatch, through-next+1)), jetstreamext.GetBatchSeq(next))
	if err != nil {
		return nil, 0, err
	}
	for m, err := range messages {
		switch {
		case errors.Is(err, jetstreamext.ErrNoMessages):
			return nil, 0, nil
		case err != nil:
			return nil, 0, err
		case m.Sequence > through:
			return events, through, nil
		}
		last = m.Sequence
		if in, err := event.Decode[event.Submitted](m.Data); err == nil {
			events = append(events, EventOf(in, m.Sequence))
		}
	}
	if last == 0 {
		return nil, 0, fmt.Errorf("messages from %d: no answer", next)
	}
	return events, last, nil
}

// holds asks the stream's leader whether there is anything from one sequence to another.
func holds(ctx context.Context, js jetstream.JetStream, from, through uint64) (bool, error) {
	stream, err := js.Stream(ctx, streams.Submitted)
	if err != nil {
		return false, err
	}
	info, err := stream.Info(ctx, jetstream.WithDeletedDetails(true))
	if err != nil {
		return false, err
	}
	first, last := max(from, info.State.FirstSeq), min(through, info.State.LastSeq)
	if info.State.Msgs == 0 || first > last {
		return false, nil
	}
	left := last - first + 1
	for _, gone := range info.State.Deleted {
		if first <= gone && gone <= last {
			left--
		}
	}
	return left > 0, nil
}

// insist applies a batch, again and again for a few seconds: it may be called twice, and one slow answer should not undo a
// long replay.
func insist(ctx context.Context, store Features, batch []Event) error {
	for try := 1; ; try++ {
		bounded, cancel := context.WithTimeout(ctx, replayTime)
		_, err := store.Apply(bounded, batch)
		cancel()
		if err == nil || try == replayTries || ctx.Err() != nil {
			return err
		}
		if err := stage.Sleep(ctx, replayPause); err != nil {
			return err
		}
	}
}
