package e2e_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"io"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"crivo/test/system"
)

func packed(t *testing.T, text string) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	if _, err := io.WriteString(z, text); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// stream hides how long a body is, so that it goes out in chunks.
type stream struct{ io.ReadSeeker }

func TestE13ABodyOverTheLimitIsRefusedUnread(t *testing.T) {
	t.Parallel()
	c := newTenant(t)
	const path, limit = "/v1/transactions", 64 << 10
	padded := func(size int) string {
		body := payment(newID())
		return body + strings.Repeat(" ", size-len(body))
	}
	over := padded(limit + 1)
	bomb := packed(t, strings.Repeat(" ", 32<<20)) // sent without its end: whoever unpacks it all finds it broken
	for name, a := range map[string]answer{
		"plain":          c.submit(t, over),
		"chunked":        c.send(t, http.MethodPost, path, stream{strings.NewReader(over)}, over),
		"gzip":           c.send(t, http.MethodPost, path, bytes.NewReader(packed(t, over)), over, "Content-Encoding", "gzip"),
		"gzip bomb":      c.send(t, http.MethodPost, path, bytes.NewReader(bomb[:len(bomb)-9]), over, "Content-Encoding", "gzip"),
		"another route":  c.post(t, "/v1/webhook-endpoints", over),
		"broken JSON":    c.submit(t, "{"+strings.Repeat(" ", limit)),
		"chunked, large": c.send(t, http.MethodPost, path, stream{strings.NewReader(strings.Repeat(" ", 1<<20))}, over),
	} {
		t.Run(name, func(t *testing.T) { a.problem(t, http.StatusRequestEntityTooLarge, "too-large") })
	}
	within := padded(limit)
	c.submit(t, within).accepted(t)
	within = padded(limit)
	c.send(t, http.MethodPost, path, stream{strings.NewReader(within)}, within).accepted(t)
	within = padded(limit)
	c.send(t, http.MethodPost, path, bytes.NewReader(packed(t, within)), within, "Content-Encoding", "GZIP").accepted(t)
	c.send(t, http.MethodPost, path, strings.NewReader("no gzip"), "", "Content-Encoding", "gzip").problem(t, http.StatusBadRequest, "malformed")
	cut := packed(t, payment(newID()))
	c.send(t, http.MethodPost, path, bytes.NewReader(cut[:len(cut)-9]), "", "Content-Encoding", "gzip").problem(t, http.StatusBadRequest, "malformed")
}

func TestE14AnotherMediaTypeIsRefused(t *testing.T) {
	t.Parallel()
	c := newTenant(t)
	for name, headers := range map[string][]string{
		"none":               {"Content-Type", ""},
		"text":               {"Content-Type", "text/plain"},
		"a form":             {"Content-Type", "application/x-www-form-urlencoded"},
		"nearly":             {"Content-Type", "application/jsonx"},
		"a malformed one":    {"Content-Type", "application/json;;"},
		"an unknown coding":  {"Content-Encoding", "br"},
		"more than one code": {"Content-Encoding", "gzip, gzip"},
	} {
		t.Run(name, func(t *testing.T) {
			c.submit(t, payment("x"), headers...).problem(t, http.StatusUnsupportedMediaType, "media-type")
		})
	}
	for _, fine := range []string{"application/json; charset=utf-8", "Application/JSON"} {
		c.submit(t, payment(newID()), "Content-Type", fine).accepted(t)
	}
}

func TestE15EveryErrorIsAProblem(t *testing.T) {
	t.Parallel()
	c := newTenant(t)
	var slow client
	var a answer
	await(t, "an answer in time", func() bool { // a 503 uses up the rate too
		slow = c.as(operator().newKey(t, c.tenant, `,"rate":0.01`, "submit", "read"))
		a = slow.sendOnce(t, http.MethodGet, "/v1/transactions/none", nil, "")
		return a.status != http.StatusServiceUnavailable
	})
	a.problem(t, http.StatusNotFound, "not-found")
	limited := slow.get(t, "/v1/transactions/none").problem(t, http.StatusTooManyRequests, "rate")
	if n, err := strconv.Atoi(limited.header.Get("Retry-After")); err != nil || n < 50 || n > 100 {
		t.Errorf("Retry-After %q at one request in 100 s", limited.header.Get("Retry-After"))
	}
	c.get(t, "/v1/nothing").problem(t, http.StatusNotFound, "not-found")
	c.get(t, "/").problem(t, http.StatusNotFound, "not-found")
	c.get(t, "/v1/transactions/").problem(t, http.StatusNotFound, "not-found")
	for path, allow := range map[string]string{"/v1/transactions": "POST", "/v1/transactions/x": "GET, HEAD", "/v1/keys": "GET, POST, HEAD", "/livez": "GET, HEAD",
		"/v1/webhook-endpoints/x": "GET, PATCH, DELETE, HEAD", "/v1/webhook-endpoints/x/rotate-secret": "POST", "/v1/transactions/a%2Fb": "GET, HEAD"} {
		for _, method := range []string{http.MethodPut, http.MethodOptions} {
			var a answer
			if strings.Contains(path, "%2F") {
				a, _, _ = c.exchange(method, path, nil) // the document's paths know no escapes
			} else {
				a = c.send(t, method, path, nil, "")
			}
			a.problem(t, http.StatusMethodNotAllowed, "method")
			if got := a.header.Get("Allow"); got != allow {
				t.Errorf("%s %s: Allow %q, want %q", method, path, got, allow)
			}
		}
	}
}

func TestHEADIsAnsweredWhereGETIs(t *testing.T) {
	t.Parallel()
	c := newTenant(t)
	for path, want := range map[string]int{"/livez": 200, "/readyz": 200, "/openapi.json": 200, "/v1/deliveries": 200, "/v1/transactions/none": 404, "/v1/transactions": 405} {
		var a answer
		var err error
		await(t, path, func() bool { // a slow machine is not ready for moments
			a, _, err = c.exchange(http.MethodHead, path, nil)
			return a.status != http.StatusServiceUnavailable
		})
		if err != nil || a.status != want || len(a.body) != 0 {
			t.Errorf("%s: %d %s %v", path, a.status, a.body, err)
		}
	}
}

// dial opens a bare connection and sends text.
func dial(t *testing.T, text string) (net.Conn, *bufio.Reader) {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(crivo.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(2 * within)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	return conn, bufio.NewReader(conn)
}

// answered reads one answer.
func answered(t *testing.T, from *bufio.Reader) answer {
	t.Helper()
	res, err := http.ReadResponse(from, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{status: res.StatusCode, header: res.Header, body: body}
}

func TestE15ABodyThatNeverComesIsA408(t *testing.T) {
	if testing.Short() {
		t.Skip("takes the ten seconds that a body may take")
	}
	t.Parallel()
	c := newTenant(t)
	var a answer
	await(t, "the body to be waited for", func() bool {
		_, from := dial(t, "POST /v1/transactions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "+c.key+"\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
		a = answered(t, from)
		return a.status != http.StatusServiceUnavailable
	})
	a.problem(t, http.StatusRequestTimeout, "timeout")
	header := http.Header{"Content-Type": {"application/json"}}
	if err := document.check(http.MethodPost, "/v1/transactions", "{", header, a); err != nil {
		t.Error(err)
	}
}

func TestE21AHeaderThatNeverEndsIsCut(t *testing.T) {
	if testing.Short() {
		t.Skip("takes the five seconds that a header may take")
	}
	t.Parallel()
	_, from := dial(t, "GET /livez HTTP/1.1\r\nHost: x\r\nX-Slow: ")
	if said, err := io.ReadAll(from); err != nil || len(said) != 0 {
		t.Errorf("said %q, %v", said, err)
	}
}

func TestE22AHostileRequestIDIsReplaced(t *testing.T) {
	t.Parallel()
	own := regexp.MustCompile(`^[A-Z2-7]{26}$`)
	for name, line := range map[string]string{
		"long":            "X-Request-Id: " + strings.Repeat("x", 65),
		"a tab":           "X-Request-Id: CANARY\tid",
		"a quote":         `X-Request-Id: CANARY","level":"fatal`,
		"a space":         "X-Request-Id: CANARY id",
		"a folded line":   "X-Request-Id: CANARY\r\n\tid",
		"not ASCII":       "X-Request-Id: CANARYé",
		"an escape":       "X-Request-Id: CANARY\x1b[31m",
		"none":            "X-Other: x",
		"an empty string": "X-Request-Id:",
	} {
		_, from := dial(t, "GET /v1/transactions/x HTTP/1.1\r\nHost: x\r\n"+line+"\r\n\r\n")
		res, err := http.ReadResponse(from, nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if res.StatusCode == http.StatusBadRequest {
			continue // no header at all: never taken in
		}
		if got := res.Header.Get("X-Request-Id"); !own.MatchString(got) {
			t.Errorf("%s: kept %q", name, got)
		}
	}
	if a := operator().get(t, "/v1/transactions/x", "X-Request-Id", "mine-1.2_3"); a.header.Get("X-Request-Id") != "mine-1.2_3" || a.text("request_id") != "mine-1.2_3" {
		t.Errorf("a good one became %v", a.header)
	}
	for line := range strings.Lines(said.String()) {
		if strings.HasSuffix(line, "\n") && !jsontext.Value(line).IsValid() || strings.Contains(line, "CANARY") {
			t.Errorf("log line %q", line)
		}
	}
}

// One place only, so that among many at once some are refused; each of them is taken later.
func TestE18BeyondTheLimitIsA503AndTheRepeatIsTaken(t *testing.T) {
	t.Parallel()
	s := system.New(t, system.Options{Args: []string{"--max-in-flight", "1"}})
	c := client{url: s.URL, key: s.Key, tenant: "default"}
	refusals := make(chan answer, 10_000)
	var posts sync.WaitGroup
	for range 16 {
		posts.Go(func() {
			body := payment(newID())
			for give := time.Now().Add(3 * time.Minute); ; time.Sleep(20 * time.Millisecond) { // sixteen, each in a few seconds at worst
				a := c.sendOnce(t, http.MethodPost, "/v1/transactions", strings.NewReader(body), body)
				if a.status == http.StatusAccepted || a.status == http.StatusOK {
					return
				}
				if a.status != http.StatusServiceUnavailable || time.Now().After(give) {
					t.Errorf("got %d %s", a.status, a.body)
					return
				}
				select {
				case refusals <- a:
				default:
				}
			}
		})
	}
	posts.Wait()
	if len(refusals) == 0 {
		t.Fatal("nothing was refused")
	}
	for range len(refusals) {
		a := <-refusals
		if slug := a.text("type"); slug == "urn:crivo:store" || slug == "urn:crivo:broker" {
			continue // this machine was too slow for the budgets
		}
		a.problem(t, http.StatusServiceUnavailable, "overload")
		if a.header.Get("Retry-After") != "1" {
			t.Errorf("Retry-After %q", a.header.Get("Retry-After"))
		}
	}
}
