// Package app is the one process shell: what every part of the system is handed to run, the clock it keeps to the broker's,
// its health and its log. Configuration and signals live here too.
package app

import (
	"context"
	"errors"
	"maps"
	"sync"
	"time"

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

// retryEvery is how long what is not there is left alone.
const retryEvery = 250 * time.Millisecond

var errNoBroker = errors.New("no connection to the broker yet")

// Until tries do until it works: whatever a process needs may start after it. The first failure is logged and makes the process
// not ready; so is the return. It returns ctx's error, once that ended.
func Until(ctx context.Context, s Shell, what string, do func(context.Context) error) error {
	for said := false; ; said = true {
		err := errNoBroker
		if s.Conn == nil || s.Conn.IsConnected() {
			err = do(ctx)
		}
		if err == nil {
			s.Health.Set(what, "")
			if said {
				s.Log.Info().Str("for", what).Msg("waited")
			}
			return nil
		}
		if ctx.Err() == nil && !said {
			s.Health.Set(what, "waiting")
			s.Log.Warn().Err(err).Str("for", what).Msg("waiting")
		}
		if err := stage.Sleep(ctx, retryEvery); err != nil {
			return err
		}
	}
}

// Health collects the reasons why a process is not ready, and what it does its work without. The zero value is ready and lacks
// nothing.
type Health struct {
	mu                sync.Mutex
	reasons, degraded map[string]string
}

// Set says why part is not ready; an empty reason clears it.
func (h *Health) Set(part, reason string) { h.say(&h.reasons, part, reason) }

// Degrade says what is wrong with a part that the process can do its work without; an empty text clears it.
func (h *Health) Degrade(part, text string) { h.say(&h.degraded, part, text) }

func (h *Health) say(parts *map[string]string, part, text string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if text == "" {
		delete(*parts, part)
		return
	}
	if *parts == nil {
		*parts = map[string]string{}
	}
	(*parts)[part] = text
}

// Reasons returns part → reason for all that is not ready; empty means ready.
func (h *Health) Reasons() map[string]string { return h.said(&h.reasons) }

// Degraded returns part → text for all that is missed and not needed.
func (h *Health) Degraded() map[string]string { return h.said(&h.degraded) }

func (h *Health) said(parts *map[string]string) map[string]string {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make(map[string]string, len(*parts))
	maps.Copy(out, *parts)
	return out
}

// Report is what /readyz tells: a status, and reasons and degraded parts where there are any.
func (h *Health) Report() (ready bool, body map[string]any) {
	reasons, degraded := h.Reasons(), h.Degraded()
	body = map[string]any{"status": "ready"}
	if len(reasons) > 0 {
		body["status"], body["reasons"] = "not ready", reasons
	}
	if len(degraded) > 0 {
		body["degraded"] = degraded
	}
	return len(reasons) == 0, body
}
