// Package mongo keeps the stores of many processes in MongoDB. One document holds what must change together; every write is
// acknowledged by a majority and its journals, every read that decides something is answered by the primary.
package mongo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/event"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.mongodb.org/mongo-driver/v2/mongo/readconcern"
	"go.mongodb.org/mongo-driver/v2/mongo/readpref"
	"go.mongodb.org/mongo-driver/v2/mongo/writeconcern"
)

// Options say which database is used and how long things stay in it.
type Options struct {
	URI              string           // may hold a password and is never printed; pool and times in it win over this room's
	App              string           // what the server calls this process in its log; empty: crivo
	Database         string           // empty: crivo
	KeepTransactions time.Duration    // from the decision on; 0: five years. Undecided ones stay
	KeepDeliveries   time.Duration    // from the end of a delivery on; 0: 90 days
	Now              func() time.Time // dates the end of a delivery; nil: the machine's clock
}

const (
	day              = 24 * time.Hour
	keepTransactions = 5*365*day + 2*day // five years have one or two leap days
	keepDeliveries   = 90 * day
)

// What the driver is told where the URI says nothing. A decision has 2 s: a step-down must be seen, a new primary found and
// the write repeated within them.
const (
	heartbeat = 500 * time.Millisecond // the driver's least
	selecting = time.Second
	connect   = time.Second
	// patience bounds calls whose context has no deadline: the driver alone would wait on a half-open connection for ever.
	patience = 5 * time.Second
	// One process makes a few group writes at a time, and reads while clients wait: 32 are not reached, and twenty processes
	// stay far below a server's limit.
	minPool, maxPool, maxConnecting = 2, 32, 4
)

// DB is the connection of one process to its stores. It is safe for concurrent use.
type DB struct {
	client *mongo.Client
	db     *mongo.Database
	o      Options
}

// Open returns the stores of a database and waits for nothing: the server may start later. The URI is not in its error.
func Open(o Options) (*DB, error) {
	client, err := mongo.Connect(clientOptions(o))
	if err != nil {
		return nil, errURI // the driver's own text can quote the password
	}
	return newDB(client, o), nil
}

// errURI is all that is said of a URI that cannot be used.
var errURI = errors.New("mongo: the URI is not one of MongoDB's, or an option in it has no such value")

func clientOptions(o Options) *options.ClientOptions {
	app := o.App
	if app == "" {
		app = "crivo"
	}
	l := newLines()
	c := options.Client().SetAppName(app).SetServerSelectionTimeout(selecting).SetConnectTimeout(connect).SetHeartbeatInterval(heartbeat).
		SetTimeout(patience).SetMaxPoolSize(maxPool).SetMaxConnecting(maxConnecting).SetRetryWrites(true).SetRetryReads(true).
		SetDialer(l).SetServerMonitor(&event.ServerMonitor{ServerHeartbeatFailed: l.missed}).ApplyURI(o.URI)
	if c.MinPoolSize == nil {
		c.SetMinPoolSize(min(minPool, *c.MaxPoolSize))
	}
	return c
}

func newDB(client *mongo.Client, o Options) *DB {
	if o.Database == "" {
		o.Database = "crivo"
	}
	if o.KeepTransactions == 0 {
		o.KeepTransactions = keepTransactions
	}
	if o.KeepDeliveries == 0 {
		o.KeepDeliveries = keepDeliveries
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	journaled := true
	// Set here, where a URI cannot weaken it.
	return &DB{client, client.Database(o.Database, options.Database().SetReadPreference(readpref.Primary()).
		SetReadConcern(readconcern.Majority()).SetWriteConcern(&writeconcern.WriteConcern{W: "majority", Journal: &journaled})), o}
}

// Transactions is the transaction store.
func (db *DB) Transactions() *Transactions {
	return &Transactions{c: db.db.Collection(transactions), searched: searched(db.db), meta: db.db.Collection(meta), keep: db.o.KeepTransactions}
}

// Registry is the store of what operators set.
func (db *DB) Registry() *Registry { return &Registry{db.db} }

// Deliveries is the store of webhooks that are owed.
func (db *DB) Deliveries() *Deliveries {
	return &Deliveries{db.db.Collection(deliveries), db.o.KeepDeliveries, db.o.Now}
}

// Close ends all connections once the calls under way have ended, or ctx has.
func (db *DB) Close(ctx context.Context) error {
	if err := db.client.Disconnect(ctx); err != nil {
		return failed("close", err)
	}
	return nil
}

// find reads every document of a query, in as few round trips as their size allows.
func find[T any](ctx context.Context, c *mongo.Collection, filter bson.D, most int, o *options.FindOptionsBuilder) ([]T, error) {
	cursor, err := c.Find(ctx, filter, o.SetBatchSize(int32(most+1))) // one more, so that the server can tell the end at once
	if err != nil {
		return nil, err
	}
	out := []T{}
	if err := cursor.All(ctx, &out); err != nil {
		return nil, fmt.Errorf("read: %w", err)
	}
	return out, nil
}
