package enrich

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"crivo/pkg/stage"
	"crivo/streams"
	"crivo/streams/event"
)

// Position is how far a feature store has applied a stream; another Created is another stream.
type Position struct {
	Created  time.Time
	Sequence uint64
}

// Local is a feature store that lives in this process's files and may lag behind the stream after a machine's reset.
type Local interface {
	Position() Position
	Restart(created time.Time) error
}

// catchUp applies what the stream's consumer has acknowledged and the store lacks. In normal operation that is nothing: the
// store writes before the message is acknowledged.
func catchUp(ctx context.Context, cfg Config, local Local) error {
	stream, err := cfg.JS.Stream(ctx, streams.Submitted)
	if err != nil {
		return err
	}
	info := stream.CachedInfo()
	consumer, err := stream.Consumer(ctx, streams.Enrich.Durable)
	if err != nil {
		return err
	}
	at := local.Position()
	if !at.Created.Equal(info.Created) {
		if err := local.Restart(info.Created); err != nil {
			return err
		}
		at.Sequence = 0
	}
	floor := consumer.CachedInfo().AckFloor.Stream
	n := 0
	for next := max(at.Sequence+1, info.State.FirstSeq); next <= floor; {
		m, err := stream.GetMsg(ctx, next, jetstream.WithGetMsgSubject(streams.Subject(streams.EventSubmitted, "*")))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			break
		}
		if err != nil {
			return err
		}
		if next = m.Sequence + 1; m.Sequence > floor {
			break // what stood below is gone; this one comes by the consumer
		}
		in, err := event.Decode[event.Submitted](m.Data)
		if err != nil {
			continue // it was buried
		}
		if _, err := cfg.Features.Apply(ctx, []Event{EventOf(in, m.Sequence)}); err != nil {
			return err
		}
		n++
	}
	if n > 0 {
		cfg.Log.Info().Int("events", n).Msg("features caught up from the stream")
	}
	return nil
}

// ready catches up, trying until the broker answers; only the end of ctx stops it.
func ready(ctx context.Context, cfg Config) error {
	local, ok := cfg.Features.(Local)
	if !ok {
		return nil
	}
	for said := false; ; said = true {
		err := catchUp(ctx, cfg, local)
		if err == nil || ctx.Err() != nil {
			cfg.Health.Set("features", "")
			return ctx.Err()
		}
		cfg.Health.Set("features", "catching up")
		if !said && !errors.Is(err, jetstream.ErrStreamNotFound) && !errors.Is(err, jetstream.ErrConsumerNotFound) {
			cfg.Log.Warn().Err(fmt.Errorf("catch up: %w", err)).Msg("waiting for the stream")
		}
		if err := stage.Sleep(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}
