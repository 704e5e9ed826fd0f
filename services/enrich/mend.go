package enrich

import (
	"context"
	"errors"
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

const (
	mendEvery = 250 * time.Millisecond
	// mendFirst is how long the flow waits for a store's first mending, so that a restart is no reason for unknown features.
	// A store that is away, or has much to catch up on, is not waited for.
	mendFirst = time.Second
)

// tend mends a shared store beside the flow, until the returned function is called.
func tend(ctx context.Context, cfg Config) (end func()) {
	shared, ok := cfg.Features.(Shared)
	if !ok {
		return func() {}
	}
	ctx, stop := context.WithCancel(ctx)
	first, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		m := mender{Config: cfg, shared: shared}
		m.round(ctx)
		close(first)
		for stage.Sleep(ctx, mendEvery) == nil {
			m.round(ctx)
		}
	}()
	patience := time.NewTimer(mendFirst)
	defer patience.Stop()
	select {
	case <-first:
	case <-patience.C:
	}
	return func() { stop(); <-done }
}

// mender says in the health and once in the log what a shared store lacks.
type mender struct {
	Config
	shared Shared
	said   string // the kind of fault last told
}

func (m *mender) round(ctx context.Context) {
	s, err := sourceOf(ctx, m.Config)
	if err == nil {
		err = m.shared.Mend(ctx, s, func(ctx context.Context, after uint64) error { return m.replay(ctx, after, s) })
	}
	if ctx.Err() != nil {
		return
	}
	m.say(err)
}

func (m *mender) replay(ctx context.Context, after uint64, s Source) error {
	after = max(after, s.First-min(s.First, 1))
	if after >= s.Delivered {
		return nil
	}
	m.Health.Set("features", "incomplete: being replayed from the stream")
	m.Log.Info().Uint64("after", after).Uint64("through", s.Delivered).Msg("features are replayed from the stream")
	n, err := replay(ctx, m.Config, after, s.Delivered)
	if err == nil {
		m.Log.Info().Int("events", n).Msg("features are replayed")
	}
	return err
}

// say puts what is wrong into the health, and into the log when it is another kind of fault than before.
func (m *mender) say(err error) {
	kind := "features are not whole"
	switch {
	case err == nil:
		m.Health.Set("features", "")
		if m.said != "" {
			m.Log.Info().Msg("features are whole again")
		}
		m.said = ""
		return
	case missing(err):
		m.Health.Set("features", "waiting for the stream")
		return
	case errors.Is(err, ErrElsewhere):
		kind = "features are being rebuilt by another process"
	}
	m.Health.Set("features", err.Error())
	if m.said != kind {
		m.Log.Warn().Err(err).Msg(kind)
	}
	m.said = kind
}
