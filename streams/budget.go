package streams

import (
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Shares of a transaction's time, from acceptance to deadline, that the flow may take. What is left belongs to the guard, which
// decides what the flow has not decided by then.
const (
	ShareEdge      = 0.075
	ShareQueue     = 0.05 // each of the four between five steps
	ShareEnrich    = 0.05
	ShareProviders = 0.25 // all of them at once
	ShareScore     = 0.025
	SharePersist   = 0.15
	ShareFlow      = ShareEdge + 4*ShareQueue + ShareEnrich + ShareProviders + ShareScore + SharePersist
)

// Share is a share of the time between acceptance and deadline. An event that lacks either has none.
func Share(share float64, accepted, deadline time.Time) time.Duration {
	return max(0, time.Duration(share*float64(deadline.Sub(accepted))))
}

// fastest is more than a stream grows by in a second, in bytes: 8,000 events.
const fastest = 20 << 20

// Spare is how long it takes at least, and most at most, until a stream has used a share of its bytes. It need not be asked before:
// each question is work for the stream's leader.
func Spare(info *jetstream.StreamInfo, share float64, most time.Duration) time.Duration {
	limit, used := float64(info.Config.MaxBytes), float64(info.State.Bytes)
	if limit <= 0 {
		return most
	}
	return min(most, time.Duration(max(0, share*limit-used)/fastest*float64(time.Second)))
}
