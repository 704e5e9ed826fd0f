package e2e_test

import (
	"bytes"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	v3 "github.com/pb33f/libopenapi/datamodel/high/v3"
	"github.com/pb33f/libopenapi/orderedmap"
)

// bodies calls do for every JSON body that the document describes: of requests, answers and webhooks.
func (c *contract) bodies(do func(where string, body *v3.MediaType)) {
	all := func(where string, content *orderedmap.Map[string, *v3.MediaType]) {
		for kind, body := range content.FromOldest() {
			if kind == "application/json" || kind == "application/problem+json" {
				do(where, body)
			}
		}
	}
	for _, items := range []*orderedmap.Map[string, *v3.PathItem]{c.model.Paths.PathItems, c.model.Webhooks} {
		for path, item := range items.FromOldest() {
			for method, op := range item.GetOperations().FromOldest() {
				where := strings.ToUpper(method) + " " + path
				if op.RequestBody != nil {
					all(where, op.RequestBody.Content)
				}
				for status, answer := range op.Responses.Codes.FromOldest() {
					all(where+" "+status, answer.Content)
				}
			}
		}
	}
}

// shown returns a body's examples as JSON.
func shown(t *testing.T, body *v3.MediaType) (out [][]byte) {
	t.Helper()
	show := func(decode func(any) error) {
		var value any
		err := decode(&value)
		if err == nil {
			var data []byte
			data, err = json.Marshal(value)
			out = append(out, data)
		}
		if err != nil {
			t.Error(err)
		}
	}
	if body.Example != nil {
		show(body.Example.Decode)
	}
	for _, e := range body.Examples.FromOldest() {
		show(e.Value.Decode)
	}
	return out
}

func TestE23EveryBodyHasAnExampleThatIsAsItsSchemaSays(t *testing.T) {
	t.Parallel()
	n, webhooks := 0, 0
	document.bodies(func(where string, body *v3.MediaType) {
		examples := shown(t, body)
		if len(examples) == 0 {
			t.Errorf("%s: no example", where)
		}
		for _, e := range examples {
			n++
			if err := document.checkSchema(body.Schema, e); err != nil {
				t.Errorf("%s: %s\n%v", where, e, err)
			}
		}
		if _, name, _ := strings.Cut(where, " "); !strings.HasPrefix(name, "/") {
			webhooks += len(examples)
		}
	})
	if n < 100 || webhooks < 2 {
		t.Errorf("%d examples seen, %d of them of webhooks", n, webhooks)
	}
}

func TestE23TheCheckSeesWhatIsWrong(t *testing.T) {
	t.Parallel()
	c, id := newTenant(t), newID()
	r := c.receive(t, "")
	a, path := c.decided(t, payment(id)), "/v1/transactions/"+id
	check := func(a answer) error {
		return document.check(http.MethodGet, path, "", http.Header{"Authorization": {"Bearer x"}}, a)
	}
	if err := check(a); err != nil {
		t.Fatal(err)
	}
	for name, wrong := range map[string]func(a *answer){
		"a member more":         func(a *answer) { a.body = []byte(with(string(a.body), `"extra":1`)) },
		"a member less":         func(a *answer) { a.body = regexp.MustCompile(`"late":\w+,`).ReplaceAll(a.body, nil) },
		"a number for a text":   func(a *answer) { a.body = bytes.Replace(a.body, []byte(`"engine":"`), []byte(`"engine":0,"x":"`), 1) },
		"a decision of no kind": func(a *answer) { a.body = bytes.ReplaceAll(a.body, []byte(`"approve"`), []byte(`"perhaps"`)) },
		"a time without its zone": func(a *answer) {
			a.body = bytes.Replace(a.body, []byte(`Z","latency_ms"`), []byte(`","latency_ms"`), 1)
		},
		"another status":           func(a *answer) { a.status = http.StatusCreated },
		"an error without problem": func(a *answer) { a.status = http.StatusNotFound },
		"no JSON":                  func(a *answer) { a.body = []byte("{") },
		"no request id":            func(a *answer) { a.header.Del("X-Request-Id") },
		"another media type":       func(a *answer) { a.header.Set("Content-Type", "text/plain") },
	} {
		other := answer{a.status, a.header.Clone(), bytes.Clone(a.body), 0}
		if wrong(&other); check(other) == nil {
			t.Errorf("%s: not seen in %s", name, other.body)
		}
	}
	if document.check(http.MethodGet, "/v1/nothing", "", http.Header{}, a) == nil {
		t.Error("a route that nobody described is not seen")
	}
	got := r.first(t)
	for name, wrong := range map[string]func(w *webhook){
		"an id with a dot": func(w *webhook) { w.header.Set("Webhook-Id", "msg_a.b") },
		"a fraction":       func(w *webhook) { w.header.Set("Webhook-Timestamp", "1.5") },
		"no signature":     func(w *webhook) { w.header.Del("Webhook-Signature") },
		"another type":     func(w *webhook) { w.body = bytes.Replace(w.body, []byte("decided"), []byte("pondered"), 1) },
		"a member more":    func(w *webhook) { w.body = []byte(with(string(w.body), `"extra":1`)) },
		"no JSON type":     func(w *webhook) { w.header.Set("Content-Type", "text/plain") },
	} {
		other := webhook{got.header.Clone(), bytes.Clone(got.body)}
		if wrong(&other); document.checkDelivery(other) == nil {
			t.Errorf("a webhook with %s: not seen", name)
		}
	}
}
