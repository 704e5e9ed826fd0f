package e2e_test

import (
	"bufio"
	"context"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// block is one event, or what is none, with its id.
type block struct{ id, event, data, comment string }

// listen opens a stream of events and returns the id that it begins with; next reads the next block. The answer is checked
// against the document.
func (c client) listen(t *testing.T, id string) (next func() block, begins string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*within)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url+"/v1/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+c.key)
	if id != "" {
		req.Header.Set("Last-Event-ID", id)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = res.Body.Close() })
	lines := bufio.NewScanner(res.Body)
	next = func() (h block) {
		t.Helper()
		for lines.Scan() {
			name, value, _ := strings.Cut(lines.Text(), ":")
			value = strings.TrimPrefix(value, " ")
			switch {
			case lines.Text() == "":
				return h
			case name == "":
				h.comment = value
			case name == "id":
				h.id = value
			case name == "event":
				h.event = value
			case name == "data":
				h.data = value
			}
		}
		t.Fatalf("ended: %d %v", res.StatusCode, lines.Err())
		return h
	}
	first := next()
	if first.id == "" || first.data != "" {
		t.Errorf("begins with %+v", first)
	}
	if err := document.check(http.MethodGet, "/v1/events", "", req.Header, answer{status: res.StatusCode, header: res.Header, body: []byte(first.comment)}); err != nil {
		t.Error(err)
	}
	return next, first.id
}

// decisions reads events until there are n.
func decisions(t *testing.T, next func() block, n int) (data []string, last string) {
	t.Helper()
	for len(data) < n {
		h := next()
		last = h.id
		if h.data == "" {
			continue
		}
		if h.event != "transaction.decided" || h.id == "" {
			t.Errorf("heard %+v", h)
		}
		data = append(data, h.data)
	}
	return data, last
}

func TestEventsAreTheDecisionsOfATenantAndResume(t *testing.T) {
	t.Parallel()
	c, other := newTenant(t), newTenant(t)
	ours, _ := c.listen(t, "")
	theirs, _ := other.listen(t, "")
	var want []string
	told := map[string]int{}
	decide := func(who client) string {
		body := string(who.decided(t, payment(newID())).body)
		told[who.tenant]++
		who.announced(t, told[who.tenant]) // in this order
		return body
	}
	for range 3 {
		want = append(want, decide(c))
		decide(other)
	}
	got, middle := decisions(t, ours, 2)
	more, last := decisions(t, ours, 1)
	if diff := cmp.Diff(want, append(got, more...)); diff != "" {
		t.Error(diff)
	}
	for _, data := range want {
		if err := document.checkWebhook("Decision", []byte(data)); err != nil {
			t.Error(err)
		}
	}
	if data, _ := decisions(t, theirs, 3); cmp.Equal(data, want) {
		t.Errorf("the other tenant heard %v", data)
	}
	want = append(want, decide(c), decide(c))
	for from, id := range map[int]string{2: middle, 3: last} {
		next, _ := c.listen(t, id)
		if data, _ := decisions(t, next, 5-from); !cmp.Equal(data, want[from:]) {
			t.Errorf("after event %d: %v", from, data)
		}
	}
	for _, id := range []string{"x", last[1:], last + "A"} {
		c.get(t, "/v1/events", "Last-Event-ID", id).problem(t, http.StatusBadRequest, "event-id")
	}
	other.get(t, "/v1/events", "Last-Event-ID", last).problem(t, http.StatusBadRequest, "event-id")
	writer := c.as(operator().newKey(t, c.tenant, "", "submit", "admin"))
	writer.get(t, "/v1/events").problem(t, http.StatusForbidden, "forbidden")
	writer.send(t, http.MethodPost, "/v1/events", nil, "").problem(t, http.StatusMethodNotAllowed, "method")
}

// TestAQuietTenantsPlaceIsGoodAlthoughOthersDecided has the edge ask the broker for what it may only ask about this.
func TestAQuietTenantsPlaceIsGoodAlthoughOthersDecided(t *testing.T) {
	t.Parallel()
	c, other := newTenant(t), newTenant(t)
	var at string
	t.Run("who listens and goes", func(t *testing.T) { _, at = c.listen(t, "") })
	other.decided(t, payment(newID()))
	other.announced(t, 1)
	next, _ := c.listen(t, at)
	want := string(c.decided(t, payment(newID())).body)
	if data, _ := decisions(t, next, 1); data[0] != want {
		t.Errorf("heard %s, want %s", data[0], want)
	}
}
