// Package fault_test breaks the running system and lets a ledger outside of it judge: what was answered 2xx has exactly one
// decision, the same in store, stream and webhook; nothing is decided that was never sent.
package fault_test

import (
	"testing"
	"time"

	"crivo/test/system"
)

func TestF12KilledInMidStreamNothingIsLostOrDoubled(t *testing.T) {
	s := system.New(t, system.Options{NATS: true})
	l, r := witnessed(t, s)
	stop := l.under(t, 16)
	n := kills(t, 3)
	var slowest time.Duration
	for range n {
		l.await(t, 100+random.IntN(300))
		if err := s.Kill(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := s.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		slowest = max(slowest, time.Since(began))
		l.repeat(t)
	}
	stop()
	l.repeat(t)
	sum := l.judge(t, r)
	total.add(n, n, slowest, sum)
	t.Logf("%d kills, %s, slowest start to ready %d ms", n, sum, slowest.Milliseconds())
}
