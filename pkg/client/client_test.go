package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"

	"crivo/pkg/client"
	"crivo/pkg/txn"
)

// request is what a fake edge was asked, and when, from its start on.
type request struct {
	at                 time.Duration
	what, body, prefer string
	last               string
}

// fake is an edge without sockets: each answer serves one request, the last one all that follow; nil breaks the connection.
type fake struct {
	start    time.Time
	answers  []http.HandlerFunc
	requests []request
}

// edge returns a client of a fake edge; it is for use in a bubble.
func edge(answers ...http.HandlerFunc) (*client.Client, *fake) {
	f := &fake{start: time.Now(), answers: answers}
	return &client.Client{URL: "http://edge.example/", Key: "k", HTTP: &http.Client{Transport: f}}, f
}

// RoundTrip answers a request.
func (f *fake) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil || r.Header.Get("Authorization") != "Bearer k" {
		return nil, fmt.Errorf("key %s, %w", r.Header.Get("Authorization"), err)
	}
	f.requests = append(f.requests, request{time.Since(f.start), r.Method + " " + r.URL.Path, string(body), r.Header.Get("Prefer"), r.Header.Get("Last-Event-ID")})
	serve := f.answers[min(len(f.requests), len(f.answers))-1]
	if serve == nil {
		return nil, io.ErrUnexpectedEOF
	}
	rec := &recorder{ResponseRecorder: httptest.NewRecorder()}
	serve(rec, r)
	res := rec.Result()
	if rec.body != nil {
		res.Body = rec.body
	}
	return res, r.Context().Err()
}

// recorder may be given a body that is read while it is written.
type recorder struct {
	*httptest.ResponseRecorder
	body io.ReadCloser
}

// says answers with a status and a body; more are headers.
func says(status int, body string, headers ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i+1 < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

func problem(status int, slug string, headers ...string) http.HandlerFunc {
	return says(status, fmt.Sprintf(`{"type":"urn:crivo:%s","title":"T","status":%d,"detail":"D","request_id":"R"}`, slug, status), headers...)
}

// hangs answers nothing until it is left.
func hangs(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// breaks off in the middle of its body.
func breaks(w http.ResponseWriter, _ *http.Request) {
	w.WriteHeader(http.StatusAccepted)
	w.(*recorder).body = io.NopCloser(io.MultiReader(strings.NewReader(`{"id":`), broken{}))
}

type broken struct{}

// Read fails.
func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

const (
	processing = `{"id":"ord-1","status":"processing"}`
	decided    = `{"id":"ord-1","status":"decided","decision":"review","score":45,"risk_band":"medium",` +
		`"reasons":[{"code":"NIGHT_LARGE","text":"…","rule":"night-large","points":45,"inputs":{"hour":23}}],"checks":[],"degraded":[],` +
		`"rule_set":{"name":"default","version":1,"digest":"sha256:4f"},"engine":"1.0.0","late":false,` +
		`"accepted_at":"2026-11-22T23:05:11.640Z","decided_at":"2026-11-22T23:05:11.649Z","latency_ms":9}`
)

var accepted = says(http.StatusAccepted, processing)

func payment(id string) txn.Transaction {
	return txn.Transaction{ID: id, Type: "pix", Amount: 13725, Currency: "BRL", CreatedAt: txn.At(time.Unix(1795388711, 0)), Payer: txn.Party{CustomerID: txn.Secretive("c-77")}}
}

// in runs a test in simulated time, with an end.
func in(t *testing.T, within time.Duration, test func(t *testing.T, ctx context.Context)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := t.Context(), context.CancelFunc(func() {})
		if within > 0 {
			ctx, cancel = context.WithTimeout(ctx, within)
		}
		defer cancel()
		test(t, ctx)
	})
}

func TestWhatIsRepeatedAndWhatIsNot(t *testing.T) {
	for name, tc := range map[string]struct {
		first http.HandlerFunc
		again bool
		kind  error // where it is not repeated
	}{
		"no room":             {problem(503, "overload", "Retry-After", "1"), true, nil},
		"rate used up":        {problem(429, "rate", "Retry-After", "1"), true, nil},
		"body too slow":       {problem(408, "timeout"), true, nil},
		"failed inside":       {problem(500, "internal"), true, nil},
		"a proxy's own":       {says(502, "<html>bad gateway</html>"), true, nil},
		"connection lost":     {nil, true, nil},
		"broken off":          {breaks, true, nil},
		"no answer":           {hangs, true, nil},
		"another body":        {problem(409, "conflict"), false, client.ErrConflict},
		"fields at fault":     {problem(422, "invalid"), false, client.ErrRefused},
		"broken":              {problem(400, "malformed"), false, client.ErrRefused},
		"too large":           {problem(413, "too-large"), false, client.ErrRefused},
		"no key":              {problem(401, "unauthorized"), false, client.ErrKey},
		"no role":             {problem(403, "forbidden"), false, client.ErrKey},
		"not there":           {problem(404, "not-found"), false, client.ErrNotFound},
		"elsewhere":           {says(307, "", "Location", "http://edge.example/v2"), false, client.ErrRefused},
		"no problem document": {says(409, "<html>"), false, client.ErrConflict},
	} {
		t.Run(name, func(t *testing.T) {
			in(t, time.Minute, func(t *testing.T, ctx context.Context) {
				c, f := edge(tc.first, accepted)
				s, err := c.Submit(ctx, payment("ord-1"))
				if !tc.again {
					if len(f.requests) != 1 || !errors.Is(err, tc.kind) {
						t.Errorf("%d requests, %v", len(f.requests), err)
					}
					return
				}
				if err != nil || s.ID != "ord-1" || len(f.requests) != 2 || f.requests[0].body != f.requests[1].body || f.requests[0].body == "" {
					t.Errorf("%+v, %v after %+v", s, err, f.requests)
				}
			})
		})
	}
}

func TestARepeatWaitsForWhatTheAnswerAskedFor(t *testing.T) {
	for name, header := range map[string]string{"seconds": "7", "a date": "Sat, 01 Jan 2000 00:00:07 GMT"} { // a bubble begins with 2000
		t.Run(name, func(t *testing.T) {
			in(t, time.Minute, func(t *testing.T, ctx context.Context) {
				c, f := edge(problem(503, "no-room", "Retry-After", header), accepted)
				if _, err := c.Submit(ctx, payment("ord-1")); err != nil {
					t.Fatal(err)
				}
				if at := f.requests[1].at; at < 7*time.Second || at > 8*time.Second {
					t.Errorf("came again after %v", at)
				}
			})
		})
	}
}

func TestRepeatsComeEverLater(t *testing.T) {
	in(t, 40*time.Second, func(t *testing.T, ctx context.Context) {
		c, f := edge(problem(503, "broker"))
		_, err := c.Submit(ctx, payment("ord-1"))
		if !errors.Is(err, client.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		// 100 ms doubled up to 5 s, each pause at least half of that: twelve pauses at least, twenty at most, in 40 s.
		if n := len(f.requests); n < 13 || n > 21 {
			t.Errorf("%d requests", n)
		}
		for i := 2; i < len(f.requests); i++ {
			if before, now := f.requests[i-1].at-f.requests[i-2].at, f.requests[i].at-f.requests[i-1].at; now > 5*time.Second || i < 6 && now < before {
				t.Errorf("a pause of %v after one of %v", now, before)
			}
		}
	})
}

func TestNothingIsWaitedForThatCannotCome(t *testing.T) {
	in(t, 5*time.Second, func(t *testing.T, ctx context.Context) {
		c, f := edge(problem(503, "no-room", "Retry-After", "6"))
		_, err := c.Submit(ctx, payment("ord-1"))
		var e *client.Error
		if !errors.Is(err, client.ErrUnavailable) || !errors.As(err, &e) || e.RetryAfter != 6*time.Second || len(f.requests) != 1 || time.Since(f.start) != 0 {
			t.Errorf("%v after %v and %d requests", err, time.Since(f.start), len(f.requests))
		}
	})
}

func TestWithoutADeadlineAMinuteIsTheEnd(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{"refused": problem(503, "store"), "hanging": hangs} {
		t.Run(name, func(t *testing.T) {
			in(t, 0, func(t *testing.T, ctx context.Context) {
				c, f := edge(answer)
				_, err := c.Get(ctx, "ord-1")
				if took := time.Since(f.start); !errors.Is(err, client.ErrUnavailable) || took < 50*time.Second || took > time.Minute {
					t.Errorf("%v after %v", err, took)
				}
			})
		})
	}
}

func TestWhoHasEnoughIsNotToldOfTheServer(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{"hanging": hangs, "resting": problem(503, "store", "Retry-After", "30")} {
		t.Run(name, func(t *testing.T) {
			in(t, 0, func(t *testing.T, ctx context.Context) {
				ctx, cancel := context.WithCancel(ctx)
				time.AfterFunc(time.Second, cancel)
				c, f := edge(answer)
				_, err := c.Get(ctx, "ord-1")
				if !errors.Is(err, context.Canceled) || len(f.requests) != 1 || time.Since(f.start) != time.Second {
					t.Errorf("%v after %v and %d requests", err, time.Since(f.start), len(f.requests))
				}
			})
		})
	}
}

func TestAnAddressThatIsNoneIsSaidAtOnce(t *testing.T) {
	in(t, 0, func(t *testing.T, ctx context.Context) {
		for _, url := range []string{"", "edge.example", "ftp://edge.example", "http://", "://"} {
			c, f := edge(accepted)
			c.URL = url
			if _, err := c.Get(ctx, "ord-1"); err == nil || errors.Is(err, client.ErrUnavailable) || len(f.requests) != 0 || time.Since(f.start) != 0 {
				t.Errorf("%q: %v", url, err)
			}
		}
	})
}

func TestAnErrorSaysWhatIsWrong(t *testing.T) {
	in(t, 0, func(t *testing.T, ctx context.Context) {
		c, _ := edge(says(422, `{"type":"urn:crivo:invalid","title":"Unprocessable Entity","status":422,"detail":"fields are at fault","request_id":"R7",`+
			`"errors":[{"pointer":"/amount","code":"range","detail":"must be …"},{"pointer":"/payer","code":"required","detail":"is required"}]}`))
		_, err := c.Submit(ctx, txn.Transaction{})
		var e *client.Error
		var faults txn.Faults
		if !errors.As(err, &e) || !errors.As(err, &faults) || e.Type != "urn:crivo:invalid" || len(faults) != 2 || faults[0].Pointer != "/amount" {
			t.Fatalf("%#v", err)
		}
		if want := "422 fields are at fault: /amount range, /payer required: request R7"; err.Error() != want {
			t.Errorf("%q, want %q", err, want)
		}
	})
}

func TestSubmitTellsWhereItStands(t *testing.T) {
	in(t, 0, func(t *testing.T, ctx context.Context) {
		c, f := edge(accepted, says(200, decided, "Idempotent-Replayed", "true"), says(200, `{"id":"ord-1","status":"other"}`))
		first, err := c.Submit(ctx, payment("ord-1"))
		if err != nil || first.Decision != nil || first.Replayed {
			t.Errorf("%+v, %v", first, err)
		}
		again, err := c.Submit(ctx, payment("ord-1"))
		if err != nil || !again.Replayed || again.Decision.Decision != txn.Review || again.Decision.Reasons[0].Points != 45 || again.AcceptedAt.UnixMilli() != 1795388711640 {
			t.Errorf("%+v, %v", again, err)
		}
		if want := `{"id":"ord-1","type":"pix","amount":13725,"currency":"BRL","created_at":"2026-11-22T23:05:11.000Z","payer":{"customer_id":"c-77"}}`; f.requests[0].body != want {
			t.Errorf("sent %s", f.requests[0].body)
		}
		if _, err := c.Submit(ctx, payment("ord-1")); err == nil || len(f.requests) != 3 {
			t.Errorf("a state that is none: %v, %d requests", err, len(f.requests))
		}
	})
}

func TestSubmitAndWaitGoesOnWaiting(t *testing.T) {
	in(t, 12500*time.Millisecond, func(t *testing.T, ctx context.Context) {
		slow := func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(10 * time.Second)
			says(202, processing)(w, r)
		}
		c, f := edge(slow, says(200, processing), nil, says(200, decided))
		d, err := c.SubmitAndWait(ctx, payment("ord-1"))
		if err != nil || d.Decision != txn.Review {
			t.Fatalf("%+v, %v", d, err)
		}
		var asked []string
		for _, r := range f.requests {
			asked = append(asked, r.what+" "+r.prefer)
		}
		want := []string{"POST /v1/transactions wait=10", "GET /v1/transactions/ord-1 wait=3", "GET /v1/transactions/ord-1 wait=3", "GET /v1/transactions/ord-1 wait=3"}
		if diff := cmp.Diff(want, asked); diff != "" {
			t.Error(diff)
		}
	})
}

func TestWaitEndsWithTheContext(t *testing.T) {
	in(t, 5*time.Minute, func(t *testing.T, ctx context.Context) {
		c, f := edge(func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-r.Context().Done():
			case <-time.After(10 * time.Second):
			}
			says(200, processing)(w, r)
		})
		if _, err := c.Wait(ctx, "ord-1"); !errors.Is(err, context.DeadlineExceeded) || len(f.requests) < 25 || len(f.requests) > 31 {
			t.Errorf("%v after %d requests", err, len(f.requests))
		}
	})
}

func TestBatchTellsEachOutcomeAndRepeatsWhatFoundNoRoom(t *testing.T) {
	in(t, 0, func(t *testing.T, ctx context.Context) {
		c, f := edge(
			says(207, `{"items":[{"index":0,"id":"a","status":202,"location":"/v1/transactions/a"},{"index":1,"id":"b","status":503,"detail":"no room","retry_after":7},`+
				`{"index":2,"id":"c","status":422,"errors":[{"pointer":"/amount","code":"range","detail":"…"}]},{"index":3,"status":429,"retry_after":1}]}`),
			problem(503, "overload"),
			says(207, `{"items":[{"index":0,"id":"b","status":409},{"index":1,"id":"d","status":200,"idempotent_replayed":true,"body":`+decided+`}]}`))
		out, err := c.Batch(ctx, []txn.Transaction{payment("a"), payment("b"), payment("c"), payment("d")})
		if err != nil || len(f.requests) != 3 || f.requests[1].at < 7*time.Second {
			t.Fatalf("%v after %+v", err, f.requests)
		}
		for i, want := range []struct {
			id  string
			err error
		}{{"a", nil}, {"b", client.ErrConflict}, {"c", client.ErrRefused}, {"d", nil}} {
			if o := out[i]; o.ID != want.id || !errors.Is(o.Err, want.err) || o.Replayed != (i == 3) || (o.Decision != nil) != (i == 3) {
				t.Errorf("%+v", o)
			}
		}
		var faults txn.Faults
		if !errors.As(out[2].Err, &faults) || faults[0].Pointer != "/amount" {
			t.Errorf("faults %v", faults)
		}
		for i, want := range []string{"a b c d", "b d", "b d"} {
			var sent []struct {
				ID string `json:"id"`
			}
			if err := json.Unmarshal([]byte(f.requests[i].body), &sent); err != nil {
				t.Fatal(err)
			}
			var ids []string
			for _, s := range sent {
				ids = append(ids, s.ID)
			}
			if got := strings.Join(ids, " "); got != want {
				t.Errorf("request %d held %s", i, got)
			}
		}
	})
}

func TestBatchThatFindsNoRoomSaysSoInTheEnd(t *testing.T) {
	in(t, 10*time.Second, func(t *testing.T, ctx context.Context) {
		c, _ := edge(says(207, `{"items":[{"index":0,"id":"a","status":503}]}`))
		if out, err := c.Batch(ctx, []txn.Transaction{payment("a")}); err != nil || !errors.Is(out[0].Err, client.ErrUnavailable) || out[0].ID != "a" {
			t.Errorf("%+v, %v", out, err)
		}
		for _, items := range []string{``, `{"index":1,"status":202}`, `{"index":-1,"status":202}`} {
			c, f := edge(says(207, `{"items":[`+items+`]}`))
			if out, err := c.Batch(ctx, []txn.Transaction{payment("a")}); err == nil || len(f.requests) != 1 {
				t.Errorf("%s gave %+v", items, out)
			}
		}
	})
}

func TestBatchTellsWhatIsKnownWhenItsRepeatFails(t *testing.T) {
	in(t, 0, func(t *testing.T, ctx context.Context) {
		c, _ := edge(says(207, `{"items":[{"index":0,"id":"a","status":202},{"index":1,"id":"b","status":503}]}`), problem(401, "unauthorized"))
		out, err := c.Batch(ctx, []txn.Transaction{payment("a"), payment("b")})
		if err != nil || out[0].ID != "a" || out[0].Err != nil || out[1].ID != "b" || !errors.Is(out[1].Err, client.ErrKey) {
			t.Errorf("%+v, %v", out, err)
		}
	})
	in(t, time.Minute, func(t *testing.T, ctx context.Context) {
		c, f := edge(says(207, `{"items":[{"index":0,"id":"a","status":202},{"index":1,"status":429,"retry_after":86400}]}`))
		out, err := c.Batch(ctx, []txn.Transaction{payment("a"), payment("b")})
		var e *client.Error
		if err != nil || out[0].Err != nil || !errors.As(out[1].Err, &e) || e.RetryAfter != 24*time.Hour || len(f.requests) != 1 {
			t.Errorf("%+v, %v", out, err)
		}
	})
}

func TestAKeyMayEndWithItsFilesLine(t *testing.T) {
	in(t, 0, func(t *testing.T, ctx context.Context) {
		c, f := edge(accepted)
		c.Key += "\n"
		if _, err := c.Submit(ctx, payment("ord-1")); err != nil || len(f.requests) != 1 {
			t.Errorf("%v after %d requests", err, len(f.requests))
		}
	})
}

func TestSearchGoesThroughThePages(t *testing.T) {
	in(t, 0, func(t *testing.T, ctx context.Context) {
		c, f := edge(says(200, `{"items":[`+decided+`,`+decided+`],"next_cursor":"c1"}`), problem(503, "store"), says(200, `{"items":[],"next_cursor":"c2"}`),
			says(200, `{"items":[`+strings.TrimSuffix(decided, "}")+`,"disposition":"declined"}],"next_cursor":null}`))
		n := 0
		for s, err := range c.Search(ctx, client.Query{Decision: txn.Review, From: txn.Millis(0), Account: client.Account{ISPB: "12345678", Branch: "1", Number: "2"}, Limit: 2}) {
			if n++; err != nil || s.ID != "ord-1" || s.Decision == nil || s.Disposition != map[int]string{3: "declined"}[n] {
				t.Errorf("%d: %+v, %v", n, s, err)
			}
		}
		first := `{"account":{"ispb":"12345678","branch":"1","number":"2"},"decision":"review","from":"1970-01-01T00:00:00.000Z","limit":2`
		var bodies []string
		for _, r := range f.requests {
			bodies = append(bodies, r.body)
		}
		want := []string{first + `}`, first + `,"cursor":"c1"}`, first + `,"cursor":"c1"}`, first + `,"cursor":"c2"}`}
		if n != 3 || !slices.Equal(bodies, want) {
			t.Errorf("%d found by %v", n, bodies)
		}
		for s, err := range c.Search(ctx, client.Query{}) {
			if err != nil {
				t.Error(err)
			}
			t.Logf("stopped at %s", s.ID)
			break
		}
		c, _ = edge(says(200, `{"items":[`+decided+`],"next_cursor":"c1"}`), problem(400, "cursor"))
		var ended error
		for _, err := range c.Search(ctx, client.Query{}) {
			ended = err
		}
		if !errors.Is(ended, client.ErrRefused) {
			t.Errorf("ended with %v", ended)
		}
	})
}

func TestADryRunIsADecision(t *testing.T) {
	in(t, 0, func(t *testing.T, ctx context.Context) {
		c, f := edge(says(200, strings.TrimSuffix(decided, "}")+`,"dry_run":true}`))
		if d, err := c.DryRun(ctx, payment("ord-1")); err != nil || d.Score != 45 || f.requests[0].what != "POST /v1/transactions/dry-run" {
			t.Errorf("%+v, %v", d, err)
		}
	})
}
