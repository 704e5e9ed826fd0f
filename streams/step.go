package streams

import (
	"context"
	"fmt"

	"crivo/pkg/stage"
	"crivo/streams/event"
)

// Step adapts a function of events to the runner: it decodes the input, calls, and announces the output as name under the
// identity that the input's headers carry. At most workers run at once.
func Step[In, Out event.Any](name string, workers int, handle func(context.Context, In) (Out, error)) stage.Handler {
	return stage.Each(workers, func(ctx context.Context, m stage.Message) ([]stage.Output, error) {
		ident, in, err := Read[In](m)
		if err != nil {
			return nil, err
		}
		out, err := handle(ctx, in)
		if err != nil {
			return nil, err
		}
		return Announce(ident, name, out)
	})
}

// Read decodes a message and its identity; what is wrong is marked for the runner.
func Read[In event.Any](m stage.Message) (Ident, In, error) {
	in, err := event.Decode[In](m.Data)
	if err != nil {
		return Ident{}, in, err
	}
	ident, err := ReadIdent(m.Header)
	if err != nil {
		return Ident{}, in, stage.Undecodable(err)
	}
	return ident, in, nil
}

// Announce encodes an event as the one output that tells of it.
func Announce[Out event.Any](i Ident, name string, out Out) ([]stage.Output, error) {
	data, err := event.Encode(out)
	if err != nil {
		return nil, fmt.Errorf("announce %s: %w", name, err)
	}
	return []stage.Output{Message(i, name, data)}, nil
}
