package cli_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestHealthTellsByItsStatus(t *testing.T) {
	t.Parallel()
	process := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/livez" {
			http.Error(w, `{"reasons":{"broker":"connection lost"}}`, http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(process.Close)
	gone := httptest.NewServer(nil)
	gone.Close()
	for name, tc := range map[string]struct {
		url    string
		status int
		said   string
	}{
		"well":                {process.URL + "/livez", 0, ""},
		"not ready":           {process.URL + "/readyz", 1, "connection lost"},
		"not there":           {gone.URL, 1, "refused"},
		"not an address":      {"http://[::1", 2, "missing ']'"},
		"nothing to be asked": {"", 1, "unsupported protocol"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := crivo(t, t.TempDir(), nil, "health", tc.url)
			if got.status != tc.status || got.out != "" {
				t.Errorf("%+v", got)
			}
			mustSay(t, got.err, tc.said)
		})
	}
}
