package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"crivo/pkg/txn"
	"crivo/services/store"
)

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
		if err := s.PutTenant(ctx, tenant); err != nil {
			t.Fatal(err)
		}
		for range 2 { // putting again replaces
			for _, err := range []error{s.PutKey(ctx, key), s.PutEndpoint(ctx, endpoint)} {
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
	tenants(t, open)
	changes(t, open)
	lists(t, open)
	ruleSets(t, open)
	states(t, open)
}

// tenants checks that the first one of an id stays as it was made.
func tenants(t *testing.T, open func(t *testing.T) store.Registry) {
	ctx := context.Background()
	stands := func(t *testing.T, s store.Registry, want store.Tenant) {
		t.Helper()
		got, err := s.Tenants(ctx)
		if diff := cmp.Diff([]store.Tenant{want}, got); diff != "" || err != nil {
			t.Error(err, diff)
		}
	}
	t.Run("a tenant that stands is not put again", func(t *testing.T) {
		s := open(t)
		first := store.Tenant{ID: "t", DeadlineMS: 2000, TimeZone: "America/Sao_Paulo", CreatedAt: txn.At(noon)}
		if err := s.PutTenant(ctx, first); err != nil {
			t.Fatal(err)
		}
		for _, again := range []store.Tenant{first, {ID: "t", DeadlineMS: 3000, TimeZone: "UTC", CreatedAt: txn.At(noon.Add(time.Hour))}} {
			if err := s.PutTenant(ctx, again); !errors.Is(err, store.ErrChanged) {
				t.Errorf("%+v: %v", again, err)
			}
		}
		stands(t, s, first)
	})
	t.Run("of eight puts of one tenant at once, one stands", func(t *testing.T) {
		s := open(t)
		wins := make(chan store.Tenant, 8)
		if n := race(cap(wins), func(i int) bool {
			x := store.Tenant{ID: "t", DeadlineMS: 1000 + i, TimeZone: "UTC", CreatedAt: txn.At(noon)}
			err := s.PutTenant(ctx, x)
			if err == nil {
				wins <- x
			} else if !errors.Is(err, store.ErrChanged) {
				t.Error(err)
			}
			return err == nil
		}); n != 1 {
			t.Fatalf("%d stand", n)
		}
		stands(t, s, <-wins)
	})
}

func listed(n int) store.ListEntry {
	return store.ListEntry{ID: fmt.Sprint("ent_", n), Tenant: "t", List: "block", Kind: "document", Value: fmt.Sprint("1.token", n), Reason: "fraud",
		AddedBy: "k", CreatedAt: txn.At(noon)}
}

// lists checks the entries of lists.
func lists(t *testing.T, open func(t *testing.T) store.Registry) {
	ctx := context.Background()
	fill := func(t *testing.T, entries ...store.ListEntry) store.Registry {
		t.Helper()
		s := open(t)
		for _, e := range entries {
			if got, err := s.PutListEntry(ctx, e); err != nil || cmp.Diff(e, got) != "" {
				t.Fatal(err, cmp.Diff(e, got))
			}
		}
		return s
	}
	// all are the entries, which have no order but their own.
	all := func(t *testing.T, s store.Registry) []store.ListEntry {
		t.Helper()
		got, err := s.ListEntries(ctx)
		again, err2 := s.ListEntries(ctx)
		if diff := cmp.Diff(got, again); diff != "" || err != nil || err2 != nil {
			t.Fatal(err, err2, diff)
		}
		slices.SortFunc(got, func(a, b store.ListEntry) int {
			return strings.Compare(a.Tenant+a.List+a.Kind+a.Value, b.Tenant+b.List+b.Kind+b.Value)
		})
		return got
	}
	expires := txn.At(noon.Add(time.Hour))
	t.Run("entries come back as they were put, of all tenants and lists", func(t *testing.T) {
		if got := all(t, open(t)); len(got) != 0 {
			t.Errorf("%+v", got)
		}
		a, b, c, d := listed(1), listed(1), listed(1), listed(1)
		b.Kind, b.ExpiresAt, b.Reason, b.Value = "merchant_id", &expires, "", "$ne/.é"
		c.List, d.Tenant = "other", "u"
		if diff := cmp.Diff([]store.ListEntry{a, b, c, d}, all(t, fill(t, a, b, c, d))); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("a value is on a list once: again renews reason and expiry, and nothing else", func(t *testing.T) {
		s := fill(t, listed(1), listed(2))
		again := listed(1)
		again.ID, again.Reason, again.ExpiresAt, again.AddedBy, again.CreatedAt = "ent_other", "theft", &expires, "l", txn.At(noon.Add(time.Hour))
		want := listed(1)
		want.Reason, want.ExpiresAt = "theft", &expires
		got, err := s.PutListEntry(ctx, again)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Error(err, diff)
		}
		if diff := cmp.Diff([]store.ListEntry{want, listed(2)}, all(t, s)); diff != "" {
			t.Error(diff)
		}
		again.Reason, again.ExpiresAt = "fraud", nil
		if got, err = s.PutListEntry(ctx, again); err != nil || cmp.Diff(listed(1), got) != "" {
			t.Errorf("without an expiry again: %+v, %v", got, err)
		}
	})
	t.Run("of fifty puts of one value at once, one entry stands and all are told of it", func(t *testing.T) {
		s := fill(t)
		ids := make(chan string, 50)
		race(50, func(i int) bool {
			e := listed(1)
			e.ID = fmt.Sprint("ent_", i)
			got, err := s.PutListEntry(ctx, e)
			ids <- got.ID
			return err == nil
		})
		close(ids)
		got := all(t, s)
		if len(got) != 1 {
			t.Fatalf("%d entries", len(got))
		}
		for id := range ids {
			if id != got[0].ID {
				t.Errorf("%s was told, %s stands", id, got[0].ID)
			}
		}
	})
	t.Run("of fifty deletes at once, one finds the entry", func(t *testing.T) {
		s := fill(t, listed(1), listed(2))
		for _, of := range [][3]string{{"u", "block", "ent_1"}, {"t", "other", "ent_1"}, {"t", "block", "ent_3"}} {
			if err := s.DeleteListEntry(ctx, of[0], of[1], of[2]); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("%v: %v", of, err)
			}
		}
		if n := race(50, func(int) bool { return s.DeleteListEntry(ctx, "t", "block", "ent_1") == nil }); n != 1 {
			t.Errorf("%d deleted it", n)
		}
		if diff := cmp.Diff([]store.ListEntry{listed(2)}, all(t, s)); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("pages come newest first, end, and stay as they are while entries come and go", func(t *testing.T) {
		other, foreign := listed(1), listed(1)
		other.List, foreign.Tenant = "other", "u"
		s := fill(t, listed(0), other, listed(1), listed(2), foreign, listed(3), listed(4))
		q := store.ListQuery{Tenant: "t", List: "block", Limit: 2}
		var seen []string
		for n := 5; ; n++ {
			got, next, err := s.ListPage(ctx, q)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range got {
				seen = append(seen, e.ID)
			}
			if q.Cursor = next; next == "" || n > 20 {
				break
			}
			_, err = s.PutListEntry(ctx, listed(n))
			if gone := s.DeleteListEntry(ctx, "t", "block", got[len(got)-1].ID); err != nil || gone != nil {
				t.Fatal(err, gone)
			}
		}
		if diff := cmp.Diff([]string{"ent_4", "ent_3", "ent_2", "ent_1", "ent_0"}, seen); diff != "" {
			t.Error(diff)
		}
		if got, next, err := s.ListPage(ctx, store.ListQuery{Tenant: "t", List: "none", Limit: 9}); err != nil || got == nil || len(got) != 0 || next != "" {
			t.Errorf("%v, %q, %v", got, next, err)
		}
		if _, _, err := s.ListPage(ctx, store.ListQuery{Tenant: "t", List: "block", Limit: 1, Cursor: "!"}); !errors.Is(err, store.ErrCursor) {
			t.Error(err)
		}
	})
}

// states checks what services keep for themselves.
func states(t *testing.T, open func(t *testing.T) store.Registry) {
	t.Run("a state is the last one put", func(t *testing.T) {
		s, ctx := open(t), context.Background()
		if _, err := s.State(ctx, "a/$b"); !errors.Is(err, store.ErrNotFound) {
			t.Error(err)
		}
		for _, value := range []string{"one", "two\x00é"} {
			for _, name := range []string{"a/$b", "c"} {
				if err := s.PutState(ctx, name, []byte(name+value)); err != nil {
					t.Fatal(err)
				}
			}
			if got, err := s.State(ctx, "a/$b"); err != nil || string(got) != "a/$b"+value {
				t.Errorf("%q %v", got, err)
			}
		}
	})
	t.Run("a state is swapped only where it is what the caller saw", func(t *testing.T) {
		s, ctx := open(t), context.Background()
		swap := func(from, to string, want error) {
			t.Helper()
			var seen []byte
			if from != "" {
				seen = []byte(from)
			}
			if err := s.SwapState(ctx, "a/$b", seen, []byte(to)); !errors.Is(err, want) {
				t.Errorf("%q to %q: %v", from, to, err)
			}
		}
		swap("absent", "x", store.ErrChanged)
		swap("", "one", nil)
		swap("", "again", store.ErrChanged)
		swap("two", "x", store.ErrChanged)
		swap("one", "two", nil)
		swap("two", "two", nil)
		if got, err := s.State(ctx, "a/$b"); err != nil || string(got) != "two" {
			t.Errorf("%q %v", got, err)
		}
		if won := race(20, func(i int) bool { return s.SwapState(ctx, "a/$b", []byte("two"), fmt.Append(nil, i)) == nil }); won != 1 {
			t.Errorf("%d of twenty swaps at once", won)
		}
	})
}

// ruleSets checks the versions of rule sets.
func ruleSets(t *testing.T, open func(t *testing.T) store.Registry) {
	ctx := context.Background()
	set := func(name string, version int) store.RuleSet {
		return store.RuleSet{Name: name, Version: version, Digest: fmt.Sprint("sha256:", name, version), Source: []byte("name: é # " + name + "\n\x00"), CreatedAt: txn.At(noon)}
	}
	t.Run("versions come back as they were put, listed without their sources", func(t *testing.T) {
		s := open(t)
		var want []store.RuleSet
		if got, err := s.RuleSets(ctx); err != nil || len(got) != 0 {
			t.Errorf("%+v, %v", got, err)
		}
		for _, x := range []store.RuleSet{set("a", 10), set("b", 1), set("a", 9)} {
			if err := s.PutRuleSet(ctx, x); err != nil {
				t.Fatal(err)
			}
		}
		for _, x := range []store.RuleSet{set("a", 9), set("a", 10), set("b", 1)} {
			got, err := s.RuleSet(ctx, x.Name, x.Version)
			if diff := cmp.Diff(x, got); diff != "" || err != nil {
				t.Error(err, diff)
			}
			x.Source = nil
			want = append(want, x)
		}
		got, err := s.RuleSets(ctx)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Error(err, diff)
		}
		if _, err := s.RuleSet(ctx, "a", 1); !errors.Is(err, store.ErrNotFound) {
			t.Error(err)
		}
	})
	t.Run("a version is never changed", func(t *testing.T) {
		s := open(t)
		if err := s.PutRuleSet(ctx, set("a", 1)); err != nil {
			t.Fatal(err)
		}
		again := set("a", 1)
		again.CreatedAt = txn.At(noon.Add(time.Hour))
		if err := s.PutRuleSet(ctx, again); err != nil {
			t.Errorf("the same again: %v", err)
		}
		again.Digest, again.Source = "sha256:other", []byte("other")
		if err := s.PutRuleSet(ctx, again); !errors.Is(err, store.ErrChanged) {
			t.Errorf("another: %v", err)
		}
		got, err := s.RuleSet(ctx, "a", 1)
		if diff := cmp.Diff(set("a", 1), got); diff != "" || err != nil {
			t.Error(err, diff)
		}
	})
	t.Run("of fifty sets under one version at once, one stands and the others are refused", func(t *testing.T) {
		s := open(t)
		if n := race(50, func(i int) bool {
			x := set("a", 1)
			x.Digest = fmt.Sprint("sha256:", i)
			err := s.PutRuleSet(ctx, x)
			if err != nil && !errors.Is(err, store.ErrChanged) {
				t.Error(err)
			}
			return err == nil
		}); n != 1 {
			t.Errorf("%d were put", n)
		}
	})
}
