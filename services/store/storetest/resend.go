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

// resends checks how one more attempt is asked for, and how rows are found by their time.
func resends(t *testing.T, fill func(t *testing.T, rows ...store.Delivery) store.Deliveries) {
	ctx := context.Background()
	now := noon.Add(time.Hour)
	ask := store.Resend{Tenant: "t", ID: "dlv_e_1", Trigger: store.Manual, At: now}
	get := func(t *testing.T, s store.Deliveries) store.Delivery {
		t.Helper()
		r, err := s.Get(ctx, "t", "dlv_e_1")
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	t.Run("whatever became of a row, it can be asked for again, once", func(t *testing.T) {
		for _, status := range store.DeliveryStates {
			s := fill(t, row("e", 1))
			r := row("e", 1)
			r.Status, r.NextAttemptAt = status, now.Add(time.Hour)
			if err := s.Update(ctx, []store.Delivery{r}); err != nil {
				t.Fatal(err)
			}
			if err := s.Resend(ctx, ask); err != nil {
				t.Fatalf("%s: %v", status, err)
			}
			if err := s.Resend(ctx, ask); !errors.Is(err, store.ErrChanged) {
				t.Errorf("%s: asked for twice: %v", status, err)
			}
			leased, err := s.Lease(ctx, "e", now, now.Add(time.Minute), 9)
			if err != nil || len(leased) != 1 || leased[0].Trigger != store.Manual || leased[0].Was != status || leased[0].Status != store.Pending {
				t.Fatalf("%s: %+v, %v", status, leased, err)
			}
			leased[0].Trigger, leased[0].Was, leased[0].Status, leased[0].LeasedUntil = "", "", store.Delivered, time.UnixMilli(0)
			if err := s.Update(ctx, leased); err != nil {
				t.Fatal(err)
			}
			if got := get(t, s); got.Trigger != "" || got.Was != "" || got.Replay != "" {
				t.Errorf("%s: after the attempt %+v", status, got)
			}
			if err := s.Resend(ctx, ask); err != nil {
				t.Errorf("%s: after the attempt: %v", status, err)
			}
		}
	})
	t.Run("a row under way is left alone, and so is another tenant's", func(t *testing.T) {
		s := fill(t, row("e", 1))
		if _, err := s.Lease(ctx, "e", now, now.Add(time.Minute), 1); err != nil {
			t.Fatal(err)
		}
		if err := s.Resend(ctx, ask); !errors.Is(err, store.ErrChanged) {
			t.Errorf("under way: %v", err)
		}
		later := ask
		later.At = now.Add(time.Minute)
		if err := s.Resend(ctx, later); err != nil {
			t.Errorf("once the lease ran out: %v", err)
		}
		for _, other := range []store.Resend{{Tenant: "u", ID: "dlv_e_1", At: now}, {Tenant: "t", ID: "dlv_none", At: now}} {
			if err := s.Resend(ctx, other); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("%+v: %v", other, err)
			}
		}
	})
	t.Run("of fifty that ask at once, one is heard", func(t *testing.T) {
		s := fill(t, row("e", 1))
		if n := race(50, func(int) bool {
			err := s.Resend(ctx, ask)
			if err != nil && !errors.Is(err, store.ErrChanged) {
				t.Error(err)
			}
			return err == nil
		}); n != 1 {
			t.Errorf("%d were", n)
		}
	})
	t.Run("a row remembers the last replay, and a first attempt what asked for it", func(t *testing.T) {
		first := row("e", 1)
		first.Trigger = store.Test
		s := fill(t, first)
		if got := get(t, s); got.Trigger != store.Test {
			t.Errorf("%+v", got)
		}
		for _, replay := range []string{"rpl_1", "rpl_2", "rpl_2", ""} {
			r := row("e", 1)
			r.Status = store.Delivered
			if err := s.Update(ctx, []store.Delivery{r}); err != nil {
				t.Fatal(err)
			}
			again := ask
			again.Replay = replay
			if err := s.Resend(ctx, again); (err != nil) != (get(t, s).Trigger == "") || err != nil && !errors.Is(err, store.ErrChanged) {
				t.Fatalf("%q: %v", replay, err)
			}
		}
		if got := get(t, s); got.Replay != "rpl_2" {
			t.Errorf("%q", got.Replay)
		}
	})
	t.Run("what is cancelled can be asked for anew", func(t *testing.T) {
		s := fill(t, row("e", 1))
		for range 2 {
			if err := s.Resend(ctx, ask); err != nil {
				t.Fatal(err)
			}
			if n, err := s.Cancel(ctx, "t", "e", store.Skipped); n != 1 || err != nil {
				t.Fatal(n, err)
			}
		}
	})
	t.Run("rows come by the time of their making, each once", func(t *testing.T) {
		var rows []store.Delivery
		for i := range 12 {
			r := row("e", i)
			r.CreatedAt = noon.Add(time.Duration(i/3) * time.Second) // three in each second
			rows = append([]store.Delivery{r}, rows...)
		}
		foreign, other := row("e", 99), row("f", 4)
		foreign.Tenant, foreign.ID, foreign.CreatedAt, other.CreatedAt = "u", "dlv_u", noon.Add(time.Second), noon.Add(time.Second)
		s := fill(t, append(rows, foreign, other)...)
		q := store.Span{Tenant: "t", EndpointID: "e", From: noon.Add(time.Second), To: noon.Add(3 * time.Second), Limit: 2}
		var seen []string
		for range 9 {
			page, err := s.Between(ctx, q)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range page {
				seen = append(seen, r.ID)
				q.From, q.After = r.CreatedAt, r.ID
			}
			if len(page) < q.Limit {
				break
			}
		}
		if diff := cmp.Diff([]string{"dlv_e_3", "dlv_e_4", "dlv_e_5", "dlv_e_6", "dlv_e_7", "dlv_e_8"}, seen); diff != "" {
			t.Error(diff)
		}
	})
}

// changes checks what two operators can do to one endpoint at once, and the replays of endpoints.
func changes(t *testing.T, open func(t *testing.T) store.Registry) {
	ctx := context.Background()
	endpoint := func(t *testing.T, s store.Registry) store.Endpoint {
		t.Helper()
		all, err := s.Endpoints(ctx)
		if err != nil || len(all) != 1 {
			t.Fatal(all, err)
		}
		return all[0]
	}
	t.Run("an endpoint is changed only by who saw it as it stands", func(t *testing.T) {
		s := open(t)
		e := store.Endpoint{ID: "e", Tenant: "t", URL: "https://example.com", Secrets: []store.Secret{{Sealed: []byte{1}}}, CreatedAt: txn.At(noon)}
		if err := s.ChangeEndpoint(ctx, e); !errors.Is(err, store.ErrChanged) {
			t.Errorf("one that is not there: %v", err)
		}
		if err := s.PutEndpoint(ctx, e); err != nil {
			t.Fatal(err)
		}
		old := endpoint(t, s)
		for i := range 3 {
			now := endpoint(t, s)
			now.Description, now.Secrets = fmt.Sprint(i), append(now.Secrets, store.Secret{Sealed: []byte{byte(i)}, Until: noon})
			if err := s.ChangeEndpoint(ctx, now); err != nil {
				t.Fatal(err)
			}
			if got := endpoint(t, s); got.Description != now.Description || len(got.Secrets) != 2+i || got.Version == now.Version {
				t.Errorf("%+v", got)
			}
			if err := s.ChangeEndpoint(ctx, old); !errors.Is(err, store.ErrChanged) {
				t.Errorf("as it stood before: %v", err)
			}
		}
		now := endpoint(t, s)
		if err := s.DeleteEndpoint(ctx, "t", "e"); err != nil {
			t.Fatal(err)
		}
		if err := s.ChangeEndpoint(ctx, now); !errors.Is(err, store.ErrChanged) {
			t.Errorf("one that is gone: %v", err)
		}
	})
	t.Run("of fifty changes at once, all are kept", func(t *testing.T) {
		s := open(t)
		if err := s.PutEndpoint(ctx, store.Endpoint{ID: "e", Tenant: "t"}); err != nil {
			t.Fatal(err)
		}
		if n := race(50, func(int) bool {
			for {
				all, err := s.Endpoints(ctx)
				if err != nil {
					return false
				}
				all[0].Secrets = append(all[0].Secrets, store.Secret{Sealed: []byte{1}})
				if err := s.ChangeEndpoint(ctx, all[0]); !errors.Is(err, store.ErrChanged) {
					return err == nil
				}
			}
		}); n != 50 {
			t.Errorf("%d changes", n)
		}
		if got := endpoint(t, s); len(got.Secrets) != 50 {
			t.Errorf("%d were kept", len(got.Secrets))
		}
	})
	t.Run("an endpoint has one replay, the last one", func(t *testing.T) {
		s := open(t)
		ended := txn.At(noon.Add(time.Hour))
		r := store.Replay{ID: "rpl_1", Tenant: "t", EndpointID: "e", Status: store.ReplayRunning, From: txn.At(noon), To: ended, Only: store.Skipped, Matched: 7, Enqueued: 3,
			CreatedAt: txn.At(noon), EndedAt: &ended, LastAt: txn.At(noon), LastID: "dlv_1"}
		if n := race(50, func(i int) bool {
			x := r
			x.ID = fmt.Sprint("rpl_", i)
			err := s.PutReplay(ctx, x)
			if err != nil && !errors.Is(err, store.ErrChanged) {
				t.Error(err)
			}
			return err == nil
		}); n != 1 {
			t.Errorf("%d were added", n)
		}
		all, err := s.Replays(ctx)
		if err != nil || len(all) != 1 {
			t.Fatal(all, err)
		}
		r.ID, r.Version, r.Status = "rpl_x", all[0].Version, store.ReplayDone
		if err := s.PutReplay(ctx, r); err != nil {
			t.Fatal(err)
		}
		if err := s.PutReplay(ctx, r); !errors.Is(err, store.ErrChanged) {
			t.Errorf("from an old version: %v", err)
		}
		other := r
		other.Tenant, other.Version = "u", 0
		if err := s.PutReplay(ctx, other); err != nil {
			t.Fatal(err)
		}
		all, err = s.Replays(ctx)
		if err != nil || len(all) != 2 {
			t.Fatal(all, err)
		}
		r.Version = all[0].Version
		if diff := cmp.Diff(r, all[0]); diff != "" {
			t.Error(diff)
		}
	})
}
