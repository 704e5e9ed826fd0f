package fault_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"crivo/services/feed"
	"crivo/test/system"
)

// The process is killed while a receiver still thinks about a webhook: after the next start the same one comes again, byte for
// byte and under the same id.
func TestW19KilledInMidPostTheWebhookComesAgain(t *testing.T) {
	type hook struct {
		id   string
		body []byte
	}
	s := system.New(t, system.Options{})
	hooks, release := make(chan hook, 16), make(chan bool)
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		hooks <- hook{req.Header.Get("Webhook-Id"), body}
		select {
		case <-release:
		case <-req.Context().Done():
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	defer receiver.Close()
	ask := func(method, path string, body []byte) []byte {
		t.Helper()
		a, err := s.Ask(t.Context(), method, path, body)
		if err != nil || a.Status/100 != 2 {
			t.Fatalf("%s %s: %d %s %v", method, path, a.Status, a.Body, err)
		}
		return a.Body
	}
	ask(http.MethodPost, "/v1/webhook-endpoints", fmt.Appendf(nil, `{"url":%q}`, receiver.URL))
	ask(http.MethodPost, "/v1/transactions", feed.NewSynthetic("w", 1).Next(time.Now()).Body)
	next := func() hook {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		select {
		case h := <-hooks:
			return h
		case <-ctx.Done():
			t.Fatal("no webhook")
			return hook{}
		}
	}
	first := next()
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	close(release)
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if again := next(); again.id != first.id || !bytes.Equal(again.body, first.body) {
		t.Errorf("%+v came again as %+v", first, again)
	}
	for give := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		rows := ask(http.MethodGet, "/v1/deliveries", nil)
		if bytes.Contains(rows, []byte(`"status":"delivered"`)) && bytes.Count(rows, []byte(`"webhook_id"`)) == 1 {
			break
		}
		if time.Now().After(give) {
			t.Fatalf("%s", rows)
		}
	}
}
