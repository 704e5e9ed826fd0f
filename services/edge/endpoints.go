package edge

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"crivo/pkg/txn"
	"crivo/pkg/webhook"
	"crivo/services/owed"
	"crivo/services/store"
	"crivo/streams"
)

// Limits of what a tenant may ask of webhooks.
const (
	maxEndpoints   = 100
	maxEvents      = 32
	maxHeaders     = 16
	maxDescription = 256 // bytes
	maxGrace       = 7 * 24 * time.Hour
	defaultGrace   = 24 * time.Hour
	maxSecrets     = 10 // in force at once: each is one more signature in every webhook's header
)

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
	e.Headers = maskedHeaders(e.Headers)
	return endpointAnswer{Endpoint: e, Breaker: cmp.Or(e.Breaker, store.BreakerClosed)}
}

// endpointChange is the body of POST and PATCH; nil members stay as they are.
type endpointChange struct {
	URL         *string
	Events      *[]string
	Description *string
	Payload     *string
	Headers     *map[string]string
	Paused      *bool
}

func (c *endpointChange) members() members {
	return members{"url": &c.URL, "events": &c.Events, "description": &c.Description, "payload": &c.Payload, "headers": &c.Headers, "paused": &c.Paused}
}

// faults returns everything that is wrong with a change.
func (c *endpointChange) faults(allowed func(url string) error) txn.Faults {
	var faults txn.Faults
	fault := func(pointer, code, detail string) {
		faults = append(faults, txn.Fault{Pointer: pointer, Code: code, Detail: detail})
	}
	if c.URL != nil {
		if err := allowed(*c.URL); err != nil {
			fault("/url", txn.WrongFormat, err.Error())
		}
	}
	if c.Events != nil {
		eventFaults(*c.Events, fault)
	}
	if c.Description != nil && len(*c.Description) > maxDescription {
		fault("/description", txn.TooLong, "at most 256 bytes")
	}
	if c.Payload != nil && *c.Payload != "thin" && *c.Payload != "full" {
		fault("/payload", txn.WrongFormat, "must be thin or full")
	}
	if c.Headers != nil {
		headerFaults(*c.Headers, fault)
	}
	return faults
}

var (
	headerName  = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)
	headerValue = regexp.MustCompile(`^[\x20-\x7e]{0,512}$`)
)

func eventFaults(events []string, fault func(pointer, code, detail string)) {
	if len(events) > maxEvents {
		fault("/events", txn.TooLong, "at most 32 event types")
		return
	}
	for i, t := range events {
		if !owed.Known(t) {
			fault("/events/"+strconv.Itoa(i), txn.WrongFormat, "a type that is sent, or a prefix such as transaction.*; there are "+strings.Join(owed.Types, ", "))
		}
	}
}

func headerFaults(headers map[string]string, fault func(pointer, code, detail string)) {
	if len(headers) > maxHeaders {
		fault("/headers", txn.TooLong, "at most 16 headers")
		return
	}
	seen := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(headers)) {
		value, plain := headers[name], strings.ToLower(name)
		if !headerName.MatchString(name) || !headerValue.MatchString(value) || value != strings.TrimSpace(value) || forbiddenHeader(plain) || seen[plain] {
			fault("/headers"+pointer(name), txn.WrongFormat, "a header of your own, once, none that HTTP or Standard Webhooks uses")
		}
		seen[plain] = true
	}
}

// reserved are headers that the sender, the connection or whatever stands between reads: with another's value a webhook would be
// signed, framed, routed or decoded wrongly.
var reserved = regexp.MustCompile(`^((webhook|content|proxy|sec|x-forwarded|x-http-method)-.*|host|transfer-encoding|connection|keep-alive|` +
	`user-agent|accept-encoding|te|trailer|upgrade|http2-settings|expect|range|date|via|forwarded|x-real-ip|x-method-override)$`)

// forbiddenHeader tells whether a name in lower case is reserved.
func forbiddenHeader(name string) bool { return reserved.MatchString(name) }

// mask stands in answers for what may be a credential. In a change it means the value that is there.
const mask = "********"

var (
	credentialName  = regexp.MustCompile(`(?i)auth|key|token|secret|password|passwd|credential|cookie|session|signature|bearer`)
	credentialValue = regexp.MustCompile(`\S{16}`)
)

func maskedHeaders(headers map[string]string) map[string]string {
	out := maps.Clone(headers)
	for name, value := range out {
		if credentialName.MatchString(name) || credentialValue.MatchString(value) {
			out[name] = mask
		}
	}
	return out
}

// unmasked returns headers with what is masked in them as it stands.
func unmasked(headers, stands map[string]string) (map[string]string, error) {
	out := maps.Clone(headers)
	for name, value := range headers {
		if value != mask {
			continue
		}
		known := ""
		for old, secret := range stands {
			if strings.EqualFold(old, name) {
				known = secret
			}
		}
		if known == "" {
			return nil, txn.Faults{{Pointer: "/headers" + pointer(name), Code: txn.WrongFormat, Detail: "masked, and there is no such header yet: give its value"}}
		}
		out[name] = known
	}
	return out, nil
}

// apply makes the change.
func (c *endpointChange) apply(to *store.Endpoint) error {
	if c.Headers != nil {
		headers, err := unmasked(*c.Headers, to.Headers)
		if err != nil {
			return err
		}
		to.Headers = headers
	}
	set(&to.URL, c.URL)
	set(&to.Events, c.Events)
	set(&to.Description, c.Description)
	set(&to.Payload, c.Payload)
	if c.Paused != nil {
		to.Status = map[bool]string{true: "paused", false: "active"}[*c.Paused]
	}
	return nil
}

// names are the members that change.
func (c *endpointChange) names() []string {
	out := []string{}
	for name, given := range map[string]bool{"url": c.URL != nil, "events": c.Events != nil, "description": c.Description != nil,
		"payload": c.Payload != nil, "headers": c.Headers != nil, "paused": c.Paused != nil} {
		if given {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

func set[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

func (e *edge) postEndpoint(w http.ResponseWriter, r *http.Request, m *member) error {
	var change endpointChange
	if err := change.members().read(w, r); err != nil {
		return err
	}
	faults := change.faults(e.urlAllowed)
	if change.URL == nil {
		faults = append(faults, txn.Fault{Pointer: "/url", Code: txn.Required, Detail: "is required"})
	}
	if len(faults) > 0 {
		return faults
	}
	all, err := e.tenantEndpoints(r.Context(), m.Tenant)
	if err != nil {
		return err
	}
	if len(all) >= maxEndpoints {
		return txn.Faults{{Pointer: "", Code: txn.OutOfRange, Detail: "at most 100 endpoints"}}
	}
	made := store.Endpoint{ID: "ep_" + rand.Text(), Tenant: m.Tenant, Payload: "thin", Status: "active", Events: []string{}, CreatedAt: txn.At(e.Clock.Now())}
	secret := webhook.NewSecret()
	if err := errors.Join(change.apply(&made), e.addSecret(&made, secret, 0)); err != nil {
		return err
	}
	if err := e.record(r.Context(), m, "endpoint.create", made.ID, map[string]any{"status": made.Status, "payload": made.Payload}); err != nil {
		return err
	}
	if err := e.Registry.PutEndpoint(r.Context(), made); err != nil {
		return fmt.Errorf("%w: %w", errStore, err)
	}
	e.announce(streams.TopicEndpoints)
	out := shown(made)
	out.Secret = secret.Reveal()
	w.Header().Set("Location", "/v1/webhook-endpoints/"+made.ID)
	return answer(w, http.StatusCreated, &out)
}

// addSecret puts a secret in front; the others end after grace, or before where an earlier rotation said so.
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
		if end := now.Add(grace); old.Until.IsZero() || end.Before(old.Until) {
			old.Until = end
		}
		if now.Before(old.Until) {
			kept = append(kept, old)
		}
	}
	if len(kept) > maxSecrets {
		return errSecrets
	}
	to.Secrets = kept
	return nil
}

// changeEndpoint makes a change to an endpoint as it stands, again and again until nobody else changed it meanwhile, and returns
// what stands then. It is recorded once.
func (e *edge) changeEndpoint(ctx context.Context, m *member, a act, change func(*store.Endpoint) error) (store.Endpoint, error) {
	for recorded := false; ; recorded = true {
		x, err := e.endpoint(ctx, m.Tenant, a.target)
		if err != nil {
			return x, err
		}
		if err := change(&x); err != nil {
			return x, err
		}
		if !recorded {
			if err := e.record(ctx, m, a.action, a.target, a.detail); err != nil {
				return x, err
			}
		}
		err = e.Registry.ChangeEndpoint(ctx, x)
		if errors.Is(err, store.ErrChanged) && ctx.Err() == nil {
			continue
		}
		if err != nil {
			return x, fmt.Errorf("%w: %w", errStore, err)
		}
		e.announce(streams.TopicEndpoints)
		return x, nil
	}
}

// act is what the audit log shall say.
type act struct {
	action, target string
	detail         map[string]any
}

func (e *edge) tenantEndpoints(ctx context.Context, tenant string) ([]store.Endpoint, error) {
	all, err := e.Registry.Endpoints(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errStore, err)
	}
	all = slices.DeleteFunc(all, func(x store.Endpoint) bool { return x.Tenant != tenant })
	text, err := e.Registry.State(ctx, store.BreakersState)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, fmt.Errorf("%w: %w", errStore, err)
	}
	breakers, err := store.ReadBreakers(text)
	for i := range all {
		all[i].Breaker = breakers[all[i].ID].State
	}
	return all, err
}

// endpoint returns one of a tenant's endpoints.
func (e *edge) endpoint(ctx context.Context, tenant, id string) (store.Endpoint, error) {
	all, err := e.tenantEndpoints(ctx, tenant)
	if err != nil {
		return store.Endpoint{}, err
	}
	if i := slices.IndexFunc(all, func(x store.Endpoint) bool { return x.ID == id }); i >= 0 {
		return all[i], nil
	}
	return store.Endpoint{}, store.ErrNotFound
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
	return answer(w, http.StatusOK, map[string]any{"items": items})
}

func (e *edge) getEndpoint(w http.ResponseWriter, r *http.Request, m *member) error {
	x, err := e.endpoint(r.Context(), m.Tenant, pathID(r))
	if err != nil {
		return err
	}
	out := shown(x)
	return answer(w, http.StatusOK, &out)
}

func (e *edge) patchEndpoint(w http.ResponseWriter, r *http.Request, m *member) error {
	var change endpointChange
	if err := change.members().read(w, r); err != nil {
		return err
	}
	if _, err := e.endpoint(r.Context(), m.Tenant, pathID(r)); err != nil {
		return err // before faults: who may not see it hears nothing else
	}
	if err := orNil(change.faults(e.urlAllowed)); err != nil {
		return err
	}
	x, err := e.changeEndpoint(r.Context(), m, act{"endpoint.update", pathID(r), map[string]any{"changed": change.names()}}, change.apply)
	if err != nil {
		return err
	}
	out := shown(x)
	return answer(w, http.StatusOK, &out)
}

func (e *edge) deleteEndpoint(w http.ResponseWriter, r *http.Request, m *member) error {
	x, err := e.endpoint(r.Context(), m.Tenant, pathID(r))
	if err != nil {
		return err
	}
	if err := e.record(r.Context(), m, "endpoint.delete", x.ID, nil); err != nil {
		return err
	}
	if err := e.Registry.DeleteEndpoint(r.Context(), m.Tenant, x.ID); err != nil {
		return missing(err)
	}
	e.announce(streams.TopicEndpoints)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (e *edge) rotateSecret(w http.ResponseWriter, r *http.Request, m *member) error {
	grace := int(defaultGrace / time.Second)
	if err := (members{"grace_s": &grace}).read(w, r); err != nil {
		return err
	}
	if grace < 0 || grace > int(maxGrace/time.Second) {
		return txn.Faults{{Pointer: "/grace_s", Code: txn.OutOfRange, Detail: "must be between 0 and 604800 seconds"}}
	}
	secret := webhook.NewSecret()
	x, err := e.changeEndpoint(r.Context(), m, act{"endpoint.rotate_secret", pathID(r), map[string]any{"grace_s": grace}}, func(x *store.Endpoint) error {
		return e.addSecret(x, secret, time.Duration(grace)*time.Second)
	})
	if err != nil {
		return err
	}
	out := shown(x)
	out.Secret = secret.Reveal()
	return answer(w, http.StatusOK, &out)
}
