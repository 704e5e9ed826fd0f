package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"crivo/services/store"
)

// Transactions is the transaction store in one SQLite file.
type Transactions struct{ *file }

var transactionSchema = []string{`
CREATE TABLE transactions (
	tenant TEXT NOT NULL, id TEXT NOT NULL,
	digest TEXT NOT NULL, run INTEGER NOT NULL,
	claimed_at INTEGER NOT NULL, accepted_at INTEGER NOT NULL, deadline INTEGER NOT NULL,
	body BLOB, event BLOB, decision TEXT, reasons TEXT, decided_at INTEGER, unannounced INTEGER NOT NULL DEFAULT 0,
	PRIMARY KEY (tenant, id)
) STRICT;
CREATE INDEX undecided ON transactions (deadline) WHERE decided_at IS NULL;
CREATE INDEX unannounced ON transactions (decided_at) WHERE unannounced = 1`, searchSchema, dispositionSchema}

// The index holds reviews alone, those that are open first.
const dispositionSchema = `
ALTER TABLE transactions ADD COLUMN disposition TEXT;
ALTER TABLE transactions ADD COLUMN disposed_by TEXT;
ALTER TABLE transactions ADD COLUMN disposed_at INTEGER;
ALTER TABLE transactions ADD COLUMN note BLOB;
CREATE INDEX by_disposition ON transactions (tenant, disposition, accepted_at, id) WHERE decision = 'review'`

// OpenTransactions opens or makes the store at path.
func OpenTransactions(path string, o Options) (*Transactions, error) {
	f, err := open(path, o, transactionSchema)
	if err != nil {
		return nil, err
	}
	return &Transactions{f}, nil
}

const columns = "tenant, id, digest, run, claimed_at, accepted_at, deadline, body, event, decided_at, unannounced, disposition, disposed_by, disposed_at, note"

const (
	insertClaim = `INSERT INTO transactions (tenant, id, digest, run, claimed_at, accepted_at, deadline, body) VALUES (?,?,?,?,?,?,?,?)
		ON CONFLICT DO NOTHING`
	selectOne = "SELECT " + columns + " FROM transactions WHERE tenant = ? AND id = ?"
	raiseRun  = `UPDATE transactions SET run = run + 1, accepted_at = ?, deadline = ? WHERE tenant = ? AND id = ? AND run = ? AND decided_at IS NULL`
	dispose   = `UPDATE transactions SET disposition = ?, disposed_by = ?, disposed_at = ?, note = ? WHERE tenant = ? AND id = ? AND decision = 'review' AND disposition IS NULL`
	// The whole sealed transaction stands in the event, so the body need not stand twice.
	complete = `INSERT INTO transactions (tenant, id, digest, run, claimed_at, accepted_at, deadline, event, decision, reasons, decided_at, unannounced)
		VALUES (?,?,?,?,?,?,?,?,?,?,?,?)
		ON CONFLICT DO UPDATE SET body = NULL, event = excluded.event, decision = excluded.decision, reasons = excluded.reasons,
			decided_at = excluded.decided_at, unannounced = excluded.unannounced
		WHERE decided_at IS NULL AND digest = excluded.digest
		RETURNING accepted_at`
	selectOverdue     = "SELECT " + columns + " FROM transactions WHERE decided_at IS NULL AND deadline < ? ORDER BY deadline LIMIT ?"
	selectUnannounced = "SELECT " + columns + " FROM transactions WHERE unannounced = 1 AND decided_at < ? ORDER BY decided_at LIMIT ?"
	// CROSS JOIN keeps the order: each key asked for is looked up in the primary key.
	selectDecided = `SELECT k.key FROM json_each(?) k CROSS JOIN transactions t ON t.tenant = k.value->>'Tenant' AND t.id = k.value->>'ID'
		WHERE t.decided_at IS NOT NULL`
	clearMark = "UPDATE transactions SET unannounced = 0 WHERE tenant = ? AND id = ?"
)

// Claim inserts each document whose key is absent, in one group.
func (t *Transactions) Claim(ctx context.Context, claims []store.Claim) ([]store.Claimed, error) {
	out := make([]store.Claimed, len(claims))
	err := t.group(ctx, func(tx *sql.Tx) error {
		insert, err := tx.PrepareContext(ctx, insertClaim)
		if err != nil {
			return err
		}
		defer insert.Close()
		for i, c := range claims {
			res, err := insert.ExecContext(ctx, c.Tenant, c.ID, c.Digest, c.Run, c.ClaimedAt.UnixMilli(), c.AcceptedAt.UnixMilli(),
				c.Deadline.UnixMilli(), c.Body)
			if err != nil {
				return err
			}
			if n, _ := res.RowsAffected(); n == 1 {
				out[i] = store.Claimed{Won: true, Entry: store.Entry{Claim: c}}
				continue
			}
			if out[i].Entry, err = scan(tx.QueryRowContext(ctx, selectOne, c.Tenant, c.ID)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("claim: %w", err)
	}
	return out, nil
}

// Get returns one document or store.ErrNotFound.
func (t *Transactions) Get(ctx context.Context, key store.Key) (store.Entry, error) {
	e, err := scan(t.read.QueryRowContext(ctx, selectOne, key.Tenant, key.ID))
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return e, fmt.Errorf("get: %w", err)
	}
	return e, err
}

// Raise starts another run of an undecided transaction.
func (t *Transactions) Raise(ctx context.Context, r store.Raise) (store.Entry, error) {
	return t.guarded(ctx, "raise", r.Key, raiseRun, r.AcceptedAt.UnixMilli(), r.Deadline.UnixMilli(), r.Tenant, r.ID, r.FromRun)
}

// Dispose closes a review where nobody has.
func (t *Transactions) Dispose(ctx context.Context, key store.Key, d store.Disposition) (store.Entry, error) {
	return t.guarded(ctx, "dispose", key, dispose, d.Outcome, d.By, d.At.UnixMilli(), d.Note, key.Tenant, key.ID)
}

// guarded makes a change of one document and returns how it stands after, with store.ErrChanged where the guard did not hold.
func (t *Transactions) guarded(ctx context.Context, operation string, key store.Key, change string, args ...any) (e store.Entry, err error) {
	changed := false
	err = t.group(ctx, func(tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, change, args...)
		if err != nil {
			return err
		}
		n, _ := res.RowsAffected()
		changed = n == 1
		e, err = scan(tx.QueryRowContext(ctx, selectOne, key.Tenant, key.ID))
		return err
	})
	switch {
	case errors.Is(err, store.ErrNotFound):
		return e, err
	case err != nil:
		return e, fmt.Errorf("%s: %w", operation, err)
	case !changed:
		return e, store.ErrChanged
	}
	return e, nil
}

// Decide completes each document where no decision is, in one group; the first of two for one key wins.
func (t *Transactions) Decide(ctx context.Context, decides []store.Decide) ([]store.Outcome, error) {
	out := make([]store.Outcome, len(decides))
	err := t.group(ctx, func(tx *sql.Tx) error {
		put, err := tx.PrepareContext(ctx, complete)
		if err != nil {
			return err
		}
		defer put.Close()
		var marks marking
		for i, d := range decides {
			var accepted int64
			err := put.QueryRowContext(ctx, d.Tenant, d.ID, d.Digest, d.Run, d.ClaimedAt.UnixMilli(), d.AcceptedAt.UnixMilli(),
				d.Deadline.UnixMilli(), d.Event, d.Decision, strings.Join(d.Reasons, " "), d.DecidedAt.UnixMilli(), d.Unannounced).Scan(&accepted)
			if err != nil && !errors.Is(err, sql.ErrNoRows) {
				return err
			}
			if err == nil {
				marks.add(d, accepted)
				out[i] = store.Outcome{Status: store.DecidedNow, Entry: store.Entry{Claim: d.Claim, Event: d.Event,
					DecidedAt: d.DecidedAt, Unannounced: d.Unannounced}}
				continue
			}
			e, err := scan(tx.QueryRowContext(ctx, selectOne, d.Tenant, d.ID))
			if err != nil {
				return err
			}
			out[i] = store.Outcome{Status: store.DecidedBefore, Entry: e}
			if e.Digest != d.Digest {
				out[i].Status = store.DigestConflict
			}
		}
		return marks.put(ctx, tx)
	})
	if err != nil {
		return nil, fmt.Errorf("decide: %w", err)
	}
	return out, nil
}

// Overdue returns undecided documents whose deadline is before then, oldest first.
func (t *Transactions) Overdue(ctx context.Context, then time.Time, limit int) ([]store.Entry, error) {
	return t.list(ctx, selectOverdue, then.UnixMilli(), limit)
}

// Unannounced returns decisions made before then and still marked, oldest first.
func (t *Transactions) Unannounced(ctx context.Context, then time.Time, limit int) ([]store.Entry, error) {
	return t.list(ctx, selectUnannounced, then.UnixMilli(), limit)
}

func (t *Transactions) list(ctx context.Context, query string, args ...any) ([]store.Entry, error) {
	rows, err := t.read.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("list: %w", err)
	}
	defer rows.Close()
	var out []store.Entry
	for rows.Next() {
		e, err := scan(rows)
		if err != nil {
			return nil, fmt.Errorf("list: %w", err)
		}
		out = append(out, e)
	}
	return out, rows.Err()
}

// Announced clears the mark of each key, in one group.
func (t *Transactions) Announced(ctx context.Context, keys []store.Key) error {
	err := t.group(ctx, func(tx *sql.Tx) error {
		for _, k := range keys {
			if _, err := tx.ExecContext(ctx, clearMark, k.Tenant, k.ID); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("announced: %w", err)
	}
	return nil
}

// Undecided returns those of keys that hold no decision, by one query for all of them.
func (t *Transactions) Undecided(ctx context.Context, keys []store.Key) ([]store.Key, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	asked, err := json.Marshal(keys)
	if err != nil {
		return nil, fmt.Errorf("undecided: %w", err)
	}
	rows, err := t.read.QueryContext(ctx, selectDecided, string(asked))
	if err != nil {
		return nil, fmt.Errorf("undecided: %w", err)
	}
	defer rows.Close()
	decided := make([]bool, len(keys))
	for rows.Next() {
		var at int
		if err := rows.Scan(&at); err != nil {
			return nil, fmt.Errorf("undecided: %w", err)
		}
		decided[at] = true
	}
	var out []store.Key
	for i, k := range keys {
		if !decided[i] {
			out = append(out, k)
		}
	}
	return out, rows.Err()
}

// Ping writes nothing but takes the writer's place for a moment, so that it fails where a claim would.
func (t *Transactions) Ping(ctx context.Context) error {
	return t.group(ctx, func(*sql.Tx) error { return nil })
}

// scan reads one row.
func scan(row interface{ Scan(...any) error }) (store.Entry, error) {
	var e store.Entry
	var claimed, accepted, deadline int64
	var decided, disposed sql.NullInt64
	var outcome, by sql.NullString
	var note []byte
	err := row.Scan(&e.Tenant, &e.ID, &e.Digest, &e.Run, &claimed, &accepted, &deadline, &e.Body, &e.Event, &decided, &e.Unannounced,
		&outcome, &by, &disposed, &note)
	if errors.Is(err, sql.ErrNoRows) {
		return e, store.ErrNotFound
	}
	if err != nil {
		return e, err
	}
	e.ClaimedAt, e.AcceptedAt, e.Deadline = millis(claimed), millis(accepted), millis(deadline)
	if decided.Valid {
		e.DecidedAt = millis(decided.Int64)
	}
	if outcome.Valid {
		e.Disposition = &store.Disposition{Outcome: outcome.String, By: by.String, At: millis(disposed.Int64), Note: note}
	}
	return e, nil
}

func millis(ms int64) time.Time { return time.UnixMilli(ms).UTC() }
