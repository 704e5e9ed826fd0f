package persist

import (
	"github.com/prometheus/client_golang/prometheus"

	"crivo/services/store"
)

type metrics struct {
	outcomes *prometheus.CounterVec
	late     prometheus.Counter
	duration prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		outcomes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "crivo_decisions_total",
			Help: "Decisions asked of the arbiter: decided, before (another run was first), conflict (another body's claim), refused (the store will not take it)."}, []string{"outcome"}),
		late: prometheus.NewCounter(prometheus.CounterOpts{Name: "crivo_decisions_late_total", Help: "Decisions made past their deadline."}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "crivo_decision_duration_seconds", Help: "From acceptance to decision.",
			Buckets: []float64{0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 30}}),
	}
	reg.MustRegister(m.outcomes, m.late, m.duration)
	return m
}

func (m *metrics) outcome(status string) { m.outcomes.WithLabelValues(status).Inc() }

func (m *metrics) decided(e store.Entry) {
	m.duration.Observe(e.DecidedAt.Sub(e.AcceptedAt).Seconds())
	if e.DecidedAt.After(e.Deadline) {
		m.late.Inc()
	}
}
