package streams_test

import (
	"math"
	"testing"
	"time"

	"crivo/streams"
)

func TestTheFlowTakesThreeQuartersOfTheTime(t *testing.T) {
	if math.Abs(streams.ShareFlow-0.75) > 1e-9 {
		t.Errorf("the shares add up to %v", streams.ShareFlow)
	}
	at := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct{ deadline, want time.Duration }{{2 * time.Second, 100 * time.Millisecond}, {time.Second, 50 * time.Millisecond},
		{5 * time.Second, 250 * time.Millisecond}, {0, 0}, {-time.Second, 0}} {
		if got := streams.Share(streams.ShareEnrich, at, at.Add(c.deadline)); got != c.want {
			t.Errorf("of %s: %s, want %s", c.deadline, got, c.want)
		}
	}
}
