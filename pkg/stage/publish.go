package stage

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"
)

// batchMost is how many messages an atomic batch can have.
const batchMost = 1000

// Publisher stores outputs in streams.
type Publisher struct {
	JS jetstream.JetStream
	// BatchFrom is the number of outputs from which one atomic batch costs less than single publishes; 0 is never. A broker
	// on one node that syncs every write does so once for a batch, but keeps each batch in files of its own until it is whole.
	BatchFrom int
}

// Publish is that of a [Publisher] without batches.
func Publish(ctx context.Context, js jetstream.JetStream, outputs []Output) (duplicates int, err error) {
	return Publisher{JS: js}.Publish(ctx, outputs)
}

// Publish stores outputs and returns once the broker has acknowledged all of them. Whatever an atomic batch refuses (a repeat
// among them: 10201) is published singly, where a repeat is dropped by its id. It makes one try within ctx: the error is of
// the first that failed, some may be stored, and the same outputs can be published again. All outputs must belong to one stream.
func (p Publisher) Publish(ctx context.Context, outputs []Output) (duplicates int, err error) {
	if p.BatchFrom > 0 && len(outputs) >= p.BatchFrom && len(outputs) <= batchMost {
		if publishBatch(ctx, p.JS, outputs) == nil {
			return 0, nil
		}
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
	}
	return publishSingly(ctx, p.JS, outputs)
}

func publishBatch(ctx context.Context, js jetstream.JetStream, outputs []Output) error {
	messages := make([]*nats.Msg, len(outputs))
	for i, out := range outputs {
		messages[i] = out.message()
	}
	_, err := jetstreamext.PublishMsgBatch(ctx, js, messages, jetstreamext.BatchFlowControl{AckFirst: false})
	return err
}

func publishSingly(ctx context.Context, js jetstream.JetStream, outputs []Output) (int, error) {
	futures := make([]jetstream.PubAckFuture, 0, len(outputs))
	for _, out := range outputs {
		f, err := js.PublishMsgAsync(out.message(), jetstream.WithStallWait(200*time.Millisecond))
		if err != nil {
			return 0, fmt.Errorf("publish %s: %w", out.Subject, err)
		}
		futures = append(futures, f)
	}
	duplicates := 0
	for i, f := range futures {
		select {
		case ack := <-f.Ok():
			if ack.Duplicate {
				duplicates++
			}
		case err := <-f.Err():
			return duplicates, fmt.Errorf("publish %s: %w", outputs[i].Subject, err)
		case <-ctx.Done():
			return duplicates, fmt.Errorf("publish %s: %w", outputs[i].Subject, ctx.Err())
		}
	}
	return duplicates, nil
}

// message makes a new broker message; the client writes into its headers, so none is shared.
func (o Output) message() *nats.Msg {
	h := make(nats.Header, len(o.Header)+4)
	for name, values := range o.Header {
		h[name] = values
	}
	h.Set(nats.MsgIdHdr, o.ID)
	return &nats.Msg{Subject: o.Subject, Header: h, Data: o.Data}
}

// publish goes on until the broker has everything; only the end of ctx stops it. Each try has its own deadline and the same
// ids, so a try whose answer was lost costs nothing.
func (w *work) publish(ctx context.Context, outputs []Output) error {
	if len(outputs) == 0 {
		return nil
	}
	err := w.insist(ctx, func(try context.Context) error {
		duplicates, err := Publisher{w.JS, w.BatchFrom}.Publish(try, outputs)
		w.Metrics.duplicates(w.Spec.Step, duplicates)
		if err != nil && !errors.Is(err, context.Canceled) {
			w.doubts.set(doubtPublish, "cannot publish")
		}
		return err
	})
	if err == nil { // also where the binding before could not
		w.doubts.set(doubtPublish, "")
	}
	return err
}
