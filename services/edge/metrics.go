package edge

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"crivo/pkg/app"
)

type metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	inFlight prometheus.Gauge
	groups   *prometheus.HistogramVec
	guarded  *prometheus.CounterVec

	listeners prometheus.Gauge
	decisions app.Decisions // the guard's
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "crivo_edge_requests_total", Help: "Requests by route and status."}, []string{"route", "status"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "crivo_edge_request_duration_seconds", Help: "Time to answer, waits included.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 3, 11)}, []string{"route"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{Name: "crivo_edge_in_flight", Help: "Accepted here and not yet heard decided."}),
		groups: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "crivo_edge_group_size", Help: "Items written together.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 8)}, []string{"group"}),
		guarded: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "crivo_guard_total",
			Help: "Transactions that the pipeline was late with: decided by the guard, found decided before, refused by the store, or unknown."}, []string{"outcome"}),
	}
	m.decisions = app.NewDecisions(reg)
	m.listeners = prometheus.NewGauge(prometheus.GaugeOpts{Name: "crivo_edge_listeners", Help: "Open streams of events."})
	reg.MustRegister(m.requests, m.duration, m.inFlight, m.groups, m.guarded, m.listeners)
	return m
}

func (m *metrics) group(name string) func(int) {
	h := m.groups.WithLabelValues(name)
	return func(n int) { h.Observe(float64(n)) }
}

func (m *metrics) counted(route string, status int) {
	m.requests.WithLabelValues(route, strconv.Itoa(status)).Inc()
}

func (m *metrics) answered(route string, status int, took time.Duration) {
	m.counted(route, status)
	m.duration.WithLabelValues(route).Observe(took.Seconds())
}
