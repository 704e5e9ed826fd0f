package store_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"crivo/pkg/txn"
	"crivo/services/store"
)

func TestTokensAreThoseOfDocumentsAndAccounts(t *testing.T) {
	party := func(document, account string) txn.SealedParty {
		return txn.SealedParty{CustomerID: "k.customer", Document: &txn.SealedDocument{Token: document, Root: "k.root"}, Account: &txn.SealedAccount{Token: account}}
	}
	payee := party("k.c", "k.d")
	own := party("k.a", "")
	for name, tc := range map[string]struct {
		tx   txn.Sealed
		want []string
	}{
		"both sides":                  {txn.Sealed{Payer: party("k.b", "k.a"), Payee: &payee}, []string{"k.a", "k.b", "k.c", "k.d"}},
		"one's own account":           {txn.Sealed{Payer: party("k.a", "k.b"), Payee: &own}, []string{"k.a", "k.b"}},
		"a customer without document": {txn.Sealed{Payer: txn.SealedParty{CustomerID: "k.customer"}}, nil},
		"an account without number":   {txn.Sealed{Payer: txn.SealedParty{Account: &txn.SealedAccount{ISPB: "12345678"}}}, []string{}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, store.Tokens(&tc.tx)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// Whatever a client sends as a cursor is one of ours or ErrCursor.
func FuzzCursor(f *testing.F) {
	found := []store.Found{{}, {}}
	found[0].ID, found[0].AcceptedAt = "ord:1/x", time.UnixMilli(1795388711120)
	_, next := store.Query{Limit: 1}.Page(found)
	for _, seed := range []string{"", "!", next, "c2VhcmNoLzEvbmV3ZXN0Lw"} {
		f.Add(seed, false)
	}
	f.Fuzz(func(t *testing.T, cursor string, oldest bool) {
		q := store.Query{Cursor: cursor, Oldest: oldest, Limit: 1}
		place, ok, err := q.After()
		if err != nil {
			if !errors.Is(err, store.ErrCursor) || ok {
				t.Errorf("%v, %v", err, ok)
			}
			return
		}
		if !ok {
			return
		}
		found := []store.Found{{}, {}}
		found[0].ID, found[0].AcceptedAt = place.ID, time.UnixMilli(place.AcceptedAt)
		_, again := q.Page(found)
		if back, _, err := (store.Query{Cursor: again, Oldest: oldest}).After(); err != nil || back != place {
			t.Errorf("%+v became %+v, %v", place, back, err)
		}
		if _, _, err := (store.Query{Cursor: cursor, Oldest: !oldest}).After(); !errors.Is(err, store.ErrCursor) {
			t.Errorf("taken in the other order too: %v", err)
		}
	})
}
