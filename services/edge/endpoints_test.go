package edge_test

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"crivo/services/edge"
	"crivo/services/store"
)

// meanwhile is a registry in which another operator does something right after endpoints were read.
type meanwhile struct {
	edge.Registry
	happens chan func()
}

func (m meanwhile) Endpoints(ctx context.Context) ([]store.Endpoint, error) {
	all, err := m.Registry.Endpoints(ctx)
	select {
	case do := <-m.happens:
		do()
	default:
	}
	return all, err
}

func TestWhatAnotherOperatorDidMeanwhileStays(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	happens := make(chan func(), 1)
	mine := r.edge("a", func(c *edge.Config) { c.Registry = meanwhile{r.registry, happens} })
	theirs := r.edge("b")
	made := mine.made("/v1/webhook-endpoints", `{"url":"https://example.com/","headers":{"X-Token":"theirs"}}`)
	path := "/v1/webhook-endpoints/" + made.member("id")
	stands := func() store.Endpoint {
		all, err := r.registry.Endpoints(t.Context())
		if err != nil || len(all) != 1 {
			t.Fatal(all, err)
		}
		return all[0]
	}
	// Of two reads, one before the faults and one before the change, the second is what is changed.
	twice := func(do func()) {
		happens <- func() { happens <- do }
	}
	twice(func() { theirs.do(http.MethodPost, path+"/rotate-secret", `{"grace_s":60}`) })
	if a := mine.do(http.MethodPatch, path, `{"description":"mine","headers":{"X-Token":"********"}}`); a.status != http.StatusOK {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if e := stands(); e.Description != "mine" || len(e.Secrets) != 2 || e.Headers["X-Token"] != "theirs" {
		t.Errorf("%+v", e)
	}
	happens <- func() { theirs.do(http.MethodPost, path+"/rotate-secret", `{"grace_s":60}`) }
	if a := mine.do(http.MethodPost, path+"/rotate-secret", `{"grace_s":60}`); a.status != http.StatusOK || a.member("secret") == "" {
		t.Fatalf("%d %s", a.status, a.body)
	}
	e := stands()
	if len(e.Secrets) != 4 || !e.Secrets[0].Until.IsZero() {
		t.Errorf("%+v", e.Secrets)
	}
	for _, old := range e.Secrets[1:] {
		if old.Until.IsZero() {
			t.Error("two secrets are without an end")
		}
	}
	twice(func() { theirs.do(http.MethodDelete, path, "") })
	if a := mine.do(http.MethodPatch, path, `{"description":"again"}`); a.status != http.StatusNotFound {
		t.Errorf("deleted meanwhile: %d %s", a.status, a.body)
	}
	acts, err := r.registry.Acts(t.Context(), 20)
	if err != nil {
		t.Fatal(err)
	}
	var done []string
	for _, a := range acts {
		done = append([]string{strings.TrimPrefix(a.Action, "endpoint.")}, done...)
	}
	// The act that came to nothing was on record before it could be known.
	if got := strings.Join(done[len(done)-7:], " "); got != "create rotate_secret update rotate_secret rotate_secret delete update" {
		t.Errorf("on record: %s", got)
	}
}
