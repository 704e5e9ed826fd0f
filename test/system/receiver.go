package system

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// Receiver is a client's webhook endpoint outside the system. It verifies every signature with the official Standard Webhooks
// library and remembers each transaction's verdicts.
type Receiver struct {
	verifier *standardwebhooks.Webhook
	server   *http.Server

	mu         sync.Mutex
	verdicts   map[string]map[string]int // id → verdict → how often
	ids        map[string]map[string]int // id → webhook id → how often
	unverified int
	last       time.Time
}

// Receive registers an endpoint with thin bodies and listens for it; close it by Close.
func (s *System) Receive(ctx context.Context) (*Receiver, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	body := fmt.Appendf(nil, `{"url":"http://%s/hook","events":["transaction.decided"]}`, listener.Addr())
	a, err := s.Ask(ctx, http.MethodPost, "/v1/webhook-endpoints", body)
	if err != nil || a.Status != http.StatusCreated {
		_ = listener.Close()
		return nil, fmt.Errorf("webhook endpoint: %d %s %w", a.Status, a.Body, err)
	}
	var made struct {
		Secret string `json:"secret"`
	}
	if err := json.Unmarshal(a.Body, &made); err != nil {
		return nil, err
	}
	r := &Receiver{verdicts: map[string]map[string]int{}, ids: map[string]map[string]int{}}
	if r.verifier, err = standardwebhooks.NewWebhook(made.Secret); err != nil {
		return nil, err
	}
	r.server = &http.Server{Handler: r, ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = r.server.Serve(listener) }()
	return r, nil
}

// ServeHTTP takes one webhook.
func (r *Receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	var event struct {
		Data struct {
			ID       string   `json:"id"`
			Decision string   `json:"decision"`
			Score    int      `json:"score"`
			Reasons  []string `json:"reasons"`
		} `json:"data"`
	}
	body, err := io.ReadAll(io.LimitReader(req.Body, 1<<20))
	if err == nil {
		err = r.verifier.Verify(body, req.Header)
	}
	if err == nil {
		err = json.Unmarshal(body, &event)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.unverified++
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	d := event.Data
	if r.verdicts[d.ID] == nil {
		r.verdicts[d.ID], r.ids[d.ID] = map[string]int{}, map[string]int{}
	}
	r.ids[d.ID][req.Header.Get("Webhook-Id")]++
	r.verdicts[d.ID][fmt.Sprint(d.Decision, " ", d.Score, " ", d.Reasons)]++
	r.last = time.Now()
	w.WriteHeader(http.StatusNoContent)
}

// Verdicts returns what came so far: each transaction's distinct verdicts, as "decision score [reasons]", with their counts.
func (r *Receiver) Verdicts() map[string]map[string]int {
	return r.copied(r.verdicts)
}

// IDs returns the webhook ids that came so far of each transaction, with their counts. There is one of each event, also where it is
// sent again.
func (r *Receiver) IDs() map[string]map[string]int { return r.copied(r.ids) }

func (r *Receiver) copied(of map[string]map[string]int) map[string]map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make(map[string]map[string]int, len(of))
	for id, v := range of {
		out[id] = maps.Clone(v)
	}
	return out
}

// Unverified counts webhooks whose signature did not hold.
func (r *Receiver) Unverified() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.unverified
}

// Await returns once webhooks of want transactions came, or none came for as long as patience; it tells which.
func (r *Receiver) Await(ctx context.Context, want int, patience time.Duration) bool {
	for start := time.Now(); ; {
		r.mu.Lock()
		n, last := len(r.verdicts), r.last
		r.mu.Unlock()
		if n >= want {
			return true
		}
		if last.Before(start) {
			last = start
		}
		if time.Since(last) > patience {
			return false
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Close stops listening.
func (r *Receiver) Close() { _ = r.server.Close() }
