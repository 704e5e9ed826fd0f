package streams_test

import (
	"math"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

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

func TestSpareIsNeverLongerThanAStreamNeedsToFill(t *testing.T) {
	const mib = 1 << 20
	for name, tc := range map[string]struct {
		limit, used int64
		want        time.Duration
	}{
		"no limit":         {0, 500 * mib, 5 * time.Second},
		"nearly empty":     {2048 * mib, mib, 5 * time.Second},
		"two seconds left": {100 * mib, 50 * mib, 2 * time.Second}, // 40 MiB at 20 MiB a second
		"at the share":     {100 * mib, 90 * mib, 0},
		"beyond it":        {100 * mib, 99 * mib, 0},
	} {
		info := &jetstream.StreamInfo{Config: jetstream.StreamConfig{MaxBytes: tc.limit}, State: jetstream.StreamState{Bytes: uint64(tc.used)}}
		if got := streams.Spare(info, 0.9, 5*time.Second); got != tc.want {
			t.Errorf("%s: %s", name, got)
		}
	}
}
