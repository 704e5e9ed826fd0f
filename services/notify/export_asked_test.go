package notify

import (
	"time"

	"crivo/pkg/app"
	"crivo/services/store"
)

// After is a row after an attempt that began at now and was answered with status.
func After(schedule []time.Duration, row store.Delivery, status int, now time.Time) store.Delivery {
	n := &notifier{}
	n.Schedule, n.Clock = schedule, app.NewClock(func() time.Time { return now })
	return n.after(row, outcome{status: status}, now)
}
