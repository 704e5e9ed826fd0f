package enrich

import (
	"context"
	"errors"
	"sync"
	"time"

	"crivo/pkg/stage"
)

// Shared is a feature store beside the processes: several write it, it can be away, and it can come back without its last
// moments or without anything.
type Shared interface {
	// Mend makes the store whole. Where events may be lacking it has them replayed, and no history that they belong to is
	// known until replay has returned nil. On a store that is whole it does next to nothing, so it is called all the time.
	// ErrElsewhere: another process is about it.
	Mend(ctx context.Context, s Source, replay Replay) error
}

// Replay applies the stream's messages after a sequence, up to the last one delivered when Mend was called.
type Replay func(ctx context.Context, after uint64) error

// ErrElsewhere is returned by a Shared store that another process rebuilds just now.
var ErrElsewhere = errors.New("incomplete: another process rebuilds them")

const mendEvery = 250 * time.Millisecond

// mendFirst is how long the flow waits for a store to be whole, so that a start is no reason for unknown features. A store
// that is away, or has much to catch up on, is not waited for.
var mendFirst = time.Second

// tend mends a shared store beside the flow, until the returned function is called. It returns when the store is whole, or has
// had its time.
func tend(ctx context.Context, cfg Config) (end func()) {
	shared, ok := cfg.Features.(Shared)
	if !ok {
		return func() {}
	}
	ctx, stop := context.WithCancel(ctx)
	whole, done := make(chan struct{}), make(chan struct{})
	first := sync.OnceFunc(func() { close(whole) })
	cfg.Health.Set("features", "being made whole")
	defer cfg.Health.Set("features", "")
	go func() {
		defer close(done)
		m := mender{Config: cfg, shared: shared}
		for ctx.Err() == nil {
			if m.round(ctx) {
				first()
			}
			_ = stage.Sleep(ctx, mendEvery)
		}
	}()
	patience := time.NewTimer(mendFirst)
	defer patience.Stop()
	select {
	case <-whole:
	case <-patience.C:
	case <-ctx.Done():
	}
	return func() { stop(); <-done }
}

// mender says in the health, and once in the log, what a shared store lacks.
type mender struct {
	Config
	shared Shared
	said   bool // in the log
}

// round mends once and tells whether the store is whole.
func (m *mender) round(ctx context.Context) bool {
	s, err := sourceOf(ctx, m.Config)
	if err == nil {
		err = m.shared.Mend(ctx, s, func(ctx context.Context, after uint64) error { return m.replay(ctx, after, s) })
	}
	if ctx.Err() == nil {
		m.say(err)
	}
	return err == nil
}

func (m *mender) replay(ctx context.Context, after uint64, s Source) error {
	after = max(after, s.First-min(s.First, 1))
	if after >= s.Delivered {
		return nil
	}
	m.Health.Degrade("features", "incomplete: being replayed from the stream")
	m.Log.Info().Uint64("after", after).Uint64("through", s.Delivered).Msg("features are replayed from the stream")
	n, err := replay(ctx, m.Config, after, s.Delivered)
	if err == nil {
		m.Log.Info().Int("events", n).Msg("features are replayed")
	}
	return err
}

// told is an error in words that anybody may read: the health is shown without a key, and an address is for the log.
func told(err error) string {
	if errors.Is(err, ErrElsewhere) {
		return ErrElsewhere.Error()
	}
	return "the feature store cannot be used, the log says why"
}

// say puts what is wrong into the health as what the flow goes on without, and into the log when it begins and when it ends.
func (m *mender) say(err error) {
	switch {
	case err == nil:
		m.Health.Degrade("features", "")
		if m.said {
			m.Log.Info().Msg("features are whole again")
		}
		m.said = false
	case missing(err): // the step says so itself
		m.Health.Degrade("features", "waiting for the stream")
	default:
		m.Health.Degrade("features", told(err))
		if !m.said {
			m.Log.Warn().Err(err).Msg("features are not whole, going on without")
		}
		m.said = true
	}
}
