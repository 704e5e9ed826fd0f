package e2e_test

import (
	"net/http"
	"strings"
	"testing"
)

// W18 as a client sees it: the breaker of an endpoint whose receiver fails is shown open, the other endpoint hears of it, and
// what is owed waits.
func TestW18AnOpenBreakerIsShownAndTold(t *testing.T) {
	t.Parallel()
	c := newTenant(t)
	watcher := c.receive(t, `,"events":["endpoint.*"]`)
	sick := c.receive(t, "")
	sick.sick.Store(true)
	path := "/v1/webhook-endpoints/" + sick.id
	if got := c.get(t, path).want(t, http.StatusOK).text("breaker"); got != "closed" {
		t.Errorf("before: %s", got)
	}
	for range 12 {
		c.decided(t, payment(newID()))
	}
	await(t, "an open breaker", func() bool { return c.get(t, path).want(t, http.StatusOK).text("breaker") != "closed" })
	body := watcher.first(t).body
	if err := document.checkWebhook("EndpointEvent", body); err != nil || !strings.Contains(string(body), sick.id) {
		t.Errorf("%s: %v", body, err)
	}
	told := c.get(t, "/v1/deliveries?endpoint_id="+watcher.id).want(t, http.StatusOK)
	if !strings.Contains(string(told.body), `"endpoint.breaker_opened"`) {
		t.Errorf("listed as %s", told.body)
	}
	c.decided(t, payment(newID()))
	await(t, "twelve that wait", func() bool {
		waiting := c.get(t, "/v1/deliveries?status=pending&limit=500&endpoint_id="+sick.id).want(t, http.StatusOK)
		return strings.Count(string(waiting.body), `"transaction_id"`) >= 12
	})
	c.send(t, http.MethodDelete, path, nil, "").want(t, http.StatusNoContent)
}
