package persist

import (
	"github.com/prometheus/client_golang/prometheus"

	"crivo/pkg/app"
)

type metrics struct {
	outcomes  *prometheus.CounterVec
	decisions app.Decisions
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		outcomes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "crivo_decisions_total",
			Help: "Decisions asked of the arbiter: decided, before (another run was first), conflict (another body's claim), refused (the store will not take it)."}, []string{"outcome"}),
		decisions: app.NewDecisions(reg),
	}
	reg.MustRegister(m.outcomes)
	return m
}

func (m *metrics) outcome(status string) { m.outcomes.WithLabelValues(status).Inc() }
