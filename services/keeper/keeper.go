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
)

type keeper struct {
	Config
	metrics *metrics
	// swept is how far TX_DECIDED has been compared with the store, in the stream that was made at created.
	swept   uint64
	created time.Time
}

// Run keeps until ctx ends.
func Run(ctx context.Context, cfg Config) error {
	if cfg.Every == 0 {
		cfg.Every = sweepEvery
	}
	k := &keeper{Config: cfg, metrics: newMetrics(cfg.Metrics)}
	for ctx.Err() == nil {
		k.round(ctx)
		if stage.Sleep(ctx, cfg.Every) != nil {
			break
		}
	}
	return nil
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
	k.failed("putting decisions back", k.putBack(ctx))
	k.failed("sweep", k.sweep(ctx))
	k.failed("announcing", k.announce(ctx))
	k.failed("purge", k.purge(ctx))
}

// failed logs a part of the round that did not work; the next round tries it again.
func (k *keeper) failed(part string, err error) bool {
	if err == nil || errors.Is(err, context.Canceled) {
		k.Health.Set("keeper "+part, "")
		return err != nil
	}
	if part == "provisioning" {
		k.Health.Set("keeper "+part, "streams are not provisioned")
	}
	k.Log.Warn().Err(err).Str("part", part).Msg("keeper could not finish")
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
