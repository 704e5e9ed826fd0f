package edge

import (
	"time"

	"github.com/failsafe-go/failsafe-go/circuitbreaker"
)

// gate is shut while the broker is known not to answer, so that nothing is claimed which cannot be published: after three
// publishes in a row that were not acknowledged. Then one request in every 100 ms may try.
type gate struct {
	breaker circuitbreaker.CircuitBreaker[any]
}

const (
	gateFailures = 3
	gateProbe    = 100 * time.Millisecond
)

func newGate() gate {
	return gate{circuitbreaker.NewBuilder[any]().WithFailureThreshold(gateFailures).WithSuccessThreshold(1).WithDelay(gateProbe).Build()}
}

// admits tells whether one more may try. A probe is the one whose publish decides whether the gate opens; it must be settled.
func (g gate) admits() (ok, probe bool) {
	if g.breaker.IsClosed() {
		return true, false
	}
	ok = g.breaker.TryAcquirePermit()
	return ok, ok
}

// published opens the gate.
func (g gate) published() { g.breaker.RecordSuccess() }

// failed counts one publish that was not acknowledged.
func (g gate) failed() { g.breaker.RecordFailure() }

// settle ends a probe, which may have published nothing: then another one is due.
func (g gate) settle() {
	if g.breaker.IsHalfOpen() {
		g.breaker.RecordFailure()
	}
}
