package edge_test

import (
	"context"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"crivo/pkg/seal"
	"crivo/services/edge"
	"crivo/services/store"
	"crivo/services/store/memory"
	"crivo/streams"
)

func (e *running) made(path, body string) answer {
	e.t.Helper()
	a := e.do(http.MethodPost, path, body)
	if a.status != http.StatusCreated {
		e.t.Fatalf("%s %s: %d %s", path, body, a.status, a.body)
	}
	return a
}

// as is the same edge, asked with another key.
func (e *running) as(key string) *running {
	other := *e
	other.key = key
	return &other
}

func TestAChangedFirstKeyTakesTheOldOnesPlace(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	old := r.edge("a", func(c *edge.Config) { c.BootstrapKey = "the-key-of-yesterday" })
	if a := old.do(http.MethodGet, "/v1/keys", ""); a.status != http.StatusOK {
		t.Fatalf("the first key: %d", a.status)
	}
	if a := old.do(http.MethodDelete, "/v1/keys/key_bootstrap", ""); a.status != http.StatusConflict || a.slug() != "conflict" {
		t.Errorf("what a restart would make again is withdrawn: %d %s", a.status, a.body)
	}
	old.stop()
	now := r.edge("b", func(c *edge.Config) { c.BootstrapKey = "the-key-of-today-is-another" })
	if a := now.do(http.MethodGet, "/v1/keys", ""); a.status != http.StatusOK || strings.Count(a.body, `"id"`) != 1 {
		t.Errorf("the new key: %d %s", a.status, a.body)
	}
	if a := now.as("the-key-of-yesterday").do(http.MethodGet, "/v1/keys", ""); a.status != http.StatusUnauthorized {
		t.Errorf("the old key: %d", a.status)
	}
	again := r.edge("c", func(c *edge.Config) { c.BootstrapKey = "the-key-of-today-is-another" })
	if keys, err := r.registry.Keys(t.Context()); err != nil || len(keys) != 1 {
		t.Errorf("a restart with the same key: %v %v", keys, err)
	}
	again.stop()
	without := r.edge("d", func(c *edge.Config) { c.BootstrapKey = "" }).as("the-key-of-today-is-another")
	if a := without.do(http.MethodDelete, "/v1/keys/key_bootstrap", ""); a.status != http.StatusNoContent {
		t.Errorf("what no restart would make again: %d %s", a.status, a.body)
	}
}

func TestAKeysetOfAnotherInstallationIsRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.edge("a").made("/v1/tenants", `{"id":"erased"}`)
	if err := r.keys.Destroy("erased"); err != nil {
		t.Fatal(err)
	}
	if _, err := edge.Serve(t.Context(), r.config("b")); err != nil {
		t.Errorf("an erased tenant keeps the edge from starting: %v", err)
	}
	cfg := r.config("c")
	var err error
	if cfg.Keys, err = seal.Open(filepath.Join(t.TempDir(), "keyset.json"), true); err != nil {
		t.Fatal(err)
	}
	if _, err := edge.Serve(t.Context(), cfg); err == nil {
		t.Error("another installation's keyset was taken")
	}
}

// overlapped is a registry in which another edge makes each tenant just before this one does.
type overlapped struct{ edge.Registry }

func (r overlapped) PutTenant(ctx context.Context, t store.Tenant) error {
	first := t
	first.DeadlineMS, first.TimeZone = 3000, "UTC"
	if err := r.Registry.PutTenant(ctx, first); err != nil {
		return err
	}
	return r.Registry.PutTenant(ctx, t)
}

func TestATenantThatAnotherEdgeMadeMeanwhileStaysAsItIs(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	late := func(c *edge.Config) { c.Registry = overlapped{c.Registry} }
	first := r.config("a")
	late(&first)
	if _, err := edge.Serve(t.Context(), first); err != nil {
		t.Fatalf("the default tenant: %v", err)
	}
	e := r.edge("b", late)
	for range 2 {
		if a := e.do(http.MethodPost, "/v1/tenants", `{"id":"acme","deadline_ms":1000}`); a.status != http.StatusConflict || a.slug() != "conflict" {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	tenants, err := r.registry.Tenants(t.Context())
	if err != nil || len(tenants) != 2 {
		t.Fatal(tenants, err)
	}
	for _, x := range tenants {
		if x.DeadlineMS != 3000 || x.TimeZone != "UTC" {
			t.Errorf("%+v", x)
		}
	}
}

func TestAReloadGivesNoNewAllowance(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := r.edge("a")
	slow := e.as(e.made("/v1/keys", `{"roles":["read"],"rate":0.001}`).member("key"))
	if a := slow.do(http.MethodGet, "/v1/transactions/x", ""); a.status != http.StatusNotFound {
		t.Fatalf("the first request: %d", a.status)
	}
	for _, when := range []string{"spent", "after a reload"} {
		a := slow.do(http.MethodGet, "/v1/transactions/x", "")
		if a.status != http.StatusTooManyRequests || a.slug() != "rate" {
			t.Errorf("%s: %d %s", when, a.status, a.body)
		}
		if wait, err := time.ParseDuration(a.header.Get("Retry-After") + "s"); err != nil || wait < 900*time.Second || wait > 1000*time.Second {
			t.Errorf("%s: Retry-After %q at one request in 1000 s", when, a.header.Get("Retry-After"))
		}
		e.made("/v1/keys", `{"roles":["read"]}`) // makes every edge read the directory again
	}
}

func TestAKeyWithoutATenantIsOfTheAskingKeys(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := r.edge("a")
	e.made("/v1/tenants", `{"id":"acme"}`)
	operator := e.as(e.made("/v1/keys", `{"tenant":"acme","roles":["operator"]}`).member("key"))
	id := operator.made("/v1/keys", `{"roles":["read"],"tenant":null}`).member("id")
	keys, err := r.registry.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		if k.ID == id && k.Tenant != "acme" {
			t.Errorf("made for %s", k.Tenant)
		}
	}
}

func TestAKeyIsGoodOnEveryEdgeUntilItIsWithdrawnOrExpires(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	a, b := r.edge("a"), r.edge("b")
	made := a.made("/v1/keys", `{"roles":["read"]}`)
	status := func(e *running, key string) int {
		return e.as(key).do(http.MethodGet, "/v1/transactions/x", "").status
	}
	if got := status(a, made.member("key")); got != http.StatusNotFound {
		t.Errorf("at once where it was made: %d", got)
	}
	r.await("the other edge to know the key", func() bool { return status(b, made.member("key")) == http.StatusNotFound })
	if d := b.do(http.MethodDelete, "/v1/keys/"+made.member("id"), ""); d.status != http.StatusNoContent || d.body != "" {
		t.Errorf("delete: %d %s", d.status, d.body)
	}
	if got := status(b, made.member("key")); got != http.StatusUnauthorized {
		t.Errorf("at once where it was withdrawn: %d", got)
	}
	r.await("the other edge to refuse it", func() bool { return status(a, made.member("key")) == http.StatusUnauthorized })
	short := a.made("/v1/keys", `{"roles":["read"],"expires_at":"`+r.clock.Now().Add(time.Minute).Format(time.RFC3339)+`"}`).member("key")
	r.clock.add(2 * time.Minute)
	if got := status(a, short); got != http.StatusUnauthorized {
		t.Errorf("expired: %d", got)
	}
}

func TestEveryBadMemberOfAnOperatorsBodyIsTold(t *testing.T) {
	t.Parallel()
	e := newRig(t).edge("a")
	for _, c := range []struct {
		name, path, body string
		status           int
		want             []string
	}{
		{"a key of nothing", "/v1/keys", `{}`, 422, []string{`"/roles","code":"required"`}},
		{"a key with everything wrong", "/v1/keys", `{"tenant":"nobody","roles":["god"],"rate":-1,"expires_at":"2020-01-01T00:00:00Z"}`, 422,
			[]string{`"/tenant","code":"format"`, `"/roles","code":"format"`, `"/rate","code":"range"`, `"/expires_at","code":"range"`}},
		{"a key with every type wrong", "/v1/keys", `{"tenant":1,"roles":"read","rate":"1","expires_at":"soon","more":1}`, 422,
			[]string{`"/tenant","code":"type"`, `"/roles","code":"type"`, `"/rate","code":"type"`, `"/expires_at","code":"type"`, `"/more","code":"unknown_field"`}},
		{"a key until the year 10000", "/v1/keys", `{"roles":["submit"],"expires_at":"9999-12-31T23:59:59-03:00"}`, 422, []string{`"/expires_at","code":"type"`}},
		{"a NATS key with roles and a rate", "/v1/keys", `{"nats":true,"tenant":"nobody","roles":["read"],"rate":1}`, 422,
			[]string{`"/tenant","code":"format"`, `"/roles","code":"unknown_field"`, `"/rate","code":"unknown_field"`}},
		{"a NATS key where none is made", "/v1/keys", `{"nats":true}`, 409, nil},
		{"a replay of nothing", "/v1/webhook-endpoints/x/replay", `{}`, 422, []string{`"/from","code":"required"`}},
		{"a replay until the year 10000", "/v1/webhook-endpoints/x/replay", `{"from":"0000-01-01T00:00:00+01:00","to":"9999-12-31T23:59:59-03:00"}`, 422,
			[]string{`"/from","code":"type"`, `"/to","code":"type"`}},
		{"a tenant of nothing", "/v1/tenants", `{}`, 422, []string{`"/id","code":"required"`}},
		{"a tenant with everything wrong", "/v1/tenants", `{"id":"A/b","deadline_ms":10,"time_zone":"Local"}`, 422,
			[]string{`"/id","code":"format"`, `"/deadline_ms","code":"range"`, `"/time_zone","code":"format"`}},
		{"a tenant that exists", "/v1/tenants", `{"id":"default"}`, 409, nil},
		{"an endpoint without url", "/v1/webhook-endpoints", `{"payload":"fat"}`, 422, []string{`"/url","code":"required"`, `"/payload","code":"format"`}},
		{"an entry of nothing", "/v1/lists/block/entries", `{"reason":"x"}`, 422, []string{`"/kind","code":"required"`, `"/value","code":"required"`}},
		{"an entry with everything wrong", "/v1/lists/block/entries", `{"kind":"god","value":"` + strings.Repeat("god", 50) + `","reason":"` + strings.Repeat("x", 257) + `","expires_at":"2020-01-01T00:00:00Z"}`, 422,
			[]string{`"/kind","code":"format"`, `"/value","code":"too_long"`, `"/reason","code":"too_long"`, `"/expires_at","code":"range"`}},
		{"an entry with every type wrong", "/v1/lists/block/entries", `{"kind":1,"value":["god"],"reason":2,"expires_at":"god","tenant":"t"}`, 422,
			[]string{`"/kind","code":"type"`, `"/value","code":"type"`, `"/reason","code":"type"`, `"/expires_at","code":"type"`, `"/tenant","code":"unknown_field"`}},
		{"a document that is none", "/v1/lists/block/entries", `{"kind":"document","value":"god-1"}`, 422, []string{`"/value","code":"format"`}},
		{"an account without its parts", "/v1/lists/block/entries", `{"kind":"account","value":"god"}`, 422, []string{`"/value","code":"format"`}},
		{"a network of another size", "/v1/lists/block/entries", `{"kind":"ip","value":"203.0.113.0/25"}`, 422, []string{`"/value","code":"format"`}},
		{"an entry of a list that is none", "/v1/lists/god/entries", `{"kind":"device_id","value":"x"}`, 404, nil},
		{"a duplicate name", "/v1/keys", `{"roles":["read"],"roles":["read"]}`, 400, nil},
		{"a duplicate name inside", "/v1/webhook-endpoints", `{"url":"https://example.com/","headers":{"a":"1","a":"2"}}`, 400, nil},
		{"trailing data", "/v1/keys", `{"roles":["read"]} {}`, 400, nil},
		{"broken JSON", "/v1/keys", `{"roles":["read"]`, 400, nil},
		{"no object", "/v1/keys", `[]`, 400, nil},
		{"null", "/v1/keys", `null`, 400, nil},
		{"nine levels", "/v1/keys", `{"roles":[[[[[[[["read"]]]]]]]]}`, 400, nil},
	} {
		a := e.do(http.MethodPost, c.path, c.body)
		if a.status != c.status || a.slug() == "" || strings.Contains(a.body, "god") || strings.Count(a.body, `"code"`) != len(c.want) {
			t.Errorf("%s: %d %s", c.name, a.status, a.body)
		}
		for _, w := range c.want {
			if !strings.Contains(a.body, `"pointer":`+w) {
				t.Errorf("%s: no %s in %s", c.name, w, a.body)
			}
		}
	}
}

func TestNoActWithoutItsRecord(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := r.edge("a")
	endpoint := e.made("/v1/webhook-endpoints", `{"url":"https://example.com/"}`).member("id")
	entry := e.made("/v1/lists/block/entries", `{"kind":"device_id","value":"d-1"}`).member("id")
	key := e.made("/v1/keys", `{"roles":["read"]}`).member("id")
	owed := memory.NewDeliveries()
	if _, err := owed.Insert(t.Context(), []store.Delivery{{ID: "dlv_x", Tenant: "default", EndpointID: endpoint, Status: store.Delivered}}); err != nil {
		t.Fatal(err)
	}
	running := store.Replay{ID: "rpl_x", Tenant: "default", EndpointID: endpoint, Status: store.ReplayRunning}
	if err := r.registry.PutReplay(t.Context(), running); err != nil {
		t.Fatal(err)
	}
	other := e.made("/v1/webhook-endpoints", `{"url":"https://example.com/"}`).member("id")
	made := 0
	r.audit = func(context.Context, store.Act) error { return errDown }
	e = r.edge("b", func(c *edge.Config) {
		c.Deliveries = owed
		c.NATSKey = func(string, time.Time) (string, []byte, error) { made++; return "U", []byte("creds-canary"), nil }
	})
	for _, c := range []struct{ method, path, body string }{
		{http.MethodPost, "/v1/keys", `{"nats":true}`},
		{http.MethodPost, "/v1/webhook-endpoints/" + endpoint + "/test", ""},
		{http.MethodPost, "/v1/webhook-endpoints/" + other + "/replay", `{"from":"2026-01-01T00:00:00Z"}`},
		{http.MethodDelete, "/v1/webhook-endpoints/" + endpoint + "/replay", ""},
		{http.MethodPost, "/v1/deliveries/dlv_x/resend", ""},
		{http.MethodPost, "/v1/lists/block/entries", `{"kind":"device_id","value":"d-2"}`},
		{http.MethodDelete, "/v1/lists/block/entries/" + entry, ""},
		{http.MethodPost, "/v1/keys", `{"roles":["read"]}`},
		{http.MethodPost, "/v1/tenants", `{"id":"acme"}`},
		{http.MethodPost, "/v1/webhook-endpoints", `{"url":"https://example.com/"}`},
		{http.MethodPatch, "/v1/webhook-endpoints/" + endpoint, `{"paused":true}`},
		{http.MethodPost, "/v1/webhook-endpoints/" + endpoint + "/rotate-secret", `{}`},
		{http.MethodDelete, "/v1/webhook-endpoints/" + endpoint, ""},
		{http.MethodDelete, "/v1/keys/" + key, ""},
	} {
		refused(t, e.do(c.method, c.path, c.body), "store")
	}
	keys, _ := r.registry.Keys(t.Context())
	tenants, _ := r.registry.Tenants(t.Context())
	endpoints, _ := r.registry.Endpoints(t.Context())
	entries, _ := r.registry.ListEntries(t.Context())
	replays, _ := r.registry.Replays(t.Context())
	rows, _, _ := owed.List(t.Context(), store.DeliveryQuery{Tenant: "default", Limit: 9})
	if len(rows) != 1 || rows[0].Trigger != "" || len(replays) != 1 || replays[0].Status != store.ReplayRunning || made != 1 {
		t.Errorf("something was done: %+v %+v", rows, replays)
	}
	if len(entries) != 1 || len(keys) != 2 || len(tenants) != 1 || len(endpoints) != 2 || endpoints[0].Status != "active" || len(endpoints[0].Secrets) != 1 {
		t.Errorf("something was done: %v %v %v %v", keys, tenants, endpoints, entries)
	}
}

func TestARepeatedWishForAReplayIsTheSameTask(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := r.edge("a")
	path := "/v1/webhook-endpoints/" + e.made("/v1/webhook-endpoints", `{"url":"https://example.com/"}`).member("id") + "/replay"
	first := e.do(http.MethodPost, path, `{"from":"2026-01-01T00:00:00Z"}`)
	r.clock.add(time.Minute)
	for body, status := range map[string]int{
		`{"from":"2026-01-01T00:00:00Z"}`:                             http.StatusAccepted, // by who got no answer to the first
		`{"from":"2026-01-01T00:00:00Z","to":"2026-01-02T00:00:00Z"}`: http.StatusConflict,
		`{"from":"2026-01-01T00:00:00Z","only":"exhausted"}`:          http.StatusConflict,
		`{"from":"2026-01-01T00:00:01Z"}`:                             http.StatusConflict,
	} {
		a := e.do(http.MethodPost, path, body)
		if a.status != status || status == http.StatusAccepted && a.body != first.body {
			t.Errorf("%s: %d %s after %s", body, a.status, a.body, first.body)
		}
	}
}

// registry is one whose reads or deletes can fail.
type registry struct {
	edge.Registry
	fails func(call string) bool
}

func (r registry) Keys(ctx context.Context) ([]store.APIKey, error) {
	if r.fails("keys") {
		return nil, errDown
	}
	return r.Registry.Keys(ctx)
}

func (r registry) Endpoints(ctx context.Context) ([]store.Endpoint, error) {
	if r.fails("endpoints") {
		return nil, errDown
	}
	return r.Registry.Endpoints(ctx)
}

func (r registry) ChangeEndpoint(ctx context.Context, e store.Endpoint) error {
	if r.fails("changes") {
		return errDown
	}
	return r.Registry.ChangeEndpoint(ctx, e)
}

func (r registry) Replays(ctx context.Context) ([]store.Replay, error) {
	if r.fails("replays") {
		return nil, errDown
	}
	return r.Registry.Replays(ctx)
}

func (r registry) DeleteEndpoint(ctx context.Context, tenant, id string) error {
	if r.fails("delete") {
		return errDown
	}
	return r.Registry.DeleteEndpoint(ctx, tenant, id)
}

func (r registry) ListPage(ctx context.Context, q store.ListQuery) ([]store.ListEntry, string, error) {
	if r.fails("lists") {
		return nil, "", errDown
	}
	return r.Registry.ListPage(ctx, q)
}

func (r registry) PutListEntry(ctx context.Context, e store.ListEntry) (store.ListEntry, error) {
	if r.fails("lists") {
		return store.ListEntry{}, errDown
	}
	return r.Registry.PutListEntry(ctx, e)
}

func (r registry) RuleSets(ctx context.Context) ([]store.RuleSet, error) {
	if r.fails("rules") {
		return nil, errDown
	}
	return r.Registry.RuleSets(ctx)
}

func (r registry) RuleSet(ctx context.Context, name string, version int) (store.RuleSet, error) {
	if r.fails("rules") {
		return store.RuleSet{}, errDown
	}
	return r.Registry.RuleSet(ctx, name, version)
}

// deliveries always fail.
type deliveries struct{ edge.Deliveries }

func (deliveries) Get(context.Context, string, string) (store.Delivery, error) {
	return store.Delivery{}, errDown
}

func (deliveries) Insert(context.Context, []store.Delivery) ([]bool, error) { return nil, errDown }

func (deliveries) List(context.Context, store.DeliveryQuery) ([]store.Delivery, string, error) {
	return nil, "", errDown
}

func TestARegistryThatIsDownIsAWhole503(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	failing := make(chan string, 1)
	fails := func(call string) bool {
		select {
		case now := <-failing:
			failing <- now
			return now == call
		default:
			return false
		}
	}
	e := r.edge("a", func(c *edge.Config) { c.Registry, c.Deliveries = registry{r.registry, fails}, deliveries{c.Deliveries} })
	id := e.made("/v1/webhook-endpoints", `{"url":"https://example.com/"}`).member("id")
	refused(t, e.do(http.MethodGet, "/v1/deliveries", ""), "store")
	refused(t, e.do(http.MethodGet, "/v1/deliveries/dlv_x", ""), "store")
	refused(t, e.do(http.MethodPost, "/v1/deliveries/dlv_x/resend", ""), "store")
	refused(t, e.do(http.MethodPost, "/v1/webhook-endpoints/"+id+"/test", ""), "store")
	failing <- "delete"
	refused(t, e.do(http.MethodDelete, "/v1/webhook-endpoints/"+id, ""), "store")
	<-failing
	failing <- "endpoints"
	refused(t, e.do(http.MethodGet, "/v1/webhook-endpoints", ""), "store")
	refused(t, e.do(http.MethodGet, "/v1/webhook-endpoints/"+id, ""), "store")
	refused(t, e.do(http.MethodPatch, "/v1/webhook-endpoints/"+id, `{"paused":true}`), "store")
	<-failing
	failing <- "changes"
	refused(t, e.do(http.MethodPatch, "/v1/webhook-endpoints/"+id, `{"paused":true}`), "store")
	refused(t, e.do(http.MethodPost, "/v1/webhook-endpoints/"+id+"/rotate-secret", `{}`), "store")
	<-failing
	failing <- "replays"
	refused(t, e.do(http.MethodGet, "/v1/webhook-endpoints/"+id+"/replay", ""), "store")
	refused(t, e.do(http.MethodPost, "/v1/webhook-endpoints/"+id+"/replay", `{"from":"2026-01-01T00:00:00Z"}`), "store")
	<-failing
	failing <- "lists"
	refused(t, e.do(http.MethodGet, "/v1/lists/block/entries", ""), "store")
	refused(t, e.do(http.MethodPost, "/v1/lists/block/entries", `{"kind":"device_id","value":"d-1"}`), "store")
	<-failing
	failing <- "rules"
	refused(t, e.do(http.MethodGet, "/v1/rule-sets", ""), "store")
	refused(t, e.do(http.MethodGet, "/v1/rule-sets/default/1", ""), "store")
	<-failing
	failing <- "keys"
	refused(t, e.do(http.MethodGet, "/v1/keys", ""), "store")
	refused(t, e.do(http.MethodPost, "/v1/tenants", `{"id":"late"}`), "store") // made, but not known here yet
	late := e.as(e.made("/v1/keys", `{"roles":["read"]}`).member("key"))       // made and told, but not known here yet
	<-failing
	e.made("/v1/keys", `{"roles":["read"]}`) // has all read again
	if a := late.do(http.MethodGet, "/v1/transactions/x", ""); a.status != http.StatusNotFound {
		t.Errorf("a key that was made while none could be read: %d %s", a.status, a.body)
	}
	if a := e.do(http.MethodDelete, "/v1/webhook-endpoints/"+id, ""); a.status != http.StatusNoContent {
		t.Errorf("afterwards: %d %s", a.status, a.body)
	}
	if a := e.do(http.MethodDelete, "/v1/webhook-endpoints/"+id, ""); a.status != http.StatusNotFound {
		t.Errorf("twice: %d %s", a.status, a.body)
	}
}

func TestRotationKeepsTheOldSecretsUntilTheirGraceEnds(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := r.edge("a")
	made := e.made("/v1/webhook-endpoints", `{"url":"https://example.com/"}`)
	rotate := "/v1/webhook-endpoints/" + made.member("id") + "/rotate-secret"
	second := e.do(http.MethodPost, rotate, `{"grace_s":60}`).member("secret")
	third := e.do(http.MethodPost, rotate, `{"grace_s":600}`).member("secret")
	signing := func() (out []string) {
		all, err := r.registry.Endpoints(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		box, err := r.keys.Box("default")
		if err != nil {
			t.Fatal(err)
		}
		secrets, err := all[0].OpenSecrets(box, r.clock.Now())
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range secrets {
			out = append(out, s.Reveal())
		}
		return out
	}
	for _, c := range []struct {
		after time.Duration
		want  []string
	}{
		{0, []string{third, second, made.member("secret")}},
		{61 * time.Second, []string{third, second}},
		{600 * time.Second, []string{third}},
	} {
		r.clock.add(c.after)
		if got := signing(); strings.Join(got, " ") != strings.Join(c.want, " ") {
			t.Errorf("after %s more: %v, want %v", c.after, got, c.want)
		}
	}
	if fourth := e.do(http.MethodPost, rotate, `{"grace_s":0}`).member("secret"); strings.Join(signing(), " ") != fourth {
		t.Errorf("without grace: %v", signing())
	}
	if a := e.do(http.MethodPost, rotate, `{"grace_s":604801}`); a.status != 422 {
		t.Errorf("over a week: %d", a.status)
	}
}

func TestATenantMayHaveAHundredEndpoints(t *testing.T) {
	t.Parallel()
	e := newRig(t).edge("a")
	for range 100 {
		e.made("/v1/webhook-endpoints", `{"url":"https://example.com/"}`)
	}
	if a := e.do(http.MethodPost, "/v1/webhook-endpoints", `{"url":"https://example.com/"}`); a.status != 422 {
		t.Errorf("the next one: %d %s", a.status, a.body)
	}
}

func TestAFullStreamIsRefusedBeforeAnythingIsClaimed(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.stream(func(c *jetstream.StreamConfig) { c.MaxBytes = 4096 })
	for r.fill() {
	}
	e := r.edge("a")
	r.await("no room", func() bool { return e.post(r.payment("x")).slug() == "no-room" })
	before := r.store.claimed()
	refused(t, e.post(r.payment("y")), "no-room")
	if r.store.claimed() != before {
		t.Error("claimed what cannot be published")
	}
	r.await("/readyz to name it", func() bool { return strings.HasPrefix(e.Health.Degraded()["room"], "TX_SUBMITTED is full") })
	r.stream(func(*jetstream.StreamConfig) {})
	r.await("room again", func() bool { return e.post(r.payment("z")).status == http.StatusAccepted })
	r.await("/readyz to be content", func() bool { return e.Health.Degraded()["room"] == "" })
}

// A step that cannot publish holds everything up behind it: the edge must not wait until that reaches TX_SUBMITTED.
func TestAFullStreamFurtherOnIsRefusedToo(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	if _, err := r.js.UpdateStream(t.Context(), jetstream.StreamConfig{Name: streams.Scored, Subjects: []string{"tx.scored.*"}, MaxBytes: 4096,
		Discard: jetstream.DiscardNew}); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := r.js.Publish(t.Context(), "tx.scored.default", make([]byte, 200)); err != nil {
			break
		}
	}
	e := r.edge("a")
	r.await("no room", func() bool { return e.post(r.payment("x")).slug() == "no-room" })
}

// fill puts one more message into TX_SUBMITTED; false when it is full.
func (r *rig) fill() bool {
	_, err := r.js.Publish(r.t.Context(), streams.Subject(streams.EventSubmitted, "x"), make([]byte, 256))
	return err == nil
}
