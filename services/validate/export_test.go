package validate

import (
	"context"
	"time"

	"github.com/rs/zerolog"

	"crivo/pkg/app"
)

// FirstLoad is a time that tests make shorter.
var FirstLoad = &firstLoad

// List is what Run follows, a look at a time.
type List struct{ *list }

// NewList has not looked yet.
func NewList(path string, now func() time.Time) List { return NewLists(path, nil, now) }

// NewLists has not looked yet, neither at the file nor at what is stored.
func NewLists(path string, stored Lists, now func() time.Time) List {
	return List{newList(Config{Shell: app.Shell{Name: "edge", Clock: app.NewClock(now), Log: zerolog.Nop(), Health: &app.Health{}}, Blocklist: path, Lists: stored})}
}

// Look reads the file if it changed and returns what is in use.
func (l List) Look() *Snapshot {
	l.reload()
	return l.current()
}

// Missed is what /readyz tells of it.
func (l List) Missed() string { return l.health.Degraded()["edge "+CheckBlocklist] }

// Load reads what is stored.
func (l List) Load(ctx context.Context) error { return l.load(ctx) }
