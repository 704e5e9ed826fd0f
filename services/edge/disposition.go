package edge

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"crivo/pkg/txn"
	"crivo/services/owed"
	"crivo/services/store"
)

const (
	maxNote = 1000 // characters
	// retell is how long after a review was closed a repeat still makes sure that its webhooks are owed.
	retell = time.Hour
)

// What keeps a review from being closed.
var (
	errUndecided = errors.New("the transaction is not decided yet")
	errNoReview  = errors.New("only a review can be closed; this decision is none")
	errDisposed  = errors.New("the review is closed already; the transaction tells how")
)

// dispositionWish is the body of POST …/disposition.
type dispositionWish struct {
	Disposition string
	Note        txn.Personal
}

func (d dispositionWish) faults() (faults txn.Faults) {
	switch d.Disposition {
	case store.Approved, store.Declined:
	case "":
		faults = append(faults, txn.Fault{Pointer: "/disposition", Code: txn.Required, Detail: "is required"})
	default:
		faults = append(faults, txn.Fault{Pointer: "/disposition", Code: txn.WrongFormat, Detail: "one of approved, declined"})
	}
	if utf8.RuneCountInString(d.Note.Reveal()) > maxNote {
		faults = append(faults, txn.Fault{Pointer: "/note", Code: txn.TooLong, Detail: "at most 1000 characters"})
	}
	return faults
}

// postDisposition closes a review, once. The decision stays as it was made: what an analyst said stands beside it.
func (e *edge) postDisposition(w http.ResponseWriter, r *http.Request, m *member) error {
	var in dispositionWish
	if err := (members{"disposition": &in.Disposition, "note": &in.Note}).read(w, r); err != nil {
		return err
	}
	if err := orNil(in.faults()); err != nil {
		return err
	}
	key := store.Key{Tenant: m.Tenant, ID: pathID(r)}
	entry, err := e.Transactions.Get(r.Context(), key)
	if err != nil {
		return missing(err)
	}
	if err := e.closable(entry); errors.Is(err, errDisposed) {
		ctx, cancel := context.WithTimeout(r.Context(), storeTime)
		defer cancel()
		return e.closedBefore(ctx, entry)
	} else if err != nil {
		return err
	}
	box, err := e.Keys.Box(m.Tenant)
	if err != nil {
		return err
	}
	d := store.Disposition{Outcome: in.Disposition, By: m.ID, At: txn.At(e.Clock.Now()).Time}
	if d.Note, err = store.SealNote(box, key, in.Note); err != nil {
		return err
	}
	// The record comes first, and so tells of one that came second too.
	if err := e.record(r.Context(), m, "transaction.dispose", key.ID, map[string]any{"disposition": d.Outcome}); err != nil {
		return err
	}
	// From here on the review may be closed, whoever hung up, and must be told of.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), storeTime)
	defer cancel()
	if entry, err = e.Transactions.Dispose(ctx, key, d); errors.Is(err, store.ErrChanged) {
		return e.closedBefore(ctx, entry)
	} else if err != nil {
		return missing(err)
	}
	if err := e.tellDisposed(ctx, entry); err != nil {
		return err
	}
	return e.answerDecision(w, entry, 0)
}

// closedBefore refuses to close a review again. Whoever closed it may have ended before it told the receivers.
func (e *edge) closedBefore(ctx context.Context, entry store.Entry) error {
	if d := entry.Disposition; d != nil && e.Clock.Now().Sub(d.At) < retell {
		if err := e.tellDisposed(ctx, entry); err != nil {
			return err
		}
	}
	return errDisposed
}

// thinDisposition is the default payload of transaction.disposed: nothing that an analyst wrote.
type thinDisposition struct {
	ID          string   `json:"id"`
	Decision    string   `json:"decision"`
	Disposition string   `json:"disposition"`
	DisposedAt  txn.Time `json:"disposed_at"`
}

// tellDisposed owes the tenant's endpoints a webhook about a review that was closed. Told again it is the same webhook.
func (e *edge) tellDisposed(ctx context.Context, entry store.Entry) error {
	endpoints, err := e.Registry.Endpoints(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", errStore, err)
	}
	about := owed.Occasion{Tenant: entry.Tenant, Kind: owed.TypeDisposed, Key: entry.ID, Transaction: entry.ID, At: entry.Disposition.At,
		Body: func(form string) ([]byte, error) { return e.bodyOfDisposed(form, entry) }}
	rows, err := owed.Rows(e.Keys, slices.Values(endpoints), about, e.Clock.Now())
	if err != nil || len(rows) == 0 {
		return err
	}
	if _, err := e.Deliveries.Insert(ctx, rows); err != nil {
		return fmt.Errorf("%w: %w", errStore, err)
	}
	return nil
}

// bodyOfDisposed is what a receiver gets. The note stays here: it is sealed, and a delivery is not.
func (e *edge) bodyOfDisposed(form string, entry store.Entry) ([]byte, error) {
	entry.Disposition = &store.Disposition{Outcome: entry.Disposition.Outcome, By: entry.Disposition.By, At: entry.Disposition.At}
	shown, _, err := e.shownDecision(entry)
	if err != nil {
		return nil, err
	}
	if form == "full" {
		return owed.Envelope(owed.TypeDisposed, *shown.DisposedAt, &shown)
	}
	return owed.Envelope(owed.TypeDisposed, *shown.DisposedAt, thinDisposition{shown.ID, shown.Verdict.Decision, shown.Disposition, *shown.DisposedAt})
}

// closable tells what keeps a review from being closed.
func (e *edge) closable(entry store.Entry) error {
	if !entry.Decided() {
		return errUndecided
	}
	shown, _, err := e.shownDecision(entry)
	switch {
	case err != nil:
		return err
	case shown.Verdict.Decision != txn.Review:
		return errNoReview
	case entry.Disposition != nil:
		return errDisposed
	}
	return nil
}

// answerDecision answers with a decision and what became of it.
func (e *edge) answerDecision(w http.ResponseWriter, entry store.Entry, wait int) error {
	shown, _, err := e.shownDecision(entry)
	if err != nil {
		return err
	}
	if wait > 0 {
		w.Header().Set("Preference-Applied", "wait="+strconv.Itoa(wait))
	}
	return answer(w, http.StatusOK, &shown)
}
