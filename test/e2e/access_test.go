package e2e_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/nats-io/nats.go"

	"crivo/streams"

	"crivo/test/system"
)

// exampleOf returns the body of POST /v1/transactions that the document shows by name.
func exampleOf(t *testing.T, name string) string {
	t.Helper()
	a := operator().get(t, "/openapi.json").want(t, http.StatusOK)
	var doc struct {
		Paths map[string]map[string]struct {
			RequestBody struct {
				Content map[string]struct {
					Examples map[string]struct{ Value jsontext.Value }
				}
			} `json:"requestBody"`
		}
	}
	if err := json.Unmarshal(a.body, &doc, json.MatchCaseInsensitiveNames(true)); err != nil {
		t.Fatal(err)
	}
	value := doc.Paths["/v1/transactions"]["post"].RequestBody.Content["application/json"].Examples[name].Value
	if len(value) == 0 {
		t.Fatalf("no example %s", name)
	}
	return string(value)
}

// submitUnchecked sends what the server takes although the document is narrower, such as null.
func (c client) submitUnchecked(t *testing.T, body string, headers ...string) answer {
	t.Helper()
	return patient(t, func() answer {
		a, header, err := c.exchange(http.MethodPost, "/v1/transactions", strings.NewReader(body), headers...)
		if err != nil {
			t.Fatal(err)
		}
		if err := document.check(http.MethodPost, "/v1/transactions", payment("x"), header, a); err != nil {
			t.Error(err)
		}
		return a
	})
}

func TestE23TheDocumentIsValidAndEveryRouteOfItExists(t *testing.T) {
	t.Parallel()
	document.mu.Lock()
	_, errs := document.validator.ValidateDocument()
	document.mu.Unlock()
	if err := told(errs); err != nil {
		t.Error(err)
	}
	nobody := client{url: crivo.URL}
	document.operations(func(method, path string) {
		var a answer
		await(t, path, func() bool { // a slow machine is not ready for moments
			a = nobody.sendOnce(t, method, strings.NewReplacer("{id}", "x", "{list}", "block", "{name}", "x", "{version}", "1").Replace(path), nil, "")
			return a.status != http.StatusServiceUnavailable
		})
		want := http.StatusUnauthorized
		if !strings.HasPrefix(path, "/v1/") {
			want = http.StatusOK
		}
		if a.status != want {
			t.Errorf("%s %s: %d %s", method, path, a.status, a.body)
		}
	})
}

func TestE24WhoIsNobodyAndWhoLacksARole(t *testing.T) {
	t.Parallel()
	c := newTenant(t)
	for name, header := range map[string]string{"no key": "", "a wrong key": "Bearer crv_wrong", "another scheme": "Basic dXNlcjpwYXNz", "an empty key": "Bearer ",
		"a long key": "Bearer " + strings.Repeat("x", 1000)} {
		a := client{url: crivo.URL}.get(t, "/v1/transactions/x", "Authorization", header).problem(t, http.StatusUnauthorized, "unauthorized")
		if got := a.header.Get("WWW-Authenticate"); !strings.HasPrefix(got, `Bearer realm="crivo"`) || strings.Contains(got, "invalid_token") != (name == "a wrong key") {
			t.Errorf("%s: WWW-Authenticate %q", name, got)
		}
	}
	routes := []struct{ role, method, path, body string }{
		{"submit", http.MethodPost, "/v1/transactions", payment(newID())},
		{"submit", http.MethodPost, "/v1/transactions/batch", `[]`},
		{"submit read", http.MethodPost, "/v1/transactions/dry-run", payment("x")},
		{"read", http.MethodGet, "/v1/transactions/x", ""},
		{"read", http.MethodGet, "/v1/deliveries", ""},
		{"read", http.MethodGet, "/v1/deliveries/x", ""},
		{"admin", http.MethodGet, "/v1/webhook-endpoints", ""},
		{"admin", http.MethodPost, "/v1/webhook-endpoints", `{"url":"https://example.com/"}`},
		{"admin", http.MethodGet, "/v1/webhook-endpoints/x", ""},
		{"admin", http.MethodPatch, "/v1/webhook-endpoints/x", `{}`},
		{"admin", http.MethodDelete, "/v1/webhook-endpoints/x", ""},
		{"admin", http.MethodPost, "/v1/webhook-endpoints/x/rotate-secret", `{}`},
		{"admin", http.MethodPost, "/v1/webhook-endpoints/x/test", ""},
		{"admin", http.MethodPost, "/v1/webhook-endpoints/x/replay", `{"from":"2026-01-01T00:00:00Z"}`},
		{"admin", http.MethodGet, "/v1/webhook-endpoints/x/replay", ""},
		{"admin", http.MethodDelete, "/v1/webhook-endpoints/x/replay", ""},
		{"admin", http.MethodPost, "/v1/deliveries/x/resend", ""},
		{"admin", http.MethodGet, "/v1/lists/block/entries", ""},
		{"admin", http.MethodPost, "/v1/lists/block/entries", `{"kind":"device_id","value":"d-1"}`},
		{"admin", http.MethodDelete, "/v1/lists/block/entries/x", ""},
		{"read", http.MethodGet, "/v1/rule-sets", ""},
		{"read", http.MethodGet, "/v1/rule-sets/default/1", ""},
		{"admin operator", http.MethodGet, "/v1/dead-letters", ""},
		{"admin operator", http.MethodGet, "/v1/dead-letters/x", ""},
		{"admin operator", http.MethodDelete, "/v1/dead-letters/x", ""},
		{"admin operator", http.MethodPost, "/v1/dead-letters/x/redrive", ""},
		{"admin operator", http.MethodPost, "/v1/dead-letters/redrive", `{"dry_run":true}`},
		{"operator", http.MethodGet, "/v1/tenants", ""},
		{"operator", http.MethodPost, "/v1/tenants", `{"id":"` + c.tenant + `-x"}`},
		{"operator", http.MethodGet, "/v1/keys", ""},
		{"operator", http.MethodPost, "/v1/keys", `{"roles":["read"]}`},
		{"operator", http.MethodDelete, "/v1/keys/x", ""},
	}
	for _, role := range []string{"submit", "read", "admin", "operator"} {
		one := c.as(operator().newKey(t, c.tenant, "", role))
		for _, r := range routes {
			a := one.send(t, r.method, r.path, strings.NewReader(r.body), r.body)
			if (a.status == http.StatusForbidden) == strings.Contains(r.role, role) {
				t.Errorf("%s with role %s: %d", r.method+" "+r.path, role, a.status)
			}
			if a.status == http.StatusForbidden {
				a.problem(t, http.StatusForbidden, "forbidden")
				if got := a.header.Get("WWW-Authenticate"); !strings.Contains(got, "insufficient_scope") {
					t.Errorf("WWW-Authenticate %q", got)
				}
			}
		}
	}
}

func TestE24AnotherTenantsThingsAreNotThere(t *testing.T) {
	t.Parallel()
	a, b, id := newTenant(t), newTenant(t), newID()
	r := a.receive(t, "")
	a.decided(t, payment(id))
	r.first(t)
	var page struct {
		Items []struct {
			ID string `json:"id"`
		} `json:"items"`
	}
	a.get(t, "/v1/deliveries?endpoint_id="+r.id).want(t, http.StatusOK).decode(t, &page)
	a.get(t, "/v1/deliveries/"+page.Items[0].ID).want(t, http.StatusOK)
	for _, c := range []struct{ method, path, body string }{
		{http.MethodGet, "/v1/transactions/" + id, ""},
		{http.MethodGet, "/v1/deliveries/" + page.Items[0].ID, ""},
		{http.MethodGet, "/v1/webhook-endpoints/" + r.id, ""},
		{http.MethodPatch, "/v1/webhook-endpoints/" + r.id, `{"paused":true}`},
		{http.MethodPost, "/v1/webhook-endpoints/" + r.id + "/rotate-secret", `{}`},
		{http.MethodPost, "/v1/webhook-endpoints/" + r.id + "/test", ""},
		{http.MethodPost, "/v1/webhook-endpoints/" + r.id + "/replay", `{"from":"2026-01-01T00:00:00Z"}`},
		{http.MethodGet, "/v1/webhook-endpoints/" + r.id + "/replay", ""},
		{http.MethodDelete, "/v1/webhook-endpoints/" + r.id + "/replay", ""},
		{http.MethodPost, "/v1/deliveries/" + page.Items[0].ID + "/resend", ""},
		{http.MethodDelete, "/v1/webhook-endpoints/" + r.id, ""},
	} {
		b.send(t, c.method, c.path, strings.NewReader(c.body), c.body).problem(t, http.StatusNotFound, "not-found")
	}
	for _, path := range []string{"/v1/webhook-endpoints", "/v1/deliveries", "/v1/deliveries?endpoint_id=" + r.id, "/v1/deliveries?transaction_id=" + id} {
		var empty struct {
			Items []any `json:"items"`
		}
		if b.get(t, path).want(t, http.StatusOK).decode(t, &empty); len(empty.Items) != 0 {
			t.Errorf("%s lists %v", path, empty.Items)
		}
	}
}

func TestKeysComeAndGo(t *testing.T) {
	t.Parallel()
	c := newTenant(t)
	made := operator().post(t, "/v1/keys", fmt.Sprintf(`{"tenant":%q,"roles":["read"],"rate":100,"expires_at":%q}`, c.tenant, time.Now().Add(time.Hour).UTC().Format(time.RFC3339))).want(t, http.StatusCreated)
	key := c.as(made.text("key"))
	key.get(t, "/v1/deliveries").want(t, http.StatusOK)
	list := operator().get(t, "/v1/keys").want(t, http.StatusOK)
	if !strings.Contains(string(list.body), made.text("id")) || strings.Contains(string(list.body), made.text("key")) || strings.Contains(string(list.body), `hash":`) {
		t.Errorf("listed as %s", list.body)
	}
	operator().send(t, http.MethodDelete, "/v1/keys/"+made.text("id"), nil, "").want(t, http.StatusNoContent)
	key.get(t, "/v1/deliveries").problem(t, http.StatusUnauthorized, "unauthorized")
	operator().send(t, http.MethodDelete, "/v1/keys/"+made.text("id"), nil, "").problem(t, http.StatusNotFound, "not-found")
	if tenants := operator().get(t, "/v1/tenants").want(t, http.StatusOK); !strings.Contains(string(tenants.body), `"id":"`+c.tenant+`","deadline_ms":2000,"time_zone":"America/Sao_Paulo"`) {
		t.Errorf("tenants %s", tenants.body)
	}
	operator().post(t, "/v1/tenants", fmt.Sprintf(`{"id":%q}`, c.tenant)).problem(t, http.StatusConflict, "conflict")
}

func TestE26IntakeByNATS(t *testing.T) {
	t.Parallel()
	c, id := newTenant(t), newID()
	nc := connect(t)
	subject := streams.Subject(streams.EventIntake, c.tenant)
	request := func(body string) (reply struct {
		Status   int
		Location string
		Replayed bool `json:"idempotent_replayed"`
		Body     jsontext.Value
		asked    int
	}) {
		t.Helper()
		var m *nats.Msg
		for give := time.Now().Add(within); m == nil || reply.Status == http.StatusServiceUnavailable && time.Now().Before(give); reply.asked++ { // a busy machine may say so
			var err error
			if m, err = nc.Request(subject, []byte(body), within); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(m.Data, &reply, json.MatchCaseInsensitiveNames(true)); err != nil {
				t.Fatalf("%s: %v", m.Data, err)
			}
		}
		// What NATS says is what HTTP would have said.
		a := answer{status: reply.Status, body: reply.Body,
			header: http.Header{"Content-Type": {"application/json"}, "X-Request-Id": {"x"}, "Location": {"x"}}}
		if reply.Status >= 400 {
			a.header.Set("Content-Type", "application/problem+json")
		}
		if err := document.check(http.MethodPost, "/v1/transactions", payment("x"), http.Header{"Content-Type": {"application/json"}, "Authorization": {"Bearer x"}}, a); err != nil {
			t.Errorf("%s: %v", m.Data, err)
		}
		return reply
	}
	first := request(payment(id))
	for ; first.asked > 1 && first.Status != http.StatusServiceUnavailable; first = request(payment(id)) {
		id = newID() // of one that was refused this may be a repeat
	}
	if first.Status != http.StatusAccepted || first.Location != "/v1/transactions/"+id || first.Replayed {
		t.Errorf("new: %+v", first)
	}
	decision := c.get(t, "/v1/transactions/"+id, "Prefer", "wait=10").want(t, http.StatusOK)
	if r := request(payment(id)); r.Status != http.StatusOK || !r.Replayed || string(r.Body) != string(decision.body) {
		t.Errorf("again: %+v", r)
	}
	if a := c.submit(t, payment(id)).want(t, http.StatusOK); a.header.Get("Idempotent-Replayed") != "true" {
		t.Error("HTTP and NATS do not share ids")
	}
	if r := request(strings.Replace(payment(id), "13725", "13726", 1)); r.Status != http.StatusConflict {
		t.Errorf("another body: %+v", r)
	}
	if r := request(`{"id":"y","amount":"CANARY-nats"}`); r.Status != http.StatusUnprocessableEntity || strings.Contains(string(r.Body), "CANARY") {
		t.Errorf("faults: %+v", r)
	}
	rejected, err := nc.SubscribeSync(streams.Subject(streams.EventRejected, c.tenant))
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Publish(subject, []byte(`{"id":"y","amount":"CANARY-nats"}`)); err != nil {
		t.Fatal(err)
	}
	m, err := rejected.NextMsg(within)
	if err != nil || !strings.Contains(string(m.Data), `"/amount"`) || strings.Contains(string(m.Data), "CANARY") {
		t.Errorf("rejected: %v, %v", m, err)
	}
}

func TestE28BeyondThisMachineOnlyWithTLSOrWhenToldSo(t *testing.T) {
	t.Parallel()
	run := func(args ...string) (string, int) {
		t.Helper()
		cmd, err := system.Command(t.Context(), args...)
		if err != nil {
			t.Fatal(err)
		}
		out, _ := cmd.CombinedOutput()
		return string(out), cmd.ProcessState.ExitCode()
	}
	data := filepath.Join(t.TempDir(), "data")
	for _, address := range []string{"0.0.0.0:0", ":0", "[::]:0"} {
		out, code := run("up", "--data", data, "--http", address, "--ops", "127.0.0.1:0", "--nats", "none")
		if code != 2 || !strings.Contains(out, "--tls-cert") || !strings.Contains(out, "--insecure-http") {
			t.Errorf("%s: status %d, %s", address, code, out)
		}
	}
	if _, err := os.Stat(data); !os.IsNotExist(err) {
		t.Errorf("something was started: %v", err)
	}
	if out, code := run("config", "--http", "0.0.0.0:0", "--insecure-http"); code != 0 {
		t.Errorf("told so: status %d, %s", code, out)
	}
}
