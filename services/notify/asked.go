package notify

import (
	"slices"
	"time"

	"crivo/services/store"
)

// mostAttempts is how many of a delivery's attempts are kept: a row that is asked for again and again must not grow for ever.
const mostAttempts = 100

// numbered is the record of the attempt that follows, by number and by what asked for it.
func numbered(row store.Delivery, a store.Attempt) store.Attempt {
	a.Number, a.Trigger = 1, row.Trigger
	if n := len(row.Attempts); n > 0 {
		a.Number = row.Attempts[n-1].Number + 1
	}
	if a.Trigger == "" {
		a.Trigger = store.Auto
	}
	return a
}

// tries counts the attempts on the schedule, which a replay begins anew. Those by hand are not on it.
func tries(attempts []store.Attempt) int {
	n := 0
	for _, a := range slices.Backward(attempts) {
		if a.Trigger != store.Manual {
			n++
		}
		if a.Trigger == store.Again {
			break
		}
	}
	return n
}

// asBefore is what a failed attempt by hand leaves: the status from before it, and the next try of the schedule where one was to
// come, which the attempt neither replaced nor added to.
func asBefore(row store.Delivery) (status string, next time.Time) {
	for _, a := range slices.Backward(row.Attempts) {
		if a.Trigger != store.Manual {
			if a.NextAttemptAt != nil {
				return row.Was, a.NextAttemptAt.Time
			}
			break
		}
	}
	return row.Was, row.NextAttemptAt
}
