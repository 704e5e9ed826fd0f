package notify

import (
	"github.com/prometheus/client_golang/prometheus"

	"crivo/services/store"
)

type metrics struct {
	attempts *prometheus.CounterVec
	duration prometheus.Histogram
	total    prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "crivo_webhook_attempts_total",
			Help: "Attempts by what became of the delivery: delivered, pending (again later), exhausted, skipped."}, []string{"status"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "crivo_webhook_attempt_duration_seconds", Help: "Time of one attempt.",
			Buckets: prometheus.ExponentialBuckets(0.001, 3, 10)}),
		total: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "crivo_webhook_delivery_seconds", Help: "From the row's making to its delivery.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 12)}),
	}
	reg.MustRegister(m.attempts, m.duration, m.total)
	return m
}

func (m *metrics) attempted(row store.Delivery, res outcome) {
	m.attempts.WithLabelValues(row.Status).Inc()
	m.duration.Observe(float64(res.attempt.DurationMS) / 1000)
	if last := row.Attempts[len(row.Attempts)-1]; row.Status == store.Delivered && last.Trigger == store.Auto {
		m.total.Observe(last.StartedAt.Sub(row.CreatedAt).Seconds() + float64(res.attempt.DurationMS)/1000)
	}
}
