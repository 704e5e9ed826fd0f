// Package fault_test breaks the running system and lets a ledger outside of it judge: what was answered 2xx has exactly one
// decision, the same in store, stream and webhook; nothing is decided that was never sent.
package fault_test

import (
	"context"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"crivo/test/system"
)

func TestMain(m *testing.M) { system.Main(m) }

// kills is how often the process is killed: CRIVO_KILLS, or a few.
func kills(t *testing.T) int {
	text := os.Getenv("CRIVO_KILLS")
	if text == "" {
		return 3
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("CRIVO_KILLS=%q", text)
	}
	return n
}

func TestF12KilledInMidStreamNothingIsLostOrDoubled(t *testing.T) {
	s := system.New(t, system.Options{NATS: true})
	r, err := s.Receive(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	l := newLedger(s)
	loading, stop := context.WithCancel(t.Context())
	defer stop()
	done := l.load(loading, 16)
	var slowest time.Duration
	for range kills(t) {
		l.await(t, 100+rand.IntN(300))
		if err := s.Kill(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := s.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		slowest = max(slowest, time.Since(began))
		l.repeat(t, 50)
	}
	stop()
	<-done
	l.repeat(t, 0)
	accepted := l.judge(t, r)
	t.Logf("%d kills, %d accepted and decided, slowest start to ready %d ms", kills(t), accepted, slowest.Milliseconds())
}
