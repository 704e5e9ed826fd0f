package cli_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// admin answers one route and keeps what it was sent.
func admin(t *testing.T, route, answer string, status int) (url string, sent func() map[string]any) {
	t.Helper()
	var mu sync.Mutex
	kept := map[string]any{}
	mux := http.NewServeMux()
	mux.HandleFunc(route, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+testKey {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		_ = json.Unmarshal(body, &kept)
		mu.Unlock()
		w.WriteHeader(status)
		fmt.Fprint(w, answer)
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s.URL, func() map[string]any {
		mu.Lock()
		defer mu.Unlock()
		return kept
	}
}

func TestEndpointsAndKeys(t *testing.T) {
	t.Parallel()
	const endpoints = `{"items":[{"id":"ep_1","status":"active","payload":"thin","url":"https://a.example/h","events":[]}]}`
	const keys = `{"items":[{"id":"key_1","tenant":"default","roles":["submit","read"],"rate":1000000,"created_at":"2026-01-02T03:04:05.000Z"}]}`
	for name, tc := range map[string]struct {
		args   []string
		route  string
		answer string
		status int
		sent   map[string]any
		out    string
	}{
		"create an endpoint": {[]string{"endpoints", "create", "https://a.example/h", "--payload", "full", "--events", "transaction.decided", "--description", "d", "--header", "X-A=b=c"},
			"POST /v1/webhook-endpoints", `{"id":"ep_1","secret":"whsec_x"}`, 201,
			map[string]any{"url": "https://a.example/h", "payload": "full", "events": []any{"transaction.decided"}, "description": "d", "headers": map[string]any{"X-A": "b=c"}},
			"id      ep_1\nsecret  whsec_x   (shown this once; receivers verify signatures with it)\n"},
		"create an endpoint, for a script": {[]string{"endpoints", "create", "https://a.example/h", "--json"}, "POST /v1/webhook-endpoints", `{"id": "ep_1", "new": 1}`, 201,
			map[string]any{"url": "https://a.example/h", "payload": "thin"}, `{"id":"ep_1","new":1}` + "\n"},
		"list endpoints": {[]string{"endpoints", "list"}, "GET /v1/webhook-endpoints", endpoints, 200, map[string]any{},
			"ID    STATUS  PAYLOAD  URL                  DESCRIPTION\nep_1  active  thin     https://a.example/h  -\n"},
		"list endpoints, for a script": {[]string{"endpoints", "list", "--json"}, "GET /v1/webhook-endpoints", endpoints, 200, map[string]any{}, endpoints + "\n"},
		"delete an endpoint":           {[]string{"endpoints", "delete", "ep/1"}, "DELETE /v1/webhook-endpoints/ep%2F1", "", 204, map[string]any{}, "deleted ep/1\n"},
		"create a key": {[]string{"keys", "create", "--tenant", "t", "--roles", "submit", "--rate", "5"}, "POST /v1/keys", `{"id":"key_1","key":"crivo_x"}`, 201,
			map[string]any{"tenant": "t", "roles": []any{"submit"}, "rate": 5.0}, "id   key_1\nkey  crivo_x   (shown this once)\n"},
		"create a key with what is usual": {[]string{"keys", "create"}, "POST /v1/keys", `{"id":"key_1","key":"crivo_x"}`, 201,
			map[string]any{"roles": []any{"submit", "read"}}, "id   key_1\nkey  crivo_x   (shown this once)\n"},
		"list keys": {[]string{"keys", "list"}, "GET /v1/keys", keys, 200, map[string]any{},
			"ID     TENANT   ROLES        RATE     CREATED_AT                EXPIRES_AT\nkey_1  default  submit,read  1000000  2026-01-02T03:04:05.000Z  -\n"},
		"put on a list": {[]string{"lists", "add", "device_id", "--value", "d-1", "--reason", "theft"}, "POST /v1/lists/block/entries", `{"id":"ent_1"}`, 201,
			map[string]any{"kind": "device_id", "value": "d-1", "reason": "theft"}, "id  ent_1\n"},
		"put on a list, for a script": {[]string{"lists", "add", "ip", "--value", "10.0.0.0/24", "--json"}, "POST /v1/lists/block/entries", `{"id": "ent_1"}`, 201,
			map[string]any{"kind": "ip", "value": "10.0.0.0/24"}, `{"id":"ent_1"}` + "\n"},
		"take off a list": {[]string{"lists", "remove", "ent/1"}, "DELETE /v1/lists/block/entries/ent%2F1", "", 204, map[string]any{}, "deleted ent/1\n"},
		"list rule sets": {[]string{"rules", "list"}, "GET /v1/rule-sets", `{"items":[{"name":"default","version":1,"digest":"sha256:x","created_at":"2026-01-02T03:04:05.000Z"}]}`, 200,
			map[string]any{}, "NAME     VERSION  DIGEST    CREATED_AT\ndefault  1        sha256:x  2026-01-02T03:04:05.000Z\n"},
		"show a rule set": {[]string{"rules", "show", "default", "1"}, "GET /v1/rule-sets/default/1", `{"name":"default","source":"name: default\n"}`, 200,
			map[string]any{}, "name: default\n"},
		"delete a key, for a script": {[]string{"keys", "delete", "key_1", "--json"}, "DELETE /v1/keys/key_1", "", 204, map[string]any{}, `{"deleted":"key_1"}` + "\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			method, path, _ := strings.Cut(tc.route, " ")
			if strings.Contains(path, "%2F") {
				tc.route = method + " " + path[:strings.LastIndex(path, "/")] + "/{id}" // one escaped segment
			}
			url, sent := admin(t, tc.route, tc.answer, tc.status)
			got := crivo(t, t.TempDir(), nil, append(tc.args, "--url", url+"/")...)
			if diff := cmp.Diff(result{0, tc.out, ""}, got, cmp.AllowUnexported(result{})); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(tc.sent, sent()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestAKeyExpiresFromNowOn(t *testing.T) {
	t.Parallel()
	url, sent := admin(t, "POST /v1/keys", `{"id":"k","key":"x"}`, 201)
	before := time.Now()
	if got := crivo(t, t.TempDir(), nil, "keys", "create", "--expires-in", "1h", "--url", url); got.status != 0 {
		t.Fatalf("%+v", got)
	}
	at, err := time.Parse("2006-01-02T15:04:05.000Z", fmt.Sprint(sent()["expires_at"]))
	if err != nil || at.Before(before.Add(time.Hour-time.Second)) || at.After(time.Now().Add(time.Hour)) {
		t.Errorf("expires at %v, %v", sent()["expires_at"], err)
	}
}

func TestAValueIsReadFromStdin(t *testing.T) {
	t.Parallel()
	url, sent := admin(t, "POST /v1/lists/block/entries", `{"id":"ent_1"}`, 201)
	cmd := command(t, t.TempDir(), nil, "lists", "add", "document", "--value", "-", "--expires-in", "1h", "--url", url)
	cmd.Stdin = strings.NewReader("529.982.247-25\r\n")
	if got := finish(t, cmd); got.status != 0 || got.out != "id  ent_1\n" {
		t.Fatalf("%+v", got)
	}
	if sent()["value"] != "529.982.247-25" || sent()["expires_at"] == nil {
		t.Errorf("sent %v", sent())
	}
}

func TestAListIsPrintedWithAllItsPages(t *testing.T) {
	t.Parallel()
	pages := map[string]string{"": `{"items":[{"id":"ent_2","kind":"ip","reason":"","added_by":"k","created_at":"2026-01-02T03:04:05.000Z"}],"next_cursor":"a/b"}`,
		"a/b": `{"items":[{"id":"ent_1","kind":"document","reason":"fraud","added_by":"k","created_at":"2026-01-02T03:04:05.000Z"}],"next_cursor":null}`}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, pages[r.URL.Query().Get("cursor")]) }))
	t.Cleanup(s.Close)
	mustSay(t, crivo(t, t.TempDir(), nil, "lists", "list", "--url", s.URL).out, "EXPIRES_AT\nent_2  ip ", "\nent_1  document  fraud   k ")
	mustSay(t, crivo(t, t.TempDir(), nil, "lists", "list", "--url", s.URL, "--json").out, `{"items":[{"id":"ent_2"`, `},{"id":"ent_1"`)
}

func TestARefusalIsSaidInTheServersWords(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		answer string
		status int
		want   string
	}{
		"a field at fault": {`{"title":"Unprocessable","detail":"see errors","errors":[{"pointer":"/url","code":"format","detail":"https"}]}`, 422,
			"crivo: /url https\n"},
		"no problem document": {"<html>", 502, "crivo: 502 Bad Gateway\n"},
		"no JSON":             {"<html>", 200, "crivo: answer 200 is not what was expected"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url, _ := admin(t, "POST /v1/webhook-endpoints", tc.answer, tc.status)
			got := crivo(t, t.TempDir(), nil, "endpoints", "create", "http://10.0.0.1/", "--url", url)
			if got.status != 1 || !strings.HasPrefix(got.err, tc.want) || got.out != "" {
				t.Errorf("%+v, want %s", got, tc.want)
			}
		})
	}
}

// A redirected DELETE or POST would arrive as a GET, whose 200 says nothing of what was asked for.
func TestARedirectIsNoAnswer(t *testing.T) {
	t.Parallel()
	var followed atomic.Int32
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		followed.Add(1)
		fmt.Fprint(w, `{"items":[]}`)
	}))
	t.Cleanup(elsewhere.Close)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, elsewhere.URL+r.URL.Path, http.StatusMovedPermanently)
	}))
	t.Cleanup(s.Close)
	for _, args := range [][]string{{"keys", "delete", "key_1"}, {"keys", "create"}, {"endpoints", "create", "https://a.example/h"}, {"endpoints", "list"}} {
		got := crivo(t, t.TempDir(), nil, append(args, "--url", s.URL)...)
		if got.status != 1 || got.out != "" || !strings.Contains(got.err, "301") {
			t.Errorf("%v: %+v", args, got)
		}
	}
	if n := followed.Load(); n != 0 {
		t.Errorf("followed %d times", n)
	}
}

// Whoever waits for a webhook asks again and again; that the server, or the key's rate, has no room for one question says nothing
// of the webhook. Nor does another try of the schedule.
func TestAResendIsWaitedForThroughTrouble(t *testing.T) {
	t.Parallel()
	const first = `{"number":1,"trigger":"auto","status":500}`
	var asked atomic.Int32
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/deliveries/dlv_1/resend", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusAccepted) // it was tried before this answer was made
		fmt.Fprint(w, `{"id":"dlv_1","status":"pending","attempts":[`+first+`,{"number":2,"trigger":"manual","status":204}]}`)
	})
	mux.HandleFunc("GET /v1/deliveries/dlv_1", func(w http.ResponseWriter, _ *http.Request) {
		switch asked.Add(1) {
		case 1:
			fmt.Fprint(w, `{"id":"dlv_1","status":"pending","attempts":[`+first+`]}`)
		case 2:
			w.WriteHeader(http.StatusTooManyRequests)
		case 3:
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			fmt.Fprint(w, `{"id":"dlv_1","status":"pending","attempts":[`+first+`,{"number":2,"trigger":"manual","status":204},{"number":3,"trigger":"auto","status":500}]}`)
		}
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	got := crivo(t, t.TempDir(), nil, "deliveries", "resend", "dlv_1", "--url", s.URL)
	if got.status != 0 || !strings.Contains(got.out, "manual") {
		t.Errorf("%+v", got)
	}
}

func TestACredentialIsReadFromStdin(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		route string
		args  []string
	}{
		"create": {"POST /v1/webhook-endpoints", []string{"endpoints", "create", "https://a.example/h"}},
		"update": {"PATCH /v1/webhook-endpoints/ep_1", []string{"endpoints", "update", "ep_1"}},
	} {
		url, sent := admin(t, c.route, `{"id":"ep_1"}`, 200)
		cmd := command(t, t.TempDir(), nil, append(c.args, "--header", "X-A=b", "--header", "Authorization=-", "--url", url)...)
		cmd.Stdin = strings.NewReader("Bearer hush\n")
		if got := finish(t, cmd); got.status != 0 {
			t.Errorf("%s: %+v", name, got)
		}
		if diff := cmp.Diff(map[string]any{"X-A": "b", "Authorization": "Bearer hush"}, sent()["headers"]); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	two := []string{"endpoints", "create", "https://a.example/h", "--header", "X-A=-", "--header", "X-B=-"}
	if got := crivo(t, t.TempDir(), nil, two...); got.status != 2 || !strings.Contains(got.err, "one of them") {
		t.Errorf("two: %+v", got)
	}
}
