package edge

import (
	"context"
	"fmt"

	"crivo/pkg/txn"
	"crivo/services/store"
	"crivo/streams"
)

// record writes an operator's act down before it takes effect.
func (e *edge) record(ctx context.Context, m *member, action, target string, detail map[string]any) error {
	err := e.Audit(ctx, store.Act{At: txn.At(e.Clock.Now()), Actor: m.ID, Tenant: m.Tenant, Action: action, Target: target, Detail: detail})
	if err != nil {
		return fmt.Errorf("%w: audit: %w", errStore, err)
	}
	return nil
}

// announce tells every process that what topic names is different now.
func (e *edge) announce(topic string) {
	_ = streams.Changed(e.Conn, topic) // watchers read again by themselves too
}

// changed announces keys or tenants, and returns once this process knows them too.
func (e *edge) changed(ctx context.Context, topic string) error {
	e.announce(topic)
	if err := e.directory.reload(ctx); err != nil {
		return fmt.Errorf("%w: %w", errStore, err)
	}
	return nil
}
