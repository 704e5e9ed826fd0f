package validate

import (
	"context"
	"time"
)

// Entry is one answer of a check, kept so that it need not be asked again. That there is nothing is an answer too.
type Entry struct {
	Key      string        // starts with the tenant
	Value    []byte        // nobody changes it
	StoredAt time.Time     // to the millisecond
	TTL      time.Duration // it is fresh for so long, then stale
	Keep     time.Duration // it is forgotten after so long; at least TTL
}

// Fresh tells whether the entry need not be asked for again.
func (e Entry) Fresh(now time.Time) bool { return now.Before(e.StoredAt.Add(e.TTL)) }

// Cache keeps entries where they may be lost at any time.
type Cache interface {
	// Get returns the entries that are there, by key, fresh and stale ones.
	Get(ctx context.Context, keys []string) (map[string]Entry, error)
	// Put stores entries, each in the place of an older one of its key.
	Put(ctx context.Context, entries []Entry) error
}
