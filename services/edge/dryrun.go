package edge

import (
	"fmt"
	"net/http"

	"crivo/pkg/txn"
	"crivo/streams/event"
)

// dryRun is the decision that a submission would get.
type dryRun struct {
	txn.Decision
	DryRun bool `json:"dry_run"`
}

// postDryRun decides on the spot and leaves no trace: nothing is stored, counted, sent or asked of providers. Whether the id was
// used before is not looked at.
func (e *edge) postDryRun(w http.ResponseWriter, r *http.Request, m *member) error {
	if err := e.admit(); err != nil {
		return err
	}
	body, err := readBody(w, r)
	if err != nil {
		return err
	}
	now := e.Clock.Now()
	tx, err := txn.Decode(body, now)
	if err != nil {
		return err
	}
	box, err := e.Keys.Box(m.Tenant)
	if err != nil {
		return fmt.Errorf("keys of %s: %w", m.Tenant, err)
	}
	claim, err := claimOf(box, m.tenant, tx, now)
	if err != nil {
		return err
	}
	s, err := claim.Submitted()
	if err != nil {
		return err
	}
	s.TimeZone = m.tenant.TimeZone
	scored := e.DryRun(r.Context(), []event.Submitted{s})[0]
	d := event.Decided{Scored: scored, DecidedAt: txn.At(e.Clock.Now())}
	return answer(w, http.StatusOK, &dryRun{d.Public(), true})
}
