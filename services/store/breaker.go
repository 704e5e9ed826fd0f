package store

import (
	"fmt"

	"github.com/go-json-experiment/json"
)

// Breaker states, as clients see them. A closed one is not kept.
const (
	BreakerClosed   = "closed"
	BreakerOpen     = "open"
	BreakerHalfOpen = "half_open"
)

// BreakersState is the name of the state that holds every breaker which is not closed.
const BreakersState = "breakers"

// Breaker keeps deliveries from an endpoint that fails. Its zero value is a closed one; times are Unix milliseconds.
type Breaker struct {
	State string `json:"state"`
	Since int64  `json:"since"` // when it opened, having been closed
	Until int64  `json:"until"` // open: when a probe may go; half-open: when its prober is taken for dead
}

// ReadBreakers reads what stands under BreakersState, by endpoint id; nothing is an empty map.
func ReadBreakers(value []byte) (map[string]Breaker, error) {
	out := map[string]Breaker{}
	if value == nil {
		return out, nil
	}
	if err := json.Unmarshal(value, &out); err != nil {
		return nil, fmt.Errorf("breakers: %w", err)
	}
	return out, nil
}
