package mongo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"crivo/services/store"
)

// Deliveries holds the webhooks that are owed in one collection.
type Deliveries struct {
	c    *mongo.Collection
	keep time.Duration
	now  func() time.Time
}

// delivery is one row. Its _id is "tenant/endpoint/webhook", so a webhook is owed once whatever indexes there are.
type delivery struct {
	Key           string        `bson:"_id"`
	Number        bson.ObjectID `bson:"number"` // grows within a process: pages go by it
	ID            string        `bson:"id"`
	Tenant        string        `bson:"tenant"`
	Endpoint      string        `bson:"endpoint"`
	Transaction   string        `bson:"transaction"`
	Webhook       string        `bson:"webhook"`
	Type          string        `bson:"type"`
	Body          []byte        `bson:"body"`
	Status        string        `bson:"status" schema:"one of=pending delivered exhausted skipped cancelled"`
	Attempts      string        `bson:"attempts"` // JSON: it is only read whole
	NextAttemptAt time.Time     `bson:"next_attempt_at"`
	LeasedUntil   time.Time     `bson:"leased_until"`
	DueAt         time.Time     `bson:"due_at"` // the later of the two: when a pending row can be leased
	Call          bson.ObjectID `bson:"call,omitempty"`
	CreatedAt     time.Time     `bson:"created_at"`
	ExpireAt      time.Time     `bson:"expire_at,omitempty"` // once it is no longer pending
	Asked         string        `bson:"asked,omitempty"`     // trigger of the next attempt
	Was           string        `bson:"was,omitempty"`
	Replay        string        `bson:"replay,omitempty"`
}

// statuses are all that a row can have; a query that asks for any of them walks one index all the same.
var statuses = bson.A{store.Pending, store.Delivered, store.Exhausted, store.Skipped, store.Cancelled}

var pending = bson.E{Key: "status", Value: store.Pending}

func deliveryKey(r store.Delivery) string { return r.Tenant + "/" + r.EndpointID + "/" + r.WebhookID }

func dueAt(r store.Delivery) time.Time {
	if r.LeasedUntil.After(r.NextAttemptAt) {
		return r.LeasedUntil
	}
	return r.NextAttemptAt
}

func (d *Deliveries) row(r store.Delivery) (delivery, error) {
	attempts, err := json.Marshal(r.Attempts)
	out := delivery{Key: deliveryKey(r), Number: bson.NewObjectID(), ID: r.ID, Tenant: r.Tenant, Endpoint: r.EndpointID, Transaction: r.TransactionID,
		Webhook: r.WebhookID, Type: r.Type, Body: r.Body, Status: r.Status, Attempts: string(attempts), NextAttemptAt: r.NextAttemptAt,
		LeasedUntil: r.LeasedUntil, DueAt: dueAt(r), CreatedAt: r.CreatedAt, Asked: r.Trigger}
	if r.Body == nil {
		out.Body = []byte{}
	}
	if r.Status != store.Pending {
		out.ExpireAt = d.now().Add(d.keep)
	}
	return out, err
}

func (x delivery) delivery() (store.Delivery, error) {
	out := store.Delivery{ID: x.ID, Tenant: x.Tenant, EndpointID: x.Endpoint, TransactionID: x.Transaction, WebhookID: x.Webhook, Type: x.Type,
		Body: x.Body, Status: x.Status, NextAttemptAt: x.NextAttemptAt.UTC(), LeasedUntil: x.LeasedUntil.UTC(), CreatedAt: x.CreatedAt.UTC(),
		Trigger: x.Asked, Was: x.Was, Replay: x.Replay}
	if err := json.Unmarshal([]byte(x.Attempts), &out.Attempts); err != nil {
		return out, fmt.Errorf("delivery %s: attempts unreadable", x.ID)
	}
	return out, nil
}

func rows(found []delivery) ([]store.Delivery, error) {
	out := make([]store.Delivery, len(found))
	for i, x := range found {
		var err error
		if out[i], err = x.delivery(); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Insert adds rows that are absent.
func (d *Deliveries) Insert(ctx context.Context, added []store.Delivery) ([]bool, error) {
	writes := make([]write, len(added))
	for i, r := range added {
		x, err := d.row(r)
		if err != nil {
			return nil, fmt.Errorf("insert deliveries: %w", err)
		}
		writes[i] = insert(x)
	}
	verdicts, _, err := bulk(ctx, d.c, writes)
	if err != nil {
		return nil, failed("insert deliveries", err)
	}
	out := make([]bool, len(added))
	for i, err := range verdicts {
		if err != nil && !errors.Is(err, errDuplicate) {
			return nil, failed("insert deliveries", err)
		}
		out[i] = err == nil
	}
	return out, nil
}

// Lease takes pending rows that are due and free. Other processes look for the same ones: each row goes to the call whose guarded
// update was first, and a call that lost all it saw looks again.
func (d *Deliveries) Lease(ctx context.Context, endpoint string, now, until time.Time, limit int) ([]store.Delivery, error) {
	from := bson.E{Key: "endpoint", Value: endpoint}
	if endpoint == "" {
		from.Value = anyEndpoint
	}
	for pause := firstPause; ; pause = min(2*pause, mostPause) {
		seen, err := find[delivery](ctx, d.c, bson.D{pending, from, due(now)}, limit,
			options.Find().SetProjection(bson.D{{Key: "_id", Value: 1}}).SetSort(up("due_at")).SetLimit(int64(limit)))
		if err != nil {
			return nil, failed("lease", err)
		}
		if len(seen) == 0 {
			return nil, nil
		}
		won, err := d.take(ctx, seen, now, until)
		if err != nil {
			return nil, failed("lease", err)
		}
		if len(won) > 0 {
			return rows(won)
		}
		if err := sleep(ctx, pause); err != nil {
			return nil, failed("lease", err)
		}
	}
}

var anyEndpoint = bson.D{{Key: "$gt", Value: ""}}

func due(now time.Time) bson.E {
	return bson.E{Key: "due_at", Value: bson.D{{Key: "$lte", Value: now}}}
}

// take leases rows and returns those that it won as they are, earliest attempt first. They are read after the lease: what another
// process did to a row before is in it.
func (d *Deliveries) take(ctx context.Context, seen []delivery, now, until time.Time) ([]delivery, error) {
	call := bson.NewObjectID()
	lease := bson.D{{Key: "leased_until", Value: until}, {Key: "due_at", Value: until}, {Key: "call", Value: call}}
	writes, ids := make([]write, len(seen)), make(bson.A, len(seen))
	for i, x := range seen {
		writes[i], ids[i] = update(bson.D{byID(x.Key), pending, due(now)}, lease), x.Key
	}
	verdicts, _, err := bulk(ctx, d.c, writes)
	if err = errors.Join(append(verdicts, err)...); err != nil {
		return nil, err
	}
	won, err := find[delivery](ctx, d.c, append(in("_id", ids), bson.E{Key: "call", Value: call}), len(ids), options.Find())
	if err != nil {
		return nil, err
	}
	// Cancelled since: nobody's any more.
	won = slices.DeleteFunc(won, func(x delivery) bool { return x.Status != store.Pending })
	slices.SortStableFunc(won, func(a, b delivery) int { return a.NextAttemptAt.Compare(b.NextAttemptAt) })
	return won, nil
}

// DueEndpoints names endpoints that have rows to lease. The index is walked from endpoint to endpoint.
func (d *Deliveries) DueEndpoints(ctx context.Context, now time.Time) ([]string, error) {
	var out []string
	if err := d.c.Distinct(ctx, "endpoint", bson.D{pending, {Key: "endpoint", Value: anyEndpoint}, due(now)}).Decode(&out); err != nil {
		return nil, failed("due endpoints", err)
	}
	return out, nil
}

// state is what changes in a row.
type state struct {
	Status        string        `bson:"status"`
	Attempts      string        `bson:"attempts"`
	NextAttemptAt bson.DateTime `bson:"next_attempt_at"`
	LeasedUntil   bson.DateTime `bson:"leased_until"`
	DueAt         bson.DateTime `bson:"due_at"`
	ExpireAt      time.Time     `bson:"expire_at,omitempty"`
	Asked         string        `bson:"asked"`
	Was           string        `bson:"was"`
}

// Update writes rows back.
func (d *Deliveries) Update(ctx context.Context, changed []store.Delivery) error {
	writes := make([]write, len(changed))
	for i, r := range changed {
		attempts, err := json.Marshal(r.Attempts)
		if err != nil {
			return fmt.Errorf("update deliveries: %w", err)
		}
		s := state{r.Status, string(attempts), bson.NewDateTimeFromTime(r.NextAttemptAt), bson.NewDateTimeFromTime(r.LeasedUntil),
			bson.NewDateTimeFromTime(dueAt(r)), time.Time{}, r.Trigger, r.Was}
		row := bson.D{byID(deliveryKey(r)), {Key: "id", Value: r.ID}}
		if !r.Held.IsZero() {
			row = append(row, bson.E{Key: "leased_until", Value: r.Held})
		}
		if r.Status == store.Pending {
			writes[i] = update(row, s, "expire_at")
			continue
		}
		s.ExpireAt = d.now().Add(d.keep)
		writes[i] = update(row, s)
	}
	verdicts, _, err := bulk(ctx, d.c, writes)
	if err = errors.Join(append(verdicts, err)...); err != nil {
		return failed("update deliveries", err)
	}
	return nil
}

// Cancel ends every pending row of an endpoint.
func (d *Deliveries) Cancel(ctx context.Context, tenant, endpoint, status string) (int, error) {
	res, err := d.c.UpdateMany(ctx, bson.D{{Key: "tenant", Value: tenant}, {Key: "endpoint", Value: endpoint}, pending},
		bson.D{{Key: "$set", Value: bson.D{{Key: "status", Value: status}, {Key: "expire_at", Value: d.now().Add(d.keep)}}},
			without([]string{"asked", "was"})})
	if err != nil {
		return 0, failed("cancel", err)
	}
	return int(res.ModifiedCount), nil
}

// Get returns one row of a tenant.
func (d *Deliveries) Get(ctx context.Context, tenant, id string) (store.Delivery, error) {
	var x delivery
	err := d.c.FindOne(ctx, bson.D{{Key: "id", Value: id}, {Key: "tenant", Value: tenant}}).Decode(&x)
	switch {
	case errors.Is(err, mongo.ErrNoDocuments):
		return store.Delivery{}, store.ErrNotFound
	case err != nil:
		return store.Delivery{}, failed("get delivery", err)
	}
	return x.delivery()
}

// Resend makes a row due for one more attempt. What it was is read first; the update holds only where it still is.
func (d *Deliveries) Resend(ctx context.Context, r store.Resend) error {
	for pause := firstPause; ; pause = min(2*pause, mostPause) {
		seen, err := d.Get(ctx, r.Tenant, r.ID)
		if err != nil {
			return err
		}
		if seen.Trigger != "" || seen.LeasedUntil.After(r.At) || r.Replay != "" && seen.Replay == r.Replay {
			return store.ErrChanged
		}
		res, err := d.c.UpdateOne(ctx, bson.D{byID(deliveryKey(seen)), {Key: "id", Value: r.ID}, {Key: "status", Value: seen.Status},
			{Key: "asked", Value: bson.D{{Key: "$in", Value: bson.A{nil, ""}}}}, {Key: "leased_until", Value: bson.D{{Key: "$lte", Value: r.At}}}}, resent(seen, r))
		switch {
		case err != nil:
			return failed("resend", err)
		case res.MatchedCount > 0:
			return nil
		}
		if err := sleep(ctx, pause); err != nil {
			return failed("resend", err)
		}
	}
}

func resent(seen store.Delivery, r store.Resend) bson.D {
	set := bson.D{{Key: "status", Value: store.Pending}, {Key: "asked", Value: r.Trigger}, {Key: "was", Value: seen.Status},
		{Key: "next_attempt_at", Value: r.At}, {Key: "due_at", Value: r.At},
		{Key: "leased_until", Value: time.UnixMilli(0)}}
	if r.Replay != "" {
		set = append(set, bson.E{Key: "replay", Value: r.Replay})
	}
	return bson.D{{Key: "$set", Value: set}, without([]string{"expire_at"})}
}

// Between returns rows by when they were made.
func (d *Deliveries) Between(ctx context.Context, q store.Span) ([]store.Delivery, error) {
	filter := bson.D{{Key: "tenant", Value: q.Tenant}, {Key: "endpoint", Value: q.EndpointID},
		{Key: "created_at", Value: bson.D{{Key: "$gte", Value: q.From}, {Key: "$lt", Value: q.To}}}}
	if q.After != "" {
		// The condition before bounds the walk of the index; this one leaves out those of the same millisecond that were seen.
		filter = append(filter, bson.E{Key: "$or", Value: bson.A{bson.D{{Key: "created_at", Value: bson.D{{Key: "$gt", Value: q.From}}}},
			bson.D{{Key: "id", Value: bson.D{{Key: "$gt", Value: q.After}}}}}})
	}
	found, err := find[delivery](ctx, d.c, filter, q.Limit, options.Find().SetSort(up("created_at", "id")).SetLimit(int64(q.Limit)))
	if err != nil {
		return nil, failed("deliveries between", err)
	}
	return rows(found)
}

// List returns one page, newest first; the cursor is the last row's number.
func (d *Deliveries) List(ctx context.Context, q store.DeliveryQuery) ([]store.Delivery, string, error) {
	filter, err := page(q)
	if err != nil {
		return nil, "", err
	}
	found, err := find[delivery](ctx, d.c, filter, q.Limit+1, options.Find().SetSort(down("number")).SetLimit(int64(q.Limit)+1))
	if err != nil {
		return nil, "", failed("list deliveries", err)
	}
	next := ""
	if len(found) > q.Limit {
		found = found[:q.Limit]
		next = found[q.Limit-1].Number.Hex()
	}
	out, err := rows(found)
	return out, next, err
}

func page(q store.DeliveryQuery) (bson.D, error) {
	filter := bson.D{{Key: "tenant", Value: q.Tenant}}
	for _, f := range []struct{ name, value string }{{"endpoint", q.EndpointID}, {"transaction", q.TransactionID}, {"status", q.Status}} {
		if f.value != "" {
			filter = append(filter, bson.E{Key: f.name, Value: f.value})
		}
	}
	if q.Status == "" && q.TransactionID == "" {
		filter = append(filter, in("status", statuses)...)
	}
	if q.Cursor != "" {
		number, err := bson.ObjectIDFromHex(q.Cursor)
		if err != nil {
			return nil, store.ErrCursor
		}
		filter = append(filter, bson.E{Key: "number", Value: bson.D{{Key: "$lt", Value: number}}})
	}
	return filter, nil
}
