//go:build failpoints

package fault_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"crivo/pkg/txn"
	"crivo/test/system"
)

// The process reads a clock that is wrong by ten minutes, the broker in it the machine's: times are the broker's.
func TestF09AWrongClockMakesNobodyLateOrEarly(t *testing.T) {
	for name, off := range map[string]string{"ahead": "10m", "behind": "-10m"} {
		t.Run(name, func(t *testing.T) {
			s := system.New(t, system.Options{Env: []string{"CRIVO_CLOCK_OFFSET=" + off}})
			l := newLedger(s, "default")
			for range 5 {
				row := l.next()
				before := time.Now()
				a, err := s.Ask(t.Context(), http.MethodPost, "/v1/transactions", row.Body, "Prefer", "wait=10")
				if err != nil {
					t.Fatal(err)
				}
				var d txn.Decision
				if err := json.Unmarshal(a.Body, &d); err != nil || d.Status != "decided" || d.Late != (d.DecidedAt.Sub(d.AcceptedAt.Time) > 2*time.Second) {
					t.Fatalf("%d %s %v", a.Status, a.Body, err)
				}
				if d.AcceptedAt.Sub(before).Abs() > time.Minute || d.DecidedAt.Sub(d.AcceptedAt.Time) > 10*time.Second {
					t.Errorf("sent at %s, accepted at %s, decided at %s", before, d.AcceptedAt, d.DecidedAt)
				}
			}
		})
	}
}
