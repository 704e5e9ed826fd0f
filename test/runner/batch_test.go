package runner_test

import (
	"testing"

	"crivo/streams"
)

// Who asks a broker that is away, time and again, keeps nothing of it.
func TestAQuestionToABrokerThatIsAwayLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	s, nc, js := provisioned(t)
	before := nc.NumSubscriptions()
	s.Close()
	wait(t, "the connection's end", func() bool { return !nc.IsConnected() })
	for range 20 {
		if page, err := (streams.Decisions{JS: js}).After(t.Context(), "acme", 0); err == nil {
			t.Fatal(page)
		}
		for l, err := range streams.Letters(t.Context(), js, streams.LetterQuery{}) {
			if err == nil {
				t.Fatal(l)
			}
			break
		}
	}
	if n := nc.NumSubscriptions(); n > before {
		t.Errorf("%d subscriptions more", n-before)
	}
}
