package edge

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"crivo/pkg/stage"
	"crivo/pkg/txn"
	"crivo/services/store"
	"crivo/streams"
)

// What a redrive came to.
const (
	redriveRerun     = "rerun"           // undecided: run again from the start
	redriveAnnounced = "announced"       // decided: its announcement is repeated
	redriveDecided   = "already_decided" // and announced: nothing was left to do
)

const (
	// redriveRate bounds redrives in bulk, a second and edge: an eighth of what two cores decide, so that new payments come first.
	redriveRate = 100
	// redriveTime is how long one request redrives; its body included, it is answered before the server's write deadline.
	redriveTime = 10 * time.Second
	redrivePage = 100
	// redriveOne is how long one letter may take, so that a store that hangs is said.
	redriveOne = 5 * time.Second
)

// redriveDeadLetter answers what became of one letter.
func (e *edge) redriveDeadLetter(w http.ResponseWriter, r *http.Request, m *member) error {
	l, err := e.letter(r, m)
	if err != nil {
		return err
	}
	outcome, err := e.redrive(r.Context(), m, l)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]string{"id": letterID(l), "transaction_id": l.Ident.ID, "outcome": outcome})
}

// redrive does for a letter's transaction what is left to do, and takes the letter away. Twice at once it is done once: a run is
// raised from the one that was seen, and what is published has an id.
func (e *edge) redrive(ctx context.Context, m *member, l streams.Letter) (outcome string, err error) {
	if l.Unknown != nil {
		return "", errLetterNobody
	}
	tenant, known := e.directory.current.Load().tenants[l.Tenant]
	if !known {
		return "", errLetterLost
	}
	ctx, cancel := context.WithTimeout(ctx, redriveOne)
	defer cancel()
	entry, err := e.Transactions.Get(ctx, store.Key{Tenant: l.Tenant, ID: l.Ident.ID})
	if errors.Is(err, store.ErrNotFound) {
		return "", errLetterLost
	}
	if err != nil {
		return "", fmt.Errorf("%w: %w", errStore, err)
	}
	if !entry.Decided() {
		if err := e.admit(); err != nil {
			return "", err
		}
	}
	if err := e.recordLetter(ctx, m, "deadletter.redrive", l); err != nil {
		return "", err
	}
	if entry.Decided() {
		outcome, err = e.reannounce(ctx, entry, l)
	} else {
		outcome, err = e.rerun(ctx, tenant, entry, l)
	}
	if err != nil {
		return "", err
	}
	return outcome, e.dropLetter(ctx, l)
}

// rerun sends an undecided transaction the whole way again, whichever step gave it up. Nobody waits for it here, so it has no
// flight, and none of the room for new ones. What its client was promised stays: it is decided late, and so marked.
func (e *edge) rerun(ctx context.Context, tenant store.Tenant, entry store.Entry, l streams.Letter) (string, error) {
	entry, err := e.Transactions.Raise(ctx, store.Raise{Key: entry.Key, FromRun: entry.Run, AcceptedAt: entry.AcceptedAt,
		Deadline: txn.At(e.Clock.Now().Add(tenant.Deadline())).Time})
	if err != nil && !errors.Is(err, store.ErrChanged) { // else somebody was faster, and this is how it stands
		return "", fmt.Errorf("%w: %w", errStore, err)
	}
	if entry.Decided() { // meanwhile
		return e.reannounce(ctx, entry, l)
	}
	s, err := entry.Submitted()
	if err != nil {
		return "", err
	}
	s.Deadline, s.TimeZone = txn.At(entry.AcceptedAt.Add(tenant.Deadline())), tenant.TimeZone
	out, err := e.message(s, traceparent(l.Ident.Trace))
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, publishTime)
	defer cancel()
	if _, err := e.publishes.Do(ctx, out, errOverload); err != nil {
		return "", refusal(err, errBroker)
	}
	return redriveRerun, nil
}

// reannounce publishes a decision again, in the stored bytes, where somebody did not hear of it: everybody, while it is marked
// so, or notify, which gave it up.
func (e *edge) reannounce(ctx context.Context, entry store.Entry, l streams.Letter) (string, error) {
	out := streams.Message(streams.Ident{Tenant: entry.Tenant, ID: entry.ID, Run: entry.Run, AcceptedAt: entry.AcceptedAt,
		Deadline: entry.Deadline, Digest: entry.Digest, Trace: l.Ident.Trace}, streams.EventDecided, entry.Event)
	switch {
	case l.Step == streams.Notify.Step:
		// Under the decision's own id the broker would drop it for two minutes, and notify never hear. Who reads it twice knows
		// it by its transaction, as after any announcement that is older than that.
		out.ID += "/redrive/" + strconv.FormatUint(l.Sequence, 10)
	case !entry.Unannounced:
		return redriveDecided, nil
	}
	ctx, cancel := context.WithTimeout(ctx, publishTime)
	defer cancel()
	if _, err := e.Publish(ctx, []stage.Output{out}); streams.Full(err) {
		return "", errNoRoom
	} else if err != nil {
		return "", fmt.Errorf("%w: %w", errBroker, err)
	}
	return redriveAnnounced, nil
}

// redriven is what a bulk redrive has done so far.
type redriven struct {
	Matched  int            `json:"matched"`
	Redriven int            `json:"redriven"`
	Outcomes map[string]int `json:"outcomes"`
	Next     *string        `json:"next_cursor"` // where to go on; null: all are through
}

// redriveDeadLetters redrives, or only counts, all letters that a filter matches and that were there when it began.
func (e *edge) redriveDeadLetters(w http.ResponseWriter, r *http.Request, m *member) error {
	q, dry, err := redriveWish(w, r)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), redriveTime)
	defer cancel()
	if q.Last == 0 {
		if q.Last, err = e.lastLetter(ctx); err != nil {
			return err
		}
	}
	out := redriven{Outcomes: map[string]int{}}
	if err := e.redriveAll(ctx, m, q, dry, &out); err != nil {
		return err
	}
	return answer(w, http.StatusOK, &out)
}

// redriveAll goes on until all are through or time is up. An error is told only where nothing was done: else the counts are,
// and who goes on from there hears of it.
func (e *edge) redriveAll(ctx context.Context, m *member, q streams.LetterQuery, dry bool, out *redriven) error {
	if q.Last == 0 {
		return nil // there never was a letter
	}
	start, size := q.First, redrivePage
	if dry {
		size = letterLooks
	}
	stopped := func(at uint64, err error) error {
		if out.Matched == 0 && (ctx.Err() == nil || at <= max(1, start)) {
			return err
		}
		out.Next = letterCursor(at, q.Last)
		return nil
	}
	for {
		page, next, err := e.letters(ctx, m, q, size)
		if err != nil {
			return stopped(max(1, q.First), err)
		}
		for _, l := range page {
			if !dry {
				if err := e.redriveCounted(ctx, m, l, out); err != nil {
					return stopped(l.Sequence, err)
				}
			}
			out.Matched++
		}
		if next == 0 {
			return nil
		}
		q.First = next
	}
}

// redriveCounted redrives one of many. One that can only be discarded stays and is no error.
func (e *edge) redriveCounted(ctx context.Context, m *member, l streams.Letter, out *redriven) error {
	if err := e.redrives.Wait(ctx); err != nil {
		return err
	}
	outcome, err := e.redrive(ctx, m, l)
	if errors.Is(err, errLetterNobody) || errors.Is(err, errLetterLost) {
		return nil
	}
	if err != nil {
		return err
	}
	out.Redriven++
	out.Outcomes[outcome]++
	return nil
}

// lastLetter is the newest letter's sequence. What is buried again meanwhile is later, so that no bulk runs after itself.
func (e *edge) lastLetter(ctx context.Context) (uint64, error) {
	stream, err := e.JS.Stream(ctx, streams.DeadLetters)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errBroker, err)
	}
	return stream.CachedInfo().State.LastSeq, nil
}

// redriveWish reads the body of a bulk redrive.
func redriveWish(w http.ResponseWriter, r *http.Request) (q streams.LetterQuery, dry bool, err error) {
	var where jsontext.Value
	var cursor string
	if err := (members{"where": &where, "dry_run": &dry, "cursor": &cursor}).read(w, r); err != nil {
		return q, false, err
	}
	q, err = letterWhere(where)
	if err != nil {
		return q, false, err
	}
	return q, dry, readLetterCursor(cursor, &q)
}

// letterWhere reads a filter from JSON; without one all letters are meant.
func letterWhere(where jsontext.Value) (q streams.LetterQuery, err error) {
	const place = "/where"
	if where == nil {
		return q, nil
	}
	var f letterFilter
	faults := (members{"step": &f.Step, "cause": &f.Cause, "from": &f.From, "to": &f.To}).within(place, where)
	if len(faults) > 0 {
		return q, faults
	}
	q, faults = f.query(place)
	return q, orNil(faults)
}
