package memory

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"crivo/pkg/txn"
	"crivo/services/store"
)

// Transactions is the transaction store in memory: the reference that tests run on.
type Transactions struct {
	mu      sync.Mutex
	entries map[store.Key]store.Entry
	decided map[store.Key]store.Decide // what decided entries are found by
}

// NewTransactions returns an empty store.
func NewTransactions() *Transactions {
	return &Transactions{entries: map[store.Key]store.Entry{}, decided: map[store.Key]store.Decide{}}
}

// millis is a time as stores keep it.
func millis(t time.Time) time.Time { return time.UnixMilli(t.UnixMilli()).UTC() }

func inMillis(c store.Claim) store.Claim {
	c.ClaimedAt, c.AcceptedAt, c.Deadline = millis(c.ClaimedAt), millis(c.AcceptedAt), millis(c.Deadline)
	return c
}

// Claim inserts each document whose key is absent.
func (t *Transactions) Claim(ctx context.Context, claims []store.Claim) ([]store.Claimed, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]store.Claimed, len(claims))
	for i, c := range claims {
		e, there := t.entries[c.Key]
		if !there {
			e = store.Entry{Claim: inMillis(c)}
			t.entries[c.Key] = e
		}
		out[i] = store.Claimed{Won: !there, Entry: e}
	}
	return out, nil
}

// Get returns one document or store.ErrNotFound.
func (t *Transactions) Get(_ context.Context, key store.Key) (store.Entry, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.entries[key]
	if !ok {
		return e, store.ErrNotFound
	}
	return e, nil
}

// Raise starts another run of an undecided transaction.
func (t *Transactions) Raise(_ context.Context, r store.Raise) (store.Entry, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.entries[r.Key]
	switch {
	case !ok:
		return e, store.ErrNotFound
	case e.Decided() || e.Run != r.FromRun:
		return e, store.ErrChanged
	}
	e.Run, e.AcceptedAt, e.Deadline = e.Run+1, millis(r.AcceptedAt), millis(r.Deadline)
	t.entries[r.Key] = e
	return e, nil
}

// Dispose closes a review where nobody has.
func (t *Transactions) Dispose(_ context.Context, key store.Key, d store.Disposition) (store.Entry, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.entries[key]
	switch {
	case !ok:
		return e, store.ErrNotFound
	case t.decided[key].Decision != txn.Review || e.Disposition != nil:
		return e, store.ErrChanged
	}
	d.At = millis(d.At)
	e.Disposition = &d
	t.entries[key] = e
	return e, nil
}

// Decide completes each document where no decision is.
func (t *Transactions) Decide(ctx context.Context, decides []store.Decide) ([]store.Outcome, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]store.Outcome, len(decides))
	for i, d := range decides {
		e, there := t.entries[d.Key]
		switch {
		case there && e.Digest != d.Digest:
			out[i] = store.Outcome{Status: store.DigestConflict, Entry: e}
			continue
		case there && e.Decided():
			out[i] = store.Outcome{Status: store.DecidedBefore, Entry: e}
			continue
		case !there:
			e = store.Entry{Claim: inMillis(d.Claim)}
		}
		e.Body, e.Event, e.DecidedAt, e.Unannounced = nil, d.Event, millis(d.DecidedAt), d.Unannounced
		t.entries[d.Key], t.decided[d.Key] = e, d
		out[i] = store.Outcome{Status: store.DecidedNow, Entry: e}
	}
	return out, nil
}

// Overdue returns undecided documents whose deadline is before then, oldest first.
func (t *Transactions) Overdue(_ context.Context, then time.Time, limit int) ([]store.Entry, error) {
	return t.list(limit, func(e store.Entry) bool { return !e.Decided() && e.Deadline.Before(then) },
		func(e store.Entry) time.Time { return e.Deadline }), nil
}

// Unannounced returns decisions made before then and still marked, oldest first.
func (t *Transactions) Unannounced(_ context.Context, then time.Time, limit int) ([]store.Entry, error) {
	return t.list(limit, func(e store.Entry) bool { return e.Unannounced && e.DecidedAt.Before(then) },
		func(e store.Entry) time.Time { return e.DecidedAt }), nil
}

func (t *Transactions) list(limit int, want func(store.Entry) bool, by func(store.Entry) time.Time) []store.Entry {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []store.Entry
	for _, e := range t.entries {
		if want(e) {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b store.Entry) int { return cmp.Compare(by(a).UnixNano(), by(b).UnixNano()) })
	return out[:min(len(out), limit)]
}

// Announced clears the mark of each key.
func (t *Transactions) Announced(_ context.Context, keys []store.Key) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range keys {
		if e, ok := t.entries[k]; ok {
			e.Unannounced = false
			t.entries[k] = e
		}
	}
	return nil
}

// Undecided returns those of keys that hold no decision.
func (t *Transactions) Undecided(_ context.Context, keys []store.Key) ([]store.Key, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []store.Key
	for _, k := range keys {
		if !t.entries[k].Decided() {
			out = append(out, k)
		}
	}
	return out, nil
}

// Search returns one page of decided transactions.
func (t *Transactions) Search(_ context.Context, q store.Query) ([]store.Found, string, error) {
	after, started, err := q.After()
	if err != nil {
		return nil, "", err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	found := []store.Found{}
	for key, d := range t.decided {
		e := t.entries[key]
		if key.Tenant == q.Tenant && matches(q, d, e) && (!started || follows(q, store.PlaceOf(e), after)) {
			found = append(found, store.Found{Entry: e})
		}
	}
	slices.SortFunc(found, func(a, b store.Found) int {
		if follows(q, store.PlaceOf(a.Entry), store.PlaceOf(b.Entry)) {
			return 1
		}
		return -1
	})
	page, next := q.Page(found)
	return page, next, nil
}

func matches(q store.Query, d store.Decide, e store.Entry) bool {
	any := func(tokens []string) bool {
		return len(tokens) == 0 || slices.ContainsFunc(tokens, func(t string) bool { return slices.Contains(d.Tokens, t) })
	}
	return any(q.Tokens) && any(q.Also) && (q.Disposition == "" || q.Disposition == dispositionOf(d, e)) &&
		(q.Decision == "" || d.Decision == q.Decision) && (q.Reason == "" || slices.Contains(d.Reasons, q.Reason)) &&
		(q.From.IsZero() || !e.AcceptedAt.Before(millis(q.From))) && (q.To.IsZero() || e.AcceptedAt.Before(millis(q.To)))
}

// dispositionOf is what became of a review, "" for any other decision.
func dispositionOf(d store.Decide, e store.Entry) string {
	switch {
	case e.Disposition != nil:
		return e.Disposition.Outcome
	case d.Decision == txn.Review:
		return store.Open
	}
	return ""
}

// follows tells whether a comes after b in the order of a query.
func follows(q store.Query, a, b store.Place) bool {
	if q.Oldest {
		return a.Compare(b) > 0
	}
	return a.Compare(b) < 0
}

// Ping always answers.
func (*Transactions) Ping(context.Context) error { return nil }
