package edge_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"crivo/services/edge"
	"crivo/services/store"
	"crivo/streams"
)

func key(id string) store.Key { return store.Key{Tenant: "default", ID: id} }

// refused checks a 503 that says what and when to come again, and no 2xx of any kind.
func refused(t *testing.T, a answer, slug string) {
	t.Helper()
	if a.status != http.StatusServiceUnavailable || a.slug() != slug {
		t.Errorf("got %d %s, want 503 %s", a.status, a.body, slug)
	}
	if n, err := strconv.Atoi(a.header.Get("Retry-After")); err != nil || n < 1 {
		t.Errorf("Retry-After is %q", a.header.Get("Retry-After"))
	}
}

func accepted(t *testing.T, a answer, replayed bool) {
	t.Helper()
	if a.status != http.StatusAccepted || a.member("status") != "processing" || a.header.Get("Location") != "/v1/transactions/"+a.member("id") {
		t.Fatalf("got %d %v %s", a.status, a.header, a.body)
	}
	if got := a.header.Get("Idempotent-Replayed") == "true"; got != replayed && (replayed || a.repeats == 0) {
		t.Errorf("replayed %v, want %v", got, replayed)
	}
}

func TestE02WhatTheBrokerDoesNotTakeIsRefusedAndTheRepeatSucceedsOnce(t *testing.T) {
	t.Parallel()
	for name, broken := range map[string]struct {
		slug          string
		lose, restore func(*rig)
	}{
		"no such stream": {"broker", (*rig).dropStream, func(r *rig) { r.stream(func(*jetstream.StreamConfig) {}) }},
		"acknowledgements are lost": {"broker", func(r *rig) {
			r.stream(func(c *jetstream.StreamConfig) { c.NoAck, c.AllowAtomicPublish = true, false })
		},
			func(r *rig) { r.stream(func(*jetstream.StreamConfig) {}) }},
		"the stream is full": {"no-room", func(r *rig) {
			r.dropStream()
			r.stream(func(c *jetstream.StreamConfig) { c.MaxBytes = 100 })
		}, func(r *rig) { r.stream(func(*jetstream.StreamConfig) {}) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			e := r.edge("a")
			broken.lose(r)
			refused(t, e.patient(r.payment("x"), broken.slug), broken.slug)
			if _, err := r.memory.Get(t.Context(), key("x")); err != nil {
				t.Errorf("the claim: %v", err)
			}
			broken.restore(r)
			var last answer
			r.await("the repeat to be accepted", func() bool {
				last = e.post(r.payment("x"))
				return last.status != http.StatusServiceUnavailable
			})
			accepted(t, last, true)
			if got := r.submitted(); len(got) != 1 || got[0].ID != "x" || got[0].Run != 1 {
				t.Errorf("submitted %v", got)
			}
		})
	}
}

func TestWhileTheBrokerIsAwayNothingIsClaimedButAProbe(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := r.edge("a")
	r.dropStream()
	n := 0
	together := func(posts int) (unclaimed int64) { // at once, since whoever comes alone may be a probe each time
		var all sync.WaitGroup
		var none atomic.Int64
		for range posts {
			n++
			id := "refused-" + strconv.Itoa(n)
			all.Go(func() {
				refused(t, e.patient(r.payment(id), "broker"), "broker")
				if _, err := r.memory.Get(t.Context(), key(id)); errors.Is(err, store.ErrNotFound) {
					none.Add(1)
				}
			})
		}
		all.Wait()
		return none.Load()
	}
	r.await("the gate to shut", func() bool { return together(2) > 0 })
	before, began := r.store.claimed(), time.Now()
	together(200)
	if got, most := r.store.claimed()-before, 1+int(time.Since(began)/(100*time.Millisecond)); got > most {
		t.Errorf("%d claims that cannot be published, %d probes were due", got, most)
	}
	r.stream(func(*jetstream.StreamConfig) {})
	r.await("a probe to open the gate", func() bool { return e.post(r.payment("back")).status == http.StatusAccepted })
	accepted(t, e.patient(r.payment("after")), false)
}

// Nobody decides here: the flow stands still. What is accepted now would be late, so nothing is; and a decision whose wake-up was
// lost is found in the store, which ends the stall.
func TestE18WhileTheFlowStandsStillNothingIsAccepted(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := r.edge("a")
	accepted(t, e.patient(r.payment("stuck")), false)
	r.clock.add(1500 * time.Millisecond)
	r.await("a refusal", func() bool { return e.post(r.payment("new")).slug() == "overload" })
	r.await("/readyz to name it", func() bool {
		ready := e.do(http.MethodGet, "/readyz", "")
		return ready.status == http.StatusServiceUnavailable && strings.Contains(ready.body, `"flow"`)
	})
	r.decide(key("stuck"), "")
	r.await("acceptance", func() bool { return e.post(r.payment("newer")).status == http.StatusAccepted })
}

func TestE18BeyondTheLimitTheBodyIsNotRead(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := r.edge("a", func(c *edge.Config) { c.MaxInFlight = 1 })
	accepted(t, e.patient(r.payment("first")), false)
	// No byte of this body is ever sent: whoever read it would not answer.
	_, from := e.raw("POST /v1/transactions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + bootstrap +
		"\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n")
	refused(t, read(t, from), "overload")
	r.decide(key("first"), "a")
	r.await("room", func() bool { return e.post(r.payment("second")).status == http.StatusAccepted })
}

func TestE18ManyAtOnceDoNotPassTheLimitTogether(t *testing.T) {
	inBubble(t, false, func(b *bubble) {
		release, answers := make(chan struct{}), make(chan answer, 117)
		b.store.breaks("claim", func(context.Context) error { <-release; return nil })
		var posts sync.WaitGroup
		for i := range cap(answers) {
			posts.Go(func() {
				a, _ := b.post("x" + strconv.Itoa(i))
				answers <- a
			})
		}
		for range 17 { // a hundred wait for the store, everybody else is answered meanwhile
			refused(t, <-answers, "overload")
		}
		close(release)
		posts.Wait()
		close(answers)
		for a := range answers {
			accepted(t, a, false)
		}
	})
}

func TestE20AStoreThatIsDownRefusesAndTurnsTheEdgeNotReady(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := r.edge("a")
	release := make(chan struct{})
	hangs := func(ctx context.Context) error {
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for _, call := range []string{"claim", "ping"} {
		r.store.breaks(call, hangs)
	}
	refused(t, e.post(r.payment("x")), "store") // while the store still hangs
	var ready answer
	r.await("not ready", func() bool {
		ready = e.do(http.MethodGet, "/readyz", "")
		return ready.status == http.StatusServiceUnavailable
	})
	if !strings.Contains(ready.body, `"store":"the transaction store does not answer"`) {
		t.Errorf("reasons: %s", ready.body)
	}
	if a := e.do(http.MethodGet, "/livez", ""); a.status != http.StatusOK {
		t.Errorf("/livez %d", a.status)
	}
	for _, call := range []string{"claim", "ping"} {
		r.store.breaks(call, nil)
	}
	close(release)
	r.await("ready again", func() bool { return e.do(http.MethodGet, "/readyz", "").status == http.StatusOK })
	a := e.patient(r.payment("x"))
	if a.status != http.StatusAccepted {
		t.Fatalf("after recovery: %d %s", a.status, a.body)
	}
	if got := r.submitted(); len(got) != 1 {
		t.Errorf("submitted %v", got)
	}
}

func TestE20EveryCallOfABrokenStoreIsA503(t *testing.T) {
	inBubble(t, false, func(b *bubble) {
		x := paymentAt("x", time.Now())
		do := func(method, path, body string) answer {
			a, _ := b.ask(method, path, body)
			return a
		}
		accepted(t, do(http.MethodPost, "/v1/transactions", x), false)
		b.store.breaks("get", down)
		refused(t, do(http.MethodGet, "/v1/transactions/x", ""), "store")
		time.Sleep(5 * time.Second) // past the deadline: the repeat raises the run
		b.store.breaks("raise", down)
		refused(t, do(http.MethodPost, "/v1/transactions", x), "store")
		b.store.breaks("claim", down)
		refused(t, do(http.MethodPost, "/v1/transactions", paymentAt("y", time.Now())), "store")
	})
}

func TestE27ARepeatAdoptsAClaimThatNobodyPublished(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := r.edge("a")
	r.dropStream()
	body := r.payment("x")
	refused(t, e.patient(body, "broker"), "broker")
	e.stop() // the first edge is gone
	claim, err := r.memory.Get(t.Context(), key("x"))
	if err != nil {
		t.Fatal(err)
	}
	r.stream(func(*jetstream.StreamConfig) {})
	b := r.edge("b")

	t.Run("within its deadline under its own run", func(t *testing.T) {
		accepted(t, b.patient(body), true)
		got := r.submitted()
		if len(got) != 1 || got[0].Run != 1 || !got[0].AcceptedAt.Equal(claim.AcceptedAt) || !got[0].Deadline.Equal(claim.Deadline) {
			t.Errorf("submitted %+v", got)
		}
	})
	t.Run("past its deadline under a new run with a new deadline", func(t *testing.T) {
		r.clock.add(3 * time.Second)
		b = r.edge("c") // at the one before it the flow stands still by now
		accepted(t, b.patient(body), true)
		got := r.submitted()
		if len(got) != 2 || got[1].Run != 2 || !got[1].Deadline.After(r.clock.Now()) || !got[1].ClaimedAt.Equal(claim.ClaimedAt) || got[1].Digest != claim.Digest {
			t.Errorf("submitted %+v", got)
		}
	})
	t.Run("another body stays a conflict", func(t *testing.T) {
		if a := b.patient(strings.Replace(body, "13725", "13726", 1)); a.status != http.StatusConflict || a.slug() != "conflict" {
			t.Errorf("got %d %s", a.status, a.body)
		}
	})
	t.Run("once decided it is answered and not published", func(t *testing.T) {
		r.decide(key("x"), "c")
		if a := b.patient(body); a.status != http.StatusOK || a.member("decision") != "approve" || a.header.Get("Idempotent-Replayed") != "true" {
			t.Errorf("got %d %s", a.status, a.body)
		}
		if got := r.submitted(); len(got) != 2 {
			t.Errorf("submitted %d times", len(got))
		}
	})
}

func TestE25WhatOneEdgeAcceptedTheOtherKnowsAtOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	a, b := r.edge("a"), r.edge("b")
	for i := range 20 {
		id := "x" + strconv.Itoa(i)
		accepted(t, a.patient(r.payment(id)), false)
		if got := b.do(http.MethodGet, "/v1/transactions/"+id, ""); got.status != http.StatusOK || got.member("status") != "processing" {
			t.Fatalf("%s: %d %s", id, got.status, got.body)
		}
		accepted(t, b.patient(r.payment(id)), true)
	}
	if got := r.submitted(); len(got) != 20 {
		t.Errorf("%d messages of 20 transactions", len(got))
	}
}

func TestE16AWaiterIsWokenByTheDecision(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := r.edge("a")
	// The decision reaches only the edge, so nothing but its message can wake the waiter.
	r.store.breaks("get", down)
	got := make(chan answer, 1)
	go func() { got <- e.post(r.payment("x"), "Prefer", "wait=9") }()
	r.await("the message", func() bool { return len(r.submitted()) == 1 })
	r.decide(key("x"), "a")
	a := <-got
	if a.status != http.StatusOK || a.member("decision") != "approve" || a.header.Get("Preference-Applied") != "wait=9" {
		t.Errorf("got %d %v %s", a.status, a.header, a.body)
	}
}

func TestE16ALostWakeUpIsFoundInTheStore(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := r.edge("a")
	accepted(t, e.patient(r.payment("x")), false)
	got := make(chan answer, 1)
	go func() { got <- e.do(http.MethodGet, "/v1/transactions/x", "", "Prefer", "wait=9") }()
	r.decide(key("x"), "")
	if a := <-got; a.status != http.StatusOK || a.member("decision") != "approve" {
		t.Errorf("got %d %s", a.status, a.body)
	}
}

func TestWhileDrainingNothingNewIsAcceptedAndAllIsSaid(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	served, err := edge.Serve(t.Context(), r.config("a"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(served.Close)
	server := httptest.NewServer(served.Server().Handler)
	t.Cleanup(server.Close)
	served.Drain()
	a, err := ask(server.Client(), server.URL, bootstrap, http.MethodPost, "/v1/transactions", r.payment("late"))
	if err != nil {
		t.Fatal(err)
	}
	refused(t, a, "draining")
	if a, err := ask(server.Client(), server.URL, bootstrap, http.MethodGet, "/readyz", ""); err != nil || a.status != http.StatusServiceUnavailable {
		t.Errorf("/readyz: %d %s %v", a.status, a.body, err)
	}
	if r.store.claimed() != 0 {
		t.Error("claimed while draining")
	}
}

// What an edge stands on may come after it: until then it is told, and not left to a client's patience.
func TestAnEdgeThatStartsSaysSo(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var away atomic.Bool
	away.Store(true)
	e := r.start("a", func(c *edge.Config) { c.Registry = registry{c.Registry, func(string) bool { return away.Load() }} })
	a := e.post(r.payment("x"), "X-Request-Id", "mine")
	refused(t, a, "starting")
	if a.member("request_id") != "mine" || a.header.Get("X-Request-Id") != "mine" {
		t.Errorf("%v %s", a.header, a.body)
	}
	if a := e.do(http.MethodGet, "/livez", ""); a.status != http.StatusOK {
		t.Errorf("/livez %d", a.status)
	}
	if a := e.do(http.MethodGet, "/readyz", ""); a.status != http.StatusServiceUnavailable || !strings.Contains(a.body, `"edge":"starting"`) {
		t.Errorf("/readyz %d %s", a.status, a.body)
	}
	away.Store(false)
	e.await("the edge to serve", e.serves)
	if a := e.patient(r.payment("x")); a.status != http.StatusAccepted {
		t.Errorf("got %d %s", a.status, a.body)
	}
}

func TestDrainingWaitsForWhoIsWaiting(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := r.edge("a")
	got := make(chan answer, 1)
	go func() { got <- e.post(r.payment("x"), "Prefer", "wait=9") }()
	r.await("the message", func() bool { return len(r.submitted()) == 1 })
	e.end()
	r.await("draining", func() bool { return e.Health.Reasons()["edge"] == "draining" })
	r.decide(key("x"), "a")
	if a := <-got; a.status != http.StatusOK || a.member("decision") != "approve" {
		t.Errorf("got %d %s", a.status, a.body)
	}
	<-e.done
	if _, err := r.connect().Request("tx.intake.default", []byte(r.payment("y")), within); !errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("intake after the end: %v", err)
	}
}

func TestAPanicIsAProblemAndNothingMore(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := r.edge("a")
	r.store.breaks("get", func(context.Context) error { panic("529.982.247-25") })
	a := e.do(http.MethodGet, "/v1/transactions/x", "", "X-Request-Id", "find-me")
	if a.status != http.StatusInternalServerError || a.slug() != "internal" || a.member("request_id") != "find-me" || strings.Contains(a.body, "529") {
		t.Errorf("got %d %s", a.status, a.body)
	}
	nc := r.connect()
	var said string
	r.await("an answer in time", func() bool {
		m, err := nc.RequestMsg(&nats.Msg{Subject: "tx.intake.default", Data: []byte(r.payment("y")), Header: nats.Header{"Prefer": {"wait=5"}}}, within)
		if err != nil {
			t.Fatal(err)
		}
		said = string(m.Data)
		return !strings.Contains(said, `"status":503`)
	})
	if !strings.Contains(said, `"status":500`) {
		t.Errorf("by NATS: %s", said)
	}
	r.store.breaks("get", nil)
	if a := e.do(http.MethodGet, "/v1/transactions/y", ""); a.status != http.StatusOK {
		t.Errorf("afterwards: %d", a.status)
	}
}

func TestE26IntakeByNATSAnswersWhatHTTPWould(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := r.edge("a", func(c *edge.Config) { c.MaxInFlight = 2 })
	r.edge("b", func(c *edge.Config) { c.MaxInFlight = 2 })
	nc := r.connect()
	request := func(tenant, body string) string {
		t.Helper()
		m, err := nc.Request(streams.Subject(streams.EventIntake, tenant), []byte(body), within)
		if err != nil {
			t.Fatal(err)
		}
		return string(m.Data)
	}
	slow := func(said string) bool { return strings.Contains(said, `"status":503`) }
	id, first := "x", ""
	r.await("an answer in time", func() bool {
		id += "x" // one that was refused may be a repeat by now
		first = request("default", r.payment(id))
		return !slow(first)
	})
	if want := fmt.Sprintf(`{"status":202,"location":"/v1/transactions/%[1]s","body":{"id":"%[1]s","status":"processing"}}`, id); first != want {
		t.Errorf("new: %s, want %s", first, want)
	}
	for _, c := range []struct{ name, tenant, body, want string }{
		{"repeated", "default", r.payment(id), `"idempotent_replayed":true`},
		{"another body", "default", strings.Replace(r.payment(id), "137", "138", 1), `"status":409`},
		{"fields at fault", "default", `{"id":"y"}`, `"pointer":"/amount"`},
		{"not JSON", "default", `{`, `"status":400`},
		{"too large", "default", r.payment("y") + strings.Repeat(" ", 64<<10), `"status":413`},
		{"no such tenant", "nobody", r.payment("y"), `"status":404`},
	} {
		var got string
		r.await("an answer in time", func() bool { got = request(c.tenant, c.body); return !slow(got) })
		if !strings.Contains(got, c.want) {
			t.Errorf("%s: %s", c.name, got)
		}
	}
	heard, err := nc.SubscribeSync("tx.rejected.*")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Publish("tx.intake.default", []byte(`{"id":"z","amount":"529.982.247-25"}`)); err != nil {
		t.Fatal(err)
	}
	m, err := heard.NextMsg(within)
	if err != nil || m.Subject != "tx.rejected.default" || !strings.Contains(string(m.Data), `"/amount"`) || strings.Contains(string(m.Data), "529") {
		t.Errorf("rejected: %v, %v", m, err)
	}
	for id := 0; e.post(r.payment("fills-"+strconv.Itoa(id))).status == http.StatusAccepted; id++ {
		request("default", r.payment("fills-too-"+strconv.Itoa(id)))
	}
	r.await("both to be full", func() bool {
		return strings.Contains(request("default", r.payment(fmt.Sprint("one-more-", r.store.claimed()))), `"status":503,"retry_after":1`)
	})
}
