//go:build failpoints

package fault_test

import (
	"fmt"
	"testing"
	"time"

	"crivo/pkg/failpoint"
	"crivo/test/system"
)

// A crash at every point that has a name, under load: what was answered 2xx has one decision after the next start.
func TestE08CrashedAtEveryPointNothingIsLostOrDoubled(t *testing.T) {
	s := system.New(t, system.Options{NATS: true})
	l, r := witnessed(t, s)
	for _, point := range failpoint.Names() {
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
		s.Env = []string{fmt.Sprintf("CRIVO_FAILPOINT=%s=kill@5", point)}
		if err := s.Restart(t.Context()); err != nil {
			t.Fatalf("%s: %v", point, err)
		}
		resume := func() {}
		if point == "guard.written" {
			resume = pause(t, s)
		}
		stop := l.under(t, 8)
		select {
		case <-s.Exited():
		case <-time.After(time.Minute):
			t.Fatalf("%s was not passed", point)
		}
		s.Env = nil
		if err := s.Restart(t.Context()); err != nil {
			t.Fatalf("after %s: %v", point, err)
		}
		resume()
		l.await(t, 20)
		stop()
		l.repeat(t)
	}
	t.Logf("%d points, %s", len(failpoint.Names()), l.judge(t, r))
}
