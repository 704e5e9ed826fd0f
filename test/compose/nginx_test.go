package compose_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"crivo/test/system"
)

// edge is a stand-in for one: it notes what it is asked and answers as it is told.
type edge struct {
	*httptest.Server
	mu     sync.Mutex
	asked  []string
	answer http.HandlerFunc // nil: 202
}

func newEdge(t *testing.T) *edge {
	t.Helper()
	e := &edge{}
	e.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		e.mu.Lock()
		e.asked = append(e.asked, fmt.Sprintf("%s %s %d %s", r.Method, r.URL, len(body), r.Header.Get("X-Request-Id")))
		answer := e.answer
		e.mu.Unlock()
		if answer == nil {
			w.WriteHeader(http.StatusAccepted)
			return
		}
		answer(w, r)
	}))
	t.Cleanup(e.Close)
	return e
}

func (e *edge) set(answer http.HandlerFunc) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.asked, e.answer = nil, answer
}

func (e *edge) heard() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.asked
}

func (e *edge) address() string { return e.Listener.Addr().String() }

// refuses is an edge above its capacity.
func refuses(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Retry-After", "1")
	w.WriteHeader(http.StatusServiceUnavailable)
}

// dies is an edge that ends in the middle of an answer.
func dies(w http.ResponseWriter, _ *http.Request) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err == nil {
		conn.Close()
	}
}

// nginx runs the real one with the configuration of compose.yaml, other addresses put in, and returns where it is and what it says.
func nginx(t *testing.T, edges ...string) (address string, log *system.Transcript) {
	t.Helper()
	program, err := exec.LookPath("nginx")
	if err != nil {
		t.Skip("no nginx on this machine")
	}
	dir, port := t.TempDir(), freePorts(t, 1)[0]
	address = fmt.Sprintf("127.0.0.1:%d", port)
	conf := string(must(os.ReadFile(filepath.Join(root, "services/deploy/nginx.conf"))))
	conf = strings.Replace(conf, "listen 8080;", "listen "+address+";", 1)
	if os.Getuid() == 0 {
		conf = "user root;\n" + conf // else its workers are nobody, whose the test's folder is not
	}
	upstream := "upstream edges {\n  keepalive 64;\n  zone edges 64k;\n"
	for _, e := range edges {
		upstream += "  server " + e + " max_fails=0;\n"
	}
	for name, text := range map[string]string{"nginx.conf": conf, "nginx-edges.conf": upstream + "}\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := load(t, sizes["cluster"], nil).Services["nginx"]
	args := strings.Fields(strings.NewReplacer("/etc/nginx/", dir+"/", "/tmp", dir).Replace(strings.Join(s.Command, " ")))
	said := &system.Transcript{}
	ctx, stop := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdout, cmd.Stderr = said, said
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stop()
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(said)
		}
	})
	wait(t, "nginx listens", func() bool {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	return address, said
}

// ask sends one request and returns the status and the body.
func ask(t *testing.T, method, url, body string, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	return res, string(must(io.ReadAll(res.Body)))
}

// TestNginxSendsATransactionToTheOtherEdge shows what is repeated and what is not: a transaction always, for its id makes that
// safe; another POST only when no edge has seen it.
func TestNginxSendsATransactionToTheOtherEdge(t *testing.T) {
	bad, good := newEdge(t), newEdge(t)
	address, _ := nginx(t, bad.address(), good.address())
	for name, tc := range map[string]struct {
		method, path string
		answer       http.HandlerFunc
		repeated     bool
	}{
		"a transaction, overload":             {"POST", "/v1/transactions", refuses, true},
		"a transaction, the edge dies":        {"POST", "/v1/transactions", dies, true},
		"a batch, the edge dies":              {"POST", "/v1/transactions/batch", dies, true},
		"a read, the edge dies":               {"GET", "/v1/transactions/x", dies, true},
		"a read, overload":                    {"GET", "/v1/transactions/x", refuses, true},
		"a new key, the edge dies":            {"POST", "/v1/keys", dies, false},
		"a new key, overload":                 {"POST", "/v1/keys", refuses, false},
		"a disposition, the edge dies":        {"POST", "/v1/transactions/x/disposition", dies, false},
		"a changed endpoint, the edge dies":   {"PATCH", "/v1/webhook-endpoints/x", dies, false},
		"a path that only looks like the one": {"POST", "/v1/transactions/batch/x", dies, false},
	} {
		t.Run(name, func(t *testing.T) {
			bad.set(tc.answer)
			good.set(nil)
			for len(bad.heard()) == 0 { // they take turns
				res, _ := ask(t, tc.method, "http://"+address+tc.path, "body")
				want := http.StatusAccepted
				if len(bad.heard()) > 0 && !tc.repeated {
					want = http.StatusServiceUnavailable
				}
				if res.StatusCode != want {
					t.Errorf("%s, want %d", res.Status, want)
				}
				if want == http.StatusServiceUnavailable && res.Header.Get("Retry-After") == "" {
					t.Error("no Retry-After")
				}
			}
			last := good.heard()
			if tc.repeated && (len(last) == 0 || last[len(last)-1] != bad.heard()[0]) {
				t.Errorf("sent %q, then %q", bad.heard(), last)
			}
		})
	}
}

// TestNginxGoesOnWithOneEdge finds an edge that is gone at once, again and again.
func TestNginxGoesOnWithOneEdge(t *testing.T) {
	gone, good := newEdge(t), newEdge(t)
	gone.Close()
	address, _ := nginx(t, gone.address(), good.address())
	for range 20 {
		for _, path := range []string{"/v1/transactions", "/v1/keys"} {
			if res, _ := ask(t, "POST", "http://"+address+path, "body"); res.StatusCode != http.StatusAccepted {
				t.Fatalf("%s: %s", path, res.Status)
			}
		}
	}
	if n := len(good.heard()); n != 40 {
		t.Errorf("%d of 40 arrived", n)
	}
}

// TestNginxSpeaksAsTheEdgeDoes is about what no edge has answered.
func TestNginxSpeaksAsTheEdgeDoes(t *testing.T) {
	gone, good := newEdge(t), newEdge(t)
	gone.Close()
	away, _ := nginx(t, gone.address())
	there, _ := nginx(t, good.address())
	for name, tc := range map[string]struct {
		address, body string
		status        int
		slug, retry   string
	}{
		"no edge":   {away, "x", 503, "urn:crivo:away", "1"},
		"too large": {there, strings.Repeat("x", 6<<20), 413, "urn:crivo:too-large", ""},
	} {
		t.Run(name, func(t *testing.T) {
			res, body := ask(t, "POST", "http://"+tc.address+"/v1/transactions", tc.body, "X-Request-Id", "r-1")
			var problem struct {
				Type      string `json:"type"`
				Title     string `json:"title"`
				Status    int    `json:"status"`
				Detail    string `json:"detail"`
				RequestID string `json:"request_id"`
			}
			if err := json.Unmarshal([]byte(body), &problem); err != nil {
				t.Fatalf("%v in %q", err, body)
			}
			if res.StatusCode != tc.status || res.Header.Get("Content-Type") != "application/problem+json" || res.Header.Get("Retry-After") != tc.retry {
				t.Errorf("%s, %v", res.Status, res.Header)
			}
			if problem.Type != tc.slug || problem.Title != http.StatusText(tc.status) || problem.Status != tc.status || problem.Detail == "" || problem.RequestID != "r-1" {
				t.Errorf("%+v", problem)
			}
		})
	}
	if len(good.heard()) > 0 {
		t.Error("a body that is too large reached an edge")
	}
}

func TestNginxPassesOnWholeBatchesAndOneRequestID(t *testing.T) {
	e := newEdge(t)
	address, log := nginx(t, e.address())
	for given, passed := range map[string]string{"abc-1.2_3": "abc-1.2_3", `"}{"`: "", strings.Repeat("x", 65): "", "": ""} {
		e.set(nil)
		ask(t, "POST", "http://"+address+"/v1/transactions/batch?secret=1", strings.Repeat("x", 4<<20), "X-Request-Id", given)
		heard := e.heard()
		if len(heard) != 1 || !strings.HasPrefix(heard[0], "POST /v1/transactions/batch?secret=1 4194304 ") {
			t.Fatalf("%q", heard)
		}
		id := heard[0][strings.LastIndex(heard[0], " ")+1:]
		if passed != "" && id != passed || passed == "" && !regexp.MustCompile(`^[0-9a-f]{32}$`).MatchString(id) {
			t.Errorf("%q became %q", given, id)
		}
		wait(t, "a line of the log", func() bool { return strings.Contains(log.String(), `"request_id":"`+id+`"`) })
	}
	if text := log.String(); strings.Contains(text, "secret") || !strings.Contains(text, `"status":202`) {
		t.Errorf("log: %s", text)
	}
}

// TestNginxPassesEventsOnAsTheyCome would hang if they were kept back.
func TestNginxPassesEventsOnAsTheyCome(t *testing.T) {
	e := newEdge(t)
	more := make(chan struct{})
	e.set(func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack() // a plain stream: chunks would be passed on anyway
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
		for i := range 2 {
			fmt.Fprintf(conn, "id: %d\n\n", i)
			<-more
		}
	})
	address, _ := nginx(t, e.address())
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	req := must(http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/v1/events", nil))
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	for i := range 2 {
		event := make([]byte, len("id: 0\n\n"))
		if _, err := io.ReadFull(res.Body, event); err != nil || string(event) != fmt.Sprintf("id: %d\n\n", i) {
			t.Fatalf("%q, %v", event, err)
		}
		more <- struct{}{}
	}
}

// A client may ask to wait 10 s for a decision, and no address of nginx may be shorter-tempered; these are its words.
func TestNginxWaitsLongerThanAClientMayAsk(t *testing.T) {
	t.Parallel()
	conf := string(must(os.ReadFile(filepath.Join(root, "services/deploy/nginx.conf"))))
	read := regexp.MustCompile(`proxy_read_timeout (\w+);`).FindAllStringSubmatch(conf, -1)
	next := regexp.MustCompile(`proxy_next_upstream_timeout (\w+);`).FindStringSubmatch(conf)
	for _, found := range append(read, next) {
		if d, err := time.ParseDuration(found[1]); err != nil || d <= 10*time.Second {
			t.Errorf("%s", found[0])
		}
	}
	if len(read) != 2 {
		t.Errorf("%v", read)
	}
}
