package system

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"crivo/streams"
	"crivo/streams/event"
)

// Announced reads what TX_DECIDED has of a tenant now, in order.
func Announced(ctx context.Context, js jetstream.JetStream, tenant string, each func(d event.Decided, data []byte)) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	stream, err := js.Stream(ctx, streams.Decided)
	if err != nil {
		return err
	}
	subject := streams.Subject(streams.EventDecided, tenant)
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(subject))
	if err != nil {
		return err
	}
	reader, err := stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{FilterSubjects: []string{subject}})
	if err != nil {
		return err
	}
	// One subscription for all: an ordered consumer is made anew for each single fetch.
	messages, err := reader.Messages()
	if err != nil {
		return err
	}
	defer messages.Stop()
	for left := info.State.Subjects[subject]; left > 0; left-- {
		m, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return fmt.Errorf("%s, %d messages from its end: %w", streams.Decided, left, err)
		}
		d, err := event.Decode[event.Decided](m.Data())
		if err != nil {
			return err
		}
		each(d, m.Data())
	}
	return nil
}
