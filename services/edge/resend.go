package edge

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"crivo/pkg/txn"
	"crivo/services/owed"
	"crivo/services/store"
)

// receiving returns one of a tenant's endpoints that webhooks are sent to.
func (e *edge) receiving(ctx context.Context, tenant, id string) (store.Endpoint, error) {
	x, err := e.endpoint(ctx, tenant, id)
	if err == nil && x.Status != "active" {
		err = errNotActive
	}
	return x, err
}

// testEndpoint owes an endpoint one test event, whatever its filter lets through.
func (e *edge) testEndpoint(w http.ResponseWriter, r *http.Request, m *member) error {
	x, err := e.receiving(r.Context(), m.Tenant, pathID(r))
	if err != nil {
		return err
	}
	now := txn.At(e.Clock.Now())
	body, err := owed.Envelope(store.TestEvent, now, map[string]string{"endpoint_id": x.ID})
	if err != nil {
		return err
	}
	made := store.Delivery{ID: "dlv_" + rand.Text(), Tenant: m.Tenant, EndpointID: x.ID, WebhookID: "msg_" + strings.ToLower(rand.Text() + rand.Text())[:32],
		Type: store.TestEvent, Body: body, Status: store.Pending, Trigger: store.Test, NextAttemptAt: now.Time, CreatedAt: now.Time, LeasedUntil: time.UnixMilli(0)}
	if err := e.record(r.Context(), m, "endpoint.test", x.ID, map[string]any{"delivery": made.ID}); err != nil {
		return err
	}
	if _, err := e.Deliveries.Insert(r.Context(), []store.Delivery{made}); err != nil {
		return fmt.Errorf("%w: %w", errStore, err)
	}
	return answerOwed(w, made)
}

// answerOwed answers with a delivery that is about to be tried.
func answerOwed(w http.ResponseWriter, d store.Delivery) error {
	out := shownDelivery(d)
	w.Header().Set("Location", "/v1/deliveries/"+d.ID)
	return answer(w, http.StatusAccepted, &out)
}

// resendDelivery asks for one more attempt of a delivery, whatever became of it.
func (e *edge) resendDelivery(w http.ResponseWriter, r *http.Request, m *member) error {
	d, err := e.Deliveries.Get(r.Context(), m.Tenant, pathID(r))
	if err != nil {
		return missing(err)
	}
	if _, err = e.receiving(r.Context(), m.Tenant, d.EndpointID); errors.Is(err, store.ErrNotFound) {
		return errEndpointGone
	}
	if err != nil {
		return err
	}
	if err := e.record(r.Context(), m, "delivery.resend", d.ID, map[string]any{"endpoint": d.EndpointID, "status": d.Status}); err != nil {
		return err
	}
	err = e.Deliveries.Resend(r.Context(), store.Resend{Tenant: m.Tenant, ID: d.ID, Trigger: store.Manual, At: e.Clock.Now()})
	if errors.Is(err, store.ErrChanged) {
		return errUnderWay
	}
	if err == nil {
		d, err = e.Deliveries.Get(r.Context(), m.Tenant, d.ID)
	}
	if err != nil {
		return missing(err)
	}
	return answerOwed(w, d)
}

// replayAnswer is a replay as clients see it.
type replayAnswer struct {
	ID         string    `json:"id"`
	EndpointID string    `json:"endpoint_id"`
	Status     string    `json:"status"`
	From       txn.Time  `json:"from"`
	To         txn.Time  `json:"to"`
	Only       string    `json:"only,omitzero"`
	Matched    int       `json:"matched"`
	Enqueued   int       `json:"enqueued"`
	CreatedAt  txn.Time  `json:"created_at"`
	EndedAt    *txn.Time `json:"ended_at,omitzero"`
}

func answerReplay(w http.ResponseWriter, status int, r store.Replay) error {
	return answer(w, status, &replayAnswer{r.ID, r.EndpointID, r.Status, r.From, r.To, r.Only, r.Matched, r.Enqueued, r.CreatedAt, r.EndedAt})
}

// replay returns an endpoint's last replay or store.ErrNotFound.
func (e *edge) replay(ctx context.Context, tenant, endpoint string) (store.Replay, error) {
	all, err := e.Registry.Replays(ctx)
	if err != nil {
		return store.Replay{}, fmt.Errorf("%w: %w", errStore, err)
	}
	if i := slices.IndexFunc(all, func(x store.Replay) bool { return x.Tenant == tenant && x.EndpointID == endpoint }); i >= 0 {
		return all[i], nil
	}
	return store.Replay{}, store.ErrNotFound
}

// postReplay makes a task of which the keeper does a part every moment. The same wish while it runs is the same task.
func (e *edge) postReplay(w http.ResponseWriter, r *http.Request, m *member) error {
	wish, err := e.replayWish(w, r)
	if err != nil {
		return err
	}
	x, err := e.receiving(r.Context(), m.Tenant, pathID(r))
	if err != nil {
		return err
	}
	wish.Tenant, wish.EndpointID = m.Tenant, x.ID
	for recorded := false; ; recorded = true {
		last, err := e.replay(r.Context(), m.Tenant, x.ID)
		switch {
		case err != nil && !errors.Is(err, store.ErrNotFound):
			return err
		case last.Status == store.ReplayRunning && sameReplay(last, wish):
			wish = last
		case last.Status == store.ReplayRunning:
			return errReplaying
		}
		if wish.ID != last.ID {
			if !recorded {
				err = e.record(r.Context(), m, "endpoint.replay", x.ID, map[string]any{"replay": wish.ID, "from": wish.From, "to": wish.To, "only": wish.Only})
				if err != nil {
					return err
				}
			}
			wish.Version = last.Version
			if err = e.Registry.PutReplay(r.Context(), wish); errors.Is(err, store.ErrChanged) {
				continue
			}
			if err != nil {
				return fmt.Errorf("%w: %w", errStore, err)
			}
		}
		w.Header().Set("Location", "/v1/webhook-endpoints/"+x.ID+"/replay")
		return answerReplay(w, http.StatusAccepted, wish)
	}
}

// sameReplay tells whether two wishes are one. No replay sends what was made after it was asked for: those without an end before that
// have the same.
func sameReplay(a, b store.Replay) bool {
	toNow := !a.To.Before(a.CreatedAt.Time) && !b.To.Before(b.CreatedAt.Time)
	return a.From.Equal(b.From.Time) && (toNow || a.To.Equal(b.To.Time)) && a.Only == b.Only
}

func (e *edge) replayWish(w http.ResponseWriter, r *http.Request) (store.Replay, error) {
	var from, to *txn.Time
	var only string
	if err := (members{"from": &from, "to": &to, "only": &only}).read(w, r); err != nil {
		return store.Replay{}, err
	}
	now := txn.At(e.Clock.Now())
	if to == nil {
		to = &now
	}
	var faults txn.Faults
	if from == nil {
		faults = append(faults, txn.Fault{Pointer: "/from", Code: txn.Required, Detail: "is required"})
	} else if !from.Before(to.Time) {
		faults = append(faults, txn.Fault{Pointer: "/to", Code: txn.OutOfRange, Detail: "must be after from"})
	}
	if only != "" && !slices.Contains(store.DeliveryStates, only) {
		faults = append(faults, txn.Fault{Pointer: "/only", Code: txn.WrongFormat, Detail: "one of " + strings.Join(store.DeliveryStates, ", ")})
	}
	if len(faults) > 0 {
		return store.Replay{}, faults
	}
	return store.Replay{ID: "rpl_" + rand.Text(), Status: store.ReplayRunning, From: *from, To: *to, Only: only, CreatedAt: now, LastAt: *from}, nil
}

func (e *edge) getReplay(w http.ResponseWriter, r *http.Request, m *member) error {
	x, err := e.replay(r.Context(), m.Tenant, pathID(r))
	if err != nil {
		return err
	}
	return answerReplay(w, http.StatusOK, x)
}

// cancelReplay ends the task; what it enqueued goes out.
func (e *edge) cancelReplay(w http.ResponseWriter, r *http.Request, m *member) error {
	for recorded := false; ; recorded = true {
		x, err := e.replay(r.Context(), m.Tenant, pathID(r))
		if err != nil {
			return err
		}
		if x.Status != store.ReplayRunning {
			return errReplayEnded
		}
		if !recorded {
			if err := e.record(r.Context(), m, "endpoint.replay_cancel", x.EndpointID, map[string]any{"replay": x.ID}); err != nil {
				return err
			}
		}
		now := txn.At(e.Clock.Now())
		x.Status, x.EndedAt = store.ReplayCancelled, &now
		if err = e.Registry.PutReplay(r.Context(), x); errors.Is(err, store.ErrChanged) {
			continue
		}
		if err != nil {
			return fmt.Errorf("%w: %w", errStore, err)
		}
		return answerReplay(w, http.StatusOK, x)
	}
}
