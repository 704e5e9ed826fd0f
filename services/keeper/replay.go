package keeper

import (
	"context"
	"errors"
	"slices"
	"time"

	"crivo/pkg/txn"
	"crivo/services/store"
)

// Replays are the tasks that send an endpoint's webhooks once more.
type Replays interface {
	Replays(ctx context.Context) ([]store.Replay, error)
	// PutReplay replaces the one that stands in r's version; store.ErrChanged where another stands.
	PutReplay(ctx context.Context, r store.Replay) error
	Endpoints(ctx context.Context) ([]store.Endpoint, error)
}

// Outbox is where webhooks are found and asked for once more.
type Outbox interface {
	Between(ctx context.Context, q store.Span) ([]store.Delivery, error)
	Resend(ctx context.Context, r store.Resend) error
}

// replayAtOnce is how many webhooks one look asks for, of all replays together: at the usual looks a hundred a second, so that those
// of new decisions come first and the keeper's other work has its turn.
const replayAtOnce = 50

// replay does a part of every replay under way.
func (k *keeper) replay(ctx context.Context) error {
	if k.Replays == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*storeTry)
	defer cancel()
	all, err := k.Replays.Replays(ctx)
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(r store.Replay) bool { return r.Status != store.ReplayRunning })
	if len(all) == 0 {
		return nil
	}
	endpoints, err := k.Replays.Endpoints(ctx)
	if err != nil {
		return err
	}
	for _, r := range all {
		err = errors.Join(err, k.replayPart(ctx, r, endpoints, max(1, replayAtOnce/len(all))))
	}
	return err
}

// replayPart goes on with one replay. Where it got to is written after its webhooks are asked for: who repeats a part, after a
// death in between, finds the replay's name on them and only counts.
func (k *keeper) replayPart(ctx context.Context, r store.Replay, endpoints []store.Endpoint, most int) error {
	now := txn.At(k.Clock.Now())
	reachable := slices.ContainsFunc(endpoints, func(e store.Endpoint) bool {
		return e.Tenant == r.Tenant && e.ID == r.EndpointID && e.Status != "disabled"
	})
	if !reachable {
		r.Status, r.EndedAt = store.ReplayCancelled, &now
		return k.saveReplay(ctx, r)
	}
	rows, err := k.Outbox.Between(ctx, store.Span{Tenant: r.Tenant, EndpointID: r.EndpointID, From: r.LastAt.Time, To: earlier(r.To, r.CreatedAt),
		After: r.LastID, Limit: most})
	if err != nil {
		return err
	}
	for _, row := range rows {
		if err = k.replayRow(ctx, &r, row); err != nil {
			break
		}
		r.LastAt, r.LastID = txn.At(row.CreatedAt), row.ID
	}
	if err == nil && len(rows) < most {
		r.Status, r.EndedAt = store.ReplayDone, &now
	}
	return errors.Join(err, k.saveReplay(ctx, r))
}

// replayRow asks for one webhook. One that is under way, or asked for already, is not asked for again; tests are no news.
func (k *keeper) replayRow(ctx context.Context, r *store.Replay, row store.Delivery) error {
	switch {
	case row.Replay == r.ID: // by a keeper that died
		r.Matched, r.Enqueued = r.Matched+1, r.Enqueued+1
		return nil
	case row.Type == store.TestEvent || r.Only != "" && r.Only != row.Status:
		return nil
	}
	err := k.Outbox.Resend(ctx, store.Resend{Tenant: r.Tenant, ID: row.ID, Trigger: store.Again, Replay: r.ID, At: k.Clock.Now()})
	switch {
	case err == nil:
		r.Enqueued++
	case errors.Is(err, store.ErrNotFound): // forgotten meanwhile
		return nil
	case !errors.Is(err, store.ErrChanged):
		return err
	}
	r.Matched++
	return nil
}

// saveReplay writes how far a replay got. To one that was cancelled meanwhile only the counts are added; one that was replaced
// since is nobody's any more.
func (k *keeper) saveReplay(ctx context.Context, r store.Replay) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTry)
	defer cancel()
	err := k.Replays.PutReplay(ctx, r)
	if !errors.Is(err, store.ErrChanged) {
		return err
	}
	all, err := k.Replays.Replays(ctx)
	if err != nil {
		return err
	}
	for _, stands := range all {
		if stands.ID == r.ID && stands.Status == store.ReplayCancelled {
			stands.Matched, stands.Enqueued = max(r.Matched, stands.Matched), max(r.Enqueued, stands.Enqueued)
			return k.Replays.PutReplay(ctx, stands)
		}
	}
	return nil
}

func earlier(a, b txn.Time) time.Time {
	if b.Before(a.Time) {
		return b.Time
	}
	return a.Time
}
