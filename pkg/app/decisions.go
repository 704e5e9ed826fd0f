package app

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Decisions counts what was decided and how late, whoever of a process decided it.
type Decisions struct {
	late     prometheus.Counter
	duration prometheus.Histogram
}

// NewDecisions returns reg's: parts of one process that decide share them.
func NewDecisions(reg prometheus.Registerer) Decisions {
	return Decisions{
		late: shared(reg, prometheus.NewCounter(prometheus.CounterOpts{Name: "crivo_decisions_late_total", Help: "Decisions made past their deadline."})),
		duration: shared(reg, prometheus.NewHistogram(prometheus.HistogramOpts{Name: "crivo_decision_duration_seconds", Help: "From acceptance to decision.",
			Buckets: []float64{0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 30}})),
	}
}

// shared registers a collector, or returns the one that stands under its name.
func shared[T prometheus.Collector](reg prometheus.Registerer, c T) T {
	var stands prometheus.AlreadyRegisteredError
	if err := reg.Register(c); errors.As(err, &stands) {
		return stands.ExistingCollector.(T)
	} else if err != nil {
		panic(err)
	}
	return c
}

// Made counts a decision that the store took now.
func (d Decisions) Made(accepted, decided time.Time, late bool) {
	d.duration.Observe(decided.Sub(accepted).Seconds())
	if late {
		d.late.Inc()
	}
}
