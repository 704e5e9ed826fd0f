package persist

import (
	"context"

	"crivo/pkg/stage"
	"crivo/streams"
)

// WatchEvery is a time that tests make shorter.
var WatchEvery = &watchEvery

// New returns the stage as Run makes it.
func New(cfg Config) Stage { return newStage(cfg) }

// Bury is what Run gives the runner.
func (s Stage) Bury(ctx context.Context, b stage.Burial) ([]stage.Output, error) {
	return s.bury(ctx, b, streams.Bury(streams.Persist, nil))
}
