package streams

import "time"

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
