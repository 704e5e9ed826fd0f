package fault_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"crivo/test/system"
)

// Told to end under load, the process says first that it is not ready, answers what is under way and ends well; told twice, it
// ends at once. Either way nothing that was accepted is lost.
func TestE19ToldToEndItDrainsAndToldTwiceItEndsAtOnce(t *testing.T) {
	s := system.New(t, system.Options{NATS: true})
	l, r := witnessed(t, s)
	for _, twice := range []bool{false, true} {
		stop := l.under(t, 8)
		l.await(t, 50)
		finish := l.half(t, s)
		if err := s.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		for give := time.Now().Add(time.Minute); !notReady(s); time.Sleep(time.Millisecond) {
			if time.Now().After(give) {
				t.Fatal("told to end, it goes on being ready")
			}
		}
		select {
		case <-s.Exited():
			t.Fatal("it ended with a request under way")
		default:
		}
		want := 0
		if twice {
			want = 1
			if err := s.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
		} else if line := finish(); !strings.Contains(line, " 202 ") && !strings.Contains(line, " 503 ") { // a slow store's 503 is an answer too
			t.Errorf("under way when told to end: %q", line)
		}
		select {
		case <-s.Exited():
		case <-time.After(time.Minute):
			t.Fatal("it does not end")
		}
		if got := s.Status(); got != want {
			t.Errorf("told twice %v: ended with status %d", twice, got)
		}
		if err := s.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.await(t, 20)
		stop()
		l.repeat(t)
	}
	t.Log(l.judge(t, r))
}

// notReady tells whether the process says so where it is asked to the end, at its operations address.
func notReady(s *system.System) bool {
	res, err := http.Get(s.Ops + "/readyz")
	if err != nil {
		return false
	}
	_ = res.Body.Close()
	return res.StatusCode == http.StatusServiceUnavailable
}

// half begins a submission and returns once it is admitted; finish sends the rest and returns the answer's first line.
func (l *ledger) half(t *testing.T, s *system.System) (finish func() string) {
	t.Helper()
	row := l.next()
	for give := time.Now().Add(time.Minute); time.Now().Before(give); time.Sleep(20 * time.Millisecond) {
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.URL, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		from := bufio.NewReader(conn)
		fmt.Fprintf(conn, "POST /v1/transactions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n",
			s.Key, len(row.Body))
		// The server asks for the body once the handler reads it.
		if line, _ := from.ReadString('\n'); !strings.Contains(line, " 100 ") {
			continue
		}
		return func() string {
			_, _ = conn.Write(row.Body)
			_, _ = from.ReadString('\n')
			line, err := from.ReadString('\n')
			if err != nil && err != io.EOF {
				t.Error(err)
			}
			if strings.Contains(line, " 202 ") || strings.Contains(line, " 200 ") {
				l.settle(row.ID, system.Answer{})
			}
			return line
		}
	}
	t.Fatal("no submission is admitted")
	return nil
}
