package mongo_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"crivo/services/store"
	"crivo/services/store/mongo"
)

func TestNoErrorPrintsThePassword(t *testing.T) {
	const password = "pa55%3Aword"
	for name, uri := range map[string]string{
		"another scheme":   "postgres://crivo:" + password + "@127.0.0.1/",
		"bad port":         "mongodb://crivo:" + password + "@127.0.0.1:port/",
		"no such value":    "mongodb://crivo:" + password + "@127.0.0.1/?maxPoolSize=many",
		"no host":          "mongodb://crivo:pa55word",
		"a slash in it":    "mongodb://crivo:pa55/word@127.0.0.1/",
		"unescaped":        "mongodb://crivo:" + password + "%zz@127.0.0.1/",
		"contradiction":    "mongodb://crivo:" + password + "@127.0.0.1/?minPoolSize=9&maxPoolSize=2",
		"nobody listening": "mongodb://crivo:" + password + "@127.0.0.1:1/",
	} {
		t.Run(name, func(t *testing.T) {
			db, err := mongo.Open(mongo.Options{URI: uri})
			if (err == nil) != (name == "nobody listening") {
				t.Fatalf("opened: %v", err)
			}
			if err == nil {
				defer db.Close(t.Context())
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				defer cancel()
				_, err = db.Transactions().Get(ctx, store.Key{Tenant: "t", ID: "a"})
			}
			for _, form := range []string{err.Error(), fmt.Sprintf("%+v", err), fmt.Sprintf("%#v", err)} {
				if strings.Contains(form, "pa55") {
					t.Error(form)
				}
			}
		})
	}
}

func TestAPoolMayBeAsSmallAsOne(t *testing.T) {
	for uri, good := range map[string]bool{"mongodb://127.0.0.1:1/?maxPoolSize=1": true, "mongodb://127.0.0.1:1/?maxPoolSize=1&minPoolSize=2": false} {
		db, err := mongo.Open(mongo.Options{URI: uri})
		if (err == nil) != good {
			t.Errorf("%s: %v", uri, err)
		}
		if err == nil {
			_ = db.Close(t.Context())
		}
	}
}

// belowPatience is less than a call takes whose context's deadline is not heeded.
const belowPatience = 4 * time.Second

// hasty makes one second of the five that a call without a deadline may take.
func hasty(t *testing.T) func(*options.ClientOptions) {
	return func(c *options.ClientOptions) {
		if *c.Timeout != 5*time.Second {
			t.Errorf("%s", *c.Timeout)
		}
		c.SetTimeout(time.Second)
	}
}

func TestOpenWaitsForNothingAndCallsEndWithTheirContext(t *testing.T) {
	const uri = "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=30000"
	started := time.Now()
	db, err := mongo.Open(mongo.Options{URI: uri})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close(context.Background()) })
	if took := time.Since(started); took > belowPatience {
		t.Errorf("opening took %s", took)
	}
	key := store.Key{Tenant: "t", ID: "a"}
	for name, call := range map[string]func(context.Context) error{
		"claim": func(ctx context.Context) error {
			_, err := db.Transactions().Claim(ctx, []store.Claim{sample(1)})
			return err
		},
		"decide": func(ctx context.Context) error {
			_, err := db.Transactions().Decide(ctx, []store.Decide{decided(1)})
			return err
		},
		"get":    func(ctx context.Context) error { _, err := db.Transactions().Get(ctx, key); return err },
		"ping":   func(ctx context.Context) error { return db.Transactions().Ping(ctx) },
		"lease":  func(ctx context.Context) error { _, err := db.Deliveries().Lease(ctx, "e", noon, noon, 1); return err },
		"ensure": func(ctx context.Context) error { return db.Ensure(ctx) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			started := time.Now()
			ctx, cancel := context.WithTimeout(context.Background(), 150*time.Millisecond)
			defer cancel()
			if err := call(ctx); err == nil || errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrRefused) {
				t.Errorf("got %v", err)
			}
			if took := time.Since(started); took > belowPatience {
				t.Errorf("took %s", took)
			}
		})
	}
	t.Run("no deadline", func(t *testing.T) {
		t.Parallel()
		db, err := mongo.OpenWith(mongo.Options{URI: uri}, hasty(t))
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close(t.Context())
		started := time.Now()
		if err := db.Transactions().Ping(context.Background()); err == nil {
			t.Error("answered by nobody")
		}
		if took := time.Since(started); took > 7*time.Second {
			t.Errorf("took %s", took)
		}
	})
}

// What a URI says of the pool holds; what it says of how writes are acknowledged and reads are answered does not.
func TestAURITunesButDoesNotWeaken(t *testing.T) {
	var sent recorder
	var pool, least uint64
	uri := server(t)
	if strings.Contains(uri, "?") {
		uri += "&"
	} else {
		uri += "?"
	}
	uri += "maxPoolSize=7&w=1&journal=false&readConcernLevel=local&readPreference=secondary&appName=mine"
	db := bare(t, mongo.Options{URI: uri}, func(c *options.ClientOptions) {
		c.SetMonitor(sent.monitor())
		pool, least = *c.MaxPoolSize, *c.MinPoolSize
		if *c.AppName != "mine" || *c.ServerSelectionTimeout != time.Second || *c.ConnectTimeout != time.Second || !*c.RetryWrites {
			t.Errorf("%s, %s, %s, %v", *c.AppName, *c.ServerSelectionTimeout, *c.ConnectTimeout, *c.RetryWrites)
		}
	})
	if pool != 7 || least == 0 {
		t.Errorf("pool of %d to %d", least, pool)
	}
	ctx := t.Context()
	_, err1 := db.Transactions().Claim(ctx, []store.Claim{sample(1)})
	_, err2 := db.Transactions().Decide(ctx, []store.Decide{decided(1), decided(2)})
	_, err3 := db.Transactions().Raise(ctx, store.Raise{Key: sample(1).Key, FromRun: 1})
	_, err4 := db.Deliveries().Insert(ctx, []store.Delivery{row(1)})
	_, err5 := db.Deliveries().Lease(ctx, "", noon, noon, 1)
	_, err6 := db.Deliveries().DueEndpoints(ctx, noon)
	if err := or(err1, err2, err4, err5, err6, db.Registry().PutTenant(ctx, store.Tenant{ID: "t"})); err != nil || !errors.Is(err3, store.ErrChanged) {
		t.Fatal(err, err3)
	}
	seen := map[string]bool{}
	for _, command := range sent.take() {
		elements, _ := command.Elements()
		name := elements[0].Key()
		seen[name] = true
		switch name {
		case "find", "distinct":
			if level := command.Lookup("readConcern", "level"); level.StringValue() != "majority" {
				t.Errorf("%s reads %s", name, level)
			}
			if mode, err := command.LookupErr("$readPreference", "mode"); err == nil && mode.StringValue() != "primaryPreferred" { // of a single server
				t.Errorf("%s asks a %s", name, mode)
			}
		case "insert", "update", "findAndModify":
			if diff := same(t, bson.D{{Key: "w", Value: "majority"}, {Key: "j", Value: true}}, command.Lookup("writeConcern")); diff != "" {
				t.Errorf("%s: %s", name, diff)
			}
		}
	}
	for _, name := range []string{"find", "distinct", "insert", "update", "findAndModify"} {
		if !seen[name] {
			t.Errorf("no %s was seen", name)
		}
	}
}
