package store

import (
	"cmp"
	"encoding/base64"
	"slices"
	"strconv"
	"strings"
	"time"

	"crivo/pkg/txn"
)

// Query selects decided transactions of one tenant by their present accepted-at, newest first; zero fields do not filter.
type Query struct {
	Tenant   string
	Tokens   []string // any of these: one document's or account's, under the current and older keys
	Also     []string // and any of these too; only beside Tokens
	Decision string
	Reason   string // a code among the reasons
	// Disposition is Open, Approved or Declined: only of reviews, so that Decision is review or empty beside it.
	Disposition string
	From, To    time.Time // accepted-at, From included, To not
	Oldest      bool      // oldest first
	Newest      bool      // also what was written a moment ago: no copy that may lag is asked
	Limit       int
	Cursor      string // where the page before ended, for the same order
}

// Found is what a search finds.
type Found struct{ Entry }

// Place is where in the order of a search a transaction stands.
type Place struct {
	AcceptedAt int64 // Unix ms
	ID         string
}

// Compare orders places oldest first.
func (p Place) Compare(other Place) int {
	return cmp.Or(cmp.Compare(p.AcceptedAt, other.AcceptedAt), cmp.Compare(p.ID, other.ID))
}

// PlaceOf is where e stands.
func PlaceOf(e Entry) Place { return Place{e.AcceptedAt.UnixMilli(), e.ID} }

// cursorForm starts every cursor of a search, so that no other cursor is taken for one; the order follows.
const cursorForm = "search/1/"

func (q Query) order() string {
	if q.Oldest {
		return "oldest/"
	}
	return "newest/"
}

// After returns the place after which the page begins; ok is false for a first page. A cursor that no page of this order gave out
// is ErrCursor.
func (q Query) After() (p Place, ok bool, err error) {
	if q.Cursor == "" {
		return p, false, nil
	}
	text, err := base64.RawURLEncoding.DecodeString(q.Cursor)
	rest, ours := strings.CutPrefix(string(text), cursorForm+q.order())
	at, id, _ := strings.Cut(rest, "/")
	ms, notMS := strconv.ParseInt(at, 10, 64)
	if err != nil || !ours || notMS != nil || id == "" {
		return p, false, ErrCursor
	}
	return Place{ms, id}, true, nil
}

// Page cuts what was found, one more than the limit where there is more, to a page and the cursor of the next.
func (q Query) Page(found []Found) ([]Found, string) {
	if len(found) <= q.Limit {
		return found, ""
	}
	found = found[:q.Limit]
	last := PlaceOf(found[q.Limit-1].Entry)
	return found, base64.RawURLEncoding.EncodeToString([]byte(cursorForm + q.order() + strconv.FormatInt(last.AcceptedAt, 10) + "/" + last.ID))
}

// Tokens are what a transaction is found by: the documents and accounts of payer and payee, each once.
func Tokens(tx *txn.Sealed) []string {
	var out []string
	for _, p := range []*txn.SealedParty{&tx.Payer, tx.Payee} {
		if p == nil {
			continue
		}
		if p.Document != nil {
			out = append(out, p.Document.Token)
		}
		if p.Account != nil {
			out = append(out, p.Account.Token)
		}
	}
	slices.Sort(out)
	out = slices.Compact(out)
	return slices.DeleteFunc(out, func(t string) bool { return t == "" })
}
