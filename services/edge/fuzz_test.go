package edge_test

import (
	"errors"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"

	"crivo/pkg/txn"
	"crivo/services/edge"
	"crivo/services/store"
)

func FuzzPreferWait(f *testing.F) {
	for _, seed := range []string{"wait=2", `respond-async, wait="10"; x`, `foo="a, wait=5"`, `foo="\`, "wait=99999999999999999999", ",;=", "wait=2\x00"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, header string) {
		got := edge.PreferWait([]string{header})
		if got < 0 || got > 10 {
			t.Errorf("%q gave %d", header, got)
		}
		if got > 0 && !strings.Contains(strings.ToLower(header), "wait") {
			t.Errorf("%q gave %d out of nothing", header, got)
		}
		if again := edge.PreferWait([]string{"respond-async", header}); got > 0 && again != got {
			t.Errorf("%q gave %d after another preference", header, again)
		}
		if first := edge.PreferWait([]string{"wait=7", header}); first != 7 {
			t.Errorf("%q before %q gave %d", "wait=7", header, first)
		}
	})
}

func FuzzExportKind(f *testing.F) {
	for _, seed := range []string{"text/csv", "application/x-ndjson;q=0.5, text/csv;q=0.4", "*/*;q=NaN", `text/csv;x="a,b";q=2`, `text/csv;x="`, "text/*;q=0", ",;=/"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, header string) {
		switch got := edge.ExportKind([]string{header}); {
		case got != "" && got != "text/csv" && got != "application/x-ndjson":
			t.Errorf("%q gave %q", header, got)
		case got != "" && !strings.Contains(strings.ToLower(header), "text/") && !strings.Contains(strings.ToLower(header), "ndjson"):
			t.Errorf("%q gave %q out of nothing", header, got)
		}
		if got := edge.ExportKind([]string{"text/csv", header}); got != "text/csv" {
			t.Errorf("text/csv before %q gave %q", header, got)
		}
	})
}

func FuzzBearer(f *testing.F) {
	for _, seed := range []string{"Bearer abc", "bearer \t x", "Basic x", "Bearer", "Bearer \x00", "Bearer  a b "} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, header string) {
		key, ok := edge.Bearer(header)
		if !ok {
			return
		}
		if key == "" || len(key) > 256 || key != strings.TrimSpace(key) || !strings.HasSuffix(strings.TrimSpace(header), key) {
			t.Errorf("%q gave %q", header, key)
		}
	})
}

var trace = regexp.MustCompile(`^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)

func FuzzTraceparent(f *testing.F) {
	const fine = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	for _, seed := range []string{fine, "", strings.ToUpper(fine), fine + "-x", strings.Replace(fine, "00f067aa0ba902b7", "0000000000000000", 1), "\n" + fine} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, header string) {
		got := edge.Traceparent(header)
		if !trace.MatchString(got) || got != header && header == fine {
			t.Errorf("%q gave %q", header, got)
		}
		if again := edge.Traceparent(got); again != got {
			t.Errorf("%q is not taken again", got)
		}
	})
}

// What is wrong with a request is told as one of these, and never as a 500.
func told(err error) bool {
	return edge.Faults(err) != nil || errors.Is(err, txn.ErrMalformed) || errors.Is(err, store.ErrCursor)
}

// Whatever a client sends as a filter is one, or is told; the same filter means the same in a URL and in a body.
func FuzzLetterWish(f *testing.F) {
	f.Add("score", "panic", "2026-11-22T00:00:00Z", "", "50", "7-0")
	f.Add("", "", "", "", "", "")
	f.Add("none", "x", "yesterday", "\x00", "-1", "1-")
	f.Fuzz(func(t *testing.T, step, cause, from, to, limit, cursor string) {
		query, where := url.Values{}, map[string]string{}
		for name, value := range map[string]string{"step": step, "cause": cause, "from": from, "to": to} {
			if value != "" {
				query.Set(name, value)
				where[name] = value
			}
		}
		query.Set("cursor", cursor)
		if limit != "" {
			query.Set("limit", limit)
		}
		body, err := json.Marshal(where)
		if err != nil {
			return // no UTF-8: JSON cannot hold it
		}
		byURL, byBody, n, urlErr, bodyErr := edge.LetterWish(query, string(body), cursor)
		if urlErr != nil && !told(urlErr) || bodyErr != nil && !told(bodyErr) {
			t.Fatalf("%v, %v", urlErr, bodyErr)
		}
		if urlErr == nil && (n < 1 || n > 500) {
			t.Errorf("a page of %d", n)
		}
		if (limit == "" || urlErr == nil) && (byURL != byBody || (urlErr == nil) != (bodyErr == nil)) {
			t.Errorf("%+v, %v by URL, %+v, %v by body", byURL, urlErr, byBody, bodyErr)
		}
		if bodyErr != nil || byBody.First == 0 {
			return
		}
		if _, again, _, _, err := edge.LetterWish(nil, "{}", *edge.LetterCursor(byBody.First, byBody.Last)); err != nil || again.First != byBody.First || again.Last != byBody.Last {
			t.Errorf("%q became %+v, %v", cursor, again, err)
		}
	})
}

// Whatever is sent as the body of an endpoint is taken, or what is wrong with it is told.
func FuzzEndpoint(f *testing.F) {
	for _, seed := range []string{`{"url":"https://example.com/hook","events":["transaction.*"],"headers":{"X-A":"b"},"paused":null}`, `{"url":"https://[::1%25a]/"}`,
		`{"events":[1]}`, `{"headers":{"~/":"x"}}`, `{"a":[[[[[[[[[]]]]]]]]]}`, `{"url":"http://0x7f.1/"}`, "[]", "null", `{"url":"x","url":"y"}`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body string) {
		if err := edge.EndpointFaults(body); err != nil && !told(err) {
			t.Errorf("%q: %v", body, err)
		}
	})
}
