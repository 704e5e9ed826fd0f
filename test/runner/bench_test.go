package runner_test

import (
	"context"
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/nats-io/nats.go"

	"crivo/pkg/stage"
	"crivo/services/broker"
)

// BenchmarkRunner takes bursts through one step that does nothing and has one output per input: they are stored, pulled,
// handled in groups as large as the load makes them, published and acknowledged. One operation is one burst.
func BenchmarkRunner(b *testing.B) {
	for _, sync := range []bool{false, true} {
		for _, burst := range []int{1, 16, 128, 1000} {
			b.Run(fmt.Sprintf("sync=%t/burst=%d", sync, burst), func(b *testing.B) {
				r := &rig{server: start(b, broker.Options{Dir: b.TempDir(), Sync: sync}), spec: spec}
				r.nc, r.js = dial(b, r.server.InProcess())
				r.provision(b)
				var groups atomic.Int64
				each := stage.Each(0, func(_ context.Context, m stage.Message) ([]stage.Output, error) {
					return []stage.Output{output(m)}, nil
				})
				s := r.run(b, func(ctx context.Context, batch []stage.Message) []stage.Result {
					groups.Add(1)
					return each(ctx, batch)
				})
				out := make(chan *nats.Msg, burst)
				if _, err := r.nc.ChanSubscribe("out.*", out); err != nil {
					b.Fatal(err)
				}
				body := make([]byte, 0, 1024)
				n := 0
				for b.Loop() {
					inputs := make([]stage.Output, burst)
					for i := range inputs {
						n++
						id := strconv.AppendInt(body, int64(n), 10)
						inputs[i] = stage.Output{Subject: "in.a", ID: string(id), Data: append(make([]byte, 0, 1024), id...)[:1024]}
					}
					if _, err := stage.Publish(b.Context(), r.js, inputs); err != nil {
						b.Fatal(err)
					}
					for range burst {
						<-out
					}
				}
				b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "msg/s")
				b.ReportMetric(float64(n)/float64(groups.Load()), "msg/group")
				s.stop(b)
			})
		}
	}
}
