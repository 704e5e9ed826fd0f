// Package system runs the real program for tests and measurements: a child process in a folder of its own, which can be
// drained, killed and started again on the same folder and addresses, and a receiver that judges its webhooks.
package system

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"crivo/services/cli"
)

// child marks the environment of a test binary that is to be crivo itself.
const child = "CRIVO_TEST_CHILD"

// Main lets a test binary be its own crivo: TestMain calls it. So the race detector sees the whole system, and nothing has to
// be built.
func Main(m *testing.M) {
	IfChild()
	status := m.Run()
	Clean()
	os.Exit(status)
}

// Command is crivo with args, run by this test binary: see Main.
func Command(ctx context.Context, args ...string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Env = append(os.Environ(), child+"=1")
	return cmd, nil
}

// IfChild is crivo or a NATS server, and does not return, in a process that was started to be it.
func IfChild() {
	ifServer()
	if os.Getenv(child) != "" {
		os.Exit(cli.Main(os.Args[1:]))
	}
}

// Options say how a system is started.
type Options struct {
	Binary     string    // empty: this test binary, see Main
	Data       string    // the folder of everything that is kept
	Durability string    // empty: interval, since tests kill processes and not machines
	NATS       bool      // listen for NATS clients
	Args       []string  // more flags of up
	Env        []string  // more of its environment
	Log        io.Writer // what the process logs; nil drops it
}

// System is one crivo up.
type System struct {
	Options
	URL  string // of the API
	Ops  string // of the operations server
	NATS string // empty when it does not listen
	Key  string // all roles of tenant default

	process *exec.Cmd
	exited  chan struct{}
}

// New starts a system in a temporary folder and stops it when the test ends; a failed test shows the last of what it said.
func New(t testing.TB, o Options) *System {
	t.Helper()
	if o.Data == "" {
		o.Data = filepath.Join(t.TempDir(), "data")
	}
	said := &Transcript{Most: 16 << 10}
	if o.Log == nil {
		o.Log = said
	}
	s, err := Start(t.Context(), o)
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Errorf("crivo up: %v", err)
		}
		if t.Failed() {
			t.Logf("crivo up said:\n%s", said)
		}
	})
	return s
}

// Start starts a system and returns once it is ready.
func Start(ctx context.Context, o Options) (*System, error) {
	if o.Log == nil {
		o.Log = io.Discard
	}
	addresses, err := Free(3)
	if err != nil {
		return nil, err
	}
	s := &System{Options: o, URL: "http://" + addresses[0], Ops: "http://" + addresses[1], Key: "test-" + rand.Text()}
	if o.NATS {
		s.NATS = "nats://" + addresses[2]
	}
	return s, s.Restart(ctx)
}

// Restart starts the process again, on the same folder and addresses, and returns once it is ready.
func (s *System) Restart(ctx context.Context) error {
	binary, env := s.Binary, os.Environ()
	if binary == "" {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		binary, env = self, append(env, child+"=1")
	}
	durability := s.Durability
	if durability == "" {
		durability = "interval"
	}
	nats := "none"
	if s.NATS != "" {
		nats = strings.TrimPrefix(s.NATS, "nats://")
	}
	s.process = exec.Command(binary, append([]string{"up", "--data", s.Data, "--http", strings.TrimPrefix(s.URL, "http://"),
		"--ops", strings.TrimPrefix(s.Ops, "http://"), "--nats", nats, "--durability", durability, "--webhook-allow", "127.0.0.0/8"}, s.Args...)...)
	s.process.Env = append(append(env, "CRIVO_API_KEY="+s.Key), s.Env...)
	s.process.Stderr = s.Log
	if err := s.process.Start(); err != nil {
		return err
	}
	s.exited = make(chan struct{})
	go func(p *exec.Cmd, exited chan struct{}) {
		_ = p.Wait()
		close(exited)
	}(s.process, s.exited)
	if err := s.ready(ctx); err != nil {
		_ = s.Kill()
		return err
	}
	return nil
}

func (s *System) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		select {
		case <-s.exited:
			return fmt.Errorf("crivo up ended: %s", s.process.ProcessState)
		case <-ctx.Done():
			return errors.New("crivo up is not ready after a minute")
		case <-time.After(5 * time.Millisecond):
		}
		if res, err := http.Get(s.Ops + "/readyz"); err == nil {
			_ = res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return nil
			}
		}
	}
}

// Exited is closed once the process has ended.
func (s *System) Exited() <-chan struct{} { return s.exited }

// PID is the running process's.
func (s *System) PID() int { return s.process.Process.Pid }

// Signal sends the process a signal and does not wait.
func (s *System) Signal(sig os.Signal) error { return s.process.Process.Signal(sig) }

// Status is the exit status of a process that has ended.
func (s *System) Status() int { return s.process.ProcessState.ExitCode() }

// Kill ends the process as a crash does, and waits for it.
func (s *System) Kill() error {
	err := s.process.Process.Kill()
	<-s.exited
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	return err
}

// Stop drains; the error says that the process did not end well. Stopping twice is fine.
func (s *System) Stop() error {
	if s.process.Process.Signal(syscall.SIGTERM) != nil {
		return nil // it ended before
	}
	select {
	case <-s.exited:
	case <-time.After(time.Minute):
		_ = s.Kill()
		return errors.New("did not end within a minute of SIGTERM")
	}
	if code := s.process.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("ended with status %d", code)
	}
	return nil
}

// Connect returns a NATS client with the operator's credential, closed when the test ends.
func (s *System) Connect(t testing.TB) (*nats.Conn, jetstream.JetStream) {
	t.Helper()
	nc, err := nats.Connect(s.NATS, nats.UserCredentials(filepath.Join(s.Data, "nats.creds")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return nc, js
}

// Answer is what the API said.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// Do sends one request with the system's key; a body is sent as JSON. Headers are given as name, value, name, value.
func (s *System) Do(ctx context.Context, method, path string, body []byte, headers ...string) (Answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, s.URL+path, bytes.NewReader(body))
	if err != nil {
		return Answer{}, err
	}
	req.Header.Set("Authorization", "Bearer "+s.Key)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := client.Do(req)
	if err != nil {
		return Answer{}, err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	return Answer{res.StatusCode, res.Header, data}, err
}

// Ask is Do with a client's patience: a 503 is asked again after the time that it names, twenty times at most. A repeat is safe.
func (s *System) Ask(ctx context.Context, method, path string, body []byte, headers ...string) (Answer, error) {
	for left := 20; ; left-- {
		a, err := s.Do(ctx, method, path, body, headers...)
		if err != nil || a.Status != http.StatusServiceUnavailable || left == 0 {
			return a, err
		}
		wait, err := strconv.Atoi(a.Header.Get("Retry-After"))
		if err != nil {
			return a, fmt.Errorf("503 without a Retry-After: %w", err)
		}
		select {
		case <-ctx.Done():
			return a, ctx.Err()
		case <-time.After(time.Duration(wait) * time.Second):
		}
	}
}

var client = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConns: 256, MaxIdleConnsPerHost: 256}}

// Free returns n addresses on loopback that nobody listens on, of ports that no outgoing connection is given (Linux gives
// those from 32768 on), so that they stay free while a process is away.
func Free(n int) ([]string, error) {
	const lowest, highest = 12000, 32000
	var out []string
	for tries := 0; len(out) < n; tries++ {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", lowest+mathrand.IntN(highest-lowest)))
		if err != nil {
			if tries > 100*n {
				return nil, err
			}
			continue
		}
		defer l.Close() // all at the end, so that they differ
		out = append(out, l.Addr().String())
	}
	return out, nil
}
