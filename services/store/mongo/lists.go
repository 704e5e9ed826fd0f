package mongo

import (
	"context"
	"errors"
	"strconv"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"crivo/pkg/txn"
	"crivo/services/store"
)

// listEntry is one value on a list. Its _id is "tenant/list/kind/value", so a list has a value once whatever indexes there are.
type listEntry struct {
	Key       string        `bson:"_id"`
	Number    bson.ObjectID `bson:"number"` // grows within a process: pages go by it
	ID        string        `bson:"id"`
	Tenant    string        `bson:"tenant"`
	List      string        `bson:"list"`
	Kind      string        `bson:"kind"`
	Value     string        `bson:"value"`
	Reason    string        `bson:"reason"`
	AddedBy   string        `bson:"added_by"`
	CreatedAt time.Time     `bson:"created_at"`
	ExpiresAt time.Time     `bson:"expires_at,omitempty"`
}

func (x listEntry) entry() store.ListEntry {
	out := store.ListEntry{ID: x.ID, Tenant: x.Tenant, List: x.List, Kind: x.Kind, Value: x.Value, Reason: x.Reason, AddedBy: x.AddedBy,
		CreatedAt: txn.At(x.CreatedAt)}
	if !x.ExpiresAt.IsZero() {
		at := txn.At(x.ExpiresAt)
		out.ExpiresAt = &at
	}
	return out
}

func entries(found []listEntry) []store.ListEntry {
	out := make([]store.ListEntry, len(found))
	for i, x := range found {
		out[i] = x.entry()
	}
	return out
}

// ListEntries returns every list's entries.
func (r *Registry) ListEntries(ctx context.Context) ([]store.ListEntry, error) {
	found, err := find[listEntry](ctx, r.db.Collection(listEntries), bson.D{}, mostWrites, options.Find().SetSort(up("_id")))
	if err != nil {
		return nil, failed("list entries", err)
	}
	return entries(found), nil
}

// ListPage returns one page, newest first; the cursor is the last entry's number.
func (r *Registry) ListPage(ctx context.Context, q store.ListQuery) ([]store.ListEntry, string, error) {
	filter := bson.D{{Key: "tenant", Value: q.Tenant}, {Key: "list", Value: q.List}}
	if q.Cursor != "" {
		number, err := bson.ObjectIDFromHex(q.Cursor)
		if err != nil {
			return nil, "", store.ErrCursor
		}
		filter = append(filter, bson.E{Key: "number", Value: bson.D{{Key: "$lt", Value: number}}})
	}
	found, err := find[listEntry](ctx, r.db.Collection(listEntries), filter, q.Limit+1, options.Find().SetSort(down("number")).SetLimit(int64(q.Limit)+1))
	if err != nil {
		return nil, "", failed("list page", err)
	}
	next := ""
	if len(found) > q.Limit {
		found = found[:q.Limit]
		next = found[q.Limit-1].Number.Hex()
	}
	return entries(found), next, nil
}

// PutListEntry adds an entry, or renews the one of its value.
func (r *Registry) PutListEntry(ctx context.Context, e store.ListEntry) (store.ListEntry, error) {
	c := r.db.Collection(listEntries)
	x := listEntry{Key: e.Tenant + "/" + e.List + "/" + e.Kind + "/" + e.Value, Number: bson.NewObjectID(), ID: e.ID, Tenant: e.Tenant, List: e.List,
		Kind: e.Kind, Value: e.Value, Reason: e.Reason, AddedBy: e.AddedBy, CreatedAt: e.CreatedAt.Time}
	renewal := bson.D{{Key: "$set", Value: bson.D{{Key: "reason", Value: e.Reason}}}, without([]string{"expires_at"})}
	if e.ExpiresAt != nil {
		x.ExpiresAt = e.ExpiresAt.Time
		renewal = bson.D{{Key: "$set", Value: bson.D{{Key: "reason", Value: e.Reason}, {Key: "expires_at", Value: x.ExpiresAt}}}}
	}
	for pause := firstPause; ; pause = min(2*pause, mostPause) {
		_, err := c.InsertOne(ctx, x)
		if mongo.IsDuplicateKeyError(err) {
			err = c.FindOneAndUpdate(ctx, bson.D{byID(x.Key)}, renewal, options.FindOneAndUpdate().SetReturnDocument(options.After)).Decode(&x)
		}
		if err == nil {
			return x.entry(), nil
		}
		if errors.Is(err, mongo.ErrNoDocuments) { // deleted meanwhile
			err = sleep(ctx, pause)
		}
		if err != nil {
			return store.ListEntry{}, failed("put list entry", err)
		}
	}
}

// DeleteListEntry removes an entry or returns store.ErrNotFound.
func (r *Registry) DeleteListEntry(ctx context.Context, tenant, list, id string) error {
	return r.removeOne(ctx, listEntries, bson.D{{Key: "tenant", Value: tenant}, {Key: "list", Value: list}, {Key: "id", Value: id}})
}

// ruleSet is one version of a rule set. Its _id is "name/version".
type ruleSet struct {
	Key       string    `bson:"_id"`
	Name      string    `bson:"name"`
	Version   int       `bson:"version" schema:"least=1"`
	Digest    string    `bson:"digest"`
	Source    []byte    `bson:"source"`
	CreatedAt time.Time `bson:"created_at"`
}

func (x ruleSet) set() store.RuleSet {
	return store.RuleSet{Name: x.Name, Version: x.Version, Digest: x.Digest, Source: x.Source, CreatedAt: txn.At(x.CreatedAt)}
}

func ruleSetKey(name string, version int) string { return name + "/" + strconv.Itoa(version) }

// PutRuleSet adds a version that is absent.
func (r *Registry) PutRuleSet(ctx context.Context, s store.RuleSet) error {
	x := ruleSet{ruleSetKey(s.Name, s.Version), s.Name, s.Version, s.Digest, s.Source, s.CreatedAt.Time}
	_, err := r.db.Collection(ruleSets).InsertOne(ctx, x)
	switch {
	case err == nil:
		return nil
	case !mongo.IsDuplicateKeyError(err):
		return failed("put rule set", err)
	}
	for pause := firstPause; ; pause = min(2*pause, mostPause) {
		stands, err := r.RuleSet(ctx, s.Name, s.Version)
		switch {
		case errors.Is(err, store.ErrNotFound): // not yet known to a majority
			if err := sleep(ctx, pause); err != nil {
				return failed("put rule set", err)
			}
		case err != nil:
			return err
		case stands.Digest != s.Digest:
			return store.ErrChanged
		default:
			return nil
		}
	}
}

// RuleSets returns all versions, without their sources.
func (r *Registry) RuleSets(ctx context.Context) ([]store.RuleSet, error) {
	found, err := find[ruleSet](ctx, r.db.Collection(ruleSets), bson.D{}, mostWrites,
		options.Find().SetProjection(bson.D{{Key: "source", Value: 0}}).SetSort(up("name", "version")))
	if err != nil {
		return nil, failed("rule sets", err)
	}
	out := make([]store.RuleSet, len(found))
	for i, x := range found {
		out[i] = x.set()
	}
	return out, nil
}

// RuleSet returns one version or store.ErrNotFound.
func (r *Registry) RuleSet(ctx context.Context, name string, version int) (store.RuleSet, error) {
	var x ruleSet
	err := r.db.Collection(ruleSets).FindOne(ctx, bson.D{byID(ruleSetKey(name, version))}).Decode(&x)
	switch {
	case errors.Is(err, mongo.ErrNoDocuments):
		return store.RuleSet{}, store.ErrNotFound
	case err != nil:
		return store.RuleSet{}, failed("rule set", err)
	}
	return x.set(), nil
}
