package process_test

import (
	"context"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"crivo/pkg/app"
	"crivo/services/broker"
	"crivo/services/config"
	"crivo/services/process"
	"crivo/streams"
)

func TestOnlyLoopbackIsThisMachineAlone(t *testing.T) {
	for address, want := range map[string]bool{"127.0.0.1:1": true, "[::1]:1": true, "0.0.0.0:1": false, "[::]:1": false, ":8080": false, "192.0.2.1:1": false} {
		if got := process.Loopback(address); got != want {
			t.Errorf("%s: %v", address, got)
		}
	}
}

// A broker may lose its disk right after the keeper made the streams: they are made again, or nobody would ever be told the time.
func TestStreamsThatGoWhileAProcessStartsAreMadeAgain(t *testing.T) {
	b, err := broker.Start(broker.Options{Dir: t.TempDir(), Host: "127.0.0.1", Port: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	made, ran := 0, false
	keeper := process.Service{Name: "keeper", Provision: func(ctx context.Context, shell app.Shell) error {
		if made++; made == 1 {
			return nil // they are gone again
		}
		_, err := shell.JS.CreateStream(ctx, jetstream.StreamConfig{Name: streams.Submitted, Subjects: []string{"tx.submitted.>"}})
		return err
	}, Run: func(context.Context, app.Shell) error {
		ran = true
		return nil
	}}
	c := &process.Common{Broker: process.Broker{NATSURL: config.Secret(b.URL())}, Ops: "127.0.0.1:0", LogLevel: "error"}
	if err := process.Run(keeper, t.Context(), c); err != nil || !ran || made < 2 {
		t.Errorf("ran %v, made %d times, %v", ran, made, err)
	}
}
