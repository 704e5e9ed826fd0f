package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"crivo/services/store"
)

func claim(id string) store.Claim {
	return store.Claim{Key: store.Key{Tenant: "t", ID: id}, Digest: "d1.x", Run: 1, ClaimedAt: noon, AcceptedAt: noon, Deadline: noon.Add(2 * time.Second),
		Body: []byte(`{"id":"` + id + `","description":"ação"}`)}
}

func decide(id, event string) store.Decide {
	return store.Decide{Claim: claim(id), Event: []byte(event), Decision: "approve", Reasons: []string{"A", "B"}, DecidedAt: noon.Add(time.Second)}
}

// Transactions checks a transaction store. open returns an empty store, or, called again in one test, the same data.
func Transactions(t *testing.T, open func(t *testing.T) store.Transactions) {
	ctx := context.Background()
	key := func(id string) store.Key { return store.Key{Tenant: "t", ID: id} }
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Run("a claim is won once and then seen by all", func(t *testing.T) {
		s := open(t)
		got, err := s.Claim(ctx, []store.Claim{claim("a"), claim("b"), claim("a")})
		must(t, err)
		if !got[0].Won || !got[1].Won || got[2].Won {
			t.Errorf("won %v %v %v", got[0].Won, got[1].Won, got[2].Won)
		}
		other := claim("a")
		other.Digest, other.Body = "d1.y", []byte("{}")
		got, err = s.Claim(ctx, []store.Claim{other})
		must(t, err)
		if diff := cmp.Diff(store.Claimed{Entry: store.Entry{Claim: claim("a")}}, got[0]); diff != "" {
			t.Error(diff)
		}
		entry, err := s.Get(ctx, key("a"))
		must(t, err)
		if diff := cmp.Diff(store.Entry{Claim: claim("a")}, entry); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("what is not there is not found", func(t *testing.T) {
		s := open(t)
		if _, err := s.Get(ctx, key("none")); !errors.Is(err, store.ErrNotFound) {
			t.Error(err)
		}
		if _, err := s.Raise(ctx, store.Raise{Key: key("none"), FromRun: 1}); !errors.Is(err, store.ErrNotFound) {
			t.Error(err)
		}
		open, err := s.Undecided(ctx, []store.Key{key("none")})
		must(t, err)
		if len(open) != 1 {
			t.Errorf("%v", open)
		}
	})
	t.Run("the first decision stands, whoever comes later", func(t *testing.T) {
		s := open(t)
		_, err := s.Claim(ctx, []store.Claim{claim("a")})
		must(t, err)
		got, err := s.Decide(ctx, []store.Decide{decide("a", "first"), decide("a", "second"), decide("whole", "inserted")})
		must(t, err)
		if got[0].Status != store.DecidedNow || got[1].Status != store.DecidedBefore || got[2].Status != store.DecidedNow || string(got[1].Entry.Event) != "first" {
			t.Errorf("got %+v", got)
		}
		got, err = s.Decide(ctx, []store.Decide{decide("a", "third")})
		must(t, err)
		if got[0].Status != store.DecidedBefore || string(got[0].Entry.Event) != "first" {
			t.Errorf("got %+v", got)
		}
		again, err := s.Claim(ctx, []store.Claim{claim("a")})
		must(t, err)
		if again[0].Won || string(again[0].Entry.Event) != "first" || !again[0].Entry.DecidedAt.Equal(noon.Add(time.Second)) {
			t.Errorf("got %+v", again[0])
		}
		whole, err := s.Get(ctx, key("whole"))
		must(t, err)
		if string(whole.Event) != "inserted" || whole.Digest != "d1.x" {
			t.Errorf("got %+v", whole)
		}
	})
	t.Run("another body's decision is refused", func(t *testing.T) {
		s := open(t)
		_, err := s.Claim(ctx, []store.Claim{claim("a")})
		must(t, err)
		d := decide("a", "x")
		d.Digest = "d1.other"
		got, err := s.Decide(ctx, []store.Decide{d})
		must(t, err)
		entry, err := s.Get(ctx, key("a"))
		must(t, err)
		if got[0].Status != store.DigestConflict || entry.Decided() {
			t.Errorf("%+v, decided %v", got[0], entry.Decided())
		}
	})
	t.Run("a run is raised once, and never after the decision", func(t *testing.T) {
		s := open(t)
		_, err := s.Claim(ctx, []store.Claim{claim("a")})
		must(t, err)
		later := noon.Add(time.Minute)
		raise := store.Raise{Key: key("a"), FromRun: 1, AcceptedAt: later, Deadline: later.Add(time.Second)}
		e, err := s.Raise(ctx, raise)
		must(t, err)
		if e.Run != 2 || !e.AcceptedAt.Equal(later) || !e.ClaimedAt.Equal(noon) {
			t.Errorf("got %+v", e)
		}
		if e, err = s.Raise(ctx, raise); !errors.Is(err, store.ErrChanged) || e.Run != 2 {
			t.Errorf("got %+v, %v", e, err)
		}
		_, err = s.Decide(ctx, []store.Decide{decide("a", "x")})
		must(t, err)
		raise.FromRun = 2
		if e, err = s.Raise(ctx, raise); !errors.Is(err, store.ErrChanged) || string(e.Event) != "x" {
			t.Errorf("got %+v, %v", e, err)
		}
	})
	t.Run("overdue and unannounced are found oldest first, and only they", func(t *testing.T) {
		s := open(t)
		for i, id := range []string{"c", "b", "a", "decided"} {
			c := claim(id)
			c.Deadline = noon.Add(-time.Duration(i) * time.Second)
			_, err := s.Claim(ctx, []store.Claim{c})
			must(t, err)
		}
		d := decide("decided", "x")
		d.Unannounced = true
		_, err := s.Decide(ctx, []store.Decide{d})
		must(t, err)
		late, err := s.Overdue(ctx, noon, 10)
		must(t, err)
		if len(late) != 2 || late[0].ID != "a" || late[1].ID != "b" {
			t.Errorf("overdue: %+v", late)
		}
		if late, err = s.Overdue(ctx, noon, 1); err != nil || len(late) != 1 {
			t.Errorf("%d, %v", len(late), err)
		}
		for _, want := range []int{1, 0} {
			silent, err := s.Unannounced(ctx, noon.Add(time.Hour), 10)
			must(t, err)
			if len(silent) != want {
				t.Errorf("unannounced: %+v", silent)
			}
			must(t, s.Announced(ctx, []store.Key{key("decided"), key("none")}))
		}
		open, err := s.Undecided(ctx, []store.Key{key("a"), key("decided"), key("none")})
		must(t, err)
		if diff := cmp.Diff([]store.Key{key("a"), key("none")}, open); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("tenants do not see each other", func(t *testing.T) {
		s := open(t)
		other := claim("a")
		other.Tenant = "u"
		got, err := s.Claim(ctx, []store.Claim{claim("a"), other})
		must(t, err)
		if !got[0].Won || !got[1].Won {
			t.Error("one id, two tenants: not two claims")
		}
	})
	t.Run("of a hundred claims of one id at once, one wins", func(t *testing.T) {
		s := open(t)
		if n := race(100, func(i int) bool {
			got, err := s.Claim(ctx, []store.Claim{claim("raced")})
			return err == nil && got[0].Won
		}); n != 1 {
			t.Errorf("%d won", n)
		}
		if n := race(50, func(i int) bool {
			got, err := s.Decide(ctx, []store.Decide{decide("raced", fmt.Sprint(i))})
			return err == nil && got[0].Status == store.DecidedNow
		}); n != 1 {
			t.Errorf("%d decided", n)
		}
	})
	t.Run("a call whose context has ended says so", func(t *testing.T) {
		s := open(t)
		ended, cancel := context.WithCancel(ctx)
		cancel()
		if _, err := s.Claim(ended, []store.Claim{claim("a")}); err == nil {
			t.Error("claimed")
		}
		must(t, s.Ping(ctx))
		got, err := s.Claim(ctx, []store.Claim{claim("z")})
		must(t, err)
		if !got[0].Won {
			t.Error("the store does not work after a cancelled call")
		}
	})
}

// race runs f n times at once and counts how often it was true.
func race(n int, f func(i int) bool) int {
	var all sync.WaitGroup
	won := make(chan bool, n)
	for i := range n {
		all.Go(func() { won <- f(i) })
	}
	all.Wait()
	close(won)
	count := 0
	for w := range won {
		if w {
			count++
		}
	}
	return count
}
