// Package stage is the one runner of every pipeline step: it pulls, calls the step, publishes what comes out, waits for the
// broker's word and only then acknowledges the input. A step says what happened; the runner alone settles messages.
package stage

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go"
)

// Spec says what one step reads and how much at once.
type Spec struct {
	Step          string        // "enrich"
	Stream        string        // the stream read
	Durable       string        // the durable consumer bound to; the runner never creates it
	Batch         int           // messages per pull and per handler call, 1–1000
	MaxAckPending int           // at least four batches
	AckWait       time.Duration // in-progress is said every third of it
}

// Message is one input as the broker delivered it.
type Message struct {
	Subject    string
	Header     nats.Header
	Data       []byte
	Sequence   uint64    // in the stream
	Stored     time.Time // by the broker's clock
	Deliveries uint64    // 1 for the first
}

// Output is one message to publish before the input is acknowledged. ID becomes Nats-Msg-Id.
type Output struct {
	Subject string
	ID      string
	Header  nats.Header
	Data    []byte
}

// Result is what a step says of one input: its outputs, or the error that decides the input's fate.
type Result struct {
	Outputs []Output
	Err     error
}

// Handler handles a batch and returns one Result per message, in order. It must be safe to call twice with the same input.
// A message that was delivered before comes alone.
type Handler func(ctx context.Context, batch []Message) []Result

// Each adapts a function of one message; at most workers run at once (0: one after the other).
func Each(workers int, handle func(ctx context.Context, m Message) ([]Output, error)) Handler {
	return func(ctx context.Context, batch []Message) []Result {
		return each(ctx, workers, batch, handle)
	}
}

// Causes of a burial, part of the dead letter's subject.
const (
	CauseDecode    = "decode"
	CauseReject    = "reject"
	CausePanic     = "panic"
	CauseCrash     = "crash"
	CauseExhausted = "exhausted"
)

// Burial is a message that will never be processed, with the reason.
type Burial struct {
	Step     string
	Message  Message
	Cause    string // one of the Cause constants
	Err      error
	Attempts int
}

var (
	errReject      = errors.New("rejected")
	errDecode      = errors.New("undecodable")
	errUnavailable = errors.New("unavailable")
	errHold        = errors.New("held")
)

// Reject marks err as final: no retry can cure the message, it is buried at once.
func Reject(err error) error { return errors.Join(errReject, err) }

// Undecodable marks err as a message nobody can read: buried at once with cause decode.
func Undecodable(err error) error { return errors.Join(errDecode, err) }

// Unavailable marks err as a dependency's fault: the step stops pulling and holds what it has until the call succeeds, or
// gives it back when that takes long and somebody else asks.
func Unavailable(err error) error { return errors.Join(errUnavailable, err) }

// Hold marks err as work for a newer version of this step: the message is kept, never buried, and the process turns not ready.
func Hold(err error) error { return errors.Join(errHold, err) }

// IsReject, IsUndecodable, IsUnavailable and IsHold tell the marks apart.
func IsReject(err error) bool      { return errors.Is(err, errReject) }
func IsUndecodable(err error) bool { return errors.Is(err, errDecode) }
func IsUnavailable(err error) bool { return errors.Is(err, errUnavailable) }
func IsHold(err error) bool        { return errors.Is(err, errHold) }
