package app_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"crivo/pkg/app"
)

func TestHealthKeepsTheReasonOfEachPart(t *testing.T) {
	var h app.Health
	h.Set("store", "down")
	h.Set("broker", "connection lost")
	h.Set("store", "slow")
	h.Set("cache", "")
	if diff := cmp.Diff(map[string]string{"store": "slow", "broker": "connection lost"}, h.Reasons()); diff != "" {
		t.Error(diff)
	}
	h.Reasons()["store"] = "changed by a reader"
	h.Set("broker", "")
	if diff := cmp.Diff(map[string]string{"store": "slow"}, h.Reasons()); diff != "" {
		t.Error(diff)
	}
}

func TestWhatIsMissedAndNotNeededIsNoReason(t *testing.T) {
	var h app.Health
	h.Degrade("features", "away")
	h.Degrade("cache", "away")
	h.Degrade("cache", "")
	h.Set("features", "")
	if reasons := h.Reasons(); len(reasons) > 0 {
		t.Errorf("not ready: %v", reasons)
	}
	if diff := cmp.Diff(map[string]string{"features": "away"}, h.Degraded()); diff != "" {
		t.Error(diff)
	}
	h.Set("features", "being caught up")
	h.Degrade("features", "")
	if diff := cmp.Diff(map[string]string{"features": "being caught up"}, h.Reasons()); diff != "" || len(h.Degraded()) > 0 {
		t.Error(diff, h.Degraded())
	}
}

func get(t *testing.T, url string) (status int, header http.Header, body string) {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, res.Header, string(data)
}

func TestTheOperationsServer(t *testing.T) {
	var h app.Health
	reg := app.NewRegistry()
	counter := prometheus.NewCounter(prometheus.CounterOpts{Name: "crivo_test_total"})
	reg.MustRegister(counter)
	counter.Add(7)
	o, err := app.ServeOps("127.0.0.1:0", &h, reg)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	base := "http://" + o.Addr()
	for name, tc := range map[string]struct {
		path     string
		reason   string
		degraded string
		status   int
		kind     string
		body     string // part of it
	}{
		"alive":              {"/livez", "", "", 200, "text/plain", "ok\n"},
		"alive though not":   {"/livez", "down", "", 200, "text/plain", "ok\n"},
		"ready":              {"/readyz", "", "", 200, "text/plain", "ok\n"},
		"not ready":          {"/readyz", "down", "", 503, "application/json", `{"reasons":{"store":"down"},"status":"not ready"}` + "\n"},
		"ready without":      {"/readyz", "", "away", 200, "application/json", `{"degraded":{"features":"away"},"status":"ready"}` + "\n"},
		"not ready, without": {"/readyz", "down", "away", 503, "application/json", `{"degraded":{"features":"away"},"reasons":{"store":"down"},"status":"not ready"}` + "\n"},
		"metrics":            {"/metrics", "", "", 200, "text/plain", "crivo_test_total 7\n"},
		"the runtime's":      {"/metrics", "", "", 200, "text/plain", "go_goroutines "},
		"profiles":           {"/debug/pprof/", "", "", 200, "text/html", "goroutine"},
		"one profile":        {"/debug/pprof/goroutine?debug=1", "", "", 200, "text/plain", "goroutine profile"},
		"the command line":   {"/debug/pprof/cmdline", "", "", 200, "text/plain", "test"},
		"nothing elsewhere":  {"/", "", "", 404, "text/plain", "not found"},
		"nothing under them": {"/livez/x", "", "", 404, "text/plain", "not found"},
	} {
		t.Run(name, func(t *testing.T) {
			h.Set("store", tc.reason)
			h.Degrade("features", tc.degraded)
			status, header, body := get(t, base+tc.path)
			if status != tc.status || !strings.HasPrefix(header.Get("Content-Type"), tc.kind) || !strings.Contains(body, tc.body) {
				t.Errorf("%d %s %.200s", status, header.Get("Content-Type"), body)
			}
			if strings.HasSuffix(tc.path, "z") && header.Get("Cache-Control") != "no-store" {
				t.Error("may be cached")
			}
		})
	}
	if res, err := http.Post(base+"/livez", "text/plain", nil); err != nil || res.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("a POST: %v, %v", res, err)
	}
	if second, err := app.ServeOps(o.Addr(), &h, reg); err == nil {
		second.Close()
		t.Error("two servers on one address")
	}
	o.Close()
	if _, err := http.Get(base + "/livez"); err == nil {
		t.Error("answers after Close")
	}
}

// logged is what write leaves in the log at level.
func logged(t *testing.T, level string, now func() time.Time) (lines []string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "log")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	log, err := app.NewLog(f, level, now)
	if err != nil {
		t.Fatal(err)
	}
	log.Debug().Msg("debug")
	log.Info().Str("id", "a\nb\t\x1b").Msg("info")
	log.Warn().Err(errors.New("cause")).Msg("warn")
	log.Error().Msg("error")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
}

func TestTheLogIsOneJSONObjectALine(t *testing.T) {
	now := func() time.Time {
		return time.Date(2026, 11, 22, 20, 5, 11, 120_900_000, time.FixedZone("BRT", -3*3600))
	}
	var got []map[string]any
	for _, line := range logged(t, "debug", now) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		got = append(got, m)
	}
	const at = "2026-11-22T23:05:11.120Z"
	want := []map[string]any{
		{"level": "debug", "time": at, "message": "debug"},
		{"level": "info", "time": at, "message": "info", "id": "a\nb\t\x1b"},
		{"level": "warn", "time": at, "message": "warn", "error": "cause"},
		{"level": "error", "time": at, "message": "error"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestLevelsLeaveOutWhatIsBelowThem(t *testing.T) {
	for i, level := range app.Levels {
		if got := len(logged(t, level, time.Now)); got != len(app.Levels)-i {
			t.Errorf("%s: %d lines", level, got)
		}
	}
	for _, level := range []string{"", "loud", "trace!", "7x"} {
		if _, err := app.NewLog(os.Stderr, level, time.Now); err == nil || !strings.Contains(err.Error(), "debug info warn error") {
			t.Errorf("%q: %v", level, err)
		}
	}
}

func TestOnlyTheNamedLevelsAreLevels(t *testing.T) {
	for _, level := range []string{"trace", "fatal", "panic", "disabled", "3"} {
		if _, err := app.NewLog(os.Stderr, level, time.Now); err == nil {
			t.Errorf("%s is taken, but help does not name it", level)
		}
	}
}

func TestAFileIsNoTerminal(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	if app.Terminal(f) {
		t.Error("a file is a terminal")
	}
	f.Close()
	if app.Terminal(f) {
		t.Error("a closed file is a terminal")
	}
}

// usage is an error that knows its status.
type usage struct{}

func (usage) Error() string { return "usage" }
func (usage) ExitCode() int { return 2 }

func TestExitCode(t *testing.T) {
	for name, tc := range map[string]struct {
		err  error
		want int
	}{
		"nil":                         {nil, 0},
		"any error":                   {errors.New("x"), 1},
		"an error with a status":      {usage{}, 2},
		"one that is wrapped":         {fmt.Errorf("submit: %w", usage{}), 2},
		"one that is joined":          {errors.Join(errors.New("x"), usage{}), 2},
		"the end of a context is one": {context.Canceled, 1},
	} {
		if got := app.ExitCode(tc.err); got != tc.want {
			t.Errorf("%s: %d", name, got)
		}
	}
}

// child is what the process under test runs; the environment says which.
const child = "CRIVO_TEST_CHILD"

func TestMain(m *testing.M) {
	switch os.Getenv(child) {
	case "":
		os.Exit(m.Run())
	case "drains":
		os.Exit(app.Main(func(ctx context.Context) error {
			fmt.Println("runs")
			<-ctx.Done()
			fmt.Println("drained")
			return nil
		}))
	case "hangs":
		os.Exit(app.Main(func(ctx context.Context) error {
			fmt.Println("runs")
			<-ctx.Done()
			fmt.Println("drains")
			select {}
		}))
	case "fails":
		os.Exit(app.Main(func(context.Context) error { return fmt.Errorf("start: %w", usage{}) }))
	}
}

func TestMainEndsAsItsSignalsSay(t *testing.T) {
	for name, tc := range map[string]struct {
		child   string
		signals []os.Signal // one after each line of output
		status  int
		out     string
		errs    string
	}{
		"SIGTERM drains":             {"drains", []os.Signal{syscall.SIGTERM}, 0, "runs\ndrained\n", ""},
		"SIGINT drains":              {"drains", []os.Signal{syscall.SIGINT}, 0, "runs\ndrained\n", ""},
		"a second signal forces":     {"hangs", []os.Signal{syscall.SIGTERM, syscall.SIGINT}, 1, "runs\ndrains\n", "crivo: ended at once, without draining\n"},
		"an error is said, with its": {"fails", nil, 2, "", "crivo: start: usage\n"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			cmd := exec.CommandContext(ctx, os.Args[0])
			cmd.Env = append(os.Environ(), child+"="+tc.child)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			var errs, said bytes.Buffer
			cmd.Stderr = &errs
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			line := make([]byte, 64)
			for _, s := range tc.signals {
				n, err := out.Read(line)
				if err != nil {
					t.Fatal(err)
				}
				said.Write(line[:n])
				if err := cmd.Process.Signal(s); err != nil {
					t.Fatal(err)
				}
			}
			_, _ = io.Copy(&said, out)
			_ = cmd.Wait()
			if got := cmd.ProcessState.ExitCode(); got != tc.status {
				t.Errorf("status %d, want %d", got, tc.status)
			}
			if said.String() != tc.out || errs.String() != tc.errs {
				t.Errorf("said %q and %q", said.String(), errs.String())
			}
		})
	}
}

// A receiver that sends more than its answer has it quoted by net/http, its request's credential included.
func TestOfTheStandardLogNothingQuotedIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	defer stdlog.SetOutput(os.Stderr)
	if _, err := app.NewLog(f, "info", time.Now); err != nil {
		t.Fatal(err)
	}
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = conn.Write([]byte("HTTP/1.1 204 No Content\r\n\r\nyou sent " + r.Header.Get("Authorization")))
	}))
	defer receiver.Close()
	var data []byte
	for give := time.Now().Add(10 * time.Second); len(data) == 0 && time.Now().Before(give); data, _ = os.ReadFile(path) {
		req, err := http.NewRequest(http.MethodPost, receiver.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer hush")
		if res, err := receiver.Client().Do(req); err == nil {
			_ = res.Body.Close()
		}
	}
	if !strings.Contains(string(data), `"said":"Unsolicited response`) || strings.Contains(string(data), "hush") {
		t.Errorf("%s", data)
	}
}
