package e2e_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
)

// webhook is one as it came.
type webhook struct {
	header http.Header
	body   []byte
}

// receiver is a client's own endpoint; it answers 204, or 500 while it is sick, and the document is held against what comes.
type receiver struct {
	id, secret string
	sick       atomic.Bool
	mu         sync.Mutex
	got        []webhook
}

// receive registers a receiver; more are further members of the endpoint.
func (c client) receive(t *testing.T, more string) *receiver {
	t.Helper()
	r := &receiver{}
	url := serve(t, func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		got := webhook{req.Header.Clone(), body}
		if err := document.checkDelivery(got); err != nil {
			t.Errorf("%v %s\nagainst the document: %v", got.header, body, err)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.got = append(r.got, got)
		if r.sick.Load() {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	made := c.post(t, "/v1/webhook-endpoints", fmt.Sprintf(`{"url":%q%s}`, url, more)).want(t, http.StatusCreated)
	r.id, r.secret = made.text("id"), made.text("secret")
	return r
}

// serve answers for a client's own machine until the test ends.
func serve(t *testing.T, handle http.HandlerFunc) (url string) {
	t.Helper()
	server := httptest.NewServer(handle)
	t.Cleanup(server.Close)
	return server.URL
}

func (r *receiver) webhooks() []webhook {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]webhook(nil), r.got...)
}

// first waits for a webhook.
func (r *receiver) first(t *testing.T) webhook {
	t.Helper()
	await(t, "a webhook", func() bool { return len(r.webhooks()) > 0 })
	return r.webhooks()[0]
}
