package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"crivo/services/store"
)

// searchable are twelve decided transactions, one a second, with four that share a millisecond, and one undecided.
func searchable(t *testing.T, s store.Transactions) {
	t.Helper()
	ctx := context.Background()
	var decides []store.Decide
	for i := range 12 {
		d := decide(fmt.Sprintf("a%02d", i), fmt.Sprint("event ", i))
		d.AcceptedAt = noon.Add(time.Duration(i) * time.Second)
		if i >= 8 {
			d.AcceptedAt = noon.Add(8 * time.Second)
		}
		d.Decision = []string{"approve", "review", "decline"}[i%3]
		d.Reasons = []string{"ALL", fmt.Sprint("R", i%4)}
		d.Tokens = []string{fmt.Sprint("payer.", i%2), fmt.Sprint("payee.", i%5)}
		decides = append(decides, d)
	}
	claims := []store.Claim{claim("undecided")}
	for _, d := range decides[:6] { // the others are inserted whole
		claims = append(claims, d.Claim)
	}
	if _, err := s.Claim(ctx, claims); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Decide(ctx, decides); err != nil {
		t.Fatal(err)
	}
	for id, outcome := range map[string]string{"a04": store.Declined, "a07": store.Approved} {
		if _, err := s.Dispose(ctx, store.Key{Tenant: "t", ID: id}, store.Disposition{Outcome: outcome, By: "key_1", At: noon, Note: []byte(id)}); err != nil {
			t.Fatal(err)
		}
	}
	others := slices.Clone(decides) // another tenant has the same, and newer
	for i := range others {
		others[i].Tenant, others[i].Event = "u", []byte("of another tenant")
		if i >= 6 {
			others[i].ID, others[i].AcceptedAt = fmt.Sprint("u", i), noon.Add(time.Hour)
		}
	}
	late := decides[1]
	late.Event, late.Tokens, late.Reasons, late.Decision = []byte("second"), []string{"late.1"}, []string{"LATE"}, "decline"
	conflict := late
	conflict.Digest = "d1.other"
	if _, err := s.Decide(ctx, append(others, late, conflict)); err != nil {
		t.Fatal(err)
	}
}

func pages(t *testing.T, s store.Transactions, q store.Query) (ids []string, count int) {
	t.Helper()
	for ids = []string{}; ; count++ {
		got, next, err := s.Search(context.Background(), q)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) > q.Limit || next != "" && len(got) < q.Limit || count > 100 {
			t.Fatalf("a page of %d, next %q", len(got), next)
		}
		for _, f := range got {
			ids = append(ids, f.ID)
		}
		if q.Cursor = next; next == "" {
			return ids, count + 1
		}
	}
}

// Search checks the search of a transaction store.
func Search(t *testing.T, open func(t *testing.T) store.Transactions) {
	ctx, s := context.Background(), open(t)
	searchable(t, s)
	at := func(second int) time.Time { return noon.Add(time.Duration(second) * time.Second) }
	newest := []string{"a11", "a10", "a09", "a08", "a07", "a06", "a05", "a04", "a03", "a02", "a01", "a00"}
	for name, tc := range map[string]struct {
		query store.Query
		want  []string
	}{
		"everything that is decided":       {store.Query{}, newest},
		"a token":                          {store.Query{Tokens: []string{"payee.3"}}, []string{"a08", "a03"}},
		"any of some tokens, each once":    {store.Query{Tokens: []string{"payee.3", "nobody.1", "payer.1", "payee.3"}}, []string{"a11", "a09", "a08", "a07", "a05", "a03", "a01"}},
		"a token and a decision":           {store.Query{Tokens: []string{"payer.0"}, Decision: "review"}, []string{"a10", "a04"}},
		"tokens, a reason and a decision":  {store.Query{Tokens: []string{"payer.0", "payer.1"}, Reason: "R1", Decision: "approve"}, []string{"a09"}},
		"two tokens that it must have":     {store.Query{Tokens: []string{"payee.3", "payee.1"}, Also: []string{"nobody.1", "payer.1"}}, []string{"a11", "a03", "a01"}},
		"two tokens and all else":          {store.Query{Tokens: []string{"payer.0"}, Also: []string{"payee.0", "payee.4"}, Reason: "R0", Decision: "review"}, []string{"a04"}},
		"open reviews":                     {store.Query{Disposition: "open"}, []string{"a10", "a01"}},
		"reviews that were approved":       {store.Query{Disposition: "approved", Decision: "review"}, []string{"a07"}},
		"a span of open reviews":           {store.Query{Disposition: "open", From: at(1), To: at(8)}, []string{"a01"}},
		"a token's open reviews":           {store.Query{Disposition: "open", Tokens: []string{"payer.0"}}, []string{"a10"}},
		"open reviews with a reason":       {store.Query{Disposition: "open", Decision: "review", Reason: "R1"}, []string{"a01"}},
		"a token's reviews, declined":      {store.Query{Disposition: "declined", Tokens: []string{"payer.0"}, Also: []string{"payee.4"}, Reason: "R0"}, []string{"a04"}},
		"a decision":                       {store.Query{Decision: "decline"}, []string{"a11", "a08", "a05", "a02"}},
		"a reason":                         {store.Query{Reason: "R2"}, []string{"a10", "a06", "a02"}},
		"a reason and a decision":          {store.Query{Reason: "R2", Decision: "approve"}, []string{"a06"}},
		"from a time on":                   {store.Query{From: at(7)}, newest[:5]},
		"up to a time":                     {store.Query{To: at(3)}, newest[9:]},
		"a span":                           {store.Query{From: at(2), To: at(8)}, newest[4:10]},
		"a span of a token":                {store.Query{Tokens: []string{"payer.1"}, From: at(3), To: at(8).Add(time.Millisecond)}, []string{"a11", "a09", "a07", "a05", "a03"}},
		"a span of a decision":             {store.Query{Decision: "review", From: at(1), To: at(7)}, []string{"a04", "a01"}},
		"a span of a reason":               {store.Query{Reason: "ALL", From: at(7), To: at(8)}, []string{"a07"}},
		"a millisecond after":              {store.Query{From: at(8).Add(time.Millisecond)}, []string{}},
		"in another zone":                  {store.Query{From: at(7).In(time.FixedZone("", 9*3600)), To: at(8).In(time.FixedZone("", -3*3600))}, []string{"a07"}},
		"what a second decision said":      {store.Query{Tokens: []string{"late.1"}}, []string{}},
		"a reason that nobody gave":        {store.Query{Reason: "LATE"}, []string{}},
		"what only looks like a condition": {store.Query{Tokens: []string{"$exists", "%", "*"}}, []string{}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, limit := range []int{1, 2, 3, 5, 12, 100} {
				tc.query.Tenant, tc.query.Limit, tc.query.Oldest = "t", limit, false
				got, _ := pages(t, s, tc.query)
				if diff := cmp.Diff(tc.want, got); diff != "" {
					t.Fatalf("newest first by %d: %s", limit, diff)
				}
				tc.query.Oldest = true
				got, n := pages(t, s, tc.query)
				slices.Reverse(got)
				if diff := cmp.Diff(tc.want, got); diff != "" {
					t.Fatalf("oldest first by %d: %s", limit, diff)
				}
				if most := max(1, (len(got)+limit-1)/limit); n > most {
					t.Errorf("%d pages by %d", n, limit)
				}
			}
		})
	}
	t.Run("what is found is the entry as it is got", func(t *testing.T) {
		got, _, err := s.Search(ctx, store.Query{Tenant: "t", Tokens: []string{"payee.4"}, Limit: 9})
		if err != nil || len(got) != 2 {
			t.Fatalf("%+v, %v", got, err)
		}
		for _, f := range got {
			e, err := s.Get(ctx, f.Key)
			if diff := cmp.Diff(e, f.Entry); diff != "" || err != nil {
				t.Error(diff, err)
			}
		}
	})
	t.Run("a raised claim stands where it was accepted last", func(t *testing.T) {
		c := claim("raised")
		_, err1 := s.Claim(ctx, []store.Claim{c})
		_, err2 := s.Raise(ctx, store.Raise{Key: c.Key, FromRun: 1, AcceptedAt: at(60), Deadline: at(62)})
		d := decide("raised", "x")
		d.Tokens, d.Decision = []string{"raised.1"}, "review"
		_, err3 := s.Decide(ctx, []store.Decide{d})
		if err := errors.Join(err1, err2, err3); err != nil {
			t.Fatal(err)
		}
		for _, q := range []store.Query{{Tokens: d.Tokens}, {Reason: "A"}, {Decision: "review"}, {Disposition: "open"}, {}} {
			q.Tenant, q.Limit, q.From = "t", 9, at(60)
			if got, _ := pages(t, s, q); len(got) != 1 || got[0] != "raised" {
				t.Errorf("%+v: %v", q, got)
			}
		}
	})
	t.Run("a cursor goes on while others are decided, and a foreign one is none", func(t *testing.T) {
		q := store.Query{Tenant: "t", Limit: 4, To: at(50)}
		got, next, err := s.Search(ctx, q)
		if err != nil || len(got) != 4 || next == "" {
			t.Fatal(got, next, err)
		}
		newer, between := decide("newer", "x"), decide("between", "x")
		newer.AcceptedAt, between.AcceptedAt = at(40), at(8).Add(-time.Millisecond)
		if _, err := s.Decide(ctx, []store.Decide{newer, between}); err != nil {
			t.Fatal(err)
		}
		q.Cursor = next
		rest, _ := pages(t, s, q)
		if diff := cmp.Diff(append([]string{"between"}, newest[4:]...), rest); diff != "" {
			t.Error(diff)
		}
		for _, foreign := range []store.Query{{Cursor: next, Oldest: true}, {Cursor: "!"}, {Cursor: "MTIz"}, {Cursor: "675f1f77bcf86cd799439011"}} {
			foreign.Tenant, foreign.Limit = "t", 4
			if _, _, err := s.Search(ctx, foreign); !errors.Is(err, store.ErrCursor) {
				t.Errorf("%q: %v", foreign.Cursor, err)
			}
		}
	})
}
