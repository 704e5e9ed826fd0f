package stage_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"crivo/pkg/stage"
)

var errCause = errors.New("cause")

func TestMarksTellApartAndKeepTheCause(t *testing.T) {
	is := map[string]func(error) bool{"reject": stage.IsReject, "undecodable": stage.IsUndecodable, "unavailable": stage.IsUnavailable, "hold": stage.IsHold}
	for name, mark := range map[string]func(error) error{"reject": stage.Reject, "undecodable": stage.Undecodable, "unavailable": stage.Unavailable, "hold": stage.Hold} {
		for _, err := range []error{mark(errCause), fmt.Errorf("profile: %w", mark(errCause))} {
			for other, tells := range is {
				if tells(err) != (other == name) {
					t.Errorf("%s is %s: %t", name, other, tells(err))
				}
			}
			if !errors.Is(err, errCause) {
				t.Errorf("%s lost its cause", name)
			}
		}
	}
	for name, tells := range is {
		if tells(errCause) || tells(nil) {
			t.Errorf("without a mark it is %s", name)
		}
	}
}

func batch(n int) []stage.Message {
	out := make([]stage.Message, n)
	for i := range out {
		out[i].Data = strconv.AppendInt(nil, int64(i), 10)
	}
	return out
}

func TestEachKeepsTheOrderOfResults(t *testing.T) {
	for _, workers := range []int{0, 1, 2, 7, 100} {
		t.Run(strconv.Itoa(workers)+" workers", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var now, most atomic.Int64
				handle := stage.Each(workers, func(_ context.Context, m stage.Message) ([]stage.Output, error) {
					n := now.Add(1)
					defer now.Add(-1)
					for seen := most.Load(); n > seen && !most.CompareAndSwap(seen, n); seen = most.Load() {
					}
					i, _ := strconv.Atoi(string(m.Data))
					time.Sleep(time.Duration(20-i) * time.Second) // the first is the slowest
					if i == 3 {
						return nil, errCause
					}
					return []stage.Output{{ID: string(m.Data)}}, nil
				})
				got := handle(t.Context(), batch(20))
				for i, r := range got {
					if i == 3 && errors.Is(r.Err, errCause) && r.Outputs == nil {
						continue
					}
					if r.Err != nil || len(r.Outputs) != 1 || r.Outputs[0].ID != strconv.Itoa(i) {
						t.Errorf("%d: %+v", i, r)
					}
				}
				if want := min(max(1, int64(workers)), 20); most.Load() != want {
					t.Errorf("%d at once, want %d", most.Load(), want)
				}
			})
		})
	}
}

func TestAPanicOfAWorkerReachesTheCaller(t *testing.T) {
	for _, workers := range []int{0, 4} {
		synctest.Test(t, func(t *testing.T) {
			var ended atomic.Int64
			handle := stage.Each(workers, func(_ context.Context, m stage.Message) ([]stage.Output, error) {
				defer ended.Add(1)
				if string(m.Data) == "1" {
					panic("poison")
				}
				time.Sleep(time.Minute)
				return nil, nil
			})
			func() {
				defer func() {
					if p := recover(); p != "poison" {
						t.Errorf("recovered %v", p)
					}
				}()
				handle(t.Context(), batch(8))
			}()
			if workers > 0 && ended.Load() != 8 {
				t.Errorf("%d of 8 had ended: the others went on alone", ended.Load())
			}
		})
	}
}

func TestSleepEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		if err := stage.Sleep(t.Context(), time.Minute); err != nil || time.Since(began) != time.Minute {
			t.Errorf("%v after %s", err, time.Since(began))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := stage.Sleep(ctx, time.Hour); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != time.Minute+time.Second {
			t.Errorf("%v after %s", err, time.Since(began))
		}
	})
}

func BenchmarkEach(b *testing.B) {
	messages := batch(128)
	for _, workers := range []int{0, 8} {
		b.Run(fmt.Sprintf("workers=%d", workers), func(b *testing.B) {
			handle := stage.Each(workers, func(context.Context, stage.Message) ([]stage.Output, error) { return nil, nil })
			b.ReportAllocs()
			for b.Loop() {
				handle(b.Context(), messages)
			}
		})
	}
}

// belated says that a round is closed and delivers once more, as the client does when its connection ends meanwhile.
type belated struct {
	jetstream.JetStream
	delivers chan jetstream.MessageHandler
}

func (b belated) Consumer(context.Context, string, string) (jetstream.Consumer, error) {
	return consumer{b: b}, nil
}
func (belated) Conn() *nats.Conn { return &nats.Conn{} }

type consumer struct {
	jetstream.Consumer
	b belated
}

func (c consumer) Consume(h jetstream.MessageHandler, _ ...jetstream.PullConsumeOpt) (jetstream.ConsumeContext, error) {
	select {
	case c.b.delivers <- h:
	default:
	}
	return round{}, nil
}

type round struct{ jetstream.ConsumeContext }

func (round) Stop() {}
func (round) Closed() <-chan struct{} {
	closed := make(chan struct{})
	close(closed)
	return closed
}

type unread struct{ jetstream.Msg }

func TestAMessageThatComesAfterTheEndHarmsNobody(t *testing.T) {
	b := belated{delivers: make(chan jetstream.MessageHandler, 1)}
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		ended <- stage.Runner{JS: b, Spec: stage.Spec{Step: "x", Batch: 1, AckWait: time.Second}, Handle: func(context.Context, []stage.Message) []stage.Result { return nil },
			Bury: func(context.Context, stage.Burial) ([]stage.Output, error) { return nil, nil }, Attempts: struct{ stage.Attempts }{}, Now: time.Now,
			Metrics: stage.NewMetrics(prometheus.NewRegistry())}.Run(ctx)
	}()
	deliver := <-b.delivers
	end()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	for range 3 { // more than there is room for
		deliver(unread{})
	}
}
