package fault_test

import (
	"context"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"crivo/pkg/txn"
	"crivo/streams"
	"crivo/test/system"
)

// pause has the broker deliver nothing to score until the returned function is called: the pipeline stands still.
func pause(t *testing.T, s *system.System) (resume func()) {
	t.Helper()
	_, js := s.Connect(t)
	if _, err := js.PauseConsumer(t.Context(), streams.Score.Stream, streams.Score.Durable, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		_, js := s.Connect(t)
		for give := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			_, err := js.ResumeConsumer(ctx, streams.Score.Stream, streams.Score.Durable)
			cancel()
			if err == nil {
				return
			}
			if time.Now().After(give) {
				t.Fatal(err)
			}
		}
	}
}

// The pipeline stands still; what is accepted is decided all the same, says so, and stays as it was once the pipeline goes on. That
// it is in time is shown where time is exact, in services/edge: here a busy machine may starve all of it.
func TestTheGuardDecidesWhatThePipelineDoesNot(t *testing.T) {
	s := system.New(t, system.Options{NATS: true})
	l, r := witnessed(t, s)
	resume := pause(t, s)
	var all sync.WaitGroup
	for range 60 {
		row := l.next()
		all.Go(func() {
			a, err := s.Do(t.Context(), http.MethodPost, "/v1/transactions", row.Body, "Prefer", "wait=10")
			if err != nil {
				t.Error(err)
				return
			}
			if a.Status == http.StatusServiceUnavailable {
				return // the pipeline's stand was noticed already
			}
			l.settle(row.ID, a)
			var d txn.Decision
			if err := json.Unmarshal(a.Body, &d); err != nil || d.Status != "decided" || !slices.Contains(d.Degraded, "guard: pipeline late") {
				t.Errorf("%d %s %v", a.Status, a.Body, err)
			}
		})
	}
	all.Wait()
	resume()
	l.repeat(t)
	l.judge(t, r)
}
