package sim_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"

	"crivo/pkg/app"
	"crivo/services/store"
	"crivo/streams"
)

// clients send transactions and write down what they were told.
type clients struct {
	w    *world
	http map[string]*http.Client // by the edge's role
	nats *nats.Conn              // to whichever edge answers

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
	at      time.Time // when it was heard
}

func newClients(w *world) *clients {
	return &clients{w: w, http: map[string]*http.Client{"edge-a": w.httpTo("edge-a"), "edge-b": w.httpTo("edge-b")}}
}

// payment is the body of a transaction, the same for the same id and variant.
func (w *world) payment(id string, variant int) string {
	return fmt.Sprintf(`{"id":%q,"type":"pix","amount":%d,"currency":"BRL","created_at":%q,"payer":{"document":"529.982.247-25"},"payee":{"customer_id":"c-%d"}}`,
		id, 1000+variant, w.began.UTC().Format(time.RFC3339Nano), id[2]%3)
}

// connect opens the client's own link to the broker.
func (c *clients) connect() (err error) {
	c.nats, err = app.Connect(app.Connection{Name: "client", Inbox: "_INBOX_client", Log: zerolog.Nop(), Health: &app.Health{},
		Extra: []nats.Option{nats.InProcessServer(door{c.w.broker, "client"}), nats.ReconnectJitter(0, 0)}})
	return err
}

// doors are the ways in.
var doors = []string{"edge-a", "edge-b", "nats"}

// post sends one request and writes down its answer.
func (c *clients) post(ctx context.Context, door, id string, variant int, prefer string) answer {
	a := answer{id: id, variant: variant}
	var err error
	if door == "nats" {
		err = c.request(ctx, &a, prefer)
	} else {
		err = c.call(ctx, door, &a, prefer)
	}
	c.w.tracef("%s, body %d, by %s: %d %v", id, variant, door, a.status, err)
	a.at = time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.said = append(c.said, a)
	return a
}

// request asks over NATS.
func (c *clients) request(ctx context.Context, a *answer, prefer string) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	m := &nats.Msg{Subject: streams.Subject(streams.EventIntake, tenant), Data: []byte(c.w.payment(a.id, a.variant)), Header: nats.Header{}}
	if prefer != "" {
		m.Header.Set("Prefer", prefer)
	}
	heard, err := c.nats.RequestMsgWithContext(ctx, m)
	if err != nil {
		return err
	}
	var reply struct {
		Status   int            `json:"status"`
		Replayed bool           `json:"idempotent_replayed"`
		Body     jsontext.Value `json:"body"`
	}
	if err := json.Unmarshal(heard.Data, &reply); err != nil {
		return err
	}
	a.status, a.body, a.replay = reply.Status, string(reply.Body), reply.Replayed
	return nil
}

// call asks over HTTP.
func (c *clients) call(ctx context.Context, edge string, a *answer, prefer string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+edge+"/v1/transactions", strings.NewReader(c.w.payment(a.id, a.variant)))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+bootstrap)
	req.Header.Set("Content-Type", "application/json")
	if prefer != "" {
		req.Header.Set("Prefer", prefer)
	}
	res, err := c.http[edge].Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err == nil {
		a.status, a.body, a.replay = res.StatusCode, string(body), res.Header.Get("Idempotent-Replayed") == "true"
	}
	return err
}

// insist sends until it is answered and not told to come later. An edge that lost sight of the broker lets one request through
// every 100 ms, also of those that do not need the broker, until one published something; one that is told to end takes a while.
func (c *clients) insist(id string, variant int) (a answer) {
	for try := range 40 {
		a = c.post(context.Background(), doors[try%len(doors)], id, variant, "")
		if a.status != 0 && a.status != http.StatusServiceUnavailable {
			return a
		}
		time.Sleep(200 * time.Millisecond)
	}
	return a
}

// answers returns everything that was said so far.
func (c *clients) answers() []answer {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]answer(nil), c.said...)
}

// accepted is when it was first heard of each transaction that it is accepted.
func (c *clients) accepted() map[store.Key]time.Time {
	out := map[store.Key]time.Time{}
	for _, a := range c.answers() { // in the order in which they were heard
		key := store.Key{Tenant: tenant, ID: a.id}
		if a.status/100 == 2 && out[key].IsZero() {
			out[key] = a.at
		}
	}
	return out
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
		a := c.post(ctx, doors[c.w.dice.about("door "+thing).IntN(len(doors))], id, m.variant, m.prefer)
		if a.status/100 == 2 || a.status == http.StatusConflict || ctx.Err() != nil {
			break
		}
		time.Sleep(c.w.dice.between(50*time.Millisecond, 700*time.Millisecond, "pause "+thing))
	}
	if m.again {
		time.Sleep(c.w.dice.between(0, 2*time.Second, "again "+name))
		c.post(ctx, doors[c.w.dice.about("door again "+name).IntN(len(doors))], id, m.variant, "")
	}
}

// crowd starts n transactions within a time, each in a manner of its own: patient ones, ones that give up at once, twins that
// send the same at two doors, rivals that send two bodies under one id, repeaters, and some that are poison to a step.
func (c *clients) crowd(ctx context.Context, n int, within time.Duration, poison bool) {
	if c.w.dice.hits(0.3, "burst") {
		within = 50 * time.Millisecond
	}
	begin := c.w.dice.between(0, storm-within+1, "begin")
	for i := range n {
		id := fmt.Sprintf("t%02d", i)
		d := c.w.dice.about("manner " + id)
		kind := d.IntN(12)
		switch {
		case !poison:
		case kind == 10:
			id += poisonsEnrich
		case kind == 11:
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
		at := begin + c.w.dice.between(0, within, "start "+id)
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
