package mongo

import (
	"context"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.mongodb.org/mongo-driver/v2/mongo/readpref"

	"crivo/pkg/txn"
	"crivo/services/store"
)

// staleness is how far behind a secondary may be that is searched: the least that the driver allows. It keeps searches from a
// member that has fallen out; to read what one has just written it is no help.
const staleness = 90 * time.Second

// searched is the collection as searches see it, on a secondary where there is one. Nothing else does, and no search for what is
// newest.
func searched(db *mongo.Database) *mongo.Collection {
	return db.Collection(transactions, options.Collection().SetReadPreference(readpref.SecondaryPreferred(readpref.WithMaxStaleness(staleness))))
}

// isDecided is said by every search, as the indexes for it ask.
var isDecided = bson.E{Key: "decided_at", Value: bson.D{{Key: "$exists", Value: true}}}

// isReview is said of reviews alone, as the index of their dispositions asks; undisposed of those that nobody closed.
var (
	isReview   = bson.E{Key: "decision", Value: txn.Review}
	undisposed = bson.E{Key: "disposition", Value: nil} // or not there
)

// decisions are all that there are; a search for any of them walks one index all the same.
var decisions = bson.A{"approve", "decline", "review"}

// Search returns one page of decided transactions.
func (t *Transactions) Search(ctx context.Context, q store.Query) ([]store.Found, string, error) {
	filter, sort, err := search(q)
	if err != nil {
		return nil, "", err
	}
	from := t.searched
	if q.Newest {
		from = t.c
	}
	found, err := find[transaction](ctx, from, filter, q.Limit+1, options.Find().SetSort(sort).SetLimit(int64(q.Limit)+1))
	if err != nil {
		return nil, "", failed("search", err)
	}
	out := make([]store.Found, len(found))
	for i, x := range found {
		out[i].Entry = x.entry()
	}
	page, next := q.Page(out)
	return page, next, nil
}

func list(texts []string) bson.A {
	out := make(bson.A, len(texts))
	for i, text := range texts {
		out[i] = text
	}
	return out
}

func search(q store.Query) (filter, sort bson.D, err error) {
	after, started, err := q.After()
	if err != nil {
		return nil, nil, err
	}
	filter = bson.D{{Key: "tenant", Value: q.Tenant}, isDecided}
	if len(q.Tokens) > 0 {
		filter = append(filter, in("tokens", list(q.Tokens))...)
	}
	var also bson.A // conditions on fields that have one already
	if len(q.Also) > 0 {
		also = append(also, in("tokens", list(q.Also)))
	}
	if q.Reason != "" {
		filter = append(filter, bson.E{Key: "reasons", Value: q.Reason})
	}
	switch {
	case q.Disposition == store.Open:
		filter = append(filter, isReview, undisposed)
	case q.Disposition != "":
		filter = append(filter, isReview, bson.E{Key: "disposition", Value: q.Disposition})
	case q.Decision != "":
		filter = append(filter, bson.E{Key: "decision", Value: q.Decision})
	case len(q.Tokens) == 0 && q.Reason == "":
		filter = append(filter, in("decision", decisions)...)
	}
	var span bson.D
	for _, bound := range []struct {
		operator string
		at       time.Time
	}{{"$gte", q.From}, {"$lt", q.To}} {
		if !bound.at.IsZero() {
			span = append(span, bson.E{Key: bound.operator, Value: bound.at})
		}
	}
	sort, beyond, from := down("accepted_at", "_id"), "$lt", "$lte"
	if q.Oldest {
		sort, beyond, from = up("accepted_at", "_id"), "$gt", "$gte"
	}
	if started {
		at := bson.DateTime(after.AcceptedAt)
		// The first condition bounds the walk of the index; the others leave out those of the same millisecond that were seen.
		also = append(also, bson.D{{Key: "accepted_at", Value: bson.D{{Key: from, Value: at}}}},
			bson.D{{Key: "$or", Value: bson.A{bson.D{{Key: "accepted_at", Value: bson.D{{Key: beyond, Value: at}}}},
				bson.D{{Key: "_id", Value: bson.D{{Key: beyond, Value: idOf(store.Key{Tenant: q.Tenant, ID: after.ID})}}}}}}})
	}
	if len(also) > 0 {
		filter = append(filter, bson.E{Key: "$and", Value: also})
	}
	if len(span) > 0 {
		filter = append(filter, bson.E{Key: "accepted_at", Value: span})
	}
	return filter, sort, nil
}
