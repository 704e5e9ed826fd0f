package memory

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"crivo/services/store"
)

// Registry holds tenants, keys, endpoints and the audit log in memory.
type Registry struct {
	mu        sync.Mutex
	tenants   map[string]store.Tenant
	keys      map[store.Key]store.APIKey
	endpoints map[store.Key]store.Endpoint
	acts      []store.Act
}

// NewRegistry returns an empty registry.
func NewRegistry() *Registry {
	return &Registry{tenants: map[string]store.Tenant{}, keys: map[store.Key]store.APIKey{}, endpoints: map[store.Key]store.Endpoint{}}
}

// Tenants returns all tenants by id.
func (r *Registry) Tenants(context.Context) ([]store.Tenant, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return sorted(r.tenants, func(t store.Tenant) string { return t.ID }), nil
}

// PutTenant adds or replaces a tenant.
func (r *Registry) PutTenant(_ context.Context, t store.Tenant) error {
	r.mu.Lock()
	defer r.mu.Unlock()
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
	return sorted(r.endpoints, func(e store.Endpoint) string { return e.Tenant + "/" + e.ID }), nil
}

// PutEndpoint adds or replaces an endpoint.
func (r *Registry) PutEndpoint(_ context.Context, e store.Endpoint) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.endpoints[store.Key{Tenant: e.Tenant, ID: e.ID}] = e
	return nil
}

// DeleteEndpoint removes an endpoint or returns store.ErrNotFound.
func (r *Registry) DeleteEndpoint(_ context.Context, tenant, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return remove(r.endpoints, tenant, id)
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
