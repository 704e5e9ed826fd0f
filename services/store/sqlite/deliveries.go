package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"math"
	"time"

	"github.com/go-json-experiment/json"

	"crivo/services/store"
)

// Deliveries holds the webhooks that are owed in one SQLite file.
type Deliveries struct {
	*file
	passed int64 // the number up to which Expire has looked in this round
}

var deliverySchema = []string{`
CREATE TABLE deliveries (
	number INTEGER PRIMARY KEY,
	id TEXT NOT NULL UNIQUE, tenant TEXT NOT NULL, endpoint TEXT NOT NULL, txid TEXT NOT NULL, webhook TEXT NOT NULL,
	type TEXT NOT NULL, body BLOB NOT NULL, status TEXT NOT NULL, attempts TEXT NOT NULL,
	next_at INTEGER NOT NULL, leased_until INTEGER NOT NULL, created_at INTEGER NOT NULL,
	UNIQUE (tenant, endpoint, webhook)
) STRICT;
CREATE INDEX due ON deliveries (endpoint, next_at) WHERE status = 'pending';
CREATE INDEX by_transaction ON deliveries (tenant, txid, number)`, `
ALTER TABLE deliveries ADD COLUMN asked TEXT NOT NULL DEFAULT '';
ALTER TABLE deliveries ADD COLUMN was TEXT NOT NULL DEFAULT '';
ALTER TABLE deliveries ADD COLUMN replay TEXT NOT NULL DEFAULT '';
CREATE INDEX by_time ON deliveries (endpoint, created_at, id)`, listSchema}

// Every index ends with the number, so that a page of each of these is in its order. None is without the status: see listing.
const listSchema = `
CREATE INDEX by_status ON deliveries (tenant, status);
CREATE INDEX by_endpoint ON deliveries (tenant, endpoint, status)`

// OpenDeliveries opens or makes the store at path.
func OpenDeliveries(path string, o Options) (*Deliveries, error) {
	f, err := open(path, o, deliverySchema)
	if err != nil {
		return nil, err
	}
	// The file has one process at a time: whatever is leased belongs to one that is gone.
	if _, err := f.write.Exec("UPDATE deliveries SET leased_until = 0 WHERE status = 'pending' AND leased_until > 0"); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("sqlite %s: leases: %w", path, err)
	}
	return &Deliveries{file: f}, nil
}

const deliveryColumns = "number, id, tenant, endpoint, txid, webhook, type, body, status, attempts, next_at, leased_until, created_at, asked, was, replay"

// selectDue jumps from endpoint to endpoint in the index of what is owed, and looks in each for one row that is due: neither what
// is delivered nor what waits for a later try costs anything.
const selectDue = `WITH RECURSIVE e (id) AS (
		SELECT min(endpoint) FROM deliveries WHERE status = 'pending'
		UNION ALL
		SELECT (SELECT min(endpoint) FROM deliveries WHERE status = 'pending' AND endpoint > e.id) FROM e WHERE e.id IS NOT NULL)
	SELECT id FROM e WHERE EXISTS (
		SELECT 1 FROM deliveries WHERE status = 'pending' AND endpoint = e.id AND next_at <= ? AND leased_until <= ?)`

// oldRows looks at a thousand rows at a time and finds the last one that is old enough.
const oldRows = `SELECT coalesce(max(number), 0) FROM (SELECT number, created_at FROM deliveries WHERE number > ? ORDER BY number LIMIT 1000) WHERE created_at < ?`

const expireEnded = "DELETE FROM deliveries WHERE number > ? AND number <= ? AND created_at < ? AND status <> 'pending'"

// Expire forgets up to a thousand rows that have ended and were made before t, the oldest first, and tells how many. The next call
// goes on after them, so that rows which are owed for long, to an endpoint that is paused, stand in no other's way; past the last
// one it begins again. One call at a time.
func (d *Deliveries) Expire(ctx context.Context, before time.Time) (int, error) {
	var n, last int64
	err := d.group(ctx, func(tx *sql.Tx) error {
		if err := tx.QueryRowContext(ctx, oldRows, d.passed, before.UnixMilli()).Scan(&last); err != nil {
			return err
		}
		res, err := tx.ExecContext(ctx, expireEnded, d.passed, last, before.UnixMilli())
		if err == nil {
			n, err = res.RowsAffected()
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("expire deliveries: %w", err)
	}
	d.passed = last
	return int(n), nil
}

// Insert adds rows that are absent, in one group.
func (d *Deliveries) Insert(ctx context.Context, rows []store.Delivery) ([]bool, error) {
	added := make([]bool, len(rows))
	err := d.group(ctx, func(tx *sql.Tx) error {
		insert, err := tx.PrepareContext(ctx, `INSERT INTO deliveries (id, tenant, endpoint, txid, webhook, type, body, status, attempts, next_at,
			leased_until, created_at, asked) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT DO NOTHING`)
		if err != nil {
			return err
		}
		defer insert.Close()
		for i, r := range rows {
			attempts, err := json.Marshal(r.Attempts)
			if err != nil {
				return err
			}
			res, err := insert.ExecContext(ctx, r.ID, r.Tenant, r.EndpointID, r.TransactionID, r.WebhookID, r.Type, r.Body, r.Status,
				string(attempts), r.NextAttemptAt.UnixMilli(), r.LeasedUntil.UnixMilli(), r.CreatedAt.UnixMilli(), r.Trigger)
			if err != nil {
				return err
			}
			n, _ := res.RowsAffected()
			added[i] = n == 1
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("insert deliveries: %w", err)
	}
	return added, nil
}

// Lease takes pending rows that are due and free.
func (d *Deliveries) Lease(ctx context.Context, endpoint string, now, until time.Time, limit int) ([]store.Delivery, error) {
	var out []store.Delivery
	err := d.group(ctx, func(tx *sql.Tx) error {
		query := "SELECT " + deliveryColumns + " FROM deliveries WHERE status = 'pending' AND next_at <= ? AND leased_until <= ?"
		args := []any{now.UnixMilli(), now.UnixMilli()}
		if endpoint != "" {
			query, args = query+" AND endpoint = ?", append(args, endpoint)
		}
		rows, err := tx.QueryContext(ctx, query+" ORDER BY next_at LIMIT ?", append(args, limit)...)
		if err != nil {
			return err
		}
		if out, err = scanDeliveries(rows); err != nil {
			return err
		}
		for i := range out {
			out[i].LeasedUntil = until.UTC().Truncate(time.Millisecond)
			if _, err := tx.ExecContext(ctx, "UPDATE deliveries SET leased_until = ? WHERE id = ?", until.UnixMilli(), out[i].ID); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("lease: %w", err)
	}
	return out, nil
}

// DueEndpoints names endpoints that have rows to lease.
func (d *Deliveries) DueEndpoints(ctx context.Context, now time.Time) ([]string, error) {
	rows, err := d.read.QueryContext(ctx, selectDue, now.UnixMilli(), now.UnixMilli())
	if err != nil {
		return nil, fmt.Errorf("due endpoints: %w", err)
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, fmt.Errorf("due endpoints: %w", err)
		}
		out = append(out, id)
	}
	return out, rows.Err()
}

const writeBack = `UPDATE deliveries SET status = ?, attempts = ?, next_at = ?, leased_until = ?, asked = ?, was = ?
	WHERE id = ? AND (? OR leased_until = ?)`

// Update writes rows back, in one group.
func (d *Deliveries) Update(ctx context.Context, rows []store.Delivery) error {
	err := d.group(ctx, func(tx *sql.Tx) error {
		for _, r := range rows {
			attempts, err := json.Marshal(r.Attempts)
			if err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, writeBack, r.Status, string(attempts), r.NextAttemptAt.UnixMilli(), r.LeasedUntil.UnixMilli(), r.Trigger, r.Was,
				r.ID, r.Held.IsZero(), r.Held.UnixMilli()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("update deliveries: %w", err)
	}
	return nil
}

const (
	// cancelAtOnce is how many rows one transaction ends: the only writer must not keep others waiting, whatever is owed.
	cancelAtOnce = 500
	cancelSome   = `UPDATE deliveries SET status = ?, asked = '', was = '' WHERE rowid IN
		(SELECT rowid FROM deliveries WHERE status = 'pending' AND endpoint = ? AND tenant = ? LIMIT ?)`
)

// Cancel ends every pending row of an endpoint.
func (d *Deliveries) Cancel(ctx context.Context, tenant, endpoint, status string) (int, error) {
	for all := 0; ; {
		res, err := d.write.ExecContext(ctx, cancelSome, status, endpoint, tenant, cancelAtOnce)
		if err != nil {
			return all, fmt.Errorf("cancel: %w", err)
		}
		n, _ := res.RowsAffected()
		if all += int(n); n < cancelAtOnce {
			return all, nil
		}
	}
}

// Get returns one row of a tenant.
func (d *Deliveries) Get(ctx context.Context, tenant, id string) (store.Delivery, error) {
	rows, err := d.read.QueryContext(ctx, "SELECT "+deliveryColumns+" FROM deliveries WHERE id = ? AND tenant = ?", id, tenant)
	if err != nil {
		return store.Delivery{}, fmt.Errorf("get delivery: %w", err)
	}
	found, err := scanDeliveries(rows)
	switch {
	case err != nil:
		return store.Delivery{}, fmt.Errorf("get delivery: %w", err)
	case len(found) == 0:
		return store.Delivery{}, store.ErrNotFound
	}
	return found[0], nil
}

const askAgain = `UPDATE deliveries SET asked = ?, was = status, status = 'pending', next_at = ?, leased_until = 0, replay = iif(? = '', replay, ?)
	WHERE id = ? AND tenant = ? AND asked = '' AND leased_until <= ? AND (? = '' OR replay <> ?)`

// Resend makes a row due for one more attempt.
func (d *Deliveries) Resend(ctx context.Context, r store.Resend) error {
	at := r.At.UnixMilli()
	res, err := d.write.ExecContext(ctx, askAgain, r.Trigger, at, r.Replay, r.Replay, r.ID, r.Tenant, at, r.Replay, r.Replay)
	if err != nil {
		return fmt.Errorf("resend: %w", err)
	}
	if n, _ := res.RowsAffected(); n > 0 {
		return nil
	}
	if _, err := d.Get(ctx, r.Tenant, r.ID); err != nil {
		return err
	}
	return store.ErrChanged
}

const selectSpan = "SELECT " + deliveryColumns + ` FROM deliveries WHERE endpoint = ? AND (created_at, id) > (?, ?) AND created_at < ? AND +tenant = ?
	ORDER BY created_at, id LIMIT ?`

// Between returns rows by when they were made.
func (d *Deliveries) Between(ctx context.Context, q store.Span) ([]store.Delivery, error) {
	rows, err := d.read.QueryContext(ctx, selectSpan, q.EndpointID, q.From.UnixMilli(), q.After, q.To.UnixMilli(), q.Tenant, q.Limit)
	if err != nil {
		return nil, fmt.Errorf("deliveries between: %w", err)
	}
	return scanDeliveries(rows)
}

// List returns one page, newest first; the cursor is the last row's number.
func (d *Deliveries) List(ctx context.Context, q store.DeliveryQuery) ([]store.Delivery, string, error) {
	before := int64(math.MaxInt64)
	if q.Cursor != "" {
		var err error
		if before, err = readCursor(q.Cursor); err != nil {
			return nil, "", err
		}
	}
	w := listing(q, before)
	rows, err := d.read.QueryContext(ctx, w.text, w.args...)
	if err != nil {
		return nil, "", fmt.Errorf("list deliveries: %w", err)
	}
	out, numbers, err := scanNumbered(rows)
	if err != nil || len(out) <= q.Limit {
		return out, "", err
	}
	return out[:q.Limit], cursorOf(numbers[q.Limit-1]), nil
}

// listing walks an index in the order of numbers and looks at no row that the page has not, but for a transaction's few. Where any
// status will do there is a walk for each, and SQLite merges them: an index without the status would be one more to write.
func listing(q store.DeliveryQuery, before int64) walk {
	index, states := "by_status", []string{q.Status}
	switch {
	case q.TransactionID != "":
		index = "by_transaction"
	case q.EndpointID != "":
		index = "by_endpoint"
	}
	if q.Status == "" && q.TransactionID == "" {
		states = store.DeliveryStates
	}
	var out walk
	for i, state := range states {
		if i > 0 {
			out.text += " UNION ALL "
		}
		out.text += "SELECT " + deliveryColumns + " FROM deliveries INDEXED BY " + index + " WHERE tenant = ? AND number < ?"
		out.args = append(out.args, q.Tenant, before)
		for _, f := range []struct{ column, value string }{{"endpoint", q.EndpointID}, {"txid", q.TransactionID}, {"status", state}} {
			if f.value != "" {
				out.and(f.column+" = ?", f.value)
			}
		}
	}
	return walk{out.text + " ORDER BY number DESC LIMIT ?", append(out.args, q.Limit+1)}
}

func scanDeliveries(rows *sql.Rows) ([]store.Delivery, error) {
	out, _, err := scanNumbered(rows)
	return out, err
}

func scanNumbered(rows *sql.Rows) ([]store.Delivery, []int64, error) {
	defer rows.Close()
	out, numbers := []store.Delivery{}, []int64{}
	for rows.Next() {
		var r store.Delivery
		var attempts string
		var number, next, leased, created int64
		if err := rows.Scan(&number, &r.ID, &r.Tenant, &r.EndpointID, &r.TransactionID, &r.WebhookID, &r.Type, &r.Body, &r.Status, &attempts,
			&next, &leased, &created, &r.Trigger, &r.Was, &r.Replay); err != nil {
			return nil, nil, fmt.Errorf("delivery row: %w", err)
		}
		if err := json.Unmarshal([]byte(attempts), &r.Attempts); err != nil {
			return nil, nil, fmt.Errorf("delivery attempts: %w", err)
		}
		r.NextAttemptAt, r.LeasedUntil, r.CreatedAt = millis(next), millis(leased), millis(created)
		out, numbers = append(out, r), append(numbers, number)
	}
	return out, numbers, rows.Err()
}
