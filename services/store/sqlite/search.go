package sqlite

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"crivo/services/store"
)

// What a decided transaction is found by beside its columns: a row for each token and each reason. Tokens are as good as random:
// in one tree each would dirty a page of its own, and a group of 64 some 250. So they go into chunks of a few thousand rows in the
// order of their making, and a search looks into every chunk of its time. What was decided under the schema before has no rows.
const searchSchema = `
CREATE TABLE marks (chunk INTEGER NOT NULL, mark TEXT NOT NULL, accepted_at INTEGER NOT NULL, id TEXT NOT NULL,
	PRIMARY KEY (chunk, mark, accepted_at, id)) STRICT, WITHOUT ROWID;
CREATE TABLE chunks (number INTEGER PRIMARY KEY, marks INTEGER NOT NULL, from_at INTEGER NOT NULL, to_at INTEGER NOT NULL) STRICT;
CREATE INDEX by_decision ON transactions (tenant, decision, accepted_at, id) WHERE decision IS NOT NULL;
CREATE INDEX by_time ON transactions (tenant, accepted_at, id) WHERE decided_at IS NOT NULL`

const (
	// reasonChunk holds the reasons: they are few, so that each grows at one end.
	reasonChunk = 0
	// chunkMarks make some 25 pages, which a large group fills anyway; a million transactions have a thousand chunks.
	chunkMarks = 4096

	selectChunk = "SELECT number, marks FROM chunks ORDER BY number DESC LIMIT 1"
	growChunk   = `INSERT INTO chunks (number, marks, from_at, to_at) VALUES (?,?,?,?) ON CONFLICT DO UPDATE SET marks = marks + excluded.marks,
		from_at = min(from_at, excluded.from_at), to_at = max(to_at, excluded.to_at)`
	// One statement for all of a group, each row in one text: the way into the database costs more than a row.
	insertMarks = `INSERT OR IGNORE INTO marks (chunk, mark, accepted_at, id)
		SELECT ?, substr(value, 1, 16), CAST(substr(value, 17, 15) AS INTEGER), substr(value, 32) FROM json_each(?)`
)

// markOf is a token or a reason of a tenant in 16 characters, 96 bits: enough that no two are ever alike.
func markOf(tenant, kind, value string) string {
	sum := sha256.Sum256([]byte(tenant + "/" + kind + "/" + value))
	return base64.RawURLEncoding.EncodeToString(sum[:12])
}

func tokenMark(tenant, token string) string { return markOf(tenant, "token", token) }
func reasonMark(tenant, code string) string { return markOf(tenant, "reason", code) }

// marking is what a group of decisions adds: rows as insertMarks reads them.
type marking struct {
	tokens, reasons []string
	from, to        int64 // accepted-at of those with tokens
}

func (g *marking) add(d store.Decide, accepted int64) {
	row := func(mark string) string { return fmt.Sprintf("%s%015d%s", mark, accepted, d.ID) }
	for _, r := range d.Reasons {
		g.reasons = append(g.reasons, row(reasonMark(d.Tenant, r)))
	}
	for _, t := range d.Tokens {
		if len(g.tokens) == 0 {
			g.from, g.to = accepted, accepted
		}
		g.from, g.to = min(g.from, accepted), max(g.to, accepted)
		g.tokens = append(g.tokens, row(tokenMark(d.Tenant, t)))
	}
}

// put inserts the rows, those of tokens into the newest chunk or, when that is full, the next.
func (g *marking) put(ctx context.Context, tx *sql.Tx) error {
	if err := putMarks(ctx, tx, reasonChunk, g.reasons); err != nil || len(g.tokens) == 0 {
		return err
	}
	var chunk, filled int
	err := tx.QueryRowContext(ctx, selectChunk).Scan(&chunk, &filled)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	if chunk == reasonChunk || filled >= chunkMarks {
		chunk++
	}
	if _, err := tx.ExecContext(ctx, growChunk, chunk, len(g.tokens), g.from, g.to); err != nil {
		return err
	}
	return putMarks(ctx, tx, chunk, g.tokens)
}

func putMarks(ctx context.Context, tx *sql.Tx, chunk int, rows []string) error {
	if len(rows) == 0 {
		return nil
	}
	text, err := json.Marshal(rows)
	if err == nil {
		_, err = tx.ExecContext(ctx, insertMarks, chunk, string(text))
	}
	return err
}

// Search returns one page of decided transactions. Each token has a query of its own; what they find is merged here.
func (t *Transactions) Search(ctx context.Context, q store.Query) ([]store.Found, string, error) {
	after, started, err := q.After()
	if err != nil {
		return nil, "", err
	}
	found := []store.Found{}
	for _, w := range searches(q, after, started) {
		some, err := t.list(ctx, w.text, w.args...)
		if err != nil {
			return nil, "", fmt.Errorf("search: %w", err)
		}
		for _, e := range some {
			found = append(found, store.Found{Entry: e})
		}
	}
	slices.SortFunc(found, func(a, b store.Found) int {
		if q.Oldest {
			a, b = b, a
		}
		return store.PlaceOf(b.Entry).Compare(store.PlaceOf(a.Entry))
	})
	found = slices.CompactFunc(found, func(a, b store.Found) bool { return a.ID == b.ID })
	page, next := q.Page(found[:min(len(found), q.Limit+1)])
	return page, next, nil
}

// walk is a query under way: the places of what is asked for, found in narrow rows alone.
type walk struct {
	text string
	args []any
}

func (w *walk) and(condition string, args ...any) {
	w.text, w.args = w.text+" AND "+condition, append(w.args, args...)
}

// walks are those that a query needs, one for each token.
func walks(q store.Query, from, to int64) []walk {
	var out []walk
	for _, token := range slices.Compact(slices.Sorted(slices.Values(q.Tokens))) {
		// CROSS JOIN keeps the order: each chunk of the time is looked into.
		w := walk{"chunks c CROSS JOIN marks w ON w.chunk = c.number AND w.mark = ? WHERE c.to_at >= ? AND c.from_at < ?",
			[]any{tokenMark(q.Tenant, token), from, to}}
		if len(q.Also) > 0 { // a transaction's tokens are all in one chunk
			w.and("EXISTS (SELECT 1 FROM marks a WHERE a.chunk = c.number AND a.mark IN (?"+strings.Repeat(", ?", len(q.Also)-1)+
				") AND a.accepted_at = w.accepted_at AND a.id = w.id)", marksOf(q.Tenant, q.Also)...)
		}
		if q.Reason != "" {
			w.and("EXISTS (SELECT 1 FROM marks r WHERE r.chunk = ? AND r.mark = ? AND r.accepted_at = w.accepted_at AND r.id = w.id)",
				reasonChunk, reasonMark(q.Tenant, q.Reason))
		}
		out = append(out, w)
	}
	if len(out) == 0 && q.Reason != "" {
		out = []walk{{"marks w WHERE w.chunk = ? AND w.mark = ?", []any{reasonChunk, reasonMark(q.Tenant, q.Reason)}}}
	}
	switch {
	case len(out) == 0 && q.Disposition != "":
		return []walk{{"transactions w INDEXED BY by_disposition WHERE w.decision = 'review' AND w.tenant = ? AND w.disposition IS ?", []any{q.Tenant, outcomeOf(q)}}}
	case len(out) == 0 && q.Decision != "":
		return []walk{{"transactions w WHERE w.tenant = ? AND w.decision = ?", []any{q.Tenant, q.Decision}}}
	case len(out) == 0:
		return []walk{{"transactions w WHERE w.decided_at IS NOT NULL AND w.tenant = ?", []any{q.Tenant}}}
	}
	for i := range out {
		switch {
		case q.Disposition != "":
			out[i].and(`EXISTS (SELECT 1 FROM transactions d INDEXED BY by_disposition
				WHERE d.decision = 'review' AND d.tenant = ? AND d.disposition IS ? AND d.accepted_at = w.accepted_at AND d.id = w.id)`, q.Tenant, outcomeOf(q))
		case q.Decision != "":
			out[i].and(`EXISTS (SELECT 1 FROM transactions d INDEXED BY by_decision
				WHERE d.tenant = ? AND d.decision = ? AND d.accepted_at = w.accepted_at AND d.id = w.id)`, q.Tenant, q.Decision)
		}
	}
	return out
}

func marksOf(tenant string, tokens []string) []any {
	out := make([]any, len(tokens))
	for i, t := range tokens {
		out[i] = tokenMark(tenant, t)
	}
	return out
}

// outcomeOf is what the column holds: nothing for what is open.
func outcomeOf(q store.Query) any {
	if q.Disposition == store.Open {
		return nil
	}
	return q.Disposition
}

// searches are the queries of a page, each from where the page begins to one more than its limit.
func searches(q store.Query, after store.Place, started bool) []walk {
	from, to := millisOr(q.From, math.MinInt64), millisOr(q.To, math.MaxInt64)
	order, beyond := "DESC", "<"
	if q.Oldest {
		order, beyond = "ASC", ">"
	}
	switch {
	case started && q.Oldest:
		from = max(from, after.AcceptedAt)
	case started:
		to = min(to, after.AcceptedAt+1)
	}
	out := walks(q, from, to)
	for i := range out {
		w := &out[i]
		w.and("w.accepted_at >= ? AND w.accepted_at < ?", from, to)
		if started {
			w.and("(w.accepted_at, w.id) "+beyond+" (?, ?)", after.AcceptedAt, after.ID)
		}
		w.text = "SELECT t." + strings.ReplaceAll(columns, ", ", ", t.") + " FROM (SELECT w.id FROM " + w.text +
			" ORDER BY w.accepted_at " + order + ", w.id " + order + " LIMIT ?) w CROSS JOIN transactions t ON t.tenant = ? AND t.id = w.id"
		w.args = append(w.args, q.Limit+1, q.Tenant)
	}
	return out
}

// millisOr is t as it is stored, or otherwise for no time.
func millisOr(t time.Time, otherwise int64) int64 {
	if t.IsZero() {
		return otherwise
	}
	return t.UnixMilli()
}
