package mongo

import (
	"context"
	"errors"
	"strings"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"crivo/services/store"
)

// Transactions is the transaction store in one collection.
type Transactions struct {
	c        *mongo.Collection
	searched *mongo.Collection
	meta     *mongo.Collection
	keep     time.Duration
}

// transaction is the document of one transaction: claimed, then completed with its decision. Its _id is "tenant/id", so a claim
// is won once whatever indexes there are.
type transaction struct {
	ID          string        `bson:"_id"`
	Tenant      string        `bson:"tenant"`
	Digest      string        `bson:"digest"`
	Run         int           `bson:"run" schema:"least=1"`
	ClaimedAt   time.Time     `bson:"claimed_at"`
	AcceptedAt  time.Time     `bson:"accepted_at"`
	Deadline    time.Time     `bson:"deadline"`
	Open        bool          `bson:"open,omitempty"` // there until it is decided; partial indexes can only ask for what is there
	Body        []byte        `bson:"body,omitempty"` // until it is decided: the event holds it
	Event       []byte        `bson:"event,omitempty"`
	Decision    string        `bson:"decision,omitempty" schema:"one of=approve review decline"`
	Reasons     []string      `bson:"reasons,omitempty"`
	Tokens      []string      `bson:"tokens,omitempty"` // of payer and payee, by which it is found
	DecidedAt   time.Time     `bson:"decided_at,omitempty"`
	Unannounced bool          `bson:"unannounced,omitempty"`
	Call        bson.ObjectID `bson:"call,omitempty"` // of Decide: which one made the decision
	ExpireAt    time.Time     `bson:"expire_at,omitempty"`
	Disposition string        `bson:"disposition,omitempty" schema:"one of=approved declined"` // of a review that was closed
	DisposedBy  string        `bson:"disposed_by,omitempty"`
	DisposedAt  time.Time     `bson:"disposed_at,omitempty"`
	Note        []byte        `bson:"note,omitempty"`
}

func idOf(k store.Key) string { return k.Tenant + "/" + k.ID }

func keyOf(id string) store.Key {
	tenant, rest, _ := strings.Cut(id, "/")
	return store.Key{Tenant: tenant, ID: rest}
}

func claimed(c store.Claim) transaction {
	return transaction{ID: idOf(c.Key), Tenant: c.Tenant, Digest: c.Digest, Run: c.Run, ClaimedAt: c.ClaimedAt, AcceptedAt: c.AcceptedAt,
		Deadline: c.Deadline, Open: true, Body: c.Body}
}

func (t transaction) entry() store.Entry {
	e := store.Entry{Claim: store.Claim{Key: keyOf(t.ID), Digest: t.Digest, Run: t.Run, ClaimedAt: t.ClaimedAt.UTC(), AcceptedAt: t.AcceptedAt.UTC(),
		Deadline: t.Deadline.UTC(), Body: t.Body}, Event: t.Event, DecidedAt: t.DecidedAt.UTC(), Unannounced: t.Unannounced}
	if t.Disposition != "" {
		e.Disposition = &store.Disposition{Outcome: t.Disposition, By: t.DisposedBy, At: t.DisposedAt.UTC(), Note: t.Note}
	}
	return e
}

func byID(id string) bson.E { return bson.E{Key: "_id", Value: id} }

var open = bson.E{Key: "open", Value: true}

// Claim inserts each document whose key is absent.
func (t *Transactions) Claim(ctx context.Context, claims []store.Claim) ([]store.Claimed, error) {
	out := make([]store.Claimed, len(claims))
	for _, group := range apart(len(claims), func(i int) store.Key { return claims[i].Key }) {
		if err := t.claim(ctx, claims, group, out); err != nil {
			return nil, failed("claim", err)
		}
	}
	return out, nil
}

// claim settles the claims at todo, no two of which have one key.
func (t *Transactions) claim(ctx context.Context, claims []store.Claim, todo []int, out []store.Claimed) error {
	for pause := firstPause; ; pause = min(2*pause, mostPause) {
		writes := make([]write, len(todo))
		for k, i := range todo {
			writes[k] = insert(claimed(claims[i]))
		}
		verdicts, _, err := bulk(ctx, t.c, writes)
		if err != nil {
			return err
		}
		var lost []int
		for k, i := range todo {
			switch err := verdicts[k]; {
			case err == nil:
				out[i] = store.Claimed{Won: true, Entry: store.Entry{Claim: claims[i]}}
			case errors.Is(err, errDuplicate):
				lost = append(lost, i)
			default:
				out[i] = store.Claimed{Err: err}
			}
		}
		found, err := t.read(ctx, lost, func(i int) store.Key { return claims[i].Key })
		if err != nil {
			return err
		}
		todo = todo[:0]
		for _, i := range lost {
			if x, ok := found[claims[i].Key]; ok {
				out[i] = store.Claimed{Entry: x.entry()}
			} else {
				todo = append(todo, i)
			}
		}
		if len(todo) == 0 {
			return nil
		}
		// Its winner is not yet known to a majority, or came to nothing in a change of primary.
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// What another process is writing is left alone for so long before it is looked at again.
const firstPause, mostPause = 2 * time.Millisecond, 50 * time.Millisecond

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// apart splits n items into groups in which every key is there once: the first of two for one key goes first.
func apart(n int, key func(i int) store.Key) [][]int {
	var groups [][]int
	times := make(map[store.Key]int, n)
	for i := range n {
		k := key(i)
		if times[k] == len(groups) {
			groups = append(groups, nil)
		}
		groups[times[k]] = append(groups[times[k]], i)
		times[k]++
	}
	return groups
}

// read returns the documents of the keys at some places, as a majority has them.
func (t *Transactions) read(ctx context.Context, some []int, key func(i int) store.Key) (map[store.Key]transaction, error) {
	out := make(map[store.Key]transaction, len(some))
	for len(some) > 0 {
		n := min(len(some), mostWrites)
		ids := make(bson.A, n)
		for k, i := range some[:n] {
			ids[k] = idOf(key(i))
		}
		found, err := find[transaction](ctx, t.c, in("_id", ids), n, options.Find())
		if err != nil {
			return nil, err
		}
		for _, x := range found {
			out[keyOf(x.ID)] = x
		}
		some = some[n:]
	}
	return out, nil
}

func in(field string, values bson.A) bson.D {
	return bson.D{{Key: field, Value: bson.D{{Key: "$in", Value: values}}}}
}

// Get returns one document or store.ErrNotFound.
func (t *Transactions) Get(ctx context.Context, key store.Key) (store.Entry, error) {
	var x transaction
	err := t.c.FindOne(ctx, bson.D{byID(idOf(key))}).Decode(&x)
	switch {
	case errors.Is(err, mongo.ErrNoDocuments):
		return store.Entry{}, store.ErrNotFound
	case err != nil:
		return store.Entry{}, failed("get", err)
	}
	return x.entry(), nil
}

// Raise starts another run of an undecided transaction. A repeat of one whose answer was lost may find its own run and return
// store.ErrChanged: the run is raised all the same.
func (t *Transactions) Raise(ctx context.Context, r store.Raise) (store.Entry, error) {
	return t.guarded(ctx, "raise", r.Key, bson.D{open, {Key: "run", Value: r.FromRun}},
		bson.D{{Key: "run", Value: r.FromRun + 1}, {Key: "accepted_at", Value: r.AcceptedAt}, {Key: "deadline", Value: r.Deadline}})
}

// Dispose closes a review where nobody has. As with Raise, a repeat may find what it did itself.
func (t *Transactions) Dispose(ctx context.Context, key store.Key, d store.Disposition) (store.Entry, error) {
	set := bson.D{{Key: "disposition", Value: d.Outcome}, {Key: "disposed_by", Value: d.By}, {Key: "disposed_at", Value: d.At}}
	if d.Note != nil {
		set = append(set, bson.E{Key: "note", Value: d.Note})
	}
	return t.guarded(ctx, "dispose", key, bson.D{isReview, undisposed}, set)
}

// guarded sets fields of one document where guard holds, and returns how it stands after, with store.ErrChanged elsewhere.
func (t *Transactions) guarded(ctx context.Context, operation string, key store.Key, guard, set bson.D) (store.Entry, error) {
	var x transaction
	err := t.c.FindOneAndUpdate(ctx, append(bson.D{byID(idOf(key))}, guard...), bson.D{{Key: "$set", Value: set}},
		options.FindOneAndUpdate().SetReturnDocument(options.After)).Decode(&x)
	switch {
	case err == nil:
		return x.entry(), nil
	case !errors.Is(err, mongo.ErrNoDocuments):
		return store.Entry{}, failed(operation, err)
	}
	e, err := t.Get(ctx, key)
	if err == nil {
		err = store.ErrChanged
	}
	return e, err
}

// Overdue returns undecided documents whose deadline is before then, oldest first.
func (t *Transactions) Overdue(ctx context.Context, then time.Time, limit int) ([]store.Entry, error) {
	return t.list(ctx, bson.D{open, before("deadline", then)}, "deadline", limit)
}

// Unannounced returns decisions made before then and still marked, oldest first.
func (t *Transactions) Unannounced(ctx context.Context, then time.Time, limit int) ([]store.Entry, error) {
	return t.list(ctx, bson.D{{Key: "unannounced", Value: true}, before("decided_at", then)}, "decided_at", limit)
}

// before compares whole milliseconds, as they are stored.
func before(field string, then time.Time) bson.E {
	return bson.E{Key: field, Value: bson.D{{Key: "$lt", Value: then}}}
}

func (t *Transactions) list(ctx context.Context, filter bson.D, by string, limit int) ([]store.Entry, error) {
	found, err := find[transaction](ctx, t.c, filter, limit, options.Find().SetSort(up(by)).SetLimit(int64(limit)))
	if err != nil {
		return nil, failed("list", err)
	}
	out := make([]store.Entry, len(found))
	for i, x := range found {
		out[i] = x.entry()
	}
	return out, nil
}

// Announced clears the mark of each key.
func (t *Transactions) Announced(ctx context.Context, keys []store.Key) error {
	writes := make([]write, len(keys))
	for i, k := range keys {
		writes[i] = write{model: mongo.NewUpdateOneModel().SetFilter(bson.D{byID(idOf(k))}).SetUpdate(bson.D{without([]string{"unannounced"})})}
	}
	verdicts, _, err := bulk(ctx, t.c, writes)
	if err = errors.Join(append(verdicts, err)...); err != nil {
		return failed("announced", err)
	}
	return nil
}

// Undecided returns those of keys that hold no decision, a thousand in one query.
func (t *Transactions) Undecided(ctx context.Context, keys []store.Key) ([]store.Key, error) {
	var out []store.Key
	for len(keys) > 0 {
		n := min(len(keys), mostWrites)
		ids := make(bson.A, n)
		for i, k := range keys[:n] {
			ids[i] = idOf(k)
		}
		found, err := find[transaction](ctx, t.c, in("_id", ids), n, options.Find().SetProjection(bson.D{{Key: "open", Value: 1}}))
		if err != nil {
			return nil, failed("undecided", err)
		}
		decided := make(map[string]bool, n)
		for _, x := range found {
			decided[x.ID] = !x.Open
		}
		for _, k := range keys[:n] {
			if !decided[idOf(k)] {
				out = append(out, k)
			}
		}
		keys = keys[n:]
	}
	return out, nil
}

// Ping makes a write that changes nothing: it fails where there is no primary, and waits for a majority like any other.
func (t *Transactions) Ping(ctx context.Context) error {
	_, err := t.meta.UpdateOne(ctx, bson.D{byID("ping")}, bson.D{{Key: "$set", Value: bson.D{{Key: "number", Value: 1}}}})
	if err != nil {
		return failed("ping", err)
	}
	return nil
}
