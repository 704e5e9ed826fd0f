package memory

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"

	"crivo/services/store"
)

// Registry holds what operators set in memory.
type Registry struct {
	mu        sync.Mutex
	tenants   map[string]store.Tenant
	keys      map[store.Key]store.APIKey
	endpoints map[store.Key]store.Endpoint
	replays   map[store.Key]store.Replay // by endpoint
	entries   []listed                   // in the order of their making
	made      int                        // entries ever
	sets      map[version]store.RuleSet
	states    map[string][]byte
	acts      []store.Act
}

// listed is an entry with its place, which pages go by.
type listed struct {
	store.ListEntry
	number int
}

// version names a rule set.
type version struct {
	name   string
	number int
}

// NewRegistry returns an empty registry.
func NewRegistry() *Registry {
	return &Registry{tenants: map[string]store.Tenant{}, keys: map[store.Key]store.APIKey{}, endpoints: map[store.Key]store.Endpoint{},
		replays: map[store.Key]store.Replay{},
		sets:    map[version]store.RuleSet{}, states: map[string][]byte{}}
}

// State returns what was last put under a name, or store.ErrNotFound.
func (r *Registry) State(_ context.Context, name string) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	value, ok := r.states[name]
	if !ok {
		return nil, store.ErrNotFound
	}
	return bytes.Clone(value), nil
}

// PutState replaces what stands under a name.
func (r *Registry) PutState(_ context.Context, name string, value []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.states[name] = bytes.Clone(value)
	return nil
}

// SwapState replaces from, or returns store.ErrChanged.
func (r *Registry) SwapState(_ context.Context, name string, from, to []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if value, ok := r.states[name]; ok != (from != nil) || !bytes.Equal(value, from) {
		return store.ErrChanged
	}
	r.states[name] = bytes.Clone(to)
	return nil
}

// Tenants returns all tenants by id.
func (r *Registry) Tenants(context.Context) ([]store.Tenant, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return sorted(r.tenants, func(t store.Tenant) string { return t.ID }), nil
}

// PutTenant adds a tenant or returns store.ErrChanged.
func (r *Registry) PutTenant(_ context.Context, t store.Tenant) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, stands := r.tenants[t.ID]; stands {
		return store.ErrChanged
	}
	r.tenants[t.ID] = t
	return nil
}

// Keys returns every tenant's keys.
func (r *Registry) Keys(context.Context) ([]store.APIKey, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return sorted(r.keys, func(k store.APIKey) string { return k.Tenant + "/" + k.ID }), nil
}

// PutKey adds or replaces a key.
func (r *Registry) PutKey(_ context.Context, k store.APIKey) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keys[store.Key{Tenant: k.Tenant, ID: k.ID}] = k
	return nil
}

// DeleteKey removes a key or returns store.ErrNotFound.
func (r *Registry) DeleteKey(_ context.Context, tenant, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return remove(r.keys, tenant, id)
}

// Endpoints returns every tenant's endpoints.
func (r *Registry) Endpoints(context.Context) ([]store.Endpoint, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := sorted(r.endpoints, func(e store.Endpoint) string { return e.Tenant + "/" + e.ID })
	for i := range out {
		out[i] = apart(out[i])
	}
	return out, nil
}

// apart copies what an endpoint refers to: as from any store, a caller may change what it got and gave.
func apart(e store.Endpoint) store.Endpoint {
	e.Events, e.Headers, e.Secrets = slices.Clone(e.Events), maps.Clone(e.Headers), slices.Clone(e.Secrets)
	return e
}

// PutEndpoint adds or replaces an endpoint.
func (r *Registry) PutEndpoint(_ context.Context, e store.Endpoint) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.endpoints[store.Key{Tenant: e.Tenant, ID: e.ID}] = apart(e)
	return nil
}

// ChangeEndpoint replaces an endpoint that stands in e's version.
func (r *Registry) ChangeEndpoint(_ context.Context, e store.Endpoint) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := store.Key{Tenant: e.Tenant, ID: e.ID}
	if stands, ok := r.endpoints[key]; !ok || stands.Version != e.Version {
		return store.ErrChanged
	}
	e.Version++
	r.endpoints[key] = apart(e)
	return nil
}

// Replays returns the last replay of every endpoint that had one.
func (r *Registry) Replays(context.Context) ([]store.Replay, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return sorted(r.replays, func(x store.Replay) string { return x.Tenant + "/" + x.EndpointID }), nil
}

// PutReplay adds a replay, or replaces the one that stands in x's version.
func (r *Registry) PutReplay(_ context.Context, x store.Replay) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := store.Key{Tenant: x.Tenant, ID: x.EndpointID}
	if r.replays[key].Version != x.Version {
		return store.ErrChanged
	}
	x.Version++
	r.replays[key] = x
	return nil
}

// DeleteEndpoint removes an endpoint or returns store.ErrNotFound.
func (r *Registry) DeleteEndpoint(_ context.Context, tenant, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return remove(r.endpoints, tenant, id)
}

// ListEntries returns every list's entries.
func (r *Registry) ListEntries(context.Context) ([]store.ListEntry, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]store.ListEntry, len(r.entries))
	for i, e := range r.entries {
		out[i] = e.ListEntry
	}
	return out, nil
}

// ListPage returns one page, newest first; the cursor is the last entry's number.
func (r *Registry) ListPage(_ context.Context, q store.ListQuery) ([]store.ListEntry, string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.made
	if q.Cursor != "" {
		n, err := strconv.Atoi(q.Cursor)
		if err != nil {
			return nil, "", store.ErrCursor
		}
		before = n
	}
	out, last := []store.ListEntry{}, 0
	for _, e := range slices.Backward(r.entries) {
		if e.number >= before || e.Tenant != q.Tenant || e.List != q.List {
			continue
		}
		if len(out) == q.Limit {
			return out, strconv.Itoa(last), nil
		}
		out, last = append(out, e.ListEntry), e.number
	}
	return out, "", nil
}

// PutListEntry adds an entry, or renews the one of its value.
func (r *Registry) PutListEntry(_ context.Context, e store.ListEntry) (store.ListEntry, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.IndexFunc(r.entries, func(x listed) bool {
		return x.Tenant == e.Tenant && x.List == e.List && x.Kind == e.Kind && x.Value == e.Value
	})
	if i < 0 {
		r.entries = append(r.entries, listed{e, r.made})
		r.made++
		return e, nil
	}
	x := &r.entries[i].ListEntry
	x.Reason, x.ExpiresAt = e.Reason, e.ExpiresAt
	return *x, nil
}

// DeleteListEntry removes an entry or returns store.ErrNotFound.
func (r *Registry) DeleteListEntry(_ context.Context, tenant, list, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.IndexFunc(r.entries, func(x listed) bool { return x.Tenant == tenant && x.List == list && x.ID == id })
	if i < 0 {
		return store.ErrNotFound
	}
	r.entries = slices.Delete(r.entries, i, i+1)
	return nil
}

// PutRuleSet adds a version that is absent.
func (r *Registry) PutRuleSet(_ context.Context, s store.RuleSet) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := version{s.Name, s.Version}
	if x, ok := r.sets[at]; ok {
		return unchanged(x, s)
	}
	s.Source = slices.Clone(s.Source)
	r.sets[at] = s
	return nil
}

func unchanged(stands, put store.RuleSet) error {
	if stands.Digest != put.Digest {
		return store.ErrChanged
	}
	return nil
}

// RuleSets returns all versions, without their sources.
func (r *Registry) RuleSets(context.Context) ([]store.RuleSet, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := sorted(r.sets, func(s store.RuleSet) string { return fmt.Sprintf("%s/%9d", s.Name, s.Version) })
	for i := range out {
		out[i].Source = nil
	}
	return out, nil
}

// RuleSet returns one version or store.ErrNotFound.
func (r *Registry) RuleSet(_ context.Context, name string, number int) (store.RuleSet, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s, ok := r.sets[version{name, number}]
	if !ok {
		return store.RuleSet{}, store.ErrNotFound
	}
	s.Source = slices.Clone(s.Source)
	return s, nil
}

// Record appends one act to the audit log.
func (r *Registry) Record(_ context.Context, a store.Act) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.acts = append(r.acts, a)
	return nil
}

// Acts returns the newest acts first.
func (r *Registry) Acts(_ context.Context, limit int) ([]store.Act, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := slices.Clone(r.acts)
	slices.Reverse(out)
	return out[:min(len(out), limit)], nil
}

func sorted[K comparable, V any](m map[K]V, by func(V) string) []V {
	out := make([]V, 0, len(m))
	for _, v := range m {
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b V) int { return cmp.Compare(by(a), by(b)) })
	return out
}

func remove[V any](m map[store.Key]V, tenant, id string) error {
	key := store.Key{Tenant: tenant, ID: id}
	if _, ok := m[key]; !ok {
		return store.ErrNotFound
	}
	delete(m, key)
	return nil
}
