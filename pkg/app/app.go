// Package app is the one process shell: what every part of the system is handed to run, the clock it keeps to the broker's,
// its health and its log. Configuration and signals live here too.
package app

import (
	"context"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"crivo/pkg/stage"
)

// Shell is what a service's Run gets from its process: connection, clock, log, metrics and health. Run owns none of it and
// closes none of it.
type Shell struct {
	Name    string // the service: edge, enrich, …
	Conn    *nats.Conn
	JS      jetstream.JetStream
	Clock   *Clock
	Log     zerolog.Logger
	Metrics prometheus.Registerer
	Health  *Health
	Steps   *stage.Metrics // the runner's collectors, one per process
	// BatchFrom is from how many outputs on the broker takes an atomic batch more cheaply: see [stage.Publisher].
	BatchFrom int
}

// Publish stores outputs in streams: see [stage.Publisher].
func (s Shell) Publish(ctx context.Context, outputs []stage.Output) (duplicates int, err error) {
	return stage.Publisher{JS: s.JS, BatchFrom: s.BatchFrom}.Publish(ctx, outputs)
}

// Health collects the reasons why a process is not ready. The zero value is ready.
type Health struct {
	mu      sync.Mutex
	reasons map[string]string
}

// Set says why part is not ready; an empty reason clears it.
func (h *Health) Set(part, reason string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if reason == "" {
		delete(h.reasons, part)
		return
	}
	if h.reasons == nil {
		h.reasons = map[string]string{}
	}
	h.reasons[part] = reason
}

// Reasons returns part → reason for all that is not ready; empty means ready.
func (h *Health) Reasons() map[string]string {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make(map[string]string, len(h.reasons))
	for k, v := range h.reasons {
		out[k] = v
	}
	return out
}
