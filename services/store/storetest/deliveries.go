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
	t.Run("much is cancelled", func(t *testing.T) {
		rows := make([]store.Delivery, 1200)
		for i := range rows {
			rows[i] = row([]string{"e", "f"}[i%12/11], i)
		}
		s := fill(t, rows...)
		patient, cancel := context.WithTimeout(ctx, time.Minute) // of one call a store expects less
		defer cancel()
		if n, err := s.Cancel(patient, "t", "e", store.Cancelled); err != nil || n != 1100 {
			t.Errorf("%d, %v", n, err)
		}
		if left, err := s.Lease(ctx, "", noon.Add(time.Hour), noon.Add(2*time.Hour), 2000); err != nil || len(left) != 100 {
			t.Errorf("%d left, %v", len(left), err)
		}
	})
	t.Run("endpoints with something due are named once each, whatever else there is", func(t *testing.T) {
		s := fill(t, row("a", 1), row("a", 2), row("b", 1), row("later", 99), row("leased", 1), row("done", 1), row("z", 1))
		leased, done := row("leased", 1), row("done", 1)
		leased.LeasedUntil, done.Status = noon.Add(time.Hour), store.Delivered
		if err := s.Update(ctx, []store.Delivery{leased, done}); err != nil {
			t.Fatal(err)
		}
		due, err := s.DueEndpoints(ctx, noon.Add(10*time.Second))
		slices.Sort(due)
		if diff := cmp.Diff([]string{"a", "b", "z"}, due); diff != "" || err != nil {
			t.Error(diff, err)
		}
		if due, err = open(t).DueEndpoints(ctx, noon); err != nil || len(due) != 0 {
			t.Errorf("%v, %v", due, err)
		}
	})
	deliveryRaces(t, fill)
	resends(t, fill)
	t.Run("pages come newest first and end", func(t *testing.T) {
		var rows []store.Delivery
		for i := range 7 {
			rows = append(rows, row("e", i))
			rows[i].Status = store.DeliveryStates[(i+4)%5]
		}
		foreign := row("e", 3)
		foreign.ID, foreign.Tenant = "dlv_u", "u"
		s := fill(t, append(rows, row("f", 1), foreign)...)
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

// deliveryRaces checks what two processes can do to the same rows at once.
func deliveryRaces(t *testing.T, fill func(t *testing.T, rows ...store.Delivery) store.Deliveries) {
	ctx := context.Background()
	t.Run("of fifty inserts of one webhook at once, one adds it", func(t *testing.T) {
		s := fill(t)
		if n := race(50, func(i int) bool {
			r := row("e", 1)
			r.ID = fmt.Sprint("dlv_", i)
			added, err := s.Insert(ctx, []store.Delivery{r})
			return err == nil && added[0]
		}); n != 1 {
			t.Errorf("%d added it", n)
		}
	})
	t.Run("a cancelled row is leased no more, a leased one can be cancelled", func(t *testing.T) {
		var rows []store.Delivery
		for i := range 40 {
			rows = append(rows, row("e", i))
		}
		s := fill(t, rows...)
		leased := make(chan store.Delivery, 40)
		cancelled := make(chan int, 1)
		race(20, func(i int) bool {
			if i == 10 {
				n, err := s.Cancel(ctx, "t", "e", store.Cancelled)
				cancelled <- n
				return err == nil
			}
			got, err := s.Lease(ctx, "e", noon.Add(time.Hour), noon.Add(2*time.Hour), 2)
			for _, r := range got {
				leased <- r
			}
			return err == nil
		})
		close(leased)
		seen := map[string]bool{}
		for r := range leased {
			if seen[r.ID] || r.Status != store.Pending {
				t.Errorf("%s %s leased, before: %v", r.ID, r.Status, seen[r.ID])
			}
			seen[r.ID] = true
		}
		if n := <-cancelled; n != 40 {
			t.Errorf("%d cancelled", n)
		}
		all, _, err := s.List(ctx, store.DeliveryQuery{Tenant: "t", Status: store.Cancelled, Limit: 100})
		if err != nil || len(all) != 40 {
			t.Errorf("%d rows are cancelled, %v", len(all), err)
		}
	})
	t.Run("an update touches the rows it names, and a lease given back is free at once", func(t *testing.T) {
		s := fill(t, row("e", 1), row("e", 2))
		now := noon.Add(time.Hour)
		got, err := s.Lease(ctx, "e", now, now.Add(time.Hour), 1)
		if err != nil || len(got) != 1 {
			t.Fatal(got, err)
		}
		got[0].LeasedUntil = time.UnixMilli(0)
		nobody := row("e", 3)
		if err := s.Update(ctx, []store.Delivery{got[0], nobody}); err != nil {
			t.Fatal(err)
		}
		if got, err = s.Lease(ctx, "e", now, now.Add(time.Hour), 10); err != nil || len(got) != 2 {
			t.Errorf("%d free, %v", len(got), err)
		}
		if _, err := s.Get(ctx, "t", nobody.ID); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("an update made a row: %v", err)
		}
	})
	t.Run("who lost a lease writes nothing over", func(t *testing.T) {
		lost := func(r store.Delivery) store.Delivery {
			r.Held, r.LeasedUntil, r.Status = r.LeasedUntil, time.UnixMilli(0), store.Exhausted
			return r
		}
		now := noon.Add(time.Hour + 300*time.Microsecond) // finer than a store keeps
		for name, meanwhile := range map[string]func(s store.Deliveries) error{
			"another holds it": func(s store.Deliveries) error {
				_, err := s.Lease(ctx, "e", now.Add(time.Minute), now.Add(2*time.Minute), 1)
				return err
			},
			"another delivered it": func(s store.Deliveries) error {
				got, err := s.Lease(ctx, "e", now.Add(time.Minute), now.Add(2*time.Minute), 1)
				if err != nil {
					return err
				}
				got[0].Held, got[0].LeasedUntil, got[0].Status = got[0].LeasedUntil, time.UnixMilli(0), store.Delivered
				return s.Update(ctx, got)
			},
			"it was asked for": func(s store.Deliveries) error {
				return s.Resend(ctx, store.Resend{Tenant: "t", ID: row("e", 1).ID, Trigger: store.Manual, At: now.Add(time.Minute)})
			},
		} {
			s := fill(t, row("e", 1), row("e", 2))
			got, err := s.Lease(ctx, "e", now, now.Add(time.Minute), 2)
			if err != nil || len(got) != 2 {
				t.Fatal(got, err)
			}
			slices.SortFunc(got, func(a, b store.Delivery) int { return strings.Compare(a.ID, b.ID) })
			if err := s.Update(ctx, []store.Delivery{lost(got[1])}); err != nil { // nobody took this one meanwhile
				t.Fatal(err)
			}
			if err := meanwhile(s); err != nil {
				t.Fatal(name, err)
			}
			before, err1 := s.Get(ctx, "t", got[0].ID)
			err2 := s.Update(ctx, []store.Delivery{lost(got[0])})
			after, err3 := s.Get(ctx, "t", got[0].ID)
			mine, err4 := s.Get(ctx, "t", got[1].ID)
			if err := errors.Join(err1, err2, err3, err4); err != nil {
				t.Fatal(name, err)
			}
			if diff := cmp.Diff(before, after); diff != "" || mine.Status != store.Exhausted {
				t.Errorf("%s: %s; the other is %s", name, diff, mine.Status)
			}
		}
	})
	t.Run("what a caller does to a row it got stays its own", func(t *testing.T) {
		s := fill(t, row("e", 1))
		r := row("e", 1)
		r.Attempts = append(make([]store.Attempt, 0, 8), store.Attempt{Number: 1, StartedAt: txn.At(noon)})
		if err := s.Update(ctx, []store.Delivery{r}); err != nil {
			t.Fatal(err)
		}
		race(8, func(int) bool {
			got, err := s.Get(ctx, "t", r.ID)
			if err != nil || len(got.Attempts) != 1 {
				return false
			}
			got.Attempts[0].Number = 7
			got.Attempts = append(got.Attempts, store.Attempt{Number: 2})
			return true
		})
		if got, err := s.Get(ctx, "t", r.ID); err != nil || len(got.Attempts) != 1 || got.Attempts[0].Number != 1 {
			t.Errorf("%+v, %v", got.Attempts, err)
		}
	})
	t.Run("pages stay as they are while rows are added", func(t *testing.T) {
		var rows []store.Delivery
		for i := range 6 {
			rows = append(rows, row("e", i))
			rows[i].Status = store.DeliveryStates[i%5]
		}
		s := fill(t, rows...)
		q := store.DeliveryQuery{Tenant: "t", Limit: 2}
		var seen []string
		for n := 6; ; n++ {
			got, next, err := s.List(ctx, q)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range got {
				seen = append(seen, r.ID)
			}
			if q.Cursor = next; next == "" || n > 20 {
				break
			}
			if _, err := s.Insert(ctx, []store.Delivery{row("e", n)}); err != nil {
				t.Fatal(err)
			}
		}
		want := []string{"dlv_e_5", "dlv_e_4", "dlv_e_3", "dlv_e_2", "dlv_e_1", "dlv_e_0"}
		if diff := cmp.Diff(want, seen); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("row times are kept to the millisecond, in UTC", func(t *testing.T) {
		odd := noon.Add(1999999 * time.Nanosecond).In(time.FixedZone("", 9*3600))
		r := row("e", 1)
		r.NextAttemptAt, r.LeasedUntil, r.CreatedAt = odd, odd, odd
		s := fill(t, r)
		want := noon.Add(time.Millisecond)
		got, err := s.Get(ctx, "t", r.ID)
		if diff := cmp.Diff([]time.Time{want, want, want}, []time.Time{got.NextAttemptAt, got.LeasedUntil, got.CreatedAt}); diff != "" || err != nil {
			t.Error(diff, err)
		}
		for now, n := range map[time.Time]int{noon.In(odd.Location()): 0, want.In(odd.Location()): 1} {
			if due, err := s.DueEndpoints(ctx, now); err != nil || len(due) != n {
				t.Errorf("due at %v: %v, %v", now, due, err)
			}
		}
		if got, err := s.Lease(ctx, "e", want, odd, 1); err != nil || len(got) != 1 || !got[0].LeasedUntil.Equal(want) {
			t.Errorf("%+v, %v", got, err)
		}
	})
}
