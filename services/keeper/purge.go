package keeper

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"crivo/streams"
)

const (
	// crowded is the share of a stream's byte budget from which on finished work is purged; half of it is what a purge aims for.
	crowded = 0.7
	aim     = 0.5
)

// errEnough ends a scan that found what it looked for.
var errEnough = errors.New("enough")

// purge makes room in streams that are over 70 % full, by their oldest messages that every durable has acknowledged and the
// store holds as decided. Undecided work is never purged, so only that can fill a stream for good.
func (k *keeper) purge(ctx context.Context) error {
	var errs []error
	for _, spec := range streams.Steps {
		if time.Now().Before(k.again[spec.Stream]) {
			continue
		}
		if err := k.makeRoom(ctx, spec.Stream); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", spec.Stream, err))
		}
	}
	return errors.Join(errs...)
}

func (k *keeper) makeRoom(ctx context.Context, name string) error {
	info, stream, err := k.info(ctx, name)
	if err != nil {
		return err
	}
	k.metrics.reaches(info)
	surplus := excess(info)
	if surplus == 0 {
		k.again[name] = time.Now().Add(streams.Spare(info, crowded, k.Every))
		return nil
	}
	floor, err := acknowledged(ctx, stream)
	if err != nil {
		return err
	}
	first := info.State.FirstSeq
	finished, err := k.finished(ctx, name, first, min(first+surplus-1, floor))
	if err != nil || finished < first {
		return err
	}
	if err := stream.Purge(ctx, jetstream.WithPurgeSequence(finished+1)); err != nil {
		return err
	}
	k.metrics.found("messages purged", int(finished-first+1))
	return k.report(ctx, name)
}

// excess is how many of a stream's messages a purge aims at; 0 leaves it alone.
func excess(info *jetstream.StreamInfo) uint64 {
	limit, used := float64(info.Config.MaxBytes), float64(info.State.Bytes)
	if limit <= 0 || used < crowded*limit || info.State.Msgs == 0 {
		return 0
	}
	share := 1 - aim*limit/used
	return max(1, uint64(share*float64(info.State.LastSeq-info.State.FirstSeq+1)))
}

// acknowledged is the lowest ack floor of all durables on a stream.
func acknowledged(ctx context.Context, stream jetstream.Stream) (uint64, error) {
	floor := ^uint64(0)
	list := stream.ListConsumers(ctx)
	for c := range list.Info() {
		if c.Config.Durable != "" {
			floor = min(floor, c.AckFloor.Stream)
		}
	}
	if floor == ^uint64(0) {
		floor = 0
	}
	return floor, list.Err()
}

// finished returns the highest sequence up to which every transaction is decided in the store, first−1 for none.
func (k *keeper) finished(ctx context.Context, name string, first, last uint64) (uint64, error) {
	done := first - 1
	err := k.scan(ctx, name, first, last, func(batch []jetstream.Msg) error {
		keys, sequences, end, err := identities(batch)
		if err != nil {
			return err
		}
		open, err := k.Transactions.Undecided(ctx, keys)
		if err != nil {
			return err
		}
		for _, key := range open {
			end = min(end, sequences[key]-1)
		}
		done = max(done, end)
		if len(open) > 0 {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return min(done, last), err
}

// report says how far back replay reaches now.
func (k *keeper) report(ctx context.Context, name string) error {
	info, _, err := k.info(ctx, name)
	if err != nil {
		return err
	}
	k.metrics.reaches(info)
	k.Log.Info().Str("stream", name).Time("replay_from", info.State.FirstTime).Msg("finished work purged to make room")
	return nil
}
