package stage

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime/debug"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"crivo/pkg/failpoint"
)

// MaxAttempts is how many recorded runs a message gets before it is buried. Its first run, in a batch, is not recorded.
const MaxAttempts = 3

// together handles messages that come for the first time. Their outputs are published as one group.
func (w *work) together(ctx context.Context, batch []input) {
	results, panicked := w.call(ctx, batch)
	if panicked {
		for _, in := range batch {
			w.alone(ctx, in)
		}
		return
	}
	var outputs []Output
	var done, blocked []input
	for i, in := range batch {
		switch err := results[i].Err; {
		case err == nil:
			outputs = append(outputs, results[i].Outputs...)
			done = append(done, in)
		case IsUnavailable(err):
			blocked = append(blocked, in)
		default:
			w.failed(ctx, in, err, 0)
		}
	}
	failpoint.Hit(w.Spec.Step, "computed")
	if err := w.publish(ctx, outputs); err != nil {
		return // the hard end of a drain: the broker delivers them again
	}
	failpoint.Hit(w.Spec.Step, "published")
	for _, in := range done {
		w.ack(in)
	}
	w.persist(ctx, blocked)
}

// persist goes on with messages whose dependency is down, until it answers. Nothing is handled meanwhile, so that pulling ends too.
// Its patience over, it gives all back to who asks for them, and goes on asking by the text of one.
func (w *work) persist(ctx context.Context, batch []input) {
	if len(batch) == 0 {
		return
	}
	w.Metrics.outcome(w.Spec.Step, "unavailable", len(batch))
	w.doubts.set(doubtDependency, "a dependency is unavailable")
	defer w.doubts.set(doubtDependency, "")
	began := time.Now()
	for pause := 50 * time.Millisecond; len(batch) > 0; pause = min(2*pause, time.Second) {
		if Sleep(ctx, pause/2+rand.N(pause)) != nil {
			return
		}
		if time.Since(began) >= w.patience() && w.asked(ctx) {
			w.giveBack()
			batch = batch[:1]
		}
		results, panicked := w.call(ctx, batch)
		if panicked {
			for _, in := range batch {
				w.alone(ctx, in)
			}
			return
		}
		var still []input
		for i, in := range batch {
			if IsUnavailable(results[i].Err) {
				still = append(still, in)
				continue
			}
			if w.holds(in.msg) {
				w.finish(ctx, in, results[i], 0)
			}
		}
		batch = still
	}
}

// alone runs a message that was delivered before. Its attempt is recorded first, so that one which kills the process is known
// by its record; three of them bury it.
func (w *work) alone(ctx context.Context, in input) {
	if !w.holds(in.msg) {
		return
	}
	key := w.attemptKey(in)
	n, last, err := w.recorded(ctx, key)
	if err != nil {
		return
	}
	if n >= MaxAttempts {
		w.bury(ctx, in, causeOf(last), errors.New(last), n)
		return
	}
	if w.record(ctx, key, n+1, CauseCrash) != nil {
		return
	}
	defer func() {
		if ctx.Err() != nil { // cut short by the end of a drain, which would look like a crash
			w.forgive(context.WithoutCancel(ctx), key, n, last)
		}
	}()
	results, panicked := w.call(ctx, []input{in})
	switch {
	case panicked:
		if w.record(ctx, key, n+1, CausePanic) == nil {
			w.retry(ctx, in, CausePanic, errPanic, n+1)
		}
	case IsUnavailable(results[0].Err):
		w.forgive(ctx, key, n, last)
		w.persist(ctx, []input{in})
	default:
		w.finish(ctx, in, results[0], n+1)
	}
}

// forgive puts the record back to what it was before a run that ended through no fault of the message.
func (w *work) forgive(ctx context.Context, key string, n int, last string) {
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	_ = w.reset(ctx, key, n, last)
}

func (w *work) reset(ctx context.Context, key string, n int, last string) error {
	if n == 0 {
		return w.Attempts.Forget(ctx, key)
	}
	return w.Attempts.Put(ctx, key, n, last)
}

// finish settles one result; attempt is 0 for a run that was not recorded.
func (w *work) finish(ctx context.Context, in input, res Result, attempt int) {
	if res.Err != nil {
		w.failed(ctx, in, res.Err, attempt)
		return
	}
	failpoint.Hit(w.Spec.Step, "computed")
	if w.publish(ctx, res.Outputs) != nil {
		return
	}
	failpoint.Hit(w.Spec.Step, "published")
	if attempt > 0 {
		_ = w.Attempts.Forget(ctx, w.attemptKey(in))
	}
	w.ack(in)
}

// failed settles an input whose error is its own.
func (w *work) failed(ctx context.Context, in input, err error, attempt int) {
	switch {
	case IsHold(err):
		w.Metrics.outcome(w.Spec.Step, "held", 1)
		w.doubts.set(doubtSchema, "holds messages of a newer schema: upgrade this step first") // until this process is replaced
		if attempt > 0 {
			_ = w.Attempts.Forget(ctx, w.attemptKey(in))
		}
		w.nak(in, 5*time.Second)
	case IsUndecodable(err):
		w.bury(ctx, in, CauseDecode, err, attempt)
	case IsReject(err):
		w.bury(ctx, in, CauseReject, err, attempt)
	default:
		w.retry(ctx, in, CauseExhausted, err, attempt)
	}
}

// retry lets a message come again after a pause that grows, or buries it when its recorded attempts are used up.
func (w *work) retry(ctx context.Context, in input, cause string, err error, attempt int) {
	if attempt > 0 && cause != CausePanic && w.record(ctx, w.attemptKey(in), attempt, cause) != nil {
		return
	}
	if attempt >= MaxAttempts {
		w.bury(ctx, in, cause, err, attempt)
		return
	}
	w.Metrics.outcome(w.Spec.Step, "retried", 1)
	w.nak(in, 50*time.Millisecond<<attempt)
}

// bury gives a message up: what tells of it is stored before the broker forgets it.
func (w *work) bury(ctx context.Context, in input, cause string, err error, attempts int) {
	bounded, cancel := context.WithTimeout(ctx, handlerTime) // it may ask a store, as a handler does
	outputs, buryErr := w.letter(bounded, Burial{Step: w.Spec.Step, Message: in.Message, Cause: cause, Err: err, Attempts: attempts})
	cancel()
	if buryErr != nil {
		w.Log.Error().Err(buryErr).Uint64("sequence", in.Sequence).Msg("burial not possible yet")
		if attempts > 0 && (cause == CauseDecode || cause == CauseReject) { // the message is not at fault, and runs again
			_ = w.insist(ctx, func(try context.Context) error { return w.reset(try, w.attemptKey(in), attempts-1, cause) })
		}
		w.nak(in, time.Second)
		return
	}
	for _, out := range outputs { // in order: the dead letter stands before anything follows from it
		if w.publish(ctx, []Output{out}) != nil {
			return
		}
	}
	w.Metrics.outcome(w.Spec.Step, "buried_"+cause, 1)
	w.Log.Warn().Str("cause", cause).Uint64("sequence", in.Sequence).Int("attempts", attempts).Msg("message buried")
	// Unheard, it comes again and is buried again under the same ids.
	if w.end(in, func() error { return in.msg.TermWithReason(cause) }) && attempts > 0 {
		_ = w.Attempts.Forget(ctx, w.attemptKey(in))
	}
}

// letter asks for what tells of a burial. It reads what a handler may have failed to read, and may panic as that did.
func (w *work) letter(ctx context.Context, b Burial) (outputs []Output, err error) {
	defer func() {
		if recover() != nil {
			w.Log.Error().Str("stack", string(debug.Stack())).Msg("burial panicked")
			err = errPanicked
		}
	}()
	return w.Bury(ctx, b)
}

var errPanicked = errors.New("the burial panicked")

func (w *work) ack(in input) {
	if w.end(in, in.msg.Ack) {
		w.Metrics.outcome(w.Spec.Step, "done", 1)
	}
}

// end has the broker forget a message, and tells whether it was told to. The word names a sequence only: a machine that was reset
// and lost the end of its stream has given that sequence to another message meanwhile. So what came over an earlier connection is
// asked for again.
func (w *work) end(in input, say func() error) bool {
	defer w.settled(in.msg)
	if w.over(in.msg) {
		_ = in.msg.Nak()
		return false
	}
	return say() == nil
}

func (w *work) nak(in input, after time.Duration) {
	_ = in.msg.NakWithDelay(after) // unheard, the message comes again after AckWait
	w.settled(in.msg)
}

// holding is what the runner knows of a message that is not settled.
type holding struct {
	heard      time.Time // when the broker last heard of it
	connection uint64    // that it came over
}

func (w *work) hold(m jetstream.Msg) {
	now := holding{time.Now(), w.connection()}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.held[m] = now
}

// connection tells the connections that the client has had apart.
func (w *work) connection() uint64 { return w.JS.Conn().Stats().Reconnects }

// over tells whether a message's connection has ended.
func (w *work) over(m jetstream.Msg) bool {
	now := w.connection()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.held[m].connection != now
}

func (w *work) settled(m jetstream.Msg) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.held, m)
}

// holds tells whether a message is neither settled nor given back.
func (w *work) holds(m jetstream.Msg) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, is := w.held[m]
	return is
}

// asked tells whether somebody waits for messages: another process, or this one's own pull where few are under way. Where all are
// in the same trouble nobody does, and what is held goes on in batches later.
func (w *work) asked(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, watch)
	defer cancel()
	info, err := w.consumer.Info(ctx)
	return err == nil && info.NumWaiting > 0
}

// giveBack has the broker deliver again all that is held. What of it still waits here is passed over later.
func (w *work) giveBack() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.Metrics.outcome(w.Spec.Step, "given_back", len(w.held))
	for m := range w.held {
		_ = m.Nak()
	}
	clear(w.held)
}

// heartbeat says in-progress for whatever is held, every third of AckWait.
func (w *work) heartbeat(ctx context.Context) {
	for Sleep(ctx, w.Spec.AckWait/6) == nil {
		now := time.Now()
		w.mu.Lock()
		var due []jetstream.Msg
		for m, h := range w.held {
			if now.Sub(h.heard) >= w.Spec.AckWait/3 {
				h.heard = now
				w.held[m] = h
				due = append(due, m)
			}
		}
		w.mu.Unlock()
		for _, m := range due {
			_ = m.InProgress()
		}
	}
}

// release hands back what could not be finished.
func (w *work) release() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for m := range w.held {
		_ = m.Nak()
	}
}
