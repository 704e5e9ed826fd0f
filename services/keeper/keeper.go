// Package keeper looks after the whole: it provisions streams and consumers, brings back into the flow what fell out of it, and
// makes room where finished work fills a stream. Of several keepers one works at a time, by lease; the others wait for theirs.
package keeper

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"crivo/pkg/app"
	"crivo/pkg/stage"
	"crivo/pkg/txn"
	"crivo/services/rules"
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
	Search(ctx context.Context, q store.Query) ([]store.Found, string, error)
	Ping(ctx context.Context) error
}

// State is where the keeper remembers what a broker that was lost cannot tell.
type State interface {
	State(ctx context.Context, name string) ([]byte, error)
	PutState(ctx context.Context, name string, value []byte) error
}

// Expirer is a store of deliveries that forgets old ones when told to.
type Expirer interface {
	// Expire forgets a bounded number of deliveries that have ended and were made before t, and tells how many.
	Expire(ctx context.Context, before time.Time) (int, error)
}

// RuleSets is where versions of rule sets are recorded, for whoever asks later what a decision was made by.
type RuleSets interface {
	// PutRuleSet adds a version; one that stands is never changed: store.ErrChanged where it has another digest.
	PutRuleSet(ctx context.Context, s store.RuleSet) error
}

// Config is what the service needs.
type Config struct {
	app.Shell
	Transactions Transactions
	RuleSets     RuleSets
	Rules        *rules.Set // what this program decides by; nil: nothing is recorded
	Layout       streams.Layout
	Tenants      func(ctx context.Context) ([]store.Tenant, error) // for deadlines of new runs
	Every        time.Duration                                     // between sweeps; 0: 5 s
	State        State                                             // nil: announcements that went with a broker's disk stay lost
	Deliveries   Expirer                                           // nil: the store forgets by itself
	Replays      Replays                                           // nil: no webhooks are sent once more
	Outbox       Outbox                                            // goes with Replays
	Holder       string                                            // of the lease; empty: this process and no other
}

const (
	sweepEvery = 5 * time.Second
	// patience is how long past its deadline a claim is left to the pipeline; it doubles with each run.
	patience = 3 * time.Second
	// sweepGroup is what is raised before it is published: where nothing can be published, little is raised in vain.
	sweepGroup = 128
	// sweepAtOnce bounds one sweep, so that a backlog does not flood what just recovered.
	sweepAtOnce = 2000
	storeTry    = time.Second
	sweepLooks  = 16 * sweepAtOnce // how far it looks past claims that must still wait
	// looks is how often room is looked for between two sweeps: at 2 MB/s, a small stream of 8 MiB goes from 70 % to the 90 %
	// where edges refuse in 0.8 s.
	looks = 10
)

type keeper struct {
	Config
	metrics  *metrics
	compared time.Time            // when the TX_DECIDED was made that has been compared with the store
	held     []store.Key          // whose decisions the store had at the last look
	said     map[string]bool      // parts whose failure is in the log already
	again    map[string]time.Time // when a stream may be crowded, and is looked at
	lease    lease
	works    bool   // this keeper holds the lease
	heard    *heard // nil: not read yet
	recorded bool   // the rule set is, or never will be
}

// Run keeps until ctx ends.
func Run(ctx context.Context, cfg Config) error {
	if cfg.Every == 0 {
		cfg.Every = sweepEvery
	}
	if cfg.Holder == "" {
		cfg.Holder = rand.Text()
	}
	k := &keeper{Config: cfg, metrics: newMetrics(cfg.Metrics), said: map[string]bool{}, again: map[string]time.Time{}, lease: lease{js: cfg.JS, holder: cfg.Holder}}
	defer k.lease.release(ctx)
	for n := 0; ctx.Err() == nil; n++ {
		if n%looks == 0 && !k.works {
			k.provision(ctx, streams.Make) // without streams there is no lease either
		}
		worked := k.works
		switch began := k.holds(ctx); {
		case !k.works && worked:
			k.provision(ctx, streams.Make) // the lease may have gone with the streams
		case !k.works:
		case began || n%looks == 0:
			k.provision(ctx, streams.Ensure)
			k.round(ctx)
		default:
			k.failed("purge", k.purge(ctx))
		}
		if k.works {
			k.failed("webhooks once more", k.replay(ctx))
		}
		_ = stage.Sleep(ctx, cfg.Every/looks)
	}
	return nil
}

// holds takes or renews the lease and tells whether this keeper's turn begins now. One that cannot reach the broker has none.
func (k *keeper) holds(ctx context.Context) (began bool) {
	before := k.works
	works, err := k.lease.hold(ctx, time.Now())
	k.works = !k.failed("lease", err) && works
	if k.works != before {
		k.Log.Info().Bool("works", k.works).Msg("keeper's turn")
		k.metrics.turn(k.works)
	}
	if began = k.works && !before; began {
		k.heard = nil // another may have noted a place since
	}
	return began
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

// record keeps the program's rule set. A version that was changed after it had been used makes decisions that nobody could explain
// later: that is said until somebody gives it a number of its own.
func (k *keeper) record(ctx context.Context) error {
	if k.recorded || k.Rules == nil {
		return nil
	}
	ref := k.Rules.Ref()
	err := k.RuleSets.PutRuleSet(ctx, store.RuleSet{Name: ref.Name, Version: ref.Version, Digest: ref.Digest, Source: k.Rules.Source(), CreatedAt: txn.At(k.Clock.Now())})
	if errors.Is(err, store.ErrChanged) {
		k.Health.Set("keeper rule set", fmt.Sprintf("rule set %s %d is recorded with other rules: what this program has needs a new version", ref.Name, ref.Version))
		k.Log.Error().Str("name", ref.Name).Int("version", ref.Version).Str("digest", ref.Digest).Msg("rule set is recorded with other rules under this version")
		err = nil
	}
	k.recorded = err == nil
	return err
}

// provision makes what is missing or, by Ensure, changes what differs as well. That only the one that works does: two keepers with
// different settings would undo each other's. What it could not make keeps nobody from the rest.
func (k *keeper) provision(ctx context.Context, by func(context.Context, jetstream.JetStream, streams.Layout) ([]string, error)) {
	done, err := by(ctx, k.JS, k.Layout)
	for _, change := range done {
		k.Log.Info().Str("change", change).Msg("provisioned")
	}
	k.failed("provisioning", err)
}

// round does everything once, in the order that a recovery needs.
func (k *keeper) round(ctx context.Context) {
	// A store that is away is waited for once in a round, and not by every part of it.
	try, cancel := context.WithTimeout(ctx, storeTry)
	defer cancel()
	if k.failed("looking for the store", k.Transactions.Ping(try)) {
		return
	}
	k.failed("recording the rule set", k.record(ctx))
	// Not before: the sweep would have decided anew what has a decision already.
	if !k.failed("putting decisions back", k.putBack(ctx)) {
		k.failed("sweep", k.sweep(ctx))
	}
	k.failed("announcing", k.announce(ctx))
	k.failed("announcing again", k.tellAgain(ctx))
	k.failed("forgetting", k.forget(ctx))
	k.failed("purge", k.purge(ctx))
	if info, _, err := k.info(ctx, streams.DeadLetters); err == nil {
		k.metrics.letters.Set(float64(info.State.Msgs))
	}
}

// keepDeliveries is how long a delivery that has ended can be looked up.
const keepDeliveries = 90 * 24 * time.Hour

// forget drops some of what is kept for long enough; the next round goes on.
func (k *keeper) forget(ctx context.Context) error {
	if k.Deliveries == nil {
		return nil
	}
	n, err := k.Deliveries.Expire(ctx, k.Clock.Now().Add(-keepDeliveries))
	k.metrics.found("delivery forgotten", n)
	return err
}

// failed logs a part of the round that did not work, once until it works again; the next round tries it again.
func (k *keeper) failed(part string, err error) bool {
	switch {
	case err == nil:
		k.Health.Set("keeper "+part, "")
		k.Health.Degrade("keeper "+part, "")
		delete(k.said, part)
		return false
	case errors.Is(err, context.Canceled):
		return true
	}
	if part == "provisioning" {
		k.Health.Set("keeper "+part, "streams are not provisioned")
	} else {
		k.Health.Degrade("keeper "+part, "does not work now, the log says why")
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
