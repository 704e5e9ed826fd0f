package notify

import (
	"context"
	"net/netip"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"crivo/pkg/stage"
)

// DrainTime and PollEvery are times that tests make shorter or longer.
var DrainTime, PollEvery = &drainTime, &pollEvery

// Pause is pure, and looked at alone.
var Pause = pause

// Blocked tells whether a dial to address would be stopped: for an https endpoint, and for one by plain http.
func Blocked(allow []netip.Prefix, address string) (https, http bool) {
	network := "tcp4"
	if strings.HasPrefix(address, "[") {
		network = "tcp6"
	}
	return public(allow)(network, address, nil) != nil, private(allow)(network, address, nil) != nil
}

// Handler returns the step of a notifier that makes rows and sends nothing.
func Handler(ctx context.Context, cfg Config) (stage.Handler, error) {
	ended, cancel := context.WithCancel(ctx)
	cancel()
	n := &notifier{Config: cfg, lanes: map[string]*lane{}, hard: ended, metrics: newMetrics(prometheus.NewRegistry())}
	return n.Handle, n.reload(ctx)
}
