package validate

import (
	"time"

	"github.com/rs/zerolog"
)

// List is the file as Run follows it, a look at a time.
type List struct{ *list }

// NewList has not looked yet.
func NewList(path string, now func() time.Time) List { return List{newList(path, now, zerolog.Nop())} }

// Look reads the file if it changed and returns what is in use.
func (l List) Look() *Snapshot {
	l.reload()
	return l.current()
}
