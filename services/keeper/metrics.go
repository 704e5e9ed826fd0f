package keeper

import (
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	finds   *prometheus.CounterVec
	horizon *prometheus.GaugeVec
	works   prometheus.Gauge
	letters prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		finds: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "crivo_keeper_finds_total",
			Help: "What the keeper mended: decision put back, claim run again, decision announced, messages purged, delivery forgotten."}, []string{"find"}),
		horizon: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "crivo_replay_horizon_seconds",
			Help: "Unix time of the oldest message in a stream: replay reaches back to it."}, []string{"stream"}),
		letters: prometheus.NewGauge(prometheus.GaugeOpts{Name: "crivo_dead_letters", Help: "Messages that were given up and wait for a person."}),
	}
	m.works = prometheus.NewGauge(prometheus.GaugeOpts{Name: "crivo_keeper_works", Help: "1 in the keeper that has the lease, 0 in one that waits for it."})
	reg.MustRegister(m.finds, m.horizon, m.letters, m.works)
	return m
}

func (m *metrics) turn(works bool) {
	m.works.Set(0)
	if works {
		m.works.Set(1)
	}
}

func (m *metrics) found(what string, n int) { m.finds.WithLabelValues(what).Add(float64(n)) }

// reaches notes how far back a stream goes; an empty one keeps what was last known.
func (m *metrics) reaches(info *jetstream.StreamInfo) {
	if info.State.Msgs > 0 {
		m.horizon.WithLabelValues(info.Config.Name).Set(float64(info.State.FirstTime.Unix()))
	}
}
