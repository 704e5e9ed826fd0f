package edge

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"slices"
	"time"

	"crivo/pkg/txn"
	"crivo/services/store"
	"crivo/streams"
)

// keyWish is the body of POST /v1/keys.
type keyWish struct {
	Tenant    string
	Roles     []string
	Rate      float64
	ExpiresAt *txn.Time
	NATS      bool
}

// postKey makes a key for a tenant, that of the asking key where none is named.
func (e *edge) postKey(w http.ResponseWriter, r *http.Request, m *member) error {
	in := keyWish{Tenant: m.Tenant}
	if err := (members{"tenant": &in.Tenant, "roles": &in.Roles, "rate": &in.Rate, "expires_at": &in.ExpiresAt, "nats": &in.NATS}).read(w, r); err != nil {
		return err
	}
	if err := e.keyFaults(in); err != nil {
		return err
	}
	if in.NATS {
		return e.postNATSKey(w, r, m, in)
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
	if err := e.changed(r.Context(), streams.TopicKeys); err != nil { // it stands, and whoever repeats the wish makes a second one
		e.Log.Warn().Err(err).Str("key", k.ID).Msg("a key was made that is not known here yet")
	}
	return answer(w, http.StatusCreated, map[string]string{"id": k.ID, "key": secret})
}

// postNATSKey makes a credential for a tenant that comes by NATS. It has no rate, and the broker knows it by its own name.
func (e *edge) postNATSKey(w http.ResponseWriter, r *http.Request, m *member, in keyWish) error {
	if e.NATSKey == nil {
		return errNoNATSKey
	}
	var until time.Time
	if in.ExpiresAt != nil {
		until = in.ExpiresAt.Time
	}
	id, creds, err := e.NATSKey(in.Tenant, until)
	if err != nil {
		return err
	}
	// Made, and not told to anybody before it is on record.
	if err := e.record(r.Context(), m, "key.create", id, map[string]any{"tenant": in.Tenant, "nats": true, "expires_at": in.ExpiresAt}); err != nil {
		return err
	}
	return answer(w, http.StatusCreated, map[string]string{"id": id, "creds": string(creds)})
}

func (e *edge) keyFaults(in keyWish) error {
	var faults txn.Faults
	if _, ok := e.directory.current.Load().tenants[in.Tenant]; !ok {
		faults = append(faults, txn.Fault{Pointer: "/tenant", Code: txn.WrongFormat, Detail: "no such tenant"})
	}
	switch {
	case in.NATS:
		for name, given := range map[string]bool{"/roles": in.Roles != nil, "/rate": in.Rate != 0} {
			if given {
				faults = append(faults, txn.Fault{Pointer: name, Code: txn.UnknownField, Detail: "a credential for NATS has none"})
			}
		}
	case in.Roles == nil:
		faults = append(faults, txn.Fault{Pointer: "/roles", Code: txn.Required, Detail: "is required"})
	case len(in.Roles) == 0 || slices.ContainsFunc(in.Roles, func(role string) bool { return !slices.Contains(allRoles, role) }):
		faults = append(faults, txn.Fault{Pointer: "/roles", Code: txn.WrongFormat, Detail: "some of submit, read, admin, operator"})
	}
	if in.Rate < 0 || in.Rate > 1e6 {
		faults = append(faults, txn.Fault{Pointer: "/rate", Code: txn.OutOfRange, Detail: "requests a second, 0 to 1000000"})
	}
	if in.ExpiresAt != nil && !in.ExpiresAt.After(e.Clock.Now()) {
		faults = append(faults, txn.Fault{Pointer: "/expires_at", Code: txn.OutOfRange, Detail: "must be ahead"})
	}
	return orNil(faults)
}

func (e *edge) getKeys(w http.ResponseWriter, r *http.Request, _ *member) error {
	all, err := e.Registry.Keys(r.Context())
	if err != nil {
		return fmt.Errorf("%w: %w", errStore, err)
	}
	return answer(w, http.StatusOK, map[string]any{"items": all})
}

// deleteKey withdraws a key; this edge refuses it before the answer is out.
func (e *edge) deleteKey(w http.ResponseWriter, r *http.Request, m *member) error {
	id := pathID(r)
	all, err := e.Registry.Keys(r.Context())
	if err != nil {
		return fmt.Errorf("%w: %w", errStore, err)
	}
	i := slices.IndexFunc(all, func(k store.APIKey) bool { return k.ID == id })
	if i < 0 {
		return store.ErrNotFound
	}
	if all[i].Source == bootstrapSource && e.BootstrapKey != "" {
		return errGivenKey
	}
	if err := e.record(r.Context(), m, "key.delete", id, map[string]any{"tenant": all[i].Tenant}); err != nil {
		return err
	}
	if err := e.Registry.DeleteKey(r.Context(), all[i].Tenant, id); err != nil {
		return missing(err)
	}
	if err := e.changed(r.Context(), streams.TopicKeys); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
