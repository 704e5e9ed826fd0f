package stage

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics counts messages and times per step and outcome. One value serves every runner of a process.
type Metrics struct {
	messages  *prometheus.CounterVec
	repeats   *prometheus.CounterVec
	durations *prometheus.HistogramVec
	waits     *prometheus.HistogramVec
}

// NewMetrics registers the runner's collectors once with reg.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		messages: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "crivo_step_messages_total",
			Help: "Messages by what became of them: done, repeated, retried, unavailable, given_back, held, buried_<cause>."}, []string{"step", "outcome"}),
		repeats: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "crivo_step_duplicates_total",
			Help: "Outputs that the broker had already."}, []string{"step"}),
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "crivo_step_duration_seconds",
			Help:    "Time of one handler call, whatever its batch, by the worst that came of it: done, failed, unavailable, panicked.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 4, 9)}, []string{"step", "outcome"}),
		waits: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "crivo_step_queue_wait_seconds",
			Help: "Time between the broker's storing a message and its first run.", Buckets: prometheus.ExponentialBuckets(0.0005, 4, 9)}, []string{"step"}),
	}
	reg.MustRegister(m.messages, m.repeats, m.durations, m.waits)
	return m
}

func (m *Metrics) outcome(step, outcome string, n int) {
	m.messages.WithLabelValues(step, outcome).Add(float64(n))
}

func (m *Metrics) duplicates(step string, n int) {
	if n > 0 {
		m.repeats.WithLabelValues(step).Add(float64(n))
	}
}

func (m *Metrics) took(step, outcome string, d time.Duration) {
	m.durations.WithLabelValues(step, outcome).Observe(d.Seconds())
}

func (m *Metrics) waited(step string, d time.Duration) {
	m.waits.WithLabelValues(step).Observe(max(0, d.Seconds()))
}
