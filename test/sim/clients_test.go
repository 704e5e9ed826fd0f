package sim_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// clients send transactions and write down what they were told.
type clients struct {
	w    *world
	http map[string]*http.Client

	mu   sync.Mutex
	said []answer
	done sync.WaitGroup
}

// answer is what a client heard of one request; status 0 is nothing.
type answer struct {
	id      string
	variant int // which body
	status  int
	body    string
	replay  bool
}

func newClients(w *world) *clients {
	return &clients{w: w, http: map[string]*http.Client{"edge-a": w.httpTo("edge-a"), "edge-b": w.httpTo("edge-b")}}
}

// payment is the body of a transaction, the same for the same id and variant.
func (w *world) payment(id string, variant int) string {
	return fmt.Sprintf(`{"id":%q,"type":"pix","amount":%d,"currency":"BRL","created_at":%q,"payer":{"document":"529.982.247-25"},"payee":{"customer_id":"c-%d"}}`,
		id, 1000+variant, w.began.UTC().Format(time.RFC3339Nano), id[2]%3)
}

// post sends one request and writes down its answer.
func (c *clients) post(ctx context.Context, edge, id string, variant int, prefer string) answer {
	a := answer{id: id, variant: variant}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+edge+"/v1/transactions", strings.NewReader(c.body(id, variant)))
	if err == nil {
		req.Header.Set("Authorization", "Bearer "+bootstrap)
		req.Header.Set("Content-Type", "application/json")
		if prefer != "" {
			req.Header.Set("Prefer", prefer)
		}
		var res *http.Response
		if res, err = c.http[edge].Do(req); err == nil {
			var body []byte
			if body, err = io.ReadAll(res.Body); err == nil {
				a.status, a.body, a.replay = res.StatusCode, string(body), res.Header.Get("Idempotent-Replayed") == "true"
			}
			_ = res.Body.Close()
		}
	}
	c.w.tracef("%s, body %d, by %s: %d %v", id, variant, edge, a.status, err)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.said = append(c.said, a)
	return a
}

// insist sends until it is not told to come later. An edge that lost sight of the broker lets one request through every 100 ms,
// also of those that do not need the broker, until one published something.
func (c *clients) insist(id string, variant int) (a answer) {
	for range 20 {
		if a = c.post(context.Background(), "edge-a", id, variant, ""); a.status != http.StatusServiceUnavailable {
			return a
		}
		time.Sleep(200 * time.Millisecond)
	}
	return a
}

func (c *clients) body(id string, variant int) string { return c.w.payment(id, variant) }

// answers returns everything that was said so far.
func (c *clients) answers() []answer {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]answer(nil), c.said...)
}

// manner is how a client behaves.
type manner struct {
	tries   int // at most
	variant int
	prefer  string
	again   bool // sends once more after a while
}

// send is one client with one transaction.
func (c *clients) send(ctx context.Context, name, id string, m manner) {
	for try := range m.tries {
		thing := fmt.Sprintf("%s try %d", name, try)
		edge := [...]string{"edge-a", "edge-b"}[c.w.dice.about("edge "+thing).IntN(2)]
		a := c.post(ctx, edge, id, m.variant, m.prefer)
		if a.status/100 == 2 || a.status == http.StatusConflict || ctx.Err() != nil {
			break
		}
		time.Sleep(c.w.dice.between(50*time.Millisecond, 700*time.Millisecond, "pause "+thing))
	}
	if m.again {
		time.Sleep(c.w.dice.between(0, 4*time.Second, "again "+name))
		c.post(ctx, "edge-a", id, m.variant, "")
	}
}

// crowd starts n transactions within a time, each in a manner of its own: patient ones, ones that give up at once, twins that
// send the same at two doors, rivals that send two bodies under one id, repeaters, and some that are poison to a step.
func (c *clients) crowd(ctx context.Context, n int, within time.Duration) {
	for i := range n {
		id := fmt.Sprintf("t%02d", i)
		d := c.w.dice.about("manner " + id)
		kind := d.IntN(12)
		switch kind {
		case 10:
			id += poisonsEnrich
		case 11:
			id += poisonsPersist
		}
		first := manner{tries: 40}
		var second *manner
		switch kind {
		case 0, 1:
			first.tries = 1
		case 2:
			first.prefer = "wait=3"
		case 3, 4:
			second = &manner{tries: 40}
		case 5:
			second = &manner{tries: 10, variant: 1}
		case 6:
			first.again = true
		}
		at := c.w.dice.between(0, within, "start "+id)
		c.go1(ctx, id, at, first)
		if second != nil {
			at = c.w.dice.between(at, at+20*time.Millisecond, "twin "+id)
			if d.IntN(2) == 0 {
				at += 2 * time.Second
			}
			c.go1(ctx, id+" second", at, *second)
		}
	}
}

func (c *clients) go1(ctx context.Context, name string, at time.Duration, m manner) {
	id, _, _ := strings.Cut(name, " ")
	c.done.Go(func() {
		time.Sleep(at)
		c.send(ctx, name, id, m)
	})
}
