package edge

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/go-chi/chi/v5"
	"github.com/nats-io/nats.go/jetstream"

	"crivo/pkg/stage"
	"crivo/pkg/txn"
	"crivo/services/store"
	"crivo/streams"
)

// routeDeadLetters adds what a tenant's admin may do with its dead letters, and an operator with those of no tenant.
func (e *edge) routeDeadLetters(r chi.Router) {
	const either = roleAdmin + " " + roleOperator
	e.route(r, http.MethodGet, "/v1/dead-letters", either, bounded(e.getDeadLetters))
	e.route(r, http.MethodGet, "/v1/dead-letters/{id}", either, bounded(e.getDeadLetter))
	e.route(r, http.MethodDelete, "/v1/dead-letters/{id}", either, bounded(e.deleteDeadLetter))
	e.route(r, http.MethodPost, "/v1/dead-letters/{id}/redrive", either, bounded(e.redriveDeadLetter))
	e.route(r, http.MethodPost, "/v1/dead-letters/redrive", either, e.redriveDeadLetters)
}

// letterAnswer is a dead letter as clients see it; the bytes of its message stay sealed where they are.
type letterAnswer struct {
	ID            string   `json:"id"`
	Step          string   `json:"step"`
	Cause         string   `json:"cause"`
	Tenant        *string  `json:"tenant"`         // null: it could not be read
	TransactionID *string  `json:"transaction_id"` // null: it could not be read
	Attempts      int      `json:"attempts"`
	FirstAt       txn.Time `json:"first_at"`
	LastAt        txn.Time `json:"last_at"`
	Detail        string   `json:"detail"`
	Stream        string   `json:"stream,omitzero"`
	Subject       string   `json:"subject,omitzero"`
	MessageID     string   `json:"message_id,omitzero"`
}

func shownLetter(l streams.Letter) letterAnswer {
	out := letterAnswer{letterID(l), l.Step, l.Cause, nil, nil, l.Attempts, txn.At(l.FirstAt), txn.At(l.LastAt), l.Detail, l.Stream, l.Subject, l.MessageID}
	if l.Tenant != streams.NoTenant {
		out.Tenant = &l.Tenant
	}
	if l.Unknown == nil {
		out.TransactionID = &l.Ident.ID
	}
	return out
}

const letterPrefix = "dl_"

func letterID(l streams.Letter) string { return letterPrefix + strconv.FormatUint(l.Sequence, 10) }

// letterLooks bounds what is read for one page, where others' letters stand between.
const letterLooks = 2000

// letters returns up to limit of the letters that m may see, and the sequence to go on from, 0 at the end.
func (e *edge) letters(ctx context.Context, m *member, q streams.LetterQuery, limit int) (page []streams.Letter, next uint64, err error) {
	if !m.may(roleOperator) {
		q.Tenant = m.Tenant
	}
	looked := 0
	for l, err := range streams.Letters(ctx, e.JS, q) {
		if err != nil {
			return nil, 0, fmt.Errorf("%w: %w", errBroker, err)
		}
		if looked++; len(page) == limit || looked > letterLooks {
			return page, l.Sequence, nil
		}
		if e.sees(m, l.Tenant) {
			page = append(page, l)
		}
	}
	return page, 0, nil
}

// sees tells whether the letters of a tenant are m's to act on: its own as an admin, those of none as an operator.
func (e *edge) sees(m *member, tenant string) bool {
	if _, known := e.directory.current.Load().tenants[tenant]; !known || tenant == streams.NoTenant {
		return m.may(roleOperator)
	}
	return tenant == m.Tenant && m.may(roleAdmin)
}

// letter returns the one letter that a request names, which is not there for whom it does not concern.
func (e *edge) letter(r *http.Request, m *member) (streams.Letter, error) {
	text, ok := strings.CutPrefix(pathID(r), letterPrefix)
	sequence, err := strconv.ParseUint(text, 10, 64)
	if !ok || err != nil || sequence == 0 || text != strconv.FormatUint(sequence, 10) {
		return streams.Letter{}, store.ErrNotFound
	}
	page, _, err := e.letters(r.Context(), m, streams.LetterQuery{First: sequence, Last: sequence}, 1)
	if err == nil && len(page) == 0 {
		err = store.ErrNotFound
	}
	if err != nil {
		return streams.Letter{}, err
	}
	return page[0], nil
}

func (e *edge) getDeadLetters(w http.ResponseWriter, r *http.Request, m *member) error {
	query, limit, err := letterQuery(r.URL.Query())
	if err != nil {
		return err
	}
	page, next, err := e.letters(r.Context(), m, query, limit)
	if err != nil {
		return err
	}
	out := struct {
		Items []letterAnswer `json:"items"`
		Next  *string        `json:"next_cursor"`
	}{Items: []letterAnswer{}, Next: letterCursor(next, 0)}
	for _, l := range page {
		out.Items = append(out.Items, shownLetter(l))
	}
	return answer(w, http.StatusOK, &out)
}

// letterFilter is what letters can be selected by; nil does not filter.
type letterFilter struct {
	Step, Cause *string
	From, To    *txn.Time
}

var letterCauses = []string{stage.CauseDecode, stage.CauseReject, stage.CausePanic, stage.CauseCrash, stage.CauseExhausted}

// query judges a filter; place is where its members stand in the request.
func (f letterFilter) query(place string) (q streams.LetterQuery, faults txn.Faults) {
	if f.Step != nil {
		if q.Step = *f.Step; !slices.ContainsFunc(streams.Steps, func(s stage.Spec) bool { return s.Step == q.Step }) {
			faults = append(faults, txn.Fault{Pointer: place + "/step", Code: txn.WrongFormat, Detail: "one of enrich, validate, score, persist, notify"})
		}
	}
	if f.Cause != nil {
		if q.Cause = *f.Cause; !slices.Contains(letterCauses, q.Cause) {
			faults = append(faults, txn.Fault{Pointer: place + "/cause", Code: txn.WrongFormat, Detail: "one of decode, reject, panic, crash, exhausted"})
		}
	}
	if f.From != nil {
		q.From = f.From.Time
	}
	if f.To != nil {
		q.To = f.To.Time
	}
	return q, faults
}

func letterQuery(values url.Values) (streams.LetterQuery, int, error) {
	var f letterFilter
	var faults txn.Faults
	if values.Has("step") {
		f.Step = new(values.Get("step"))
	}
	if values.Has("cause") {
		f.Cause = new(values.Get("cause"))
	}
	at := func(name string) *txn.Time {
		var t txn.Time
		if !values.Has(name) {
			return nil
		}
		if t.UnmarshalText([]byte(values.Get(name))) != nil {
			faults = append(faults, txn.Fault{Pointer: "/" + name, Code: txn.WrongFormat, Detail: "must be a time such as 2026-11-22T23:05:11.120Z"})
		}
		return &t
	}
	f.From, f.To = at("from"), at("to")
	limit := pageDefault
	if values.Has("limit") {
		var err error
		if limit, err = strconv.Atoi(values.Get("limit")); err != nil || limit < 1 || limit > pageMost {
			faults = append(faults, txn.Fault{Pointer: "/limit", Code: txn.OutOfRange, Detail: "must be between 1 and 500"})
		}
	}
	q, more := f.query("")
	if faults = append(faults, more...); len(faults) > 0 {
		return q, 0, faults
	}
	return q, limit, readLetterCursor(values.Get("cursor"), &q)
}

// letterCursor names the letter to go on from and, unless 0, the last one to look at; nil is the end.
func letterCursor(next, last uint64) *string {
	if next == 0 {
		return nil
	}
	return new(strconv.FormatUint(next, 10) + "-" + strconv.FormatUint(last, 10))
}

// readLetterCursor has q go on from a cursor; an empty one is the beginning.
func readLetterCursor(cursor string, q *streams.LetterQuery) error {
	if cursor == "" {
		return nil
	}
	first, last, ok := strings.Cut(cursor, "-")
	var firstErr, lastErr error
	q.First, firstErr = strconv.ParseUint(first, 10, 64)
	q.Last, lastErr = strconv.ParseUint(last, 10, 64)
	if !ok || firstErr != nil || lastErr != nil || q.First == 0 {
		return store.ErrCursor
	}
	return nil
}

func (e *edge) getDeadLetter(w http.ResponseWriter, r *http.Request, m *member) error {
	l, err := e.letter(r, m)
	if err != nil {
		return err
	}
	out := shownLetter(l)
	return answer(w, http.StatusOK, &out)
}

// deleteDeadLetter discards a letter; its transaction stays as it is.
func (e *edge) deleteDeadLetter(w http.ResponseWriter, r *http.Request, m *member) error {
	l, err := e.letter(r, m)
	if err != nil {
		return err
	}
	if err := e.recordLetter(r.Context(), m, "deadletter.discard", l); err != nil {
		return err
	}
	if err := e.dropLetter(r.Context(), l); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (e *edge) recordLetter(ctx context.Context, m *member, action string, l streams.Letter) error {
	return e.record(ctx, m, action, letterID(l), map[string]any{"step": l.Step, "cause": l.Cause, "tenant": l.Tenant, "transaction_id": l.Ident.ID})
}

// dropLetter takes a letter out of the stream; one that somebody else took out is gone all the same.
func (e *edge) dropLetter(ctx context.Context, l streams.Letter) error {
	stream, err := e.JS.Stream(ctx, streams.DeadLetters)
	if err == nil {
		err = stream.DeleteMsg(ctx, l.Sequence)
	}
	if err == nil || errors.Is(err, jetstream.ErrMsgDeleteUnsuccessful) && e.gone(ctx, l) {
		return nil
	}
	return fmt.Errorf("%w: %w", errBroker, err)
}

// gone tells that a letter is not there; the broker has several words for what it could not delete.
func (e *edge) gone(ctx context.Context, l streams.Letter) bool {
	next, stop := iter.Pull2(streams.Letters(ctx, e.JS, streams.LetterQuery{First: l.Sequence, Last: l.Sequence}))
	defer stop()
	_, _, found := next() // or an error: not known to be gone
	return !found
}
