package cli

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/go-json-experiment/json"

	"crivo/pkg/txn"
	"crivo/pkg/webhook"
)

// delivered is told of every webhook that verified, and its id.
type delivered func(d txn.Decision, webhookID string, now time.Time)

// sink is a webhook receiver of our own. It verifies every signature; what does not verify counts as not delivered.
type sink struct {
	server   *http.Server
	target   *target
	endpoint string
	served   chan struct{}
}

func openSink(ctx context.Context, address string, t *target, into delivered) (*sink, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	var made struct {
		ID     string `json:"id"`
		Secret string `json:"secret"`
	}
	body := fmt.Appendf(nil, `{"url":"http://%s/","payload":"full","events":["transaction.decided"],"description":"crivo"}`, listener.Addr())
	if err := t.send.call(ctx, http.MethodPost, "/v1/webhook-endpoints", body, &made); err != nil {
		_ = listener.Close()
		return nil, fmt.Errorf("webhook endpoint %s: %w (a server that runs already must allow it: --webhook-allow)", listener.Addr(), err)
	}
	s := &sink{target: t, endpoint: made.ID, server: &http.Server{ReadHeaderTimeout: 5 * time.Second}, served: make(chan struct{})}
	secret, err := webhook.ParseSecret(made.Secret)
	if err == nil {
		s.server.Handler = receive(secret, into)
	}
	go func() {
		defer close(s.served)
		_ = s.server.Serve(listener)
	}()
	if err != nil {
		s.close()
		return nil, fmt.Errorf("webhook endpoint: %w", err)
	}
	return s, nil
}

func receive(secret webhook.Secret, into delivered) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		if err != nil || webhook.Verify(secret, r.Header, body, time.Now()) != nil {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		var event struct {
			Type string       `json:"type"`
			Data txn.Decision `json:"data"`
		}
		if err := json.Unmarshal(body, &event); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		into(event.Data, r.Header.Get("webhook-id"), time.Now())
		w.WriteHeader(http.StatusNoContent)
	}
}

// close takes the endpoint away again and stops listening.
func (s *sink) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_ = s.target.send.call(ctx, http.MethodDelete, "/v1/webhook-endpoints/"+s.endpoint, nil, nil)
	_ = s.server.Close()
	<-s.served
}
