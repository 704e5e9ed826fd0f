package mongo_test

import (
	"context"
	"crypto/rand"
	"os"
	"strings"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"crivo/services/store"
	"crivo/services/store/mongo"
	"crivo/services/store/storetest"
)

// server is the URI of the database that tests use.
func server(t testing.TB) string {
	t.Helper()
	uri := os.Getenv("CRIVO_TEST_MONGO_URI")
	if uri == "" {
		t.Skip("CRIVO_TEST_MONGO_URI names no server")
	}
	return uri
}

// fresh opens an empty database, ensured, that is dropped after the test.
func fresh(t testing.TB, edit ...func(*options.ClientOptions)) *mongo.DB {
	t.Helper()
	db := bare(t, mongo.Options{URI: server(t)}, edit...)
	if err := db.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	return db
}

// bare opens a database of its own in which nothing is, not even the layout.
func bare(t testing.TB, o mongo.Options, edit ...func(*options.ClientOptions)) *mongo.DB {
	t.Helper()
	o.Database = "crivo_test_" + strings.ToLower(rand.Text()[:10])
	db, err := mongo.OpenWith(o, func(c *options.ClientOptions) {
		for _, e := range edit {
			e(c)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := db.Drop(ctx); err != nil {
			t.Error(err)
		}
		if err := db.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return db
}

// unhurried waits for a connection of a pool that others keep busy: suites try what many do at once, on machines that do much else.
func unhurried(c *options.ClientOptions) { c.SetServerSelectionTimeout(20 * time.Second) }

func TestTransactions(t *testing.T) {
	storetest.Transactions(t, func(t *testing.T) store.Transactions { return fresh(t, unhurried).Transactions() })
}

func TestSearch(t *testing.T) {
	storetest.Search(t, func(t *testing.T) store.Transactions { return fresh(t, unhurried).Transactions() })
}

func TestWhatIsTooLargeCostsItsBatchMatesNothing(t *testing.T) {
	storetest.Refusals(t, func(t *testing.T) store.Transactions { return fresh(t, unhurried).Transactions() }, 16<<20)
}

func TestRegistry(t *testing.T) {
	storetest.Registry(t, func(t *testing.T) store.Registry { return fresh(t, unhurried).Registry() })
}

func TestDeliveries(t *testing.T) {
	storetest.Deliveries(t, func(t *testing.T) store.Deliveries { return fresh(t, unhurried).Deliveries() })
}

// Whoever comes before the keeper finds no collection, no validator and no index: what is promised stands in _id.
func TestNothingDependsOnEnsureHavingRun(t *testing.T) {
	uri := server(t)
	storetest.Transactions(t, func(t *testing.T) store.Transactions {
		return bare(t, mongo.Options{URI: uri}, unhurried).Transactions()
	})
	storetest.Search(t, func(t *testing.T) store.Transactions {
		return bare(t, mongo.Options{URI: uri}, unhurried).Transactions()
	})
	storetest.Registry(t, func(t *testing.T) store.Registry { return bare(t, mongo.Options{URI: uri}, unhurried).Registry() })
	storetest.Deliveries(t, func(t *testing.T) store.Deliveries { return bare(t, mongo.Options{URI: uri}, unhurried).Deliveries() })
}
