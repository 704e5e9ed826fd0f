package mongo

import (
	"context"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

// OpenWith opens with options of the driver's that only tests set.
func OpenWith(o Options, edit func(*options.ClientOptions)) (*DB, error) {
	c := clientOptions(o)
	edit(c)
	client, err := mongo.Connect(c)
	if err != nil {
		return nil, err
	}
	return newDB(client, o), nil
}

// Dial has the room's connections opened by d.
func Dial(c *options.ClientOptions, d options.ContextDialer) { c.Dialer.(*lines).dialer = d }

// Raw is the driver's view of the database.
func (db *DB) Raw() *mongo.Database { return db.db }

// Drop removes the database.
func (db *DB) Drop(ctx context.Context) error { return db.db.Drop(ctx) }

// Collections are those of the layout, SchemaNumber its number.
func Collections() map[string]bson.D {
	out := map[string]bson.D{}
	for _, c := range layout {
		out[c.name] = schemaOf(c.document)
	}
	return out
}

const SchemaNumber = schemaNumber
