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
	return Read(ctx, js, streams.Decided, tenant, false, func(m jetstream.Msg) error {
		d, err := event.Decode[event.Decided](m.Data())
		if err == nil {
			each(d, m.Data())
		}
		return err
	})
}

// Read reads what a stream of events has of a tenant now, in order, or only its headers.
func Read(ctx context.Context, js jetstream.JetStream, name, tenant string, headers bool, each func(jetstream.Msg) error) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	stream, err := js.Stream(ctx, name)
	if err != nil {
		return err
	}
	subject := streams.Subject("*", tenant)
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(subject))
	if err != nil {
		return err
	}
	reader, err := stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{FilterSubjects: []string{subject}, HeadersOnly: headers})
	if err != nil {
		return err
	}
	// One subscription for all: an ordered consumer is made anew for each single fetch.
	messages, err := reader.Messages()
	if err != nil {
		return err
	}
	defer messages.Stop()
	left := uint64(0)
	for _, n := range info.State.Subjects {
		left += n
	}
	for ; left > 0; left-- {
		m, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return fmt.Errorf("%s, %d messages from its end: %w", name, left, err)
		}
		if err := each(m); err != nil {
			return err
		}
	}
	return nil
}
