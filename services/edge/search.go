package edge

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"crivo/pkg/seal"
	"crivo/pkg/txn"
	"crivo/services/store"
	"crivo/streams/event"
)

// searchWish is the body of a search; nil does not filter.
type searchWish struct {
	Document    *txn.Personal
	Account     jsontext.Value
	Decision    *string
	Reason      *string
	Disposition *string
	From, To    *txn.Time
	Order       *string
	Limit       *int
	Cursor      string
}

func (s *searchWish) members() members {
	return members{"document": &s.Document, "account": &s.Account, "decision": &s.Decision, "reason": &s.Reason, "disposition": &s.Disposition,
		"from": &s.From, "to": &s.To, "order": &s.Order, "limit": &s.Limit, "cursor": &s.Cursor}
}

// search is a query under way. Its conditions are what its cursors are good for: they hold personal values, and stay here.
type search struct {
	store.Query
	box        *seal.Box
	conditions string
}

// postSearch answers one page as JSON, or everything that is found as an export.
func (e *edge) postSearch(w http.ResponseWriter, r *http.Request, m *member) error {
	kind := exportKind(r.Header.Values("Accept"))
	most := pageMost
	if kind != "" {
		most = math.MaxInt
	}
	var wish searchWish
	if err := wish.members().read(w, r); err != nil {
		return err
	}
	s, err := e.understandSearch(wish, m.Tenant, most)
	if err != nil {
		return err
	}
	if kind != "" {
		return e.export(w, r, s.Query, kind)
	}
	if wish.Limit == nil {
		s.Limit = pageDefault
	}
	items, next, err := e.find(r.Context(), s.Query)
	if err != nil {
		return err
	}
	cursor, err := s.signed(next)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, pageOf(items, cursor))
}

// understandSearch reads what was wished, or returns everything that is wrong with it. Without a limit there is the most.
func (e *edge) understandSearch(wish searchWish, tenant string, most int) (s search, err error) {
	var faults txn.Faults
	fault := func(pointer, code, detail string) {
		faults = append(faults, txn.Fault{Pointer: pointer, Code: code, Detail: detail})
	}
	oneOf := func(pointer string, value *string, those ...string) string {
		if value == nil {
			return ""
		}
		if !slices.Contains(those, *value) {
			fault(pointer, txn.WrongFormat, "one of "+strings.Join(those, ", "))
		}
		return *value
	}
	document, account := wish.people(fault)
	s.Query = store.Query{Tenant: tenant, Limit: most, Decision: oneOf("/decision", wish.Decision, txn.Approve, txn.Review, txn.Decline),
		Disposition: oneOf("/disposition", wish.Disposition, store.Open, store.Approved, store.Declined)}
	order := oneOf("/order", wish.Order, "newest", "oldest")
	s.Oldest = order == "oldest"
	if wish.Reason != nil {
		if s.Reason = *wish.Reason; s.Reason == "" || len(s.Reason) > 64 {
			fault("/reason", txn.WrongFormat, "a reason's code, such as VELOCITY_PAYER_5M")
		}
	}
	if len(faults) == 0 && s.Disposition != "" && s.Decision != "" && s.Decision != txn.Review {
		fault("/disposition", txn.WrongFormat, "only a review has one: decision must be review or left out")
	}
	if wish.Limit != nil {
		if s.Limit = *wish.Limit; s.Limit < 1 || s.Limit > most {
			fault("/limit", txn.OutOfRange, "must be between 1 and 500; without an upper bound in exports")
		}
	}
	if wish.From != nil {
		s.From = wish.From.Time
	}
	if wish.To != nil {
		s.To = wish.To.Time
	}
	if len(faults) > 0 {
		return s, faults
	}
	if s.box, err = e.Keys.Box(tenant); err != nil {
		return s, err
	}
	conditions, err := json.Marshal([]any{document, account, s.Decision, s.Reason, s.Disposition, s.From.UnixMilli(), s.To.UnixMilli(), s.Oldest})
	if err != nil {
		return s, fmt.Errorf("conditions cannot be written: %w", err)
	}
	s.conditions = string(conditions)
	if err := s.tokens(document, account); err != nil {
		return s, err
	}
	return s, s.goOn(wish.Cursor)
}

// people are the document and the account that are asked for, as their tokens are made of them.
func (s *searchWish) people(fault func(pointer, code, detail string)) (document, account string) {
	if s.Document != nil {
		d, err := txn.ParseDocument(s.Document.Reveal())
		if err != nil {
			fault("/document", txn.WrongFormat, "must be a CPF (11 digits) or a CNPJ (14 characters), with or without punctuation")
		}
		document = d.Reveal()
	}
	if s.Account == nil {
		return document, ""
	}
	var ispb string
	var branch, number txn.Personal
	if err := (members{"ispb": &ispb, "branch": &branch, "number": &number}).within("/account", s.Account); err != nil {
		for _, f := range err {
			fault(f.Pointer, f.Code, f.Detail)
		}
		return document, ""
	}
	if number.IsZero() {
		fault("/account/number", txn.Required, "is required")
	}
	for _, x := range []struct {
		pointer, text string
		most          int
	}{{"/account/ispb", ispb, 8}, {"/account/branch", branch.Reveal(), 10}, {"/account/number", number.Reveal(), 24}} {
		if utf8.RuneCountInString(x.text) > x.most {
			fault(x.pointer, txn.TooLong, fmt.Sprintf("at most %d characters", x.most))
		}
	}
	return document, txn.AccountKey(ispb, branch.Reveal(), number.Reveal())
}

// tokens has the query look for a document, an account, or both, as they were sealed under any of the tenant's keys.
func (s *search) tokens(document, account string) error {
	for _, x := range []struct{ kind, value string }{{txn.KindDocument, document}, {txn.KindAccount, account}} {
		if x.value == "" {
			continue
		}
		tokens, err := s.box.Tokens(x.kind, x.value)
		if err != nil {
			return err
		}
		if s.Tokens == nil {
			s.Tokens = tokens
		} else {
			s.Also = tokens
		}
	}
	return nil
}

// kindCursor keeps a cursor's token apart from those of values.
const kindCursor = "search_cursor"

// signed is a cursor of the store's, good for the conditions of this search only.
func (s *search) signed(next string) (string, error) {
	if next == "" {
		return "", nil
	}
	signature, err := s.box.Token(kindCursor, s.conditions+next)
	return signature + "." + next, err
}

// goOn has the query begin where a page of the same conditions ended; an empty cursor is the beginning.
func (s *search) goOn(cursor string) error {
	if cursor == "" {
		return nil
	}
	dot := strings.LastIndexByte(cursor, '.')
	s.Cursor = cursor[dot+1:]
	if dot > 0 {
		if ours, err := s.box.Matches(cursor[:dot], kindCursor, s.conditions+s.Cursor); err == nil && ours {
			return nil
		}
	}
	return txn.Faults{{Pointer: "/cursor", Code: txn.WrongFormat, Detail: "must be next_cursor of a page with the same conditions and order"}}
}

// decidedAnswer is a decision and, of a review that was closed, how; in a search also what it was about.
type decidedAnswer struct {
	txn.Decision
	Disposition string       `json:"disposition,omitempty"` // approved, declined
	Note        string       `json:"note,omitempty"`
	DisposedAt  *txn.Time    `json:"disposed_at,omitempty"`
	DisposedBy  string       `json:"disposed_by,omitempty"`
	Transaction *transaction `json:"transaction,omitempty"`
}

// transaction is what a transaction shows of itself in clear.
type transaction struct {
	Type       string   `json:"type"`
	Direction  string   `json:"direction,omitempty"`
	Amount     int64    `json:"amount"`
	Currency   string   `json:"currency"`
	CreatedAt  txn.Time `json:"created_at"`
	Channel    string   `json:"channel,omitempty"`
	EndToEndID string   `json:"end_to_end_id,omitempty"`
}

// shownDecision is the answer for a decided entry. The decision is as it was made, whatever became of it.
func (e *edge) shownDecision(entry store.Entry) (out decidedAnswer, about txn.Sealed, err error) {
	d, err := event.Decode[event.Decided](entry.Event)
	if err != nil {
		return out, about, fmt.Errorf("stored decision: %w", err)
	}
	out.Decision = d.Public()
	if x := entry.Disposition; x != nil {
		at := txn.At(x.At)
		out.Disposition, out.DisposedAt, out.DisposedBy = x.Outcome, &at, x.By
		out.Note, err = e.note(entry.Key, x.Note)
	}
	return out, d.Tx, err
}

// note opens an analyst's note for a reader.
func (e *edge) note(key store.Key, sealed []byte) (string, error) {
	if sealed == nil {
		return "", nil
	}
	box, err := e.Keys.Box(key.Tenant)
	if err != nil {
		return "", err
	}
	note, err := store.OpenNote(box, key, sealed)
	return note.Reveal(), err
}

// find returns one page and the store's cursor of the next, "" at the end.
func (e *edge) find(ctx context.Context, q store.Query) ([]decidedAnswer, string, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	found, next, err := e.Transactions.Search(ctx, q)
	if err != nil {
		return nil, "", fmt.Errorf("%w: %w", errStore, err)
	}
	items := make([]decidedAnswer, len(found))
	for i, f := range found {
		var about txn.Sealed
		if items[i], about, err = e.shownDecision(f.Entry); err != nil {
			return nil, "", err
		}
		if about.ID != "" { // a burial may not know it
			items[i].Transaction = &transaction{about.Type, about.Direction, about.Amount, about.Currency, about.CreatedAt, about.Channel, about.EndToEndID}
		}
	}
	return items, next, nil
}
