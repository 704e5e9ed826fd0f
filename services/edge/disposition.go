package edge

import (
	"errors"
	"net/http"
	"strconv"
	"unicode/utf8"

	"crivo/pkg/txn"
	"crivo/services/store"
)

const maxNote = 1000 // characters

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
	if err := e.closable(entry); err != nil {
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
	if entry, err = e.Transactions.Dispose(r.Context(), key, d); errors.Is(err, store.ErrChanged) {
		return errDisposed
	} else if err != nil {
		return missing(err)
	}
	return e.answerDecision(w, entry, 0)
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
