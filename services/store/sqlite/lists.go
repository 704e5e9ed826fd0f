package sqlite

import (
	"context"
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"

	"crivo/pkg/txn"
	"crivo/services/store"
)

const entryColumns = "number, tenant, list, kind, value, id, reason, added_by, created_at, expires_at"

// numbered is an entry with its place, which pages go by.
type numbered struct {
	store.ListEntry
	number int64
}

// ListEntries returns every list's entries.
func (r *Registry) ListEntries(ctx context.Context) ([]store.ListEntry, error) {
	rows, err := all(ctx, r.file, "SELECT "+entryColumns+" FROM list_entries ORDER BY tenant, list, kind, value", scanEntry[*sql.Rows])
	return bare(rows), err
}

// ListPage returns one page, newest first; the cursor is the last entry's number.
func (r *Registry) ListPage(ctx context.Context, q store.ListQuery) ([]store.ListEntry, string, error) {
	query, args := "SELECT "+entryColumns+" FROM list_entries WHERE tenant = ? AND list = ?", []any{q.Tenant, q.List}
	if q.Cursor != "" {
		number, err := readCursor(q.Cursor)
		if err != nil {
			return nil, "", err
		}
		query, args = query+" AND number < ?", append(args, number)
	}
	rows, err := all(ctx, r.file, query+" ORDER BY number DESC LIMIT ?", scanEntry[*sql.Rows], append(args, q.Limit+1)...)
	if err != nil || len(rows) <= q.Limit {
		return bare(rows), "", err
	}
	return bare(rows[:q.Limit]), cursorOf(rows[q.Limit-1].number), nil
}

// PutListEntry adds an entry, or renews the one of its value.
func (r *Registry) PutListEntry(ctx context.Context, e store.ListEntry) (store.ListEntry, error) {
	var expires *int64
	if e.ExpiresAt != nil {
		ms := e.ExpiresAt.UnixMilli()
		expires = &ms
	}
	var stands numbered
	err := scanEntry(r.write.QueryRowContext(ctx, `INSERT INTO list_entries (tenant, list, kind, value, id, reason, added_by, created_at, expires_at)
		VALUES (?,?,?,?,?,?,?,?,?) ON CONFLICT (tenant, list, kind, value) DO UPDATE SET reason = excluded.reason, expires_at = excluded.expires_at
		RETURNING `+entryColumns, e.Tenant, e.List, e.Kind, e.Value, e.ID, e.Reason, e.AddedBy, e.CreatedAt.UnixMilli(), expires), &stands)
	if err != nil {
		return store.ListEntry{}, fmt.Errorf("put: %w", err)
	}
	return stands.ListEntry, nil
}

// DeleteListEntry removes an entry or returns store.ErrNotFound.
func (r *Registry) DeleteListEntry(ctx context.Context, tenant, list, id string) error {
	return r.remove(ctx, "DELETE FROM list_entries WHERE tenant = ? AND list = ? AND id = ?", tenant, list, id)
}

func scanEntry[R interface{ Scan(into ...any) error }](row R, e *numbered) error {
	var created int64
	var expires *int64
	if err := row.Scan(&e.number, &e.Tenant, &e.List, &e.Kind, &e.Value, &e.ID, &e.Reason, &e.AddedBy, &created, &expires); err != nil {
		return err
	}
	e.CreatedAt = txn.Millis(created)
	if expires != nil {
		at := txn.Millis(*expires)
		e.ExpiresAt = &at
	}
	return nil
}

func bare(rows []numbered) []store.ListEntry {
	out := make([]store.ListEntry, len(rows))
	for i, r := range rows {
		out[i] = r.ListEntry
	}
	return out
}

// PutRuleSet adds a version that is absent.
func (r *Registry) PutRuleSet(ctx context.Context, s store.RuleSet) error {
	// The update changes nothing and makes the row that stands return.
	var digest string
	err := r.write.QueryRowContext(ctx, `INSERT INTO rule_sets (name, version, digest, source, created_at) VALUES (?,?,?,?,?)
		ON CONFLICT (name, version) DO UPDATE SET digest = digest RETURNING digest`, s.Name, s.Version, s.Digest, s.Source, s.CreatedAt.UnixMilli()).Scan(&digest)
	switch {
	case err != nil:
		return fmt.Errorf("put: %w", err)
	case digest != s.Digest:
		return store.ErrChanged
	}
	return nil
}

// RuleSets returns all versions, without their sources.
func (r *Registry) RuleSets(ctx context.Context) ([]store.RuleSet, error) {
	return all(ctx, r.file, "SELECT name, version, digest, created_at FROM rule_sets ORDER BY name, version", func(rows *sql.Rows, s *store.RuleSet) error {
		var created int64
		err := rows.Scan(&s.Name, &s.Version, &s.Digest, &created)
		s.CreatedAt = txn.Millis(created)
		return err
	})
}

// RuleSet returns one version or store.ErrNotFound.
func (r *Registry) RuleSet(ctx context.Context, name string, version int) (store.RuleSet, error) {
	s := store.RuleSet{Name: name, Version: version}
	var created int64
	err := r.read.QueryRowContext(ctx, "SELECT digest, source, created_at FROM rule_sets WHERE name = ? AND version = ?", name, version).
		Scan(&s.Digest, &s.Source, &created)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return store.RuleSet{}, store.ErrNotFound
	case err != nil:
		return store.RuleSet{}, fmt.Errorf("rule set: %w", err)
	}
	s.CreatedAt = txn.Millis(created)
	return s, nil
}

// cursorOf writes a row's number as a page's cursor.
func cursorOf(number int64) string {
	return base64.RawURLEncoding.EncodeToString([]byte(strconv.FormatInt(number, 10)))
}

func readCursor(text string) (int64, error) {
	digits, err := base64.RawURLEncoding.DecodeString(text)
	number, numErr := strconv.ParseInt(string(digits), 10, 64)
	if err != nil || numErr != nil {
		return 0, store.ErrCursor
	}
	return number, nil
}
