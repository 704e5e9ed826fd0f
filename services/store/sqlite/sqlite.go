// Package sqlite keeps the stores of one node in SQLite files: one writer each, a group of changes is one transaction and so
// one sync of the disk.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"runtime"

	_ "modernc.org/sqlite" // the driver
)

// Options say how a file is kept.
type Options struct {
	// Sync makes every commit wait for the disk; otherwise a commit survives the process, not the machine.
	Sync bool
}

// file is one database: a writer that never shares, and readers beside it.
type file struct {
	write *sql.DB
	read  *sql.DB
}

// open opens path and brings its schema up to the newest of migrations; a file from a newer program is refused.
func open(path string, o Options, migrations []string) (*file, error) {
	sync := "NORMAL"
	if o.Sync {
		sync = "FULL"
	}
	pragmas := url.Values{"_pragma": {"busy_timeout(5000)", "journal_mode(WAL)", "synchronous(" + sync + ")", "temp_store(MEMORY)",
		"cache_size(-8192)", "wal_autocheckpoint(4000)", "foreign_keys(ON)"}, "_txlock": {"immediate"}}
	dsn := "file:" + (&url.URL{Path: path}).EscapedPath() + "?" + pragmas.Encode()
	f := &file{}
	var err error
	if f.write, err = sql.Open("sqlite", dsn); err != nil {
		return nil, fmt.Errorf("sqlite %s: %w", path, err)
	}
	f.write.SetMaxOpenConns(1)
	if err := migrate(f.write, migrations); err != nil {
		_ = f.write.Close()
		return nil, fmt.Errorf("sqlite %s: %w", path, err)
	}
	if f.read, err = sql.Open("sqlite", dsn+"&mode=rw"); err != nil {
		_ = f.write.Close()
		return nil, fmt.Errorf("sqlite %s: %w", path, err)
	}
	f.read.SetMaxOpenConns(max(4, runtime.NumCPU()))
	f.read.SetMaxIdleConns(max(4, runtime.NumCPU()))
	return f, nil
}

// migrate applies what the file's user_version lacks, each step in a transaction of its own.
func migrate(db *sql.DB, migrations []string) error {
	var version int
	if err := db.QueryRow("PRAGMA user_version").Scan(&version); err != nil {
		return err
	}
	if version > len(migrations) {
		return fmt.Errorf("schema %d is newer than this program's %d", version, len(migrations))
	}
	for ; version < len(migrations); version++ {
		tx, err := db.Begin()
		if err != nil {
			return err
		}
		_, err = tx.Exec(migrations[version] + fmt.Sprintf("; PRAGMA user_version = %d", version+1))
		if err == nil {
			err = tx.Commit()
		}
		if err != nil {
			_ = tx.Rollback()
			return fmt.Errorf("schema %d: %w", version+1, err)
		}
	}
	return nil
}

// group runs do in one write transaction.
func (f *file) group(ctx context.Context, do func(tx *sql.Tx) error) error {
	tx, err := f.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := do(tx); err != nil {
		_ = tx.Rollback()
		return err
	}
	return tx.Commit()
}

// Close closes the file after the running calls.
func (f *file) Close() error { return errors.Join(f.write.Close(), f.read.Close()) }
