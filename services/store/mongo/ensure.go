package mongo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

// The collections.
const (
	meta         = "meta"
	transactions = "transactions"
	deliveries   = "deliveries"
	tenants      = "tenants"
	keys         = "keys"
	endpoints    = "endpoints"
	replays      = "replays"
	listEntries  = "list_entries"
	ruleSets     = "rule_sets"
	states       = "states"
	acts         = "acts"
)

// schemaNumber grows with every change of layout. A change may add and loosen: processes of the version before go on writing
// what they know.
const schemaNumber = 4

// collection is what one has: the type that is written to it, and its indexes beside that of _id, where all uniqueness that
// matters stands.
type collection struct {
	name     string
	document any
	indexes  []index
}

type index struct {
	name    string
	keys    bson.D
	partial bson.D // only documents like this; a query must say it too
	expires bool   // a document goes when the date in the field has come
}

var layout = []collection{
	{meta, version{}, nil},
	{transactions, transaction{}, []index{
		{name: "overdue", keys: up("deadline"), partial: bson.D{{Key: "open", Value: true}}},
		{name: "unannounced", keys: up("decided_at"), partial: bson.D{{Key: "unannounced", Value: true}}},
		{name: "expired", keys: up("expire_at"), expires: true},
		{name: "by_token", keys: up("tenant", "tokens", "accepted_at", "_id"), partial: bson.D{isDecided}},
		{name: "by_decision", keys: up("tenant", "decision", "accepted_at", "_id"), partial: bson.D{isDecided}},
		{name: "by_disposition", keys: up("tenant", "disposition", "accepted_at", "_id"), partial: bson.D{isReview}},
		{name: "by_reason", keys: up("tenant", "reasons", "accepted_at", "_id"), partial: bson.D{isDecided}},
	}},
	{deliveries, delivery{}, []index{
		{name: "due", keys: up("status", "endpoint", "due_at"), partial: bson.D{{Key: "status", Value: "pending"}}},
		{name: "id", keys: up("id")},
		{name: "page", keys: append(up("tenant", "status"), down("number")...)},
		{name: "page_of_endpoint", keys: append(up("tenant", "endpoint", "status"), down("number")...)},
		{name: "page_of_transaction", keys: append(up("tenant", "transaction"), down("number")...)},
		{name: "by_time", keys: up("endpoint", "created_at", "id")},
		{name: "expired", keys: up("expire_at"), expires: true},
	}},
	{tenants, record{}, nil},
	{keys, record{}, nil},
	{endpoints, record{}, nil},
	{replays, record{}, nil},
	{states, record{}, nil},
	{listEntries, listEntry{}, []index{
		{name: "page", keys: append(up("tenant", "list"), down("number")...)},
		{name: "id", keys: up("id")},
	}},
	{ruleSets, ruleSet{}, []index{{name: "version", keys: up("name", "version")}}},
	{acts, act{}, []index{{name: "newest", keys: down("at", "_id")}}},
}

func up(fields ...string) bson.D   { return ordered(1, fields) }
func down(fields ...string) bson.D { return ordered(-1, fields) }

func ordered(direction int, fields []string) bson.D {
	out := make(bson.D, len(fields))
	for i, f := range fields {
		out[i] = bson.E{Key: f, Value: direction}
	}
	return out
}

// version is the one document of meta: the newest layout that was ever ensured.
type version struct {
	ID     string `bson:"_id"`
	Number int    `bson:"number" schema:"least=1"`
}

// indexTime is how long the indexes of one collection may take where the caller sets no deadline: what lacks one may be large.
const indexTime = 30 * time.Minute

// Ensure brings collections, validators and indexes up to this program's layout, however old they are; it may be called again
// and by many at once. Where a newer program has been, nothing is changed.
func (db *DB) Ensure(ctx context.Context) error {
	// The number goes first, so that an older process that starts now finds it.
	if err := db.raise(ctx); err != nil {
		return failed("ensure", err)
	}
	for _, c := range layout {
		newer, err := db.newer(ctx)
		if err != nil {
			return failed("ensure", err)
		}
		if newer {
			return nil
		}
		if err := db.bringUp(ctx, c); err != nil {
			return failed("ensure "+c.name, err)
		}
	}
	return nil
}

// raise notes this program's number unless a higher one is there.
func (db *DB) raise(ctx context.Context) error {
	_, err := db.db.Collection(meta).UpdateOne(ctx, bson.D{{Key: "_id", Value: "schema"}},
		bson.D{{Key: "$max", Value: bson.D{{Key: "number", Value: schemaNumber}}}}, options.UpdateOne().SetUpsert(true))
	if mongo.IsDuplicateKeyError(err) { // another process made it meanwhile
		return db.raise(ctx)
	}
	return err
}

func (db *DB) newer(ctx context.Context) (bool, error) {
	var v version
	err := db.db.Collection(meta).FindOne(ctx, bson.D{{Key: "_id", Value: "schema"}}).Decode(&v)
	if err != nil && !errors.Is(err, mongo.ErrNoDocuments) {
		return false, err
	}
	return v.Number > schemaNumber, nil
}

// namespaceExists is what a server says of a collection that is there.
const namespaceExists = 48

// bringUp makes one collection what it should be.
func (db *DB) bringUp(ctx context.Context, c collection) error {
	var server mongo.ServerError
	err := db.db.CreateCollection(ctx, c.name)
	if err != nil && (!errors.As(err, &server) || !server.HasErrorCode(namespaceExists)) {
		return err
	}
	// By collMod and not with the creation, so that an old collection gets it too.
	err = db.db.RunCommand(ctx, bson.D{{Key: "collMod", Value: c.name},
		{Key: "validator", Value: bson.D{{Key: "$jsonSchema", Value: schemaOf(c.document)}}},
		{Key: "validationLevel", Value: "strict"}, {Key: "validationAction", Value: "error"}}).Err()
	if err != nil || len(c.indexes) == 0 {
		return err
	}
	models := make([]mongo.IndexModel, len(c.indexes))
	for i, x := range c.indexes {
		o := options.Index().SetName(x.name)
		if x.partial != nil {
			o.SetPartialFilterExpression(x.partial)
		}
		if x.expires {
			o.SetExpireAfterSeconds(0)
		}
		models[i] = mongo.IndexModel{Keys: x.keys, Options: o}
	}
	building, cancel := context.WithTimeout(ctx, indexTime)
	defer cancel()
	if _, err = db.db.Collection(c.name).Indexes().CreateMany(building, models); err != nil {
		return fmt.Errorf("indexes: %w", err)
	}
	return nil
}
