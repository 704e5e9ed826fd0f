package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/go-json-experiment/json"

	"crivo/services/store"
)

// Registry holds what operators set in one SQLite file.
type Registry struct{ *file }

var registrySchema = []string{`
CREATE TABLE tenants (id TEXT PRIMARY KEY, doc TEXT NOT NULL) STRICT;
CREATE TABLE keys (tenant TEXT NOT NULL, id TEXT NOT NULL, hash TEXT NOT NULL, source TEXT NOT NULL, doc TEXT NOT NULL, PRIMARY KEY (tenant, id)) STRICT;
CREATE TABLE endpoints (tenant TEXT NOT NULL, id TEXT NOT NULL, secrets TEXT NOT NULL, doc TEXT NOT NULL, PRIMARY KEY (tenant, id)) STRICT;
CREATE TABLE audit (number INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER NOT NULL, doc TEXT NOT NULL) STRICT`, `
CREATE TABLE list_entries (
	number INTEGER PRIMARY KEY,
	tenant TEXT NOT NULL, list TEXT NOT NULL, kind TEXT NOT NULL, value TEXT NOT NULL, id TEXT NOT NULL,
	reason TEXT NOT NULL, added_by TEXT NOT NULL, created_at INTEGER NOT NULL, expires_at INTEGER,
	UNIQUE (tenant, list, kind, value)
) STRICT;
CREATE INDEX list_page ON list_entries (tenant, list, number);
CREATE INDEX list_id ON list_entries (tenant, list, id);
CREATE TABLE rule_sets (
	name TEXT NOT NULL, version INTEGER NOT NULL, digest TEXT NOT NULL, source BLOB NOT NULL, created_at INTEGER NOT NULL, PRIMARY KEY (name, version)
) STRICT`, `
CREATE TABLE state (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT`, `
ALTER TABLE endpoints ADD COLUMN version INTEGER NOT NULL DEFAULT 0;
CREATE TABLE replays (tenant TEXT NOT NULL, endpoint TEXT NOT NULL, version INTEGER NOT NULL, doc TEXT NOT NULL, PRIMARY KEY (tenant, endpoint)) STRICT`}

// OpenRegistry opens or makes the registry at path.
func OpenRegistry(path string, o Options) (*Registry, error) {
	f, err := open(path, o, registrySchema)
	if err != nil {
		return nil, err
	}
	return &Registry{f}, nil
}

// Tenants returns all tenants by id.
func (r *Registry) Tenants(ctx context.Context) ([]store.Tenant, error) {
	return all(ctx, r.file, "SELECT doc FROM tenants ORDER BY id", func(rows *sql.Rows, t *store.Tenant) error {
		return doc(rows, t)
	})
}

// PutTenant adds a tenant or returns store.ErrChanged.
func (r *Registry) PutTenant(ctx context.Context, t store.Tenant) error {
	return r.change(ctx, "INSERT OR IGNORE INTO tenants (doc, id) VALUES (?,?)", t, t.ID)
}

// Keys returns every tenant's keys.
func (r *Registry) Keys(ctx context.Context) ([]store.APIKey, error) {
	return all(ctx, r.file, "SELECT doc, hash, source FROM keys ORDER BY tenant, id", func(rows *sql.Rows, k *store.APIKey) error {
		var hash, source string
		err := doc(rows, k, &hash, &source)
		k.Hash, k.Source = hash, source
		return err
	})
}

// PutKey adds or replaces a key.
func (r *Registry) PutKey(ctx context.Context, k store.APIKey) error {
	return r.put(ctx, "INSERT OR REPLACE INTO keys (doc, tenant, id, hash, source) VALUES (?,?,?,?,?)", k, k.Tenant, k.ID, k.Hash, k.Source)
}

// DeleteKey removes a key or returns store.ErrNotFound.
func (r *Registry) DeleteKey(ctx context.Context, tenant, id string) error {
	return r.remove(ctx, "DELETE FROM keys WHERE tenant = ? AND id = ?", tenant, id)
}

// Endpoints returns every tenant's endpoints.
func (r *Registry) Endpoints(ctx context.Context) ([]store.Endpoint, error) {
	return all(ctx, r.file, "SELECT doc, tenant, secrets, version FROM endpoints ORDER BY tenant, id", func(rows *sql.Rows, e *store.Endpoint) error {
		var tenant, secrets string
		if err := doc(rows, e, &tenant, &secrets, &e.Version); err != nil {
			return err
		}
		e.Tenant = tenant
		return json.Unmarshal([]byte(secrets), &e.Secrets)
	})
}

// PutEndpoint adds or replaces an endpoint.
func (r *Registry) PutEndpoint(ctx context.Context, e store.Endpoint) error {
	secrets, err := json.Marshal(e.Secrets)
	if err != nil {
		return fmt.Errorf("put: %w", err)
	}
	return r.put(ctx, "INSERT OR REPLACE INTO endpoints (doc, tenant, id, secrets) VALUES (?,?,?,?)", e, e.Tenant, e.ID, string(secrets))
}

// ChangeEndpoint replaces an endpoint that stands in e's version.
func (r *Registry) ChangeEndpoint(ctx context.Context, e store.Endpoint) error {
	secrets, err := json.Marshal(e.Secrets)
	if err != nil {
		return fmt.Errorf("change: %w", err)
	}
	return r.change(ctx, "UPDATE endpoints SET doc = ?, secrets = ?, version = version + 1 WHERE tenant = ? AND id = ? AND version = ?", e, string(secrets),
		e.Tenant, e.ID, e.Version)
}

// Replays returns the last replay of every endpoint that had one.
func (r *Registry) Replays(ctx context.Context) ([]store.Replay, error) {
	return all(ctx, r.file, "SELECT doc, version FROM replays ORDER BY tenant, endpoint", func(rows *sql.Rows, x *store.Replay) error {
		return doc(rows, x, &x.Version)
	})
}

// PutReplay adds a replay, or replaces the one that stands in x's version.
func (r *Registry) PutReplay(ctx context.Context, x store.Replay) error {
	statement := "UPDATE replays SET doc = ?, version = version + 1 WHERE tenant = ? AND endpoint = ? AND version = ?"
	if x.Version == 0 {
		statement = "INSERT OR IGNORE INTO replays (doc, tenant, endpoint, version) VALUES (?,?,?,1+?)"
	}
	return r.change(ctx, statement, x, x.Tenant, x.EndpointID, x.Version)
}

// change is put where it must find what it changes, else store.ErrChanged.
func (r *Registry) change(ctx context.Context, statement string, document any, args ...any) error {
	text, err := json.Marshal(document)
	if err != nil {
		return fmt.Errorf("change: %w", err)
	}
	res, err := r.write.ExecContext(ctx, statement, append([]any{string(text)}, args...)...)
	if err != nil {
		return fmt.Errorf("change: %w", err)
	}
	if n, _ := res.RowsAffected(); n == 0 {
		return store.ErrChanged
	}
	return nil
}

// DeleteEndpoint removes an endpoint or returns store.ErrNotFound.
func (r *Registry) DeleteEndpoint(ctx context.Context, tenant, id string) error {
	return r.remove(ctx, "DELETE FROM endpoints WHERE tenant = ? AND id = ?", tenant, id)
}

// Record appends one act to the audit log.
func (r *Registry) Record(ctx context.Context, a store.Act) error {
	return r.put(ctx, "INSERT INTO audit (doc, at) VALUES (?,?)", a, a.At.UnixMilli())
}

// Acts returns the newest acts first.
func (r *Registry) Acts(ctx context.Context, limit int) ([]store.Act, error) {
	return all(ctx, r.file, "SELECT doc FROM audit ORDER BY number DESC LIMIT ?", func(rows *sql.Rows, a *store.Act) error {
		return doc(rows, a)
	}, limit)
}

// State returns what was last put under a name, or store.ErrNotFound.
func (r *Registry) State(ctx context.Context, name string) ([]byte, error) {
	var value []byte
	err := r.read.QueryRowContext(ctx, "SELECT value FROM state WHERE name = ?", name).Scan(&value)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, store.ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	return value, nil
}

// PutState replaces what stands under a name.
func (r *Registry) PutState(ctx context.Context, name string, value []byte) error {
	if _, err := r.write.ExecContext(ctx, "INSERT OR REPLACE INTO state (name, value) VALUES (?,?)", name, value); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	return nil
}

// SwapState replaces from, or returns store.ErrChanged.
func (r *Registry) SwapState(ctx context.Context, name string, from, to []byte) error {
	statement, args := "UPDATE state SET value = ? WHERE name = ? AND value = ?", []any{to, name, from}
	if from == nil {
		statement, args = "INSERT OR IGNORE INTO state (value, name) VALUES (?,?)", args[:2]
	}
	res, err := r.write.ExecContext(ctx, statement, args...)
	if err != nil {
		return fmt.Errorf("state: %w", err)
	}
	if n, _ := res.RowsAffected(); n == 0 {
		return store.ErrChanged
	}
	return nil
}

// put writes one document; its JSON is the statement's first argument.
func (r *Registry) put(ctx context.Context, statement string, document any, args ...any) error {
	text, err := json.Marshal(document)
	if err == nil {
		_, err = r.write.ExecContext(ctx, statement, append([]any{string(text)}, args...)...)
	}
	if err != nil {
		return fmt.Errorf("put: %w", err)
	}
	return nil
}

func (r *Registry) remove(ctx context.Context, statement string, args ...any) error {
	res, err := r.write.ExecContext(ctx, statement, args...)
	if err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	if n, _ := res.RowsAffected(); n == 0 {
		return store.ErrNotFound
	}
	return nil
}

// doc scans a row whose first column is a document's JSON.
func doc(rows *sql.Rows, into any, more ...any) error {
	var text string
	if err := rows.Scan(append([]any{&text}, more...)...); err != nil {
		return err
	}
	return json.Unmarshal([]byte(text), into)
}

// all reads every row of a query.
func all[T any](ctx context.Context, f *file, query string, read func(*sql.Rows, *T) error, args ...any) ([]T, error) {
	rows, err := f.read.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("list: %w", err)
	}
	defer rows.Close()
	out := []T{}
	for rows.Next() {
		var v T
		if err := read(rows, &v); err != nil {
			return nil, fmt.Errorf("list: %w", err)
		}
		out = append(out, v)
	}
	return out, rows.Err()
}
