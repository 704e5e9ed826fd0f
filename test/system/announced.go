package system

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"crivo/streams"
	"crivo/streams/event"
)

// Announced reads the whole TX_DECIDED: each transaction's distinct announcements with their counts. as names what makes one
// distinct: its bytes, or what it says.
func Announced(ctx context.Context, js jetstream.JetStream, as func(d event.Decided, data []byte) string) (map[string]map[string]int, error) {
	stream, err := js.Stream(ctx, streams.Decided)
	if err != nil {
		return nil, err
	}
	reader, err := stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return nil, err
	}
	// One subscription for all: an ordered consumer is made anew for each single fetch.
	messages, err := reader.Messages()
	if err != nil {
		return nil, err
	}
	defer messages.Stop()
	out := map[string]map[string]int{}
	for left := stream.CachedInfo().State.Msgs; left > 0; left-- {
		m, err := next(ctx, messages)
		if err != nil {
			return nil, fmt.Errorf("%s, %d messages from its end: %w", streams.Decided, left, err)
		}
		d, err := event.Decode[event.Decided](m.Data())
		if err != nil {
			return nil, err
		}
		if out[d.ID] == nil {
			out[d.ID] = map[string]int{}
		}
		out[d.ID][as(d, m.Data())]++
	}
	return out, nil
}

// next reads one message; a new consumer is not known to every server of a cluster at once.
func next(ctx context.Context, messages jetstream.MessagesContext) (m jetstream.Msg, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		if m, err = messages.Next(jetstream.NextContext(ctx)); !errors.Is(err, nats.ErrNoResponders) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	return m, err
}
