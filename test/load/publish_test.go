// Package load_test measures what choices cost.
package load_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"

	"crivo/services/broker"
)

// BenchmarkPublish shows from which group size on one atomic batch is cheaper than as many messages singly, with and without a
// sync of the disk at every write.
func BenchmarkPublish(b *testing.B) {
	for _, sync := range []bool{true, false} {
		js := stream(b, sync)
		for _, size := range []int{1, 2, 4, 8, 16, 32, 128} {
			for name, publish := range map[string]func(testing.TB, jetstream.JetStream, []*nats.Msg){"batch": atomically, "single": singly} {
				b.Run(fmt.Sprintf("sync=%v/size=%d/%s", sync, size, name), func(b *testing.B) {
					for n := 0; b.Loop(); n++ {
						messages := make([]*nats.Msg, size)
						for i := range messages {
							messages[i] = &nats.Msg{Subject: "x.y", Data: make([]byte, 1500), Header: nats.Header{nats.MsgIdHdr: {fmt.Sprint(b.Name(), n, "/", i)}}}
						}
						publish(b, js, messages)
					}
					b.ReportMetric(float64(b.N*size)/b.Elapsed().Seconds(), "msg/s")
				})
			}
		}
	}
}

func stream(b *testing.B, sync bool) jetstream.JetStream {
	server, err := broker.Start(broker.Options{Dir: b.TempDir(), Sync: sync})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(server.Close)
	nc, err := server.Connect()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := js.CreateStream(b.Context(), jetstream.StreamConfig{Name: "X", Subjects: []string{"x.>"}, AllowAtomicPublish: true}); err != nil {
		b.Fatal(err)
	}
	return js
}

func atomically(t testing.TB, js jetstream.JetStream, messages []*nats.Msg) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := jetstreamext.PublishMsgBatch(ctx, js, messages, jetstreamext.BatchFlowControl{AckFirst: false}); err != nil {
		t.Fatal(err)
	}
}

func singly(t testing.TB, js jetstream.JetStream, messages []*nats.Msg) {
	futures := make([]jetstream.PubAckFuture, len(messages))
	for i, m := range messages {
		f, err := js.PublishMsgAsync(m)
		if err != nil {
			t.Fatal(err)
		}
		futures[i] = f
	}
	for _, f := range futures {
		select {
		case <-f.Ok():
		case err := <-f.Err():
			t.Fatal(err)
		case <-time.After(10 * time.Second):
			t.Fatal("no acknowledgement")
		}
	}
}
