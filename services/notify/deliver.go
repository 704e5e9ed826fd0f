package notify

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"

	"crivo/pkg/failpoint"
	"crivo/pkg/txn"
	"crivo/pkg/webhook"
	"crivo/services/owed"
	"crivo/services/store"
	"crivo/streams"
)

// deliver makes one attempt and writes what came of it; probing is what stands of the breaker while the attempt is its probe.
func (n *notifier) deliver(e store.Endpoint, row store.Delivery, probing store.Breaker) {
	now := n.Clock.Now()
	if !n.inTime(row) {
		return // another may hold it by the time of the answer. The lease runs out, then it is due again
	}
	res := n.attempt(e, row, now)
	if n.hard.Err() != nil && res.status == 0 {
		return // cut off by the shutdown: not the receiver's fault, the lease runs out
	}
	row = n.standing(n.after(row, res, now))
	n.metrics.attempted(row, res)
	bounded, cancel := context.WithTimeout(context.WithoutCancel(n.hard), writeTime)
	defer cancel()
	if last := row.Attempts[len(row.Attempts)-1]; row.Status == store.Exhausted && row.TransactionID != "" && last.Trigger != store.Manual {
		// Before the row is written: told twice is one event, told never would be none.
		if n.tell(bounded, e, owed.TypeExhausted, fmt.Sprint(row.ID, "/", last.Number), aboutDelivery{e.ID, row.ID, row.TransactionID, last.Number}) != nil {
			return // the lease runs out, then it is due again
		}
	}
	if _, err := n.updates.Do(bounded, row, errFull); err != nil {
		n.Log.Warn().Err(err).Msg("delivery row cannot be written, it will be tried again")
	}
	if res.status == http.StatusGone {
		n.disable(e, causeGone, row.ID)
		return
	}
	if res.attempt.Error == unsigned && probing == (store.Breaker{}) {
		return // it says nothing of the receiver. A probe that could not be made is one that did not succeed
	}
	n.judged(bounded, e, res.status >= 200 && res.status < 300, probing)
}

// unsigned is the error of an attempt for which no signing secret could be opened.
const unsigned = "secret"

// attempt posts a row. Nothing is sent unsigned: that is a failed attempt like any other, so that the schedule ends it.
func (n *notifier) attempt(e store.Endpoint, row store.Delivery, now time.Time) outcome {
	secrets, err := n.secrets(e, now)
	if err != nil {
		n.Log.Error().Err(err).Str("endpoint", e.ID).Msg("no signing secret")
		return outcome{attempt: store.Attempt{Error: unsigned}}
	}
	res := n.client.post(n.hard, e, secrets, row, now)
	failpoint.Hit("notify", "sent")
	return res
}

// secrets returns those that sign now, one at least.
func (n *notifier) secrets(e store.Endpoint, now time.Time) ([]webhook.Secret, error) {
	box, err := n.Keys.Box(e.Tenant)
	if err != nil {
		return nil, err
	}
	secrets, err := e.OpenSecrets(box, now)
	if err == nil && len(secrets) == 0 {
		err = errors.New("none is valid now")
	}
	return secrets, err
}

// after is the row once an attempt ended: delivered, due again, skipped or exhausted.
func (n *notifier) after(row store.Delivery, res outcome, started time.Time) store.Delivery {
	a := numbered(row, res.attempt)
	a.StartedAt = txn.At(started)
	now := n.Clock.Now()
	switch tried := tries(append(slices.Clone(row.Attempts), a)); {
	case res.status >= 200 && res.status < 300:
		row.Status = store.Delivered
	case res.status == http.StatusGone:
		row.Status = store.Skipped
	case a.Trigger == store.Manual:
		if row.Status, row.NextAttemptAt = asBefore(row); row.Status == store.Pending {
			a.NextAttemptAt = new(txn.At(row.NextAttemptAt))
		}
	case a.Trigger == store.Test, tried >= len(n.Schedule):
		row.Status = store.Exhausted
	default:
		row.NextAttemptAt = now.Add(pause(n.Schedule[tried], res.retryAfter))
		next := txn.At(row.NextAttemptAt)
		a.NextAttemptAt = &next
	}
	row = letGo(row)
	row.Trigger, row.Was = "", ""
	row.Attempts = append(row.Attempts, a)
	row.Attempts = row.Attempts[max(0, len(row.Attempts)-mostAttempts):]
	return row
}

// standing is a row as it stands after an attempt. Where its endpoint went meanwhile it ends as those did that waited.
func (n *notifier) standing(row store.Delivery) store.Delivery {
	e, ok := (*n.endpoints.Load())[row.EndpointID]
	switch {
	case row.Status != store.Pending:
		return row
	case !ok:
		row.Status = store.Cancelled
	case e.Status == "disabled":
		row.Status = store.Skipped
	default:
		return row
	}
	row.Attempts[len(row.Attempts)-1].NextAttemptAt = nil
	return row
}

// pause is the schedule's, with 20 % of jitter either way, or longer where the receiver asked for it.
func pause(scheduled, asked time.Duration) time.Duration {
	jittered := time.Duration(float64(scheduled) * (0.8 + 0.4*rand.Float64()))
	return max(jittered, asked)
}

// disable stops an endpoint whose receiver is gone for good. What the operator changed since the attempt began stands. The same
// key is told once.
func (n *notifier) disable(e store.Endpoint, cause, key string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(n.hard), 5*time.Second)
	defer cancel()
	n.disabling.Lock()
	defer n.disabling.Unlock()
	if err := n.disableNow(ctx, e, cause, key); err != nil {
		n.Log.Error().Err(err).Str("endpoint", e.ID).Msg("endpoint cannot be disabled")
	}
}

func (n *notifier) disableNow(ctx context.Context, tried store.Endpoint, cause, key string) error {
	for recorded := false; ; recorded = true {
		if err := n.reload(ctx); err != nil {
			return err
		}
		e, ok := (*n.endpoints.Load())[tried.ID]
		if !ok || e.Status == "disabled" || e.URL != tried.URL {
			return nil
		}
		if !recorded {
			err := n.Audit(ctx, store.Act{At: txn.At(n.Clock.Now()), Actor: "system", Tenant: e.Tenant, Action: "endpoint.disable", Target: e.ID,
				Detail: map[string]any{"cause": cause}})
			if err != nil {
				return err
			}
			if err := n.tell(ctx, e, owed.TypeDisabled, key, aboutEndpoint{e.ID, cause}); err != nil {
				return err
			}
		}
		e.Status = "disabled"
		switch err := n.Endpoints.ChangeEndpoint(ctx, e); {
		case errors.Is(err, store.ErrChanged):
			continue // by an operator: what that was stands
		case err != nil:
			return err
		}
		_ = streams.Changed(n.Conn, streams.TopicEndpoints)
		_ = n.reload(ctx)
		_, err := n.Deliveries.Cancel(ctx, e.Tenant, e.ID, store.Skipped)
		return err
	}
}
