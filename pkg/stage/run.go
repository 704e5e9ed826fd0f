package stage

import (
	"context"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
)

// Runner runs one step until its context ends, then drains: what was pulled is finished and acknowledged.
type Runner struct {
	JS     jetstream.JetStream
	Spec   Spec
	Handle Handler
	// Bury names what to publish before a message is given up: the dead letter first, then (where the flow needs one)
	// the synthetic event that still gets the transaction decided. All are acknowledged before the message is terminated.
	Bury    func(ctx context.Context, b Burial) ([]Output, error)
	Metrics *Metrics
	Log     zerolog.Logger
	Now     func() time.Time
	// NotReady is told why the step holds messages back ("" when it no longer does); nil is allowed.
	NotReady func(reason string)
}

// Run pulls and settles until ctx ends. It waits for a consumer that is missing and binds again when the broker comes back
// empty; it returns nil after a drain and an error only for a Runner that can never work.
func (r Runner) Run(ctx context.Context) error { panic("to be written") }

func each(ctx context.Context, workers int, batch []Message, handle func(context.Context, Message) ([]Output, error)) []Result {
	panic("to be written")
}
