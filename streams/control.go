package streams

import (
	"context"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"
)

// Topics on control.<topic>: whoever changes one of these announces it, and every process reads it again.
const (
	TopicKeys      = "keys"
	TopicTenants   = "tenants"
	TopicEndpoints = "endpoints"
	TopicLists     = "lists"
)

// reread is how often a watcher reads again without having been told: announcements are best effort, this is not.
const reread = 10 * time.Second

// Changed announces that what topic names is different now. It is best effort; watchers read again by themselves too.
func Changed(nc *nats.Conn, topic string) error { return nc.Publish("control."+topic, nil) }

// Watch calls reload at once, whenever one of topics is announced, after a reconnect and every 10 s, until ctx ends. The
// first error is returned and nothing goes on, later ones are logged and tried again. What happens during a reload is read by
// the next one.
func Watch(ctx context.Context, nc *nats.Conn, log zerolog.Logger, reload func(context.Context) error, topics ...string) error {
	wake := make(chan struct{}, 1)
	poke := func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
	var subs []*nats.Subscription
	for _, topic := range topics {
		sub, err := nc.Subscribe("control."+topic, func(*nats.Msg) { poke() })
		if err != nil {
			leave(subs)
			return err
		}
		subs = append(subs, sub)
	}
	// What is announced from here on is heard: the broker knows of the subscriptions before the reading. Without a broker the
	// reconnect reads again.
	status := nc.StatusChanged(nats.CONNECTED)
	if nc.IsConnected() {
		_ = nc.FlushTimeout(time.Second)
	}
	if err := reload(ctx); err != nil {
		nc.RemoveStatusListener(status)
		leave(subs)
		return err
	}
	go func() {
		defer leave(subs)
		defer nc.RemoveStatusListener(status)
		tick := time.NewTicker(reread)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-wake:
			case <-status:
			case <-tick.C:
			}
			if err := reload(ctx); err != nil && ctx.Err() == nil {
				log.Warn().Err(err).Strs("topics", topics).Msg("cannot read again what changed")
			}
		}
	}()
	return nil
}

func leave(subs []*nats.Subscription) {
	for _, s := range subs {
		_ = s.Unsubscribe() // gone with its connection, if that is closed
	}
}
