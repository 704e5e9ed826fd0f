package e2e_test

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
)

// limits are what an answer tells of its key's rate.
type limits struct{ quota, window, left, reset int }

func (a answer) limits(t *testing.T) (l limits) {
	t.Helper()
	policy, now := a.header.Get("RateLimit-Policy"), a.header.Get("RateLimit")
	if _, err := fmt.Sscanf(policy, `"key";q=%d;w=%d`, &l.quota, &l.window); err != nil {
		t.Fatalf("RateLimit-Policy %q: %v", policy, err)
	}
	if _, err := fmt.Sscanf(now, `"key";r=%d;t=%d`, &l.left, &l.reset); err != nil {
		t.Fatalf("RateLimit %q: %v", now, err)
	}
	return l
}

func TestE15ARateIsToldWhileItLastsAndOnceItIsUsedUp(t *testing.T) {
	t.Parallel()
	c := newTenant(t)
	slow := c.as(operator().newKey(t, c.tenant, `,"rate":0.01`, "submit"))
	post := func(c client) answer {
		t.Helper()
		body := payment(newID())
		return c.sendOnce(t, http.MethodPost, "/v1/transactions", strings.NewReader(body), body)
	}
	// What a key may not do costs it nothing.
	if a := slow.get(t, "/v1/deliveries").problem(t, http.StatusForbidden, "forbidden"); a.header.Get("RateLimit") != "" {
		t.Errorf("%v", a.header)
	}
	first := post(slow)
	if l := first.limits(t); first.status == http.StatusTooManyRequests || l.quota != 1 || l.window != 100 || l.left != 0 || l.reset < 1 || l.reset > 100 {
		t.Errorf("%d, %+v", first.status, l)
	}
	used := post(slow).problem(t, http.StatusTooManyRequests, "rate")
	wait, err := strconv.Atoi(used.header.Get("Retry-After"))
	if l := used.limits(t); err != nil || l.quota != 1 || l.window != 100 || l.left != 0 || l.reset < 1 || l.reset > wait || wait > 100 {
		t.Errorf("%+v, Retry-After %q", l, used.header.Get("Retry-After"))
	}
	fast := c.as(operator().newKey(t, c.tenant, `,"rate":1000`, "submit"))
	if l := post(fast).limits(t); l.quota != 1000 || l.window != 1 || l.left < 900 || l.left > 1000 || l.reset != 1 {
		t.Errorf("%+v", l)
	}
	if a := post(c); a.header.Get("RateLimit")+a.header.Get("RateLimit-Policy") != "" {
		t.Errorf("a key without a rate: %v", a.header)
	}
}
