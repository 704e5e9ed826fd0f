package storetest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"crivo/pkg/txn"
	"crivo/services/store"
)

func row(endpoint string, n int) store.Delivery {
	return store.Delivery{ID: fmt.Sprintf("dlv_%s_%d", endpoint, n), Tenant: "t", EndpointID: endpoint, TransactionID: fmt.Sprint("tx", n),
		WebhookID: fmt.Sprint("msg_", n), Type: "transaction.decided", Body: []byte(`{"a":"ç"}`), Status: store.Pending,
		NextAttemptAt: noon.Add(time.Duration(n) * time.Second), LeasedUntil: time.UnixMilli(0).UTC(), CreatedAt: noon}
}

// Deliveries checks a delivery store.
func Deliveries(t *testing.T, open func(t *testing.T) store.Deliveries) {
	ctx := context.Background()
	fill := func(t *testing.T, rows ...store.Delivery) store.Deliveries {
		t.Helper()
		s := open(t)
		if _, err := s.Insert(ctx, rows); err != nil {
			t.Fatal(err)
		}
		return s
	}
	t.Run("a webhook is owed once per endpoint", func(t *testing.T) {
		s := fill(t, row("e", 1))
		again := row("e", 1)
		again.ID = "dlv_other"
		added, err := s.Insert(ctx, []store.Delivery{again, row("f", 1)})
		if err != nil || added[0] || !added[1] {
			t.Errorf("%v, %v", added, err)
		}
		got, err := s.Get(ctx, "t", "dlv_e_1")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(row("e", 1), got, cmp.Transformer("", func(a []store.Attempt) int { return len(a) })); diff != "" {
			t.Error(diff)
		}
		if _, err := s.Get(ctx, "u", "dlv_e_1"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("another tenant reads it: %v", err)
		}
	})
	t.Run("a lease takes what is due, earliest first, and nobody else gets it", func(t *testing.T) {
		s := fill(t, row("e", 3), row("e", 1), row("f", 2), row("e", 9))
		now, until := noon.Add(5*time.Second), noon.Add(time.Minute)
		got, err := s.Lease(ctx, "e", now, until, 10)
		if err != nil || len(got) != 2 || got[0].ID != "dlv_e_1" || got[1].ID != "dlv_e_3" || !got[0].LeasedUntil.Equal(until) {
			t.Fatalf("%+v, %v", got, err)
		}
		if got, err = s.Lease(ctx, "e", now, until, 10); err != nil || len(got) != 0 {
			t.Errorf("leased twice: %+v, %v", got, err)
		}
		due, err := s.DueEndpoints(ctx, now)
		if err != nil || len(due) != 1 || due[0] != "f" {
			t.Errorf("%v, %v", due, err)
		}
		if got, err = s.Lease(ctx, "", until.Add(time.Second), until.Add(time.Minute), 2); err != nil || len(got) != 2 {
			t.Errorf("after the lease: %+v, %v", got, err)
		}
	})
	t.Run("of fifty leases at once, each row goes to one", func(t *testing.T) {
		var rows []store.Delivery
		for i := range 20 {
			rows = append(rows, row("e", i))
		}
		s := fill(t, rows...)
		if n := race(50, func(int) bool {
			got, err := s.Lease(ctx, "e", noon.Add(time.Hour), noon.Add(2*time.Hour), 1)
			return err == nil && len(got) == 1
		}); n != 20 {
			t.Errorf("%d leases of 20 rows", n)
		}
	})
	t.Run("attempts and ends are kept", func(t *testing.T) {
		s := fill(t, row("e", 1), row("e", 2), row("e", 3))
		r := row("e", 1)
		next := txn.At(noon.Add(time.Minute))
		r.Status, r.Attempts = store.Delivered, []store.Attempt{{Number: 1, Trigger: "auto", StartedAt: txn.At(noon), Status: 500, Response: "é", NextAttemptAt: &next}}
		if err := s.Update(ctx, []store.Delivery{r}); err != nil {
			t.Fatal(err)
		}
		got, err := s.Get(ctx, "t", r.ID)
		if diff := cmp.Diff(r, got); diff != "" || err != nil {
			t.Error(diff, err)
		}
		if n, err := s.Cancel(ctx, "t", "e", store.Skipped); err != nil || n != 2 {
			t.Errorf("%d, %v", n, err)
		}
		if got, err := s.Lease(ctx, "", noon.Add(time.Hour), noon.Add(time.Hour), 9); err != nil || len(got) != 0 {
			t.Errorf("%+v, %v", got, err)
		}
	})
	t.Run("pages come newest first and end", func(t *testing.T) {
		var rows []store.Delivery
		for i := range 7 {
			rows = append(rows, row("e", i))
		}
		s := fill(t, append(rows, row("f", 1))...)
		q := store.DeliveryQuery{Tenant: "t", EndpointID: "e", Limit: 3}
		var seen []string
		for page := 0; page < 9; page++ {
			got, next, err := s.List(ctx, q)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range got {
				seen = append(seen, r.ID)
			}
			if q.Cursor = next; next == "" {
				break
			}
		}
		want := []string{"dlv_e_6", "dlv_e_5", "dlv_e_4", "dlv_e_3", "dlv_e_2", "dlv_e_1", "dlv_e_0"}
		if diff := cmp.Diff(want, seen); diff != "" {
			t.Error(diff)
		}
		if _, _, err := s.List(ctx, store.DeliveryQuery{Tenant: "t", Limit: 1, Cursor: "!"}); !errors.Is(err, store.ErrCursor) {
			t.Error(err)
		}
		if got, _, err := s.List(ctx, store.DeliveryQuery{Tenant: "t", TransactionID: "tx1", Status: store.Pending, Limit: 9}); err != nil || len(got) != 2 {
			t.Errorf("%+v, %v", got, err)
		}
	})
}

// Registry checks a registry.
func Registry(t *testing.T, open func(t *testing.T) store.Registry) {
	ctx := context.Background()
	t.Run("tenants, keys and endpoints come back as they were put", func(t *testing.T) {
		s := open(t)
		expires := txn.At(noon)
		tenant := store.Tenant{ID: "t", DeadlineMS: 2000, TimeZone: "America/Sao_Paulo", CreatedAt: txn.At(noon)}
		key := store.APIKey{ID: "k", Tenant: "t", Hash: "1.x", Roles: []string{"read"}, Rate: 2.5, Source: "env", CreatedAt: txn.At(noon), ExpiresAt: &expires}
		endpoint := store.Endpoint{ID: "e", Tenant: "t", URL: "https://example.com", Events: []string{"a"}, Payload: "thin", Headers: map[string]string{"X": "y"},
			Status: "active", Secrets: []store.Secret{{Sealed: []byte{0, 255}, Until: noon}}, CreatedAt: txn.At(noon)}
		for range 2 { // putting again replaces
			for _, err := range []error{s.PutTenant(ctx, tenant), s.PutKey(ctx, key), s.PutEndpoint(ctx, endpoint)} {
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		tenants, err1 := s.Tenants(ctx)
		keys, err2 := s.Keys(ctx)
		endpoints, err3 := s.Endpoints(ctx)
		if err := errors.Join(err1, err2, err3); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]any{[]store.Tenant{tenant}, []store.APIKey{key}, []store.Endpoint{endpoint}}, []any{tenants, keys, endpoints}); diff != "" {
			t.Error(diff)
		}
		if err := s.DeleteKey(ctx, "u", "k"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("another tenant's delete: %v", err)
		}
		for _, err := range []error{s.DeleteKey(ctx, "t", "k"), s.DeleteEndpoint(ctx, "t", "e")} {
			if err != nil {
				t.Error(err)
			}
		}
		if err := s.DeleteEndpoint(ctx, "t", "e"); !errors.Is(err, store.ErrNotFound) {
			t.Error(err)
		}
	})
	t.Run("acts are kept, newest first", func(t *testing.T) {
		s := open(t)
		for i := range 3 {
			if err := s.Record(ctx, store.Act{At: txn.At(noon), Actor: "k", Action: "a", Target: fmt.Sprint(i), Detail: map[string]any{"x": "y"}}); err != nil {
				t.Fatal(err)
			}
		}
		acts, err := s.Acts(ctx, 2)
		if err != nil || len(acts) != 2 || acts[0].Target != "2" || acts[1].Detail["x"] != "y" {
			t.Errorf("%+v, %v", acts, err)
		}
	})
}
