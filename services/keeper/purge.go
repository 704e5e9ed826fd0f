package keeper

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"crivo/services/store"
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
	for _, spec := range streams.Steps {
		info, stream, err := k.info(ctx, spec.Stream)
		if err != nil {
			return err
		}
		limit := float64(info.Config.MaxBytes)
		if limit <= 0 || float64(info.State.Bytes) < crowded*limit || info.State.Msgs == 0 {
			continue
		}
		share := 1 - aim*limit/float64(info.State.Bytes) // of its messages
		upTo := info.State.FirstSeq + uint64(share*float64(info.State.LastSeq-info.State.FirstSeq+1))
		floor, err := acknowledged(ctx, stream)
		if err != nil {
			return err
		}
		finished, err := k.finished(ctx, spec.Stream, info.State.FirstSeq, min(upTo, floor))
		if err != nil {
			return err
		}
		if finished < info.State.FirstSeq {
			continue
		}
		if err := stream.Purge(ctx, jetstream.WithPurgeSequence(finished+1)); err != nil {
			return fmt.Errorf("purge %s: %w", spec.Stream, err)
		}
		k.metrics.found("messages purged", int(finished-info.State.FirstSeq+1))
		k.report(ctx, spec.Stream)
	}
	return nil
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
		keys := make([]store.Key, 0, len(batch))
		sequences := map[store.Key]uint64{} // the first message of each
		end := uint64(0)
		for _, m := range batch {
			meta, err := m.Metadata()
			if err != nil {
				return err
			}
			end = meta.Sequence.Stream
			if i, err := streams.ReadIdent(m.Headers()); err == nil {
				key := store.Key{Tenant: i.Tenant, ID: i.ID}
				if _, ok := sequences[key]; !ok {
					sequences[key] = end
					keys = append(keys, key)
				}
			}
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
func (k *keeper) report(ctx context.Context, name string) {
	info, _, err := k.info(ctx, name)
	if err != nil {
		return
	}
	k.metrics.horizon.WithLabelValues(name).Set(float64(info.State.FirstTime.Unix()))
	k.Log.Info().Str("stream", name).Time("replay_from", info.State.FirstTime).Msg("finished work purged to make room")
}
