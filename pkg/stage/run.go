package stage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
)

const (
	// handlerTime is how long a handler, or a burial, may take before its context ends; a late answer still counts.
	handlerTime = 20 * time.Second
	// drainTime is how long what was pulled may take to finish once the runner's context ended.
	drainTime = 10 * time.Second
	// watch is how often an idle runner makes sure that its consumer still exists.
	watch = 2 * time.Second
)

// Runner runs one step until its context ends, then drains: what was pulled is finished and acknowledged.
type Runner struct {
	JS     jetstream.JetStream
	Spec   Spec
	Handle Handler
	// Bury names what to publish before a message is given up: the dead letter first, then (where the flow needs one)
	// the synthetic event that still gets the transaction decided. All are acknowledged before the message is terminated.
	Bury    func(ctx context.Context, b Burial) ([]Output, error)
	Metrics *Metrics
	Log     zerolog.Logger
	Now     func() time.Time
	// NotReady is told every reason why the step holds messages back ("" when there is none any more); nil is allowed.
	NotReady func(reason string)
	// Attempts counts the runs of messages that were delivered before.
	Attempts Attempts
	// BatchFrom is that of the [Publisher] that outputs go through.
	BatchFrom int
	// Patience is how long messages are held for a dependency that is down before they are given back; 0 is half a minute.
	Patience time.Duration
}

func (r Runner) patience() time.Duration { return cmp.Or(r.Patience, 30*time.Second) }

// Run pulls and settles until ctx ends. It waits for a consumer that is missing and binds again when the broker comes back
// empty; it returns nil after a drain and an error only for a Runner that can never work: incomplete, or on a closed connection.
func (r Runner) Run(ctx context.Context) error {
	if r.Spec.Batch < 1 || r.Spec.Batch > 1000 || r.Spec.AckWait <= 0 || r.JS == nil || r.Handle == nil || r.Bury == nil || r.Attempts == nil || r.Now == nil || r.Metrics == nil {
		return fmt.Errorf("stage %s: incomplete runner", r.Spec.Step)
	}
	d := &doubts{tell: r.NotReady}
	for ctx.Err() == nil {
		consumer, err := r.bind(ctx, d)
		if errors.Is(err, nats.ErrConnectionClosed) {
			return fmt.Errorf("stage %s: %w", r.Spec.Step, err)
		}
		if err != nil {
			return nil // the end of ctx
		}
		w := &work{Runner: r, consumer: consumer, doubts: d, held: map[jetstream.Msg]holding{}, incoming: make(chan jetstream.Msg, 2*r.Spec.Batch),
			taken: make(chan struct{}, 1), pulled: make(chan struct{}), ended: make(chan struct{})}
		w.run(ctx)
	}
	return nil
}

// bind waits for the step's consumer.
func (r Runner) bind(ctx context.Context, d *doubts) (jetstream.Consumer, error) {
	for pause, said := 50*time.Millisecond, false; ; pause = min(2*pause, time.Second) {
		try, cancel := context.WithTimeout(ctx, 2*time.Second)
		consumer, err := r.JS.Consumer(try, r.Spec.Stream, r.Spec.Durable)
		cancel()
		if err == nil {
			d.set(doubtConsumer, "")
			if said {
				r.Log.Info().Str("consumer", r.Spec.Durable).Msg("consumer is there")
			}
			return consumer, nil
		}
		if errors.Is(err, nats.ErrConnectionClosed) {
			return nil, err
		}
		d.set(doubtConsumer, "waiting for consumer "+r.Spec.Durable)
		if !said && ctx.Err() == nil && pause > 200*time.Millisecond {
			said = true
			r.Log.Warn().Err(err).Str("consumer", r.Spec.Durable).Msg("waiting for the consumer")
		}
		if err := Sleep(ctx, pause); err != nil {
			return nil, err
		}
	}
}

// work is one binding of a runner to its consumer.
type work struct {
	Runner
	consumer jetstream.Consumer
	doubts   *doubts
	incoming chan jetstream.Msg
	taken    chan struct{} // told when incoming has room again
	pulled   chan struct{} // closed once nothing more is asked for
	ended    chan struct{} // closed once nobody reads incoming

	mu   sync.Mutex
	held map[jetstream.Msg]holding // pulled and not settled
}

// run pulls and handles until ctx ends or the consumer is gone; what was pulled is then finished, or handed back after
// drainTime.
func (w *work) run(ctx context.Context) {
	soft, stop := context.WithCancel(ctx)
	hard, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer stop()
	var side sync.WaitGroup
	side.Go(func() { w.heartbeat(hard) })
	side.Go(func() { w.watch(soft, stop) })
	side.Go(func() {
		defer close(w.pulled)
		w.pull(soft, stop)
	})
	side.Go(func() {
		<-soft.Done()
		defer time.AfterFunc(drainTime, cancel).Stop()
		<-hard.Done()
	})
	w.loop(hard)
	stop()
	cancel()
	close(w.ended)
	side.Wait()
	w.release()
}

// pull asks in rounds for as many messages as there is room for: what waited in the client's own buffer could not be kept in
// progress, and would be delivered again while it waits. A round that is cut short is drained.
func (w *work) pull(ctx context.Context, stop func()) {
	for n := w.room(ctx); n > 0; n = w.room(ctx) {
		round, err := w.consumer.Consume(func(m jetstream.Msg) {
			// The client may call once more after it said that a round is closed.
			w.hold(m)
			select {
			case w.incoming <- m:
			case <-w.ended:
			}
		}, jetstream.PullMaxMessages(w.Spec.Batch), jetstream.StopAfter(n), jetstream.PullExpiry(5*time.Second), jetstream.PullHeartbeat(time.Second),
			jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) {
				if gone(err) {
					stop()
				}
			}))
		if err != nil {
			_ = Sleep(ctx, 200*time.Millisecond)
			continue
		}
		select {
		case <-round.Closed():
		case <-ctx.Done():
			if w.JS.Conn().IsConnected() {
				round.Drain()
			} else {
				round.Stop() // nothing more comes of a broker that is away, and a drain would wait for it
			}
			<-round.Closed()
		}
	}
}

// room waits until a batch fits in and returns how many messages do, 0 once ctx ended.
func (w *work) room(ctx context.Context) int {
	for ctx.Err() == nil {
		if n := cap(w.incoming) - len(w.incoming); n >= w.Spec.Batch {
			return n
		}
		select {
		case <-w.taken:
		case <-ctx.Done():
		}
	}
	return 0
}

// gone tells whether err means that nothing more will come by this binding.
func gone(err error) bool {
	return errors.Is(err, jetstream.ErrConsumerDeleted) || errors.Is(err, jetstream.ErrConsumerNotFound) ||
		errors.Is(err, jetstream.ErrStreamNotFound) || errors.Is(err, nats.ErrConnectionClosed)
}

// watch notices a consumer that vanished while nothing moved.
func (w *work) watch(ctx context.Context, stop func()) {
	for Sleep(ctx, watch) == nil {
		try, cancel := context.WithTimeout(ctx, watch)
		_, err := w.consumer.Info(try)
		cancel()
		if gone(err) {
			stop()
			return
		}
	}
}

// loop handles what has arrived, a batch at a time, until all that was pulled is handled or ctx ends.
func (w *work) loop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case first := <-w.incoming:
			w.handle(ctx, first)
		case <-w.pulled:
			select {
			case first := <-w.incoming:
				w.handle(ctx, first)
			default:
				return
			}
		}
	}
}

// handle runs a message with those that arrived behind it.
func (w *work) handle(ctx context.Context, first jetstream.Msg) {
	batch := w.collect(first)
	select {
	case w.taken <- struct{}{}:
	default:
	}
	w.batch(ctx, batch)
}

// collect takes what is there already, waiting for nothing: a lone message passes at once, load makes batches by itself.
func (w *work) collect(first jetstream.Msg) []jetstream.Msg {
	batch := []jetstream.Msg{first}
	for len(batch) < w.Spec.Batch {
		select {
		case m := <-w.incoming:
			batch = append(batch, m)
		default:
			return batch
		}
	}
	return batch
}

// batch runs new messages together, and then repeated ones alone: what is new still has its time, what comes again may well have
// been done.
func (w *work) batch(ctx context.Context, arrived []jetstream.Msg) {
	var fresh, again []input
	for _, m := range arrived {
		if !w.holds(m) {
			continue
		}
		in, err := read(m)
		switch {
		case err != nil:
			w.Log.Error().Err(err).Msg("message without metadata")
			w.settled(m)
		case in.Deliveries > 1:
			w.Metrics.outcome(w.Spec.Step, "repeated", 1)
			again = append(again, in)
		default:
			w.Metrics.waited(w.Spec.Step, w.Now().Sub(in.Stored))
			fresh = append(fresh, in)
		}
	}
	if len(fresh) > 0 {
		w.together(ctx, fresh)
	}
	for _, in := range again {
		w.alone(ctx, in)
	}
}

// input is a message with the broker's handle on it.
type input struct {
	Message
	msg jetstream.Msg
}

func read(m jetstream.Msg) (input, error) {
	meta, err := m.Metadata()
	if err != nil {
		return input{}, err
	}
	return input{Message{Subject: m.Subject(), Header: m.Headers(), Data: m.Data(), Sequence: meta.Sequence.Stream,
		Stored: meta.Timestamp, Deliveries: meta.NumDelivered}, m}, nil
}

// errPanic is what a handler's panic becomes; the stack goes to the log, it may quote data nowhere else.
var errPanic = errors.New("handler panicked")

// call runs the handler on a batch; a panic fails the whole of it.
func (w *work) call(ctx context.Context, batch []input) (results []Result, panicked bool) {
	ctx, cancel := context.WithTimeout(ctx, handlerTime)
	defer cancel()
	start := w.Now()
	defer func() {
		p := recover()
		w.Metrics.took(w.Spec.Step, worst(results, p != nil), w.Now().Sub(start))
		if p != nil {
			panicked = true
			w.Log.Error().Str("stack", string(debug.Stack())).Msg("handler panicked")
		}
	}()
	messages := make([]Message, len(batch))
	for i, in := range batch {
		messages[i] = in.Message
	}
	results = w.Handle(ctx, messages)
	if len(results) != len(batch) {
		panic("handler returned another number of results")
	}
	return results, false
}

// worst names what came of a call for the metrics.
func worst(results []Result, panicked bool) string {
	if panicked {
		return "panicked"
	}
	out := "done"
	for _, r := range results {
		switch {
		case IsUnavailable(r.Err):
			return "unavailable"
		case r.Err != nil:
			out = "failed"
		}
	}
	return out
}

// each runs handle on every message of a batch, at most workers at once, and keeps the order of results.
func each(ctx context.Context, workers int, batch []Message, handle func(context.Context, Message) ([]Output, error)) []Result {
	out := make([]Result, len(batch))
	one := func(i int) { out[i].Outputs, out[i].Err = handle(ctx, batch[i]) }
	if workers < 2 || len(batch) == 1 {
		for i := range batch {
			one(i)
		}
		return out
	}
	var all sync.WaitGroup
	room := make(chan struct{}, workers)
	panics := make(chan any, len(batch))
	for i := range batch {
		room <- struct{}{}
		all.Go(func() {
			defer func() {
				if p := recover(); p != nil {
					panics <- p // carried to the caller's goroutine, where the runner recovers it
				}
				<-room
			}()
			one(i)
		})
	}
	all.Wait()
	select {
	case p := <-panics:
		panic(p)
	default:
		return out
	}
}

// Sleep waits for d or for the end of ctx, whose error it then returns.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
