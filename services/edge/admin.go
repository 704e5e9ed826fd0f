package edge

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"crivo/pkg/txn"
	"crivo/pkg/webhook"
	"crivo/services/store"
	"crivo/streams"
)

// maxEndpoints bounds a tenant's webhook endpoints.
const maxEndpoints = 100

// endpointAnswer is an endpoint as clients see it; Secret is there once, when it was made.
type endpointAnswer struct {
	store.Endpoint
	Breaker string `json:"breaker"`
	Secret  string `json:"secret,omitempty"`
}

func shown(e store.Endpoint) endpointAnswer {
	if e.Events == nil {
		e.Events = []string{}
	}
	return endpointAnswer{Endpoint: e, Breaker: "closed"}
}

// endpointChange is the body of POST and PATCH; nil members stay as they are.
type endpointChange struct {
	URL         *string            `json:"url"`
	Events      *[]string          `json:"events"`
	Description *string            `json:"description"`
	Payload     *string            `json:"payload"`
	Headers     *map[string]string `json:"headers"`
	Paused      *bool              `json:"paused"`
}

// body decodes a small request body; unknown and misshapen members are faults with pointers.
func (e *edge) body(w http.ResponseWriter, r *http.Request, into any) error {
	data, err := e.readBody(w, r)
	if err != nil {
		return err
	}
	err = json.Unmarshal(data, into, json.RejectUnknownMembers(true))
	var semantic *json.SemanticError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &semantic):
		code := txn.WrongType
		if errors.Is(err, json.ErrUnknownName) {
			code = txn.UnknownField
		}
		return txn.Faults{{Pointer: string(semantic.JSONPointer), Code: code, Detail: "is not understood here"}}
	}
	var syntactic *jsontext.SyntacticError
	if errors.As(err, &syntactic) {
		return fmt.Errorf("%w: at byte %d", txn.ErrMalformed, syntactic.ByteOffset)
	}
	return txn.ErrMalformed
}

var (
	headerName  = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)
	headerValue = regexp.MustCompile(`^[\x20-\x7e]{0,512}$`)
	eventType   = regexp.MustCompile(`^[a-z_]+(\.[a-z_]+)*(\.\*)?$`)
)

// apply changes an endpoint and returns every fault of the change.
func (c endpointChange) apply(to *store.Endpoint, allowed func(url string) error) error {
	var faults txn.Faults
	fault := func(pointer, code, detail string) {
		faults = append(faults, txn.Fault{Pointer: pointer, Code: code, Detail: detail})
	}
	if c.URL != nil {
		if err := allowed(*c.URL); err != nil {
			fault("/url", txn.WrongFormat, err.Error())
		}
		to.URL = *c.URL
	}
	if c.Events != nil {
		for i, t := range *c.Events {
			if !eventType.MatchString(t) {
				fault("/events/"+strconv.Itoa(i), txn.WrongFormat, "an event type such as transaction.decided, or a prefix such as transaction.*")
			}
		}
		to.Events = *c.Events
	}
	if c.Description != nil {
		if len(*c.Description) > 256 {
			fault("/description", txn.TooLong, "at most 256 bytes")
		}
		to.Description = *c.Description
	}
	if c.Payload != nil {
		if *c.Payload != "thin" && *c.Payload != "full" {
			fault("/payload", txn.WrongFormat, "must be thin or full")
		}
		to.Payload = *c.Payload
	}
	if c.Headers != nil {
		for name, value := range *c.Headers {
			if !headerName.MatchString(name) || !headerValue.MatchString(value) || forbiddenHeader(name) || len(*c.Headers) > 16 {
				fault("/headers/"+strings.ReplaceAll(strings.ReplaceAll(name, "~", "~0"), "/", "~1"), txn.WrongFormat,
					"at most 16 headers of your own, none that HTTP or Standard Webhooks uses")
			}
		}
		to.Headers = *c.Headers
	}
	if c.Paused != nil {
		to.Status = map[bool]string{true: "paused", false: "active"}[*c.Paused]
	}
	if len(faults) > 0 {
		return faults
	}
	return nil
}

func forbiddenHeader(name string) bool {
	name = strings.ToLower(name)
	return strings.HasPrefix(name, "webhook-") || slices.Contains([]string{"host", "content-length", "content-type", "transfer-encoding",
		"connection", "user-agent", "accept-encoding", "te", "trailer", "upgrade", "expect"}, name)
}

func (e *edge) postEndpoint(w http.ResponseWriter, r *http.Request, m *member) error {
	var change endpointChange
	if err := e.body(w, r, &change); err != nil {
		return err
	}
	if change.URL == nil {
		return txn.Faults{{Pointer: "/url", Code: txn.Required, Detail: "is required"}}
	}
	made := store.Endpoint{ID: "ep_" + rand.Text(), Tenant: m.Tenant, Payload: "thin", Status: "active", Events: []string{}, CreatedAt: txn.At(e.Clock.Now())}
	if err := change.apply(&made, e.urlAllowed); err != nil {
		return err
	}
	all, err := e.tenantEndpoints(r.Context(), m.Tenant)
	if err != nil {
		return err
	}
	if len(all) >= maxEndpoints {
		return txn.Faults{{Pointer: "", Code: txn.OutOfRange, Detail: "at most 100 endpoints"}}
	}
	secret := webhook.NewSecret()
	if err := e.addSecret(&made, secret, 0); err != nil {
		return err
	}
	if err := e.saveEndpoint(r.Context(), m, "endpoint.create", made); err != nil {
		return err
	}
	out := shown(made)
	out.Secret = secret.Reveal()
	w.Header().Set("Location", "/v1/webhook-endpoints/"+made.ID)
	answer(w, http.StatusCreated, &out)
	return nil
}

// addSecret puts a secret in front; the others end after grace.
func (e *edge) addSecret(to *store.Endpoint, secret webhook.Secret, grace time.Duration) error {
	box, err := e.Keys.Box(to.Tenant)
	if err != nil {
		return err
	}
	sealed, err := store.SealSecret(box, to.ID, secret)
	if err != nil {
		return err
	}
	now := e.Clock.Now()
	kept := []store.Secret{sealed}
	for _, old := range to.Secrets {
		if old.Until.IsZero() {
			old.Until = now.Add(grace)
		}
		if now.Before(old.Until) {
			kept = append(kept, old)
		}
	}
	to.Secrets = kept
	return nil
}

func (e *edge) saveEndpoint(ctx context.Context, m *member, action string, x store.Endpoint) error {
	if err := e.record(ctx, m, action, x.ID, map[string]any{"status": x.Status, "payload": x.Payload}); err != nil {
		return err
	}
	if err := e.Registry.PutEndpoint(ctx, x); err != nil {
		return fmt.Errorf("%w: %w", errStore, err)
	}
	return e.changed(streams.TopicEndpoints)
}

// changed tells every process; this one reads again at once.
func (e *edge) changed(topic string) error {
	_ = streams.Changed(e.Conn, topic) // watchers read again by themselves too
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return e.directory.reload(ctx)
}

// record writes an operator's act down before it takes effect.
func (e *edge) record(ctx context.Context, m *member, action, target string, detail map[string]any) error {
	err := e.Audit(ctx, store.Act{At: txn.At(e.Clock.Now()), Actor: m.ID, Tenant: m.Tenant, Action: action, Target: target, Detail: detail})
	if err != nil {
		return fmt.Errorf("%w: audit: %w", errStore, err)
	}
	return nil
}

func (e *edge) tenantEndpoints(ctx context.Context, tenant string) ([]store.Endpoint, error) {
	all, err := e.Registry.Endpoints(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errStore, err)
	}
	return slices.DeleteFunc(all, func(x store.Endpoint) bool { return x.Tenant != tenant }), nil
}

func (e *edge) getEndpoints(w http.ResponseWriter, r *http.Request, m *member) error {
	all, err := e.tenantEndpoints(r.Context(), m.Tenant)
	if err != nil {
		return err
	}
	items := make([]endpointAnswer, len(all))
	for i, x := range all {
		items[i] = shown(x)
	}
	answer(w, http.StatusOK, map[string]any{"items": items})
	return nil
}

func (e *edge) getEndpoint(w http.ResponseWriter, r *http.Request, m *member) error {
	x, err := e.endpoint(r.Context(), m.Tenant, chi.URLParam(r, "id"))
	if err != nil {
		return err
	}
	out := shown(x)
	answer(w, http.StatusOK, &out)
	return nil
}

func (e *edge) patchEndpoint(w http.ResponseWriter, r *http.Request, m *member) error {
	var change endpointChange
	if err := e.body(w, r, &change); err != nil {
		return err
	}
	x, err := e.endpoint(r.Context(), m.Tenant, chi.URLParam(r, "id"))
	if err != nil {
		return err
	}
	if err := change.apply(&x, e.urlAllowed); err != nil {
		return err
	}
	if err := e.saveEndpoint(r.Context(), m, "endpoint.update", x); err != nil {
		return err
	}
	out := shown(x)
	answer(w, http.StatusOK, &out)
	return nil
}

func (e *edge) deleteEndpoint(w http.ResponseWriter, r *http.Request, m *member) error {
	x, err := e.endpoint(r.Context(), m.Tenant, chi.URLParam(r, "id"))
	if err != nil {
		return err
	}
	if err := e.record(r.Context(), m, "endpoint.delete", x.ID, nil); err != nil {
		return err
	}
	if err := e.Registry.DeleteEndpoint(r.Context(), m.Tenant, x.ID); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return e.changed(streams.TopicEndpoints)
}

func (e *edge) rotateSecret(w http.ResponseWriter, r *http.Request, m *member) error {
	change := struct {
		Grace *int `json:"grace_s"`
	}{}
	if err := e.body(w, r, &change); err != nil {
		return err
	}
	grace := 24 * time.Hour
	if change.Grace != nil {
		if *change.Grace < 0 || *change.Grace > 7*24*3600 {
			return txn.Faults{{Pointer: "/grace_s", Code: txn.OutOfRange, Detail: "must be between 0 and 604800 seconds"}}
		}
		grace = time.Duration(*change.Grace) * time.Second
	}
	x, err := e.endpoint(r.Context(), m.Tenant, chi.URLParam(r, "id"))
	if err != nil {
		return err
	}
	secret := webhook.NewSecret()
	if err := e.addSecret(&x, secret, grace); err != nil {
		return err
	}
	if err := e.saveEndpoint(r.Context(), m, "endpoint.rotate_secret", x); err != nil {
		return err
	}
	out := shown(x)
	out.Secret = secret.Reveal()
	answer(w, http.StatusOK, &out)
	return nil
}

// deliveryAnswer is a delivery as clients see it.
type deliveryAnswer struct {
	ID            string          `json:"id"`
	EndpointID    string          `json:"endpoint_id"`
	TransactionID string          `json:"transaction_id"`
	WebhookID     string          `json:"webhook_id"`
	Type          string          `json:"type"`
	Status        string          `json:"status"`
	CreatedAt     txn.Time        `json:"created_at"`
	NextAttemptAt *txn.Time       `json:"next_attempt_at,omitempty"`
	Attempts      []store.Attempt `json:"attempts"`
}

func shownDelivery(d store.Delivery) deliveryAnswer {
	out := deliveryAnswer{d.ID, d.EndpointID, d.TransactionID, d.WebhookID, d.Type, d.Status, txn.At(d.CreatedAt), nil, d.Attempts}
	if d.Status == store.Pending {
		next := txn.At(d.NextAttemptAt)
		out.NextAttemptAt = &next
	}
	if out.Attempts == nil {
		out.Attempts = []store.Attempt{}
	}
	return out
}

func (e *edge) getDeliveries(w http.ResponseWriter, r *http.Request, m *member) error {
	q := r.URL.Query()
	limit := 50
	if text := q.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > 500 {
			return txn.Faults{{Pointer: "/limit", Code: txn.OutOfRange, Detail: "must be between 1 and 500"}}
		}
		limit = n
	}
	rows, cursor, err := e.Deliveries.List(r.Context(), store.DeliveryQuery{Tenant: m.Tenant, EndpointID: q.Get("endpoint_id"),
		TransactionID: q.Get("transaction_id"), Status: q.Get("status"), Limit: limit, Cursor: q.Get("cursor")})
	if err != nil && !errors.Is(err, store.ErrCursor) {
		err = fmt.Errorf("%w: %w", errStore, err)
	}
	if err != nil {
		return err
	}
	out := struct {
		Items []deliveryAnswer `json:"items"`
		Next  *string          `json:"next_cursor"`
	}{Items: []deliveryAnswer{}}
	for _, d := range rows {
		out.Items = append(out.Items, shownDelivery(d))
	}
	if cursor != "" {
		out.Next = &cursor
	}
	answer(w, http.StatusOK, &out)
	return nil
}

func (e *edge) getDelivery(w http.ResponseWriter, r *http.Request, m *member) error {
	d, err := e.Deliveries.Get(r.Context(), m.Tenant, chi.URLParam(r, "id"))
	if err != nil {
		return err
	}
	out := shownDelivery(d)
	answer(w, http.StatusOK, &out)
	return nil
}

var tenantID = regexp.MustCompile(`^[a-z0-9-]{1,32}$`)

func (e *edge) postTenant(w http.ResponseWriter, r *http.Request, m *member) error {
	t := store.Tenant{DeadlineMS: defaultDeadline, TimeZone: defaultZone}
	in := struct {
		ID         *string `json:"id"`
		DeadlineMS *int    `json:"deadline_ms"`
		TimeZone   *string `json:"time_zone"`
	}{&t.ID, &t.DeadlineMS, &t.TimeZone}
	if err := e.body(w, r, &in); err != nil {
		return err
	}
	var faults txn.Faults
	if in.ID == nil || !tenantID.MatchString(t.ID) {
		faults = append(faults, txn.Fault{Pointer: "/id", Code: txn.WrongFormat, Detail: "must be 1 to 32 of a-z 0-9 -"})
	}
	if in.DeadlineMS == nil || t.DeadlineMS < 1000 || t.DeadlineMS > 5000 {
		faults = append(faults, txn.Fault{Pointer: "/deadline_ms", Code: txn.OutOfRange, Detail: "must be between 1000 and 5000"})
	}
	if _, err := time.LoadLocation(t.TimeZone); in.TimeZone == nil || err != nil || t.TimeZone == "" {
		faults = append(faults, txn.Fault{Pointer: "/time_zone", Code: txn.WrongFormat, Detail: "must be a zone such as America/Sao_Paulo"})
	}
	if len(faults) > 0 {
		return faults
	}
	if _, ok := e.directory.current.Load().tenants[t.ID]; ok {
		return errTenantExists
	}
	t.CreatedAt = txn.At(e.Clock.Now())
	if err := e.record(r.Context(), m, "tenant.create", t.ID, nil); err != nil {
		return err
	}
	if err := e.addTenant(r.Context(), t); err != nil {
		return err
	}
	if err := e.changed(streams.TopicTenants); err != nil {
		return err
	}
	answer(w, http.StatusCreated, &t)
	return nil
}

func (e *edge) getTenants(w http.ResponseWriter, r *http.Request, _ *member) error {
	all, err := e.Registry.Tenants(r.Context())
	if err != nil {
		return fmt.Errorf("%w: %w", errStore, err)
	}
	answer(w, http.StatusOK, map[string]any{"items": all})
	return nil
}

func (e *edge) postKey(w http.ResponseWriter, r *http.Request, m *member) error {
	in := struct {
		Tenant    string    `json:"tenant"`
		Roles     []string  `json:"roles"`
		Rate      float64   `json:"rate"`
		ExpiresAt *txn.Time `json:"expires_at"`
	}{}
	if err := e.body(w, r, &in); err != nil {
		return err
	}
	var faults txn.Faults
	if _, ok := e.directory.current.Load().tenants[in.Tenant]; !ok {
		faults = append(faults, txn.Fault{Pointer: "/tenant", Code: txn.WrongFormat, Detail: "no such tenant"})
	}
	if len(in.Roles) == 0 || slices.ContainsFunc(in.Roles, func(role string) bool { return !slices.Contains(allRoles, role) }) {
		faults = append(faults, txn.Fault{Pointer: "/roles", Code: txn.WrongFormat, Detail: "some of submit, read, admin, operator"})
	}
	if in.Rate < 0 || in.Rate > 1e6 {
		faults = append(faults, txn.Fault{Pointer: "/rate", Code: txn.OutOfRange, Detail: "requests a second, 0 to 1000000"})
	}
	if len(faults) > 0 {
		return faults
	}
	k := store.APIKey{ID: "key_" + rand.Text(), Tenant: in.Tenant, Roles: in.Roles, Rate: in.Rate, CreatedAt: txn.At(e.Clock.Now()), ExpiresAt: in.ExpiresAt}
	secret := "crv_" + rand.Text()
	var err error
	if k.Hash, err = e.directory.hash(secret); err != nil {
		return err
	}
	if err := e.record(r.Context(), m, "key.create", k.ID, map[string]any{"tenant": k.Tenant, "roles": k.Roles}); err != nil {
		return err
	}
	if err := e.Registry.PutKey(r.Context(), k); err != nil {
		return fmt.Errorf("%w: %w", errStore, err)
	}
	if err := e.changed(streams.TopicKeys); err != nil {
		return err
	}
	answer(w, http.StatusCreated, map[string]string{"id": k.ID, "key": secret})
	return nil
}

func (e *edge) getKeys(w http.ResponseWriter, r *http.Request, _ *member) error {
	all, err := e.Registry.Keys(r.Context())
	if err != nil {
		return fmt.Errorf("%w: %w", errStore, err)
	}
	answer(w, http.StatusOK, map[string]any{"items": all})
	return nil
}

func (e *edge) deleteKey(w http.ResponseWriter, r *http.Request, m *member) error {
	id := chi.URLParam(r, "id")
	all, err := e.Registry.Keys(r.Context())
	if err != nil {
		return fmt.Errorf("%w: %w", errStore, err)
	}
	i := slices.IndexFunc(all, func(k store.APIKey) bool { return k.ID == id })
	if i < 0 {
		return store.ErrNotFound
	}
	if err := e.record(r.Context(), m, "key.delete", id, map[string]any{"tenant": all[i].Tenant}); err != nil {
		return err
	}
	if err := e.Registry.DeleteKey(r.Context(), all[i].Tenant, id); err != nil {
		return err
	}
	if err := e.changed(streams.TopicKeys); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
