package cli_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
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
	const keys = `{"items":[{"id":"key_1","tenant":"default","roles":["submit","read"],"created_at":"2026-01-02T03:04:05.000Z"}]}`
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
			"ID     TENANT   ROLES        RATE  CREATED_AT                EXPIRES_AT\nkey_1  default  submit,read  -     2026-01-02T03:04:05.000Z  -\n"},
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
