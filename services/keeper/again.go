package keeper

import (
	"context"
	"errors"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go/jetstream"

	"crivo/pkg/stage"
	"crivo/pkg/txn"
	"crivo/services/store"
	"crivo/streams"
)

// heard is up to when decisions have been announced in a TX_DECIDED and taken up by notify.
type heard struct {
	Created txn.Time `json:"created"` // the stream
	Until   txn.Time `json:"until"`
}

const (
	heardState = "keeper/heard"
	// noteEvery is how far the place moves before it is written again.
	noteEvery = 30 * time.Second
	// before is how much earlier than the place transactions may have been accepted whose decision nobody heard of: acceptance,
	// decision and announcement are some time apart, more so when something was down.
	before   = 5 * time.Minute
	tellPage = 256
)

// tellAgain announces decisions again when TX_DECIDED is another stream than before: the broker lost its disk, and with it
// announcements that notify had not taken up, or that persist was about to make. Who heard of them knows them by their
// transaction. In any other round it notes how far notify has come.
func (k *keeper) tellAgain(ctx context.Context) error {
	if k.State == nil {
		return nil
	}
	place, until, err := k.heardUntil(ctx)
	if err != nil {
		return err
	}
	last, known, err := k.lastHeard(ctx)
	if err != nil {
		return err
	}
	if known && !last.Created.Equal(place.Time) {
		k.Log.Warn().Time("since", last.Until.Add(-before)).Msg("the stream of decisions is a new one: what may not have been heard of is announced again")
		if err := k.announceSince(ctx, last.Until.Add(-before)); err != nil {
			return err
		}
		k.heard = nil
	} else if known && until.Before(last.Until.Add(noteEvery)) {
		return nil
	}
	next := heard{place, txn.At(until)}
	data, err := json.Marshal(&next)
	if err != nil {
		return err
	}
	if err := k.State.PutState(ctx, heardState, data); err != nil {
		return err
	}
	k.heard = &next
	return nil
}

// lastHeard reads what was noted, once.
func (k *keeper) lastHeard(ctx context.Context) (last heard, known bool, err error) {
	if k.heard != nil {
		return *k.heard, true, nil
	}
	data, err := k.State.State(ctx, heardState)
	if errors.Is(err, store.ErrNotFound) {
		return last, false, nil
	}
	if err != nil {
		return last, false, err
	}
	if json.Unmarshal(data, &last) != nil {
		return last, false, nil // a later version's: it is written anew
	}
	k.heard = &last
	return last, true, nil
}

// heardUntil returns when TX_DECIDED was made, and a time before which whatever was decided has been announced and taken up: that
// of the oldest verdict that persist, and of the oldest decision that notify has not acknowledged.
func (k *keeper) heardUntil(ctx context.Context) (created txn.Time, until time.Time, err error) {
	until = k.Clock.Now()
	for _, spec := range []stage.Spec{streams.Persist, streams.Notify} {
		info, stream, err := k.info(ctx, spec.Stream)
		if err != nil {
			return created, until, err
		}
		if spec.Stream == streams.Decided {
			created = txn.At(info.Created)
		}
		consumer, err := stream.Consumer(ctx, spec.Durable)
		if err != nil {
			return created, until, err
		}
		at := consumer.CachedInfo()
		if at.NumPending == 0 && at.NumAckPending == 0 {
			continue
		}
		oldest, err := stream.GetMsg(ctx, at.AckFloor.Stream+1, jetstream.WithGetMsgSubject("tx.>"))
		switch {
		case errors.Is(err, jetstream.ErrMsgNotFound):
		case err != nil:
			return created, until, err
		case oldest.Time.Before(until):
			until = oldest.Time
		}
	}
	return created, until, nil
}

// announceSince publishes again every decision on a transaction that was accepted since then.
func (k *keeper) announceSince(ctx context.Context, since time.Time) error {
	tenants, err := k.Tenants(ctx)
	if err != nil {
		return err
	}
	for _, t := range tenants {
		for cursor, first := "", true; first || cursor != ""; first = false {
			var page []store.Found
			if page, cursor, err = k.Transactions.Search(ctx, store.Query{Tenant: t.ID, From: since, Oldest: true, Newest: true, Limit: tellPage, Cursor: cursor}); err != nil {
				return err
			}
			outputs := make([]stage.Output, len(page))
			for i, e := range page {
				outputs[i] = streams.Message(ident(e.Entry, e.Deadline), streams.EventDecided, e.Event)
			}
			if err := k.publish(ctx, outputs); err != nil {
				return err
			}
			k.metrics.found("decision announced", len(page))
		}
	}
	return nil
}
