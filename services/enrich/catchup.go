package enrich

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"crivo/pkg/stage"
)

// Position is how far a feature store has applied a stream; another Created is another stream.
type Position struct {
	Created  time.Time
	Sequence uint64
}

// Local is a feature store that lives in this process's files and may lag behind the stream after a machine's reset.
type Local interface {
	Position() Position
	// Restart sets the position, in another stream or where this one no longer holds what follows. What happened before since may
	// be lacking from then on; zero: nothing does.
	Restart(at Position, since time.Time) error
	// Whole is called once the store lacks nothing of the stream that was applied before. Until then whoever only reads it is
	// told that nothing is known.
	Whole()
}

// catchUp applies what the stream's consumer has acknowledged and the store lacks. In normal operation that is nothing: the
// store writes before the message is acknowledged.
func catchUp(ctx context.Context, cfg Config, local Local) error {
	s, err := sourceOf(ctx, cfg)
	if err != nil {
		return err
	}
	at := local.Position()
	if !at.Created.Equal(s.Created) || at.Sequence+1 < s.First {
		next, since := Position{Created: s.Created}, time.Time{}
		if at.Created.Equal(s.Created) {
			next.Sequence = at.Sequence
		}
		if next.Sequence+1 < s.First {
			next.Sequence, since = s.First-1, s.Since
		}
		if err := local.Restart(next, since); err != nil {
			return err
		}
		at = next
	}
	n, err := replay(ctx, cfg, at.Sequence, s.Acked)
	if n > 0 {
		cfg.Log.Info().Int("events", n).Msg("features caught up from the stream")
	}
	return err
}

// ready catches up, trying until the broker answers; only the end of ctx stops it.
func ready(ctx context.Context, cfg Config) error {
	local, ok := cfg.Features.(Local)
	if !ok {
		return nil
	}
	cfg.Health.Set("features", "catching up")
	defer cfg.Health.Set("features", "")
	for said := false; ; said = true {
		err := catchUp(ctx, cfg, local)
		if err == nil {
			local.Whole()
		}
		if err == nil || ctx.Err() != nil {
			return ctx.Err()
		}
		if !said && !missing(err) {
			cfg.Log.Warn().Err(fmt.Errorf("catch up: %w", err)).Msg("waiting for the stream")
		}
		if err := stage.Sleep(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

// missing tells whether the stream is not provisioned yet.
func missing(err error) bool {
	return errors.Is(err, jetstream.ErrStreamNotFound) || errors.Is(err, jetstream.ErrConsumerNotFound)
}
