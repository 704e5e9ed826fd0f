package edge

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"crivo/pkg/seal"
	"crivo/pkg/txn"
	"crivo/services/store"
)

// Roles of a key.
const (
	roleSubmit   = "submit"
	roleRead     = "read"
	roleAdmin    = "admin"
	roleOperator = "operator"
)

var allRoles = []string{roleSubmit, roleRead, roleAdmin, roleOperator}

const (
	kindAPIKey      = "api_key"
	bootstrapSource = "env"
	bootstrapID     = "key_bootstrap"
	defaultTenant   = "default"
	defaultDeadline = 2000 // ms
	defaultZone     = "America/Sao_Paulo"
)

// directory answers who a key belongs to from memory; it is read again whenever keys or tenants change.
type directory struct {
	registry Registry
	keys     *seal.Keyring
	reading  sync.Mutex // of two reloads, the later one's view stands
	current  atomic.Pointer[known]
}

type known struct {
	byHash  map[string]*member
	tenants map[string]store.Tenant
}

// member is a key in use.
type member struct {
	store.APIKey
	tenant  store.Tenant
	limiter *rate.Limiter // nil: no limit
}

// may tells whether a key has one of roles, which are separated by spaces.
func (m *member) may(roles string) bool {
	for role := range strings.FieldsSeq(roles) {
		if slices.Contains(m.Roles, role) {
			return true
		}
	}
	return false
}

// allow takes one request off the key's rate, or says how long until the next one.
func (m *member) allow() error {
	if m.limiter == nil || m.limiter.Allow() {
		return nil
	}
	// Nothing was reserved: what overlapping reservations give back is less than they took.
	seconds := (1 - m.limiter.Tokens()) / float64(m.limiter.Limit())
	return later{errRate, time.Duration(max(0, min(seconds, longest)) * float64(time.Second))}
}

// longest is the longest wait that is told of, in seconds: 31 years, which a duration holds.
const longest = 1e9

// policy names a key's rate in the headers that tell of it.
const policy = `"key"`

// limits tells a client what its key's rate is, what is left of it, and in how many seconds there is one more
// (draft-ietf-httpapi-ratelimit-headers-11). The window is the time in which all that may come at once comes back.
func (m *member) limits(h http.Header) {
	if m.limiter == nil {
		return
	}
	perSecond, left := float64(m.limiter.Limit()), max(0, m.limiter.Tokens())
	up := func(seconds float64) int { return int(math.Ceil(min(seconds, longest))) }
	h.Set("RateLimit-Policy", fmt.Sprintf("%s;q=%d;w=%d", policy, m.limiter.Burst(), up(float64(m.limiter.Burst())/perSecond)))
	h.Set("RateLimit", fmt.Sprintf("%s;r=%d;t=%d", policy, int(left), up((math.Floor(left)+1-left)/perSecond)))
}

// reload reads keys and tenants again; a key whose rate stays keeps what is left of its allowance.
func (d *directory) reload(ctx context.Context) error {
	d.reading.Lock()
	defer d.reading.Unlock()
	tenants, err := d.registry.Tenants(ctx)
	if err != nil {
		return err
	}
	keys, err := d.registry.Keys(ctx)
	if err != nil {
		return err
	}
	last := d.current.Load()
	next := &known{byHash: map[string]*member{}, tenants: map[string]store.Tenant{}}
	for _, t := range tenants {
		next.tenants[t.ID] = t
	}
	for _, k := range keys {
		m := &member{APIKey: k, tenant: next.tenants[k.Tenant]}
		if k.Rate > 0 {
			m.limiter = rate.NewLimiter(rate.Limit(k.Rate), max(1, int(k.Rate)))
			if last != nil && last.byHash[k.Hash] != nil && last.byHash[k.Hash].Rate == k.Rate {
				m.limiter = last.byHash[k.Hash].limiter // a reload is no new allowance
			}
		}
		next.byHash[k.Hash] = m
	}
	d.current.Store(next)
	return nil
}

// member returns who presents a key; the look-up is by a keyed hash, so its time tells nothing of the key.
func (d *directory) member(key string, now time.Time) (*member, error) {
	hash, err := d.hash(key)
	if err != nil {
		return nil, err
	}
	m := d.current.Load().byHash[hash]
	if m == nil || m.ExpiresAt != nil && now.After(m.ExpiresAt.Time) || m.tenant.ID == "" {
		return nil, errUnknownKey
	}
	return m, nil
}

func (d *directory) hash(key string) (string, error) {
	box, err := d.keys.Box(seal.System)
	if err != nil {
		return "", fmt.Errorf("api keys: %w", err)
	}
	return box.Token(kindAPIKey, key)
}

// system is who acts where no key does.
var system = &member{APIKey: store.APIKey{ID: "system", Tenant: defaultTenant}}

// bootstrap makes the default tenant and its first key, and puts a changed first key in the old one's place.
func (e *edge) bootstrap(ctx context.Context) error {
	tenants, err := e.Registry.Tenants(ctx)
	if err != nil {
		return err
	}
	// One tenant's keys may have been destroyed, to erase it; those of all are another installation's.
	if len(tenants) > 0 && !slices.ContainsFunc(tenants, e.sealed) {
		return errKeyset
	}
	now := txn.At(e.Clock.Now())
	if !slices.ContainsFunc(tenants, func(t store.Tenant) bool { return t.ID == defaultTenant }) {
		if err := e.record(ctx, system, "tenant.create", defaultTenant, nil); err != nil {
			return err
		}
		err := e.addTenant(ctx, store.Tenant{ID: defaultTenant, DeadlineMS: defaultDeadline, TimeZone: defaultZone, CreatedAt: now})
		if err != nil && !errors.Is(err, errTenantExists) { // edges may start at once
			return err
		}
	}
	if e.BootstrapKey == "" {
		return nil
	}
	hash, err := e.directory.hash(e.BootstrapKey)
	if err != nil {
		return err
	}
	keys, err := e.Registry.Keys(ctx)
	if err != nil {
		return err
	}
	for _, k := range keys {
		if k.Source == bootstrapSource && k.Hash == hash {
			return nil
		}
	}
	if err := e.record(ctx, system, "key.create", bootstrapID, map[string]any{"tenant": defaultTenant, "roles": allRoles}); err != nil {
		return err
	}
	return e.Registry.PutKey(ctx, store.APIKey{ID: bootstrapID, Tenant: defaultTenant, Hash: hash, Roles: allRoles, Source: bootstrapSource, CreatedAt: now})
}

var errKeyset = errors.New("the sealing keys are of none of the tenants that are registered: this keyset belongs to another installation")

// sealed tells whether there are keys for a tenant.
func (e *edge) sealed(t store.Tenant) bool {
	_, err := e.Keys.Box(t.ID)
	return err == nil
}
