package edge_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"

	"crivo/streams/event"
)

// outcomes reads "status id", with its retry and whether it is a repeat, of every item.
func (a answer) outcomes(t *testing.T) (out []string) {
	t.Helper()
	var page struct {
		Items []struct {
			ID       string `json:"id"`
			Status   int    `json:"status"`
			Retry    int    `json:"retry_after"`
			Replayed bool   `json:"idempotent_replayed"`
		} `json:"items"`
	}
	if err := json.Unmarshal([]byte(a.body), &page); err != nil || a.status != http.StatusMultiStatus {
		t.Fatalf("%d %s, %v", a.status, a.body, err)
	}
	for _, i := range page.Items {
		line := fmt.Sprint(i.Status, " ", i.ID)
		if i.Retry > 0 {
			line += fmt.Sprint(" after ", i.Retry)
		}
		if i.Replayed {
			line += " again"
		}
		out = append(out, line)
	}
	return out
}

func (e *running) batch(items ...string) answer {
	e.t.Helper()
	return e.do(http.MethodPost, "/v1/transactions/batch", "["+strings.Join(items, ",")+"]")
}

func (b *bubble) batch(items ...string) answer {
	b.t.Helper()
	a, _ := b.ask(http.MethodPost, "/v1/transactions/batch", "["+strings.Join(items, ",")+"]")
	return a
}

// busy tells whether a machine was too slow for the budgets of an edge, which is an answer too.
func busy(outcomes []string) bool {
	return slices.ContainsFunc(outcomes, func(o string) bool { return strings.HasPrefix(o, "503") })
}

func TestE17OfOneIDTheOrderOfTheBatchCounts(t *testing.T) {
	t.Parallel()
	var r *rig
	var got, want []string
	for try := 0; try == 0 || busy(got) && try < 5; try++ {
		r = newRig(t)
		got, want = interleaved(t, r)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if n := len(r.submitted()); n != 60 {
		t.Errorf("%d messages", n)
	}
}

// interleaved sends 60 ids thrice in one batch, the second time with another body.
func interleaved(t *testing.T, r *rig) (got, want []string) {
	t.Helper()
	e := r.edge("a")
	var items []string
	for n := range 60 {
		id := fmt.Sprint("x", n)
		first, other := r.payment(id), strings.Replace(r.payment(id), "13725", "13726", 1)
		items = append(items, first, other, first)
		want = append(want, "202 "+id, "409 "+id, "202 "+id+" again")
	}
	return e.batch(items...).outcomes(t), want
}

func TestE17ItemsShareCommits(t *testing.T) {
	inBubble(t, false, func(b *bubble) {
		commits := 0
		b.store.breaks("claim", func(context.Context) error { // one group at a time
			commits++
			time.Sleep(5 * time.Millisecond)
			return nil
		})
		var items, want []string
		for n := range 100 {
			items, want = append(items, paymentAt(fmt.Sprint("x", n), time.Now())), append(want, fmt.Sprint("202 x", n))
		}
		if diff := cmp.Diff(want, b.batch(items...).outcomes(t)); diff != "" {
			t.Error(diff)
		}
		if commits > 2 { // of what came first, and of what came meanwhile
			t.Errorf("%d commits of 100 items", commits)
		}
	})
}

func TestE17AnItemIsRefusedAsASubmissionWouldBe(t *testing.T) {
	inBubble(t, false, func(b *bubble) {
		payments := func(ids ...string) (out []string) {
			for _, id := range ids {
				out = append(out, paymentAt(id, time.Now()))
			}
			return out
		}
		if a := b.batch(payments(numbered("other", 97)...)...); busy(a.outcomes(t)) { // of a hundred places three are left
			t.Fatal(a.body)
		}
		x, y := payments("x")[0], payments("y")[0]
		a, _ := b.ask(http.MethodPost, "/v1/transactions", x)
		accepted(t, a, false)

		b.store.breaks("claim", down)
		if diff := cmp.Diff([]string{"503 y after 1", "422 ", "503 x after 1"}, b.batch(y, "{}", x).outcomes(t)); diff != "" {
			t.Errorf("the store is down: %s", diff)
		}
		b.store.breaks("claim", func(context.Context) error { panic("529.982.247-25") })
		if a := b.batch(y); strings.Contains(a.body, "529") || cmp.Diff([]string{"503 y after 1"}, a.outcomes(t)) != "" {
			t.Errorf("a write that panics: %s", a.body)
		}
		b.store.breaks("claim", nil)
		b.served.Heard(key("x"), decide(t, b.memory, key("x")))
		if diff := cmp.Diff([]string{"200 x again", "202 y"}, b.batch(x, y).outcomes(t)); diff != "" {
			t.Errorf("one is decided: %s", diff)
		}

		// Two places are left for five, whoever comes first.
		tally := map[string]int{}
		for _, o := range b.batch(payments("a", "b", "c", "d", "e")...).outcomes(t) {
			status, _, _ := strings.Cut(o, " ")
			tally[status]++
		}
		if tally["202"] != 2 || tally["503"] != 3 {
			t.Errorf("got %v", tally)
		}
		refused(t, b.batch(y), "overload") // before the body is read
	})
}

// Three hundred are more than are under way at once: the last is looked at when the edge drains already.
func TestE17WhatABatchHasNotBegunIsRefusedByAnEdgeThatDrains(t *testing.T) {
	inBubble(t, false, func(b *bubble) {
		b.store.breaks("claim", func(context.Context) error { b.served.Drain(); return nil })
		items := make([]string, 300)
		for n := range items {
			items[n] = paymentAt(fmt.Sprint("x", n), time.Now())
		}
		a := b.batch(items...)
		if out := a.outcomes(t); out[299] != "503 x299 after 1" || !strings.HasSuffix(a.body, `"type":"urn:crivo:draining","detail":"shutting down","retry_after":1}]}`) {
			t.Errorf("the last: %s", out[299])
		}
	})
}

func TestE18MoreBatchesThanAreHeldInMemoryAreRefusedUnread(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := r.edge("a")
	e.made("/v1/tenants", `{"id":"acme"}`)
	acme := e.as(e.made("/v1/keys", `{"tenant":"acme","roles":["submit"]}`).member("key"))
	begin := func(who *running) (net.Conn, *bufio.Reader) {
		return who.raw("POST /v1/transactions/batch HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + who.key +
			"\r\nContent-Type: application/json\r\nContent-Length: 500\r\nExpect: 100-continue\r\n\r\n")
	}
	var held net.Conn
	// Whoever sends slowly leaves some for others.
	for _, tenant := range []struct {
		who   *running
		seats int
	}{{e, 12}, {acme, 4}} {
		for range tenant.seats { // each is being read: the server asks for the body
			conn, from := begin(tenant.who)
			if line, err := from.ReadString('\n'); err != nil || !strings.Contains(line, " 100 ") {
				t.Fatalf("%q, %v", line, err)
			}
			held = conn
		}
		_, from := begin(tenant.who)
		refused(t, read(t, from), "overload")
	}
	accepted(t, e.patient(r.payment("x")), false) // a single one is not in their way
	_ = held.Close()
	r.await("the seat of one who left", func() bool { return acme.batch(r.payment("y")).status == http.StatusMultiStatus })
}

// A dry run asks the decider, and nothing else of the edge.
func TestE29ADryRunTouchesNeitherStoreNorBroker(t *testing.T) {
	zone := ""
	decider := func(ctx context.Context, txs []event.Submitted) []event.Scored {
		zone = txs[0].TimeZone
		return reviewing(ctx, txs)
	}
	inBubbleWith(t, false, decider, func(b *bubble) {
		for _, call := range []string{"claim", "get", "raise", "decide"} {
			b.store.breaks(call, func(context.Context) error { t.Error(call); return nil })
		}
		a, _ := b.ask(http.MethodPost, "/v1/transactions/dry-run", paymentAt("x", time.Now()))
		if a.status != http.StatusOK || a.member("decision") != "review" || a.member("dry_run") != "true" || zone != "America/Sao_Paulo" {
			t.Errorf("got %d %s, by the clocks of %q", a.status, a.body, zone)
		}
		time.Sleep(time.Minute) // no guard, no sweep, no waiter comes for it
		if len(b.broker.took) != 0 {
			t.Errorf("published %v", b.broker.took)
		}
		b.served.Drain()
		a, _ = b.ask(http.MethodPost, "/v1/transactions/dry-run", paymentAt("x", time.Now()))
		refused(t, a, "draining")
	})
}
