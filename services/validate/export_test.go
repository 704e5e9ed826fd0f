package validate

import (
	"context"
	"time"

	"github.com/rs/zerolog"
)

// List is what Run follows, a look at a time.
type List struct{ *list }

// NewList has not looked yet.
func NewList(path string, now func() time.Time) List { return NewLists(path, nil, now) }

// NewLists has not looked yet, neither at the file nor at what is stored.
func NewLists(path string, stored Lists, now func() time.Time) List {
	return List{newList(path, stored, now, zerolog.Nop())}
}

// Look reads the file if it changed and returns what is in use.
func (l List) Look() *Snapshot {
	l.reload()
	return l.current()
}

// Load reads what is stored.
func (l List) Load(ctx context.Context) error { return l.load(ctx) }
