package edge

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"time"

	"crivo/pkg/txn"
	"crivo/services/store"
	"crivo/streams"
)

var tenantID = regexp.MustCompile(`^[a-z0-9-]{1,32}$`)

func (e *edge) postTenant(w http.ResponseWriter, r *http.Request, m *member) error {
	t := store.Tenant{DeadlineMS: defaultDeadline, TimeZone: defaultZone}
	if err := (members{"id": &t.ID, "deadline_ms": &t.DeadlineMS, "time_zone": &t.TimeZone}).read(w, r); err != nil {
		return err
	}
	if err := tenantFaults(t); err != nil {
		return err
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
	if err := e.changed(r.Context(), streams.TopicTenants); err != nil {
		return err
	}
	return answer(w, http.StatusCreated, &t)
}

func tenantFaults(t store.Tenant) error {
	var faults txn.Faults
	switch {
	case t.ID == "":
		faults = append(faults, txn.Fault{Pointer: "/id", Code: txn.Required, Detail: "is required"})
	case t.ID == streams.NoTenant:
		faults = append(faults, txn.Fault{Pointer: "/id", Code: txn.WrongFormat, Detail: "is reserved"})
	case !tenantID.MatchString(t.ID):
		faults = append(faults, txn.Fault{Pointer: "/id", Code: txn.WrongFormat, Detail: "must be 1 to 32 of a-z 0-9 -"})
	}
	if t.DeadlineMS < 1000 || t.DeadlineMS > 5000 {
		faults = append(faults, txn.Fault{Pointer: "/deadline_ms", Code: txn.OutOfRange, Detail: "must be between 1000 and 5000"})
	}
	// Local is this machine's zone, whichever that is: no answer for an auditor.
	if _, err := time.LoadLocation(t.TimeZone); err != nil || t.TimeZone == "" || t.TimeZone == "Local" {
		faults = append(faults, txn.Fault{Pointer: "/time_zone", Code: txn.WrongFormat, Detail: "must be a zone such as America/Sao_Paulo"})
	}
	return orNil(faults)
}

// addTenant makes a tenant's keys before it is known to anybody, or returns errTenantExists.
func (e *edge) addTenant(ctx context.Context, t store.Tenant) error {
	if err := e.Keys.Add(t.ID); err != nil {
		return err
	}
	err := e.Registry.PutTenant(ctx, t)
	switch {
	case errors.Is(err, store.ErrChanged): // made at the same time, or by an edge that this one has not heard of yet
		return errTenantExists
	case err != nil:
		return fmt.Errorf("%w: %w", errStore, err)
	}
	return nil
}

func (e *edge) getTenants(w http.ResponseWriter, r *http.Request, _ *member) error {
	all, err := e.Registry.Tenants(r.Context())
	if err != nil {
		return fmt.Errorf("%w: %w", errStore, err)
	}
	return answer(w, http.StatusOK, map[string]any{"items": all})
}
