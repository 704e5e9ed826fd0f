// Package validate asks lists and check digits about a transaction. Each check is clear, hit or unknown; unknown is never clear.
package validate

import (
	"context"
	"slices"
	"sync"
	"time"

	"crivo/pkg/app"
	"crivo/pkg/stage"
	"crivo/pkg/txn"
	"crivo/streams"
	"crivo/streams/event"
)

// Names of the checks.
const (
	CheckDocument  = "document"
	CheckBlocklist = "blocklist"
)

// Config is what the service needs.
type Config struct {
	app.Shell
	Blocklist string // file; empty: none
	Lists     Lists  // nil: the file alone
	Keys      Keys
}

// Stage checks one transaction at a time.
type Stage struct {
	List func() *Snapshot
	Keys Keys
	Now  func() time.Time
}

// firstLoad is how long the start waits for the stored lists. Without them nothing is clear, but what is decided late is no better.
var firstLoad = 2 * time.Second

// Run checks until ctx ends.
func Run(ctx context.Context, cfg Config) error {
	s, closes := Open(ctx, cfg)
	defer closes()
	return streams.Runner(cfg.Shell, streams.Validate, streams.Step(streams.EventValidated, 1, s.Handle), nil).Run(ctx)
}

// Open returns the step's core. The list is read again whenever its file or the stored entries change, until ctx ends or it is
// closed.
func Open(ctx context.Context, cfg Config) (s Stage, closes func()) {
	ctx, stop := context.WithCancel(ctx)
	list := newList(cfg)
	list.reload()
	var watching sync.WaitGroup
	watching.Go(func() {
		for stage.Sleep(ctx, time.Second) == nil {
			list.reload()
		}
	})
	loaded, done := context.WithTimeout(ctx, firstLoad)
	watching.Go(func() {
		defer done()
		if cfg.Lists == nil {
			return
		}
		_ = app.Until(ctx, cfg.Shell, "the stored lists", func(ctx context.Context) error {
			return streams.Watch(ctx, cfg.Conn, cfg.Log, list.load, streams.TopicLists)
		})
	})
	<-loaded.Done()
	return Stage{List: list.current, Keys: cfg.Keys, Now: cfg.Clock.Now}, func() { stop(); watching.Wait() }
}

// Handle checks one transaction. It must be safe to call twice with the same input.
func (s Stage) Handle(_ context.Context, in event.Enriched) (event.Validated, error) {
	out := event.Validated{Enriched: in, Checks: []txn.Check{Document(in.Tx)}}
	list := s.List()
	check := list.check(in.Tenant, in.Tx, s.Keys, s.Now())
	out.Checks = append(out.Checks, check)
	if check.Error != "" {
		out.Degraded = append(slices.Clone(in.Degraded), CheckBlocklist+": "+check.Error)
	}
	return out, nil
}

// Document is a hit when a CPF's or CNPJ's check digits are wrong.
func Document(t txn.Sealed) txn.Check {
	c := txn.Check{Name: CheckDocument, Status: txn.Clear}
	for _, p := range []*txn.SealedParty{&t.Payer, t.Payee} {
		if p != nil && p.Document != nil && !p.Document.Valid {
			c.Status = txn.Hit
		}
	}
	return c
}
