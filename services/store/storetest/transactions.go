package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
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
	t.Run("a review is closed once, and its decision stays", func(t *testing.T) {
		s := open(t)
		review := func(id string) store.Decide {
			d := decide(id, "the decision of "+id)
			d.Decision = "review"
			return d
		}
		_, err := s.Claim(ctx, []store.Claim{claim("a"), claim("open")})
		must(t, err)
		_, err = s.Decide(ctx, []store.Decide{review("a"), review("whole"), decide("approved", "x")})
		must(t, err)
		for _, id := range []string{"a", "whole"} {
			want, err := s.Get(ctx, key(id))
			must(t, err)
			d := store.Disposition{Outcome: store.Approved, By: "key_1", At: noon.Add(time.Hour + time.Millisecond), Note: []byte{0, 1, 2}}
			if id == "whole" {
				d.Outcome, d.Note = store.Declined, nil
			}
			want.Disposition = &d
			got, err := s.Dispose(ctx, key(id), d)
			must(t, err)
			again, againErr := s.Dispose(ctx, key(id), store.Disposition{Outcome: store.Approved, By: "key_2", At: noon, Note: []byte("x")})
			kept, err := s.Get(ctx, key(id))
			must(t, err)
			repeat, err := s.Decide(ctx, []store.Decide{review(id)})
			must(t, err)
			if !errors.Is(againErr, store.ErrChanged) || repeat[0].Status != store.DecidedBefore {
				t.Errorf("%v, %+v", againErr, repeat)
			}
			for _, e := range []store.Entry{got, again, kept, repeat[0].Entry} {
				if diff := cmp.Diff(want, e); diff != "" {
					t.Error(diff)
				}
			}
		}
		for _, id := range []string{"open", "approved"} {
			if e, err := s.Dispose(ctx, key(id), store.Disposition{Outcome: store.Approved}); !errors.Is(err, store.ErrChanged) || e.ID != id || e.Disposition != nil {
				t.Errorf("%s: %+v, %v", id, e, err)
			}
		}
		for _, k := range []store.Key{key("none"), {Tenant: "u", ID: "a"}} {
			if _, err := s.Dispose(ctx, k, store.Disposition{Outcome: store.Approved}); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("%v: %v", k, err)
			}
		}
	})
	t.Run("a review is closed by one of many", func(t *testing.T) {
		s := open(t)
		d := decide("a", "x")
		d.Decision = "review"
		_, err := s.Decide(ctx, []store.Decide{d})
		must(t, err)
		var closed atomic.Int64
		var all sync.WaitGroup
		for i := range 8 {
			all.Go(func() {
				switch _, err := s.Dispose(ctx, key("a"), store.Disposition{Outcome: store.Declined, By: fmt.Sprint(i), At: noon}); {
				case err == nil:
					closed.Add(1)
				case !errors.Is(err, store.ErrChanged):
					t.Error(err)
				}
			})
		}
		if all.Wait(); closed.Load() != 1 {
			t.Errorf("closed %d times", closed.Load())
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
	t.Run("times are kept to the millisecond, in UTC", func(t *testing.T) {
		s := open(t)
		odd := noon.Add(1999999 * time.Nanosecond).In(time.FixedZone("", -3*3600)) // 1.999999 ms past, 9 o'clock there
		want := noon.Add(time.Millisecond)
		c := claim("a")
		c.ClaimedAt, c.AcceptedAt, c.Deadline = odd, odd, odd
		_, err := s.Claim(ctx, []store.Claim{c})
		must(t, err)
		e, err := s.Get(ctx, key("a"))
		must(t, err)
		if diff := cmp.Diff([]time.Time{want, want, want}, []time.Time{e.ClaimedAt, e.AcceptedAt, e.Deadline}); diff != "" {
			t.Error(diff)
		}
		e, err = s.Raise(ctx, store.Raise{Key: key("a"), FromRun: 1, AcceptedAt: odd, Deadline: odd})
		must(t, err)
		if diff := cmp.Diff([]time.Time{want, want}, []time.Time{e.AcceptedAt, e.Deadline}); diff != "" {
			t.Error(diff)
		}
		for _, id := range []string{"a", "whole"} {
			d := decide(id, "x")
			d.Claim.ClaimedAt, d.DecidedAt = odd, odd
			_, err = s.Decide(ctx, []store.Decide{d})
			must(t, err)
			e, err = s.Get(ctx, key(id))
			must(t, err)
			if diff := cmp.Diff([]time.Time{want, want}, []time.Time{e.ClaimedAt, e.DecidedAt}); diff != "" {
				t.Errorf("%s: %s", id, diff)
			}
		}
		// A deadline in another zone is the same instant to a sweep: not before it, and after it.
		_, err = s.Claim(ctx, []store.Claim{func() store.Claim { c.ID = "late"; return c }()})
		must(t, err)
		for then, n := range map[time.Time]int{want: 0, want.Add(time.Millisecond).In(odd.Location()): 1} {
			if late, err := s.Overdue(ctx, then, 9); err != nil || len(late) != n {
				t.Errorf("overdue at %v: %d, %v", then, len(late), err)
			}
		}
	})
	t.Run("a decision takes over nothing of a claim but what it decides", func(t *testing.T) {
		s := open(t)
		c := claim("a")
		_, err := s.Claim(ctx, []store.Claim{c})
		must(t, err)
		_, err = s.Raise(ctx, store.Raise{Key: c.Key, FromRun: 1, AcceptedAt: noon.Add(time.Minute), Deadline: noon.Add(time.Hour)})
		must(t, err)
		_, err = s.Decide(ctx, []store.Decide{decide("a", "of the first run")})
		must(t, err)
		e, err := s.Get(ctx, c.Key)
		must(t, err)
		want := store.Entry{Claim: claim("a"), Event: []byte("of the first run"), DecidedAt: noon.Add(time.Second)}
		want.Run, want.AcceptedAt, want.Deadline, want.Body = 2, noon.Add(time.Minute), noon.Add(time.Hour), nil
		if diff := cmp.Diff(want, e); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("of a decision and a raise at once, both or the decision alone hold", func(t *testing.T) {
		s := open(t)
		for n := range 30 {
			id := fmt.Sprint("raced", n)
			_, err := s.Claim(ctx, []store.Claim{claim(id)})
			must(t, err)
			var raised, done atomic.Bool
			if won := race(4, func(i int) bool {
				if i%2 == 0 {
					_, err := s.Raise(ctx, store.Raise{Key: key(id), FromRun: 1, AcceptedAt: noon, Deadline: noon})
					if err == nil && raised.Swap(true) {
						t.Error("raised twice from one run")
					}
					return err == nil || errors.Is(err, store.ErrChanged)
				}
				got, err := s.Decide(ctx, []store.Decide{decide(id, fmt.Sprint(i))})
				if err == nil && got[0].Status == store.DecidedNow && done.Swap(true) {
					t.Error("decided twice")
				}
				return err == nil
			}); won != 4 {
				t.Fatalf("%d of 4 calls answered", won)
			}
			e, err := s.Get(ctx, key(id))
			must(t, err)
			if want := 1 + map[bool]int{true: 1}[raised.Load()]; !e.Decided() || e.Run != want {
				t.Errorf("run %d, want %d: %+v", e.Run, want, e)
			}
		}
	})
	t.Run("a group that was cut off leaves whole documents, and its repeat completes it", func(t *testing.T) {
		s := open(t)
		const size = 40
		for n := range 30 {
			claims, decides := make([]store.Claim, size), make([]store.Decide, size)
			for i := range claims {
				id := fmt.Sprint("g", n, "-", i)
				claims[i], decides[i] = claim(id), decide(id, "of "+id)
			}
			brief, cancel := context.WithTimeout(ctx, time.Duration(n*n*10)*time.Microsecond)
			_, claimErr := s.Claim(brief, claims)
			_, decideErr := s.Decide(brief, decides)
			cancel()
			for i, d := range decides {
				whole(t, s, d, claimErr == nil, decideErr == nil)
				decides[i].Event = []byte("again " + d.ID)
			}
			_, err := s.Claim(ctx, claims)
			must(t, err)
			got, err := s.Decide(ctx, decides)
			must(t, err)
			for i, o := range got {
				before := o.Status == store.DecidedBefore && string(o.Entry.Event) == "of "+claims[i].ID
				if !before && o.Status != store.DecidedNow || decideErr == nil && !before {
					t.Fatalf("%s: %s %s after %v", claims[i].ID, o.Status, o.Entry.Event, decideErr)
				}
			}
		}
	})
	t.Run("undecided are told from decided in a large question", func(t *testing.T) {
		s := open(t)
		var keys, want []store.Key
		var decides []store.Decide
		for i := range 3000 {
			k := key(fmt.Sprintf("A-z0.9_:%d", i))
			keys = append(keys, k)
			if i%3 == 0 {
				decides = append(decides, decide(k.ID, "x"))
				continue
			}
			want = append(want, k)
		}
		_, err := s.Decide(ctx, decides)
		must(t, err)
		got, err := s.Undecided(ctx, keys)
		must(t, err)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		got, err = s.Undecided(ctx, []store.Key{keys[1], keys[0], keys[1]})
		must(t, err)
		if diff := cmp.Diff([]store.Key{keys[1], keys[1]}, got); diff != "" {
			t.Error(diff)
		}
		if got, err = s.Undecided(ctx, nil); err != nil || len(got) != 0 {
			t.Errorf("%v, %v", got, err)
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

// whole checks that d's document is there as d or its claim wrote it, or not at all; not at all, or only claimed, only where that
// was not said to be done.
func whole(t *testing.T, s store.Transactions, d store.Decide, claimed, decided bool) {
	t.Helper()
	e, err := s.Get(context.Background(), d.Key)
	if errors.Is(err, store.ErrNotFound) && !claimed && !decided {
		return
	}
	if err != nil {
		t.Fatalf("%s: %v", d.ID, err)
	}
	want := store.Entry{Claim: d.Claim}
	if e.Decided() || decided {
		want.Body, want.Event, want.DecidedAt = nil, d.Event, d.DecidedAt
	}
	if diff := cmp.Diff(want, e); diff != "" {
		t.Fatal(diff)
	}
}

// Refusals checks a transaction store that refuses bodies and events of so many bytes: one costs its batch mates nothing.
func Refusals(t *testing.T, open func(t *testing.T) store.Transactions, bytes int) {
	ctx, s := context.Background(), open(t)
	large := claim("large")
	large.Body = make([]byte, bytes)
	claims, err := s.Claim(ctx, []store.Claim{claim("a"), large, claim("b"), large})
	if err != nil {
		t.Fatal(err)
	}
	for i, refused := range []bool{false, true, false, true} {
		if claims[i].Won == refused || errors.Is(claims[i].Err, store.ErrRefused) != refused {
			t.Errorf("claim %d: won %v, %v", i, claims[i].Won, claims[i].Err)
		}
	}
	if _, err := s.Get(ctx, large.Key); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("what was refused is there: %v", err)
	}
	decides := []store.Decide{decide("a", "x"), decide("b", ""), decide("nobody's", ""), decide("missing", "x"), decide("b", "small")}
	for i := 1; i < 3; i++ {
		decides[i].Event = make([]byte, bytes)
	}
	outcomes, err := s.Decide(ctx, decides)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{store.DecidedNow, "", "", store.DecidedNow, store.DecidedNow} {
		if o := outcomes[i]; o.Status != want || errors.Is(o.Err, store.ErrRefused) != (want == "") {
			t.Errorf("decision %d: %q, %v", i, o.Status, o.Err)
		}
	}
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
