package edge_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"crivo/pkg/app"
	"crivo/pkg/seal"
	"crivo/services/edge"
	"crivo/services/store"
	"crivo/services/store/memory"
	"crivo/streams/event"
)

// bubble is an edge in a synctest bubble, behind pipes: its deadlines are exact.
type bubble struct {
	t      *testing.T
	served edge.Served
	store  *transactions
	memory *memory.Transactions
	broker *acknowledging
	dial   chan net.Conn
	client *http.Client

	metrics *prometheus.Registry
}

// acknowledging takes every message, or while silent none.
type acknowledging struct {
	jetstream.JetStream
	silent bool

	mu   sync.Mutex
	took []*nats.Msg
}

func (a *acknowledging) PublishMsgAsync(m *nats.Msg, _ ...jetstream.PublishOpt) (jetstream.PubAckFuture, error) {
	f := future{ok: make(chan *jetstream.PubAck, 1)}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.silent {
		a.took = append(a.took, m)
		f.ok <- &jetstream.PubAck{}
	}
	return f, nil
}

// speak ends the silence.
func (a *acknowledging) speak() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.silent = false
}

type future struct {
	jetstream.PubAckFuture
	ok chan *jetstream.PubAck
}

func (f future) Ok() <-chan *jetstream.PubAck { return f.ok }
func (future) Err() <-chan error              { return nil }

// pipes is a listener whose connections stay in the process.
type pipes struct {
	dial   chan net.Conn
	closed chan struct{}
}

func (p pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.dial:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p pipes) Close() error { close(p.closed); return nil }
func (pipes) Addr() net.Addr { return &net.UnixAddr{} }

// inBubble runs do against an edge whose broker acknowledges, or with silent never does.
func inBubble(t *testing.T, silent bool, do func(b *bubble)) {
	t.Helper()
	inBubbleWith(t, silent, nil, do)
}

// inBubbleWith has a guard too.
func inBubbleWith(t *testing.T, silent bool, guard edge.Decider, do func(b *bubble)) {
	t.Helper()
	keys, err := seal.Open(filepath.Join(t.TempDir(), "keyset.json"), true)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		m := memory.NewTransactions()
		b := &bubble{t: t, memory: m, broker: &acknowledging{silent: silent}, dial: make(chan net.Conn), metrics: prometheus.NewRegistry(), store: &transactions{Transactions: m, before: map[string]func(context.Context) error{}}}
		registry := memory.NewRegistry()
		b.served, err = edge.Serve(t.Context(), edge.Config{
			Shell: app.Shell{JS: b.broker, Clock: app.NewClock(nil), Log: zerolog.Nop(), Metrics: b.metrics,
				Health: &app.Health{}},
			Transactions: b.store, Decider: guard, DryRun: guard, Registry: registry, Keys: keys, Instance: "a", Audit: registry.Record, MaxInFlight: 100, BootstrapKey: bootstrap,
		})
		if err != nil {
			t.Fatal(err)
		}
		server, closed := b.served.Server(), make(chan struct{})
		go func() { _ = server.Serve(pipes{b.dial, closed}) }()
		transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return b.connect(), nil }}
		b.client = &http.Client{Transport: transport}
		do(b)
		transport.CloseIdleConnections()
		_ = server.Close()
		b.served.Close()
	})
}

func (b *bubble) connect() net.Conn {
	here, there := net.Pipe()
	b.dial <- there
	return here
}

func (b *bubble) ask(method, path, body string, headers ...string) (answer, time.Duration) {
	b.t.Helper()
	start := time.Now()
	a, err := ask(b.client, "http://edge", bootstrap, method, path, body, headers...)
	if err != nil {
		b.t.Fatal(err)
	}
	return a, time.Since(start)
}

func (b *bubble) post(id string, headers ...string) (answer, time.Duration) {
	b.t.Helper()
	return b.ask(http.MethodPost, "/v1/transactions", paymentAt(id, time.Now()), headers...)
}

func took(t *testing.T, got, want time.Duration) {
	t.Helper()
	if got != want {
		t.Errorf("took %s, want %s", got, want)
	}
}

func TestE20AStoreThatHangsIsRefusedWithinTheClaimTime(t *testing.T) {
	inBubble(t, false, func(b *bubble) {
		hang := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		b.store.breaks("claim", hang)
		a, d := b.post("x")
		refused(t, a, "store")
		took(t, d, 225*time.Millisecond)
	})
}

// What is refused while another group is being written is not claimed afterwards, for nobody; what comes in time is.
func TestE20WhatIsRefusedBeforeItsWriteBeginsIsNotClaimed(t *testing.T) {
	inBubble(t, false, func(b *bubble) {
		b.store.breaks("claim", func(context.Context) error { b.store.breaks("claim", nil); time.Sleep(time.Second); return nil })
		var all sync.WaitGroup
		post := func(id string, after, want time.Duration, check func(answer)) {
			all.Go(func() {
				time.Sleep(after)
				a, d := b.post(id)
				check(a)
				took(t, d, want)
			})
		}
		toStore := func(a answer) { refused(t, a, "store") }
		post("x", 0, 225*time.Millisecond, toStore)
		post("y", 500*time.Millisecond, 225*time.Millisecond, toStore)
		post("z", 900*time.Millisecond, 100*time.Millisecond, func(a answer) { accepted(t, a, false) })
		all.Wait()
		for id, want := range map[string]error{"x": nil, "y": store.ErrNotFound, "z": nil} {
			if _, err := b.memory.Get(t.Context(), key(id)); !errors.Is(err, want) {
				t.Errorf("the claim of %s: %v", id, err)
			}
		}
	})
}

func TestE20ARepeatOfAnOverdueClaimHasTheSameBudget(t *testing.T) {
	inBubble(t, false, func(b *bubble) {
		at := time.Now()
		b.post("x")
		time.Sleep(3 * time.Second)
		hang := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		b.store.breaks("claim", func(context.Context) error { time.Sleep(125 * time.Millisecond); return nil })
		b.store.breaks("raise", hang)
		a, d := b.ask(http.MethodPost, "/v1/transactions", paymentAt("x", at))
		refused(t, a, "store")
		took(t, d, 225*time.Millisecond)
	})
}

func TestE02ABrokerThatDoesNotAcknowledgeIsRefusedWithinThePublishTime(t *testing.T) {
	inBubble(t, true, func(b *bubble) {
		a, d := b.post("x")
		refused(t, a, "broker")
		took(t, d, 600*time.Millisecond)
		time.Sleep(100 * time.Millisecond)
		a, d = b.post("y") // three time-outs in a row: the second request is the probe
		refused(t, a, "broker")
		took(t, d, 600*time.Millisecond)
	})
}

// A hundred may be under way. What is being published is one of them, not two.
func TestE18WhatIsBeingPublishedCountsOnce(t *testing.T) {
	inBubble(t, true, func(b *bubble) {
		var all sync.WaitGroup
		for n := range 90 {
			all.Go(func() {
				time.Sleep(time.Duration(n) * time.Millisecond)
				a, _ := b.post(fmt.Sprint("x", n))
				refused(t, a, "broker")
			})
		}
		all.Wait()
	})
}

func TestE16AWaitThatEndsIsA202WithinIt(t *testing.T) {
	inBubble(t, false, func(b *bubble) {
		a, d := b.post("x", "Prefer", "wait=10")
		accepted(t, a, false)
		took(t, d, 10*time.Second)
		a, d = b.ask(http.MethodGet, "/v1/transactions/x", "", "Prefer", "wait=3")
		if a.status != http.StatusOK || a.member("status") != "processing" || a.header.Get("Preference-Applied") != "" {
			t.Errorf("got %d %v %s", a.status, a.header, a.body)
		}
		took(t, d, 3*time.Second)
	})
}

func TestE16AWaiterHearsAtOnce(t *testing.T) {
	inBubble(t, false, func(b *bubble) {
		b.store.breaks("get", down)
		go func() {
			time.Sleep(1234 * time.Millisecond)
			entry, _ := b.memory.Get(context.Background(), key("x"))
			data, _ := event.Encode(decidedEvent(entry.Claim))
			b.served.Heard(key("x"), data)
		}()
		a, d := b.post("x", "Prefer", "wait=5")
		if a.status != http.StatusOK || a.member("decision") != "approve" {
			t.Errorf("got %d %s", a.status, a.body)
		}
		took(t, d, 1234*time.Millisecond)
	})
}

// A store whose reads hang keeps nobody from a decision's message, neither while there is time nor at its end. It is read at
// 50, 375 and 800 ms, each time for 225 ms.
func TestE16AWaiterHearsWhileTheStoreHangs(t *testing.T) {
	inBubble(t, false, func(b *bubble) {
		b.store.breaks("get", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		for decided, heard := range map[time.Duration]time.Duration{100 * time.Millisecond: 275 * time.Millisecond, 900 * time.Millisecond: time.Second} {
			for range 10 {
				id := fmt.Sprint("x", time.Now().UnixMilli())
				go func() {
					time.Sleep(decided)
					entry, _ := b.memory.Get(context.Background(), key(id))
					data, _ := event.Encode(decidedEvent(entry.Claim))
					b.served.Heard(key(id), data)
				}()
				a, d := b.post(id, "Prefer", "wait=1")
				if a.status != http.StatusOK || a.member("decision") != "approve" {
					t.Errorf("decided after %s: got %d %s", decided, a.status, a.body)
				}
				took(t, d, heard)
			}
		}
	})
}

func TestE16AClientThatLeavesFreesItsWaiter(t *testing.T) {
	inBubble(t, false, func(b *bubble) {
		gets := 0
		b.store.breaks("get", func(context.Context) error { gets++; return store.ErrNotFound })
		ctx, leave := context.WithTimeout(context.Background(), time.Second)
		defer leave()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://edge/v1/transactions", strings.NewReader(paymentAt("x", time.Now())))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+bootstrap)
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Prefer", "wait=10")
		if _, err := b.client.Do(req); err == nil {
			t.Fatal("an answer")
		}
		synctest.Wait()
		before := gets
		time.Sleep(9 * time.Second)
		if gets != before {
			t.Errorf("looked %d times for nobody", gets-before)
		}
	})
}

// The deadline of a body does not outlive the body: it would cut the wait, and everything later on the connection.
func TestASlowBodyIsStillWaitedFor(t *testing.T) {
	inBubble(t, false, func(b *bubble) {
		c := b.connect()
		from := bufio.NewReader(c)
		for _, id := range []string{"x", "y"} {
			body := paymentAt(id, time.Now())
			fmt.Fprintf(c, "POST /v1/transactions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nPrefer: wait=10\r\nContent-Length: %d\r\n\r\n", bootstrap, len(body))
			time.Sleep(9 * time.Second)
			start := time.Now()
			_, _ = io.WriteString(c, body)
			accepted(t, read(t, from), false)
			took(t, time.Since(start), 10*time.Second)
		}
		_ = c.Close()
	})
}

// drip sends text a byte at a time until the connection ends; call the returned function once it has.
func drip(c net.Conn, text string, pause time.Duration) (done func()) {
	var dripping sync.WaitGroup
	dripping.Go(func() {
		for i := range len(text) {
			if _, err := io.WriteString(c, text[i:i+1]); err != nil {
				return
			}
			time.Sleep(pause)
		}
	})
	return func() { _ = c.Close(); dripping.Wait() }
}

func TestE15ABodyThatDripsIsA408(t *testing.T) {
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, _ = z.Write(make([]byte, 500))
	_ = z.Close()
	for coding, body := range map[string]string{"identity": strings.Repeat(" ", 500), "gzip": packed.String()} {
		t.Run(coding, func(t *testing.T) {
			inBubble(t, false, func(b *bubble) {
				c := b.connect()
				start := time.Now()
				fmt.Fprintf(c, "POST /v1/transactions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Encoding: %s\r\nContent-Length: 500\r\n\r\n",
					bootstrap, coding)
				done := drip(c, body, time.Second)
				from := bufio.NewReader(c)
				if a := read(t, from); a.status != http.StatusRequestTimeout || a.slug() != "timeout" {
					t.Errorf("%d %v %s", a.status, a.header, a.body)
				}
				took(t, time.Since(start), 10*time.Second)
				if _, err := from.ReadByte(); !errors.Is(err, io.EOF) {
					t.Errorf("the connection goes on: %v", err)
				}
				done()
			})
		})
	}
}

func TestE21AHeaderThatDripsIsCut(t *testing.T) {
	inBubble(t, false, func(b *bubble) {
		c := b.connect()
		start := time.Now()
		done := drip(c, "GET /livez HTTP/1.1\r\nHost: x\r\nX: yyyyyyyyyyyyyyyyyyyyy", 500*time.Millisecond)
		if said, _ := io.ReadAll(c); strings.HasPrefix(string(said), "HTTP/1.1 2") {
			t.Errorf("said %q", said)
		}
		took(t, time.Since(start), 5*time.Second)
		done()
	})
}

// A refusal does not wait for a body that never comes, whoever asked for what.
func TestARefusalDoesNotWaitForItsBody(t *testing.T) {
	inBubble(t, false, func(b *bubble) {
		for name, c := range map[string]struct {
			head string
			want int
		}{
			"without a key": {"POST /v1/transactions HTTP/1.1\r\n", 401},
			"no such route": {"POST /v1/nothing HTTP/1.1\r\n", 404},
			"no such way":   {"PUT /v1/transactions HTTP/1.1\r\n", 405},
			"another type":  {"POST /v1/transactions HTTP/1.1\r\nAuthorization: Bearer " + bootstrap + "\r\nContent-Type: text/csv\r\n", 415},
		} {
			conn := b.connect()
			start := time.Now()
			_, _ = io.WriteString(conn, c.head+"Host: x\r\nContent-Length: 500\r\n\r\n")
			if a := read(t, bufio.NewReader(conn)); a.status != c.want {
				t.Errorf("%s: %d", name, a.status)
			}
			took(t, time.Since(start), 50*time.Millisecond)
			_ = conn.Close()
		}
	})
}
