// Package keeper looks after the whole: it provisions streams and consumers, brings back into the flow what fell out of it, and
// makes room where finished work fills a stream. One keeper works at a time.
package keeper

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"crivo/pkg/app"
	"crivo/pkg/stage"
	"crivo/services/store"
	"crivo/streams"
)

// Transactions is what the sweep reads and mends.
type Transactions interface {
	Overdue(ctx context.Context, then time.Time, limit int) ([]store.Entry, error)
	Unannounced(ctx context.Context, then time.Time, limit int) ([]store.Entry, error)
	Announced(ctx context.Context, keys []store.Key) error
	Raise(ctx context.Context, r store.Raise) (store.Entry, error)
	Decide(ctx context.Context, decides []store.Decide) ([]store.Outcome, error)
	Undecided(ctx context.Context, keys []store.Key) ([]store.Key, error)
}

// Config is what the service needs.
type Config struct {
	app.Shell
	Transactions Transactions
	Layout       streams.Layout
	Tenants      func(ctx context.Context) ([]store.Tenant, error) // for deadlines of new runs
	Every        time.Duration                                     // between sweeps; 0: 5 s
}

const (
	sweepEvery = 5 * time.Second
	// patience is how long past its deadline a claim is left to the pipeline; it doubles with each run.
	patience = 3 * time.Second
	// sweepAtOnce bounds one sweep, so that a backlog does not flood what just recovered.
	sweepAtOnce = 2000
	sweepLooks  = 16 * sweepAtOnce // how far it looks past claims that must still wait
	// looks is how often room is looked for between two sweeps: at 2 MB/s, a small stream of 8 MiB goes from 70 % to the 90 %
	// where edges refuse in 0.8 s.
	looks = 10
)

type keeper struct {
	Config
	metrics  *metrics
	compared time.Time       // when the TX_DECIDED was made that has been compared with the store
	said     map[string]bool // parts whose failure is in the log already
}

// Run keeps until ctx ends.
func Run(ctx context.Context, cfg Config) error {
	if cfg.Every == 0 {
		cfg.Every = sweepEvery
	}
	k := &keeper{Config: cfg, metrics: newMetrics(cfg.Metrics), said: map[string]bool{}}
	for n := 0; ctx.Err() == nil; n++ {
		if n%looks == 0 {
			k.round(ctx)
		} else {
			k.failed("purge", k.purge(ctx))
		}
		_ = stage.Sleep(ctx, cfg.Every/looks)
	}
	return nil
}

// recent is how many of the newest decisions tell whether a store lacks any: it was lost, or is an older backup.
const recent = 256

// Restore puts decisions of the stream back into a store that lacks recent ones, before anybody can claim their ids anew. It does
// nothing else; on a store that is whole it looks at a few messages. A missing stream has no decisions.
func Restore(ctx context.Context, cfg Config) error {
	k := &keeper{Config: cfg, metrics: newMetrics(cfg.Metrics)}
	info, stream, err := k.info(ctx, streams.Decided)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	last := info.State.LastSeq
	err = k.scan(ctx, streams.Decided, max(info.State.FirstSeq, last-min(last, recent)+1), last, func(batch []jetstream.Msg) error {
		lacking, err := k.lacking(ctx, stream, batch)
		if err == nil && len(lacking) > 0 {
			err = errEnough
		}
		return err
	})
	if !errors.Is(err, errEnough) {
		return err
	}
	k.Log.Warn().Msg("the transaction store lacks decisions that the stream has: putting them back before anything is accepted")
	return k.putBack(ctx)
}

// round does everything once, in the order that a recovery needs.
func (k *keeper) round(ctx context.Context) {
	done, err := streams.Ensure(ctx, k.JS, k.Layout)
	for _, change := range done {
		k.Log.Info().Str("change", change).Msg("provisioned")
	}
	if k.failed("provisioning", err) {
		return
	}
	// Not before: the sweep would have decided anew what has a decision already.
	if !k.failed("putting decisions back", k.putBack(ctx)) {
		k.failed("sweep", k.sweep(ctx))
	}
	k.failed("announcing", k.announce(ctx))
	k.failed("purge", k.purge(ctx))
	if info, _, err := k.info(ctx, streams.DeadLetters); err == nil {
		k.metrics.letters.Set(float64(info.State.Msgs))
	}
}

// failed logs a part of the round that did not work, once until it works again; the next round tries it again.
func (k *keeper) failed(part string, err error) bool {
	switch {
	case err == nil:
		k.Health.Set("keeper "+part, "")
		delete(k.said, part)
		return false
	case errors.Is(err, context.Canceled):
		return true
	}
	if part == "provisioning" {
		k.Health.Set("keeper "+part, "streams are not provisioned")
	}
	if !k.said[part] {
		k.said[part] = true
		k.Log.Warn().Err(err).Str("part", part).Msg("keeper could not finish, trying on")
	}
	return true
}

// info reads a stream's state; a stream that is gone is the provisioning's work.
func (k *keeper) info(ctx context.Context, name string) (*jetstream.StreamInfo, jetstream.Stream, error) {
	s, err := k.JS.Stream(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	return s.CachedInfo(), s, nil
}
