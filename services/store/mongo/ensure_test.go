package mongo_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.mongodb.org/mongo-driver/v2/bson"
	driver "go.mongodb.org/mongo-driver/v2/mongo"

	"crivo/services/store"
	"crivo/services/store/mongo"
)

// validators are what the server checks documents with, by collection.
func validators(t *testing.T, db *mongo.DB) map[string]bson.D {
	t.Helper()
	cursor, err := db.Raw().ListCollections(t.Context(), bson.D{})
	if err != nil {
		t.Fatal(err)
	}
	var found []struct {
		Name    string
		Options struct {
			Validator struct {
				Schema bson.D `bson:"$jsonSchema"`
			}
			ValidationLevel  string `bson:"validationLevel"`
			ValidationAction string `bson:"validationAction"`
		}
	}
	if err := cursor.All(t.Context(), &found); err != nil {
		t.Fatal(err)
	}
	out := map[string]bson.D{}
	for _, c := range found {
		out[c.Name] = c.Options.Validator.Schema
		if v := c.Options; len(v.Validator.Schema) > 0 && (v.ValidationLevel != "strict" || v.ValidationAction != "error") {
			t.Errorf("%s: %s, %s", c.Name, v.ValidationLevel, v.ValidationAction)
		}
	}
	return out
}

// same compares documents as they are sent.
func same(t *testing.T, want, got any) string {
	t.Helper()
	var text [2]string
	for i, v := range []any{want, got} {
		json, err := bson.MarshalExtJSON(bson.D{{Key: "v", Value: v}}, true, false)
		if err != nil {
			t.Fatal(err)
		}
		text[i] = string(json)
	}
	return cmp.Diff(text[0], text[1])
}

func TestEnsureMakesTheLayoutAndMayBeRepeated(t *testing.T) {
	db := fresh(t)
	errs := make(chan error, 4)
	for range cap(errs) {
		go func() { errs <- db.Ensure(context.Background()) }()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	got := validators(t, db)
	for name, want := range mongo.Collections() {
		if diff := same(t, want, got[name]); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// A field of the Go type is what the server asks for: its type, its bounds, and that it is there.
func TestTheServerTakesNoBadDocument(t *testing.T) {
	db := fresh(t)
	good := bson.D{{Key: "_id", Value: "t/1"}, {Key: "tenant", Value: "t"}, {Key: "digest", Value: "1.x"}, {Key: "run", Value: 1}, {Key: "claimed_at", Value: noon},
		{Key: "accepted_at", Value: noon}, {Key: "deadline", Value: noon}, {Key: "of a newer program", Value: 1}}
	with := func(key string, value any) bson.D {
		doc := bson.D{}
		for _, e := range append(good[:len(good):len(good)], bson.E{Key: key}) {
			if e.Key != key {
				doc = append(doc, e)
			}
		}
		if value != nil {
			doc = append(doc, bson.E{Key: key, Value: value})
		}
		return doc
	}
	c := db.Raw().Collection("transactions")
	for name, tc := range map[string]struct {
		doc  bson.D
		good bool
	}{
		"as it should be":       {good, true},
		"without a digest":      {with("digest", nil), false},
		"a text for a time":     {with("deadline", "noon"), false},
		"a run of nought":       {with("run", 0), false},
		"a run beyond 32 bits":  {with("run", int64(1)<<40), true},
		"a fourth decision":     {with("decision", "perhaps"), false},
		"a reason that is none": {with("reasons", bson.A{"A", 1}), false},
		"an event as text":      {with("event", "{}"), false},
	} {
		t.Run(name, func(t *testing.T) {
			tc.doc = append(bson.D{{Key: "_id", Value: name}}, tc.doc[1:]...)
			_, err := c.InsertOne(t.Context(), tc.doc)
			n, countErr := c.CountDocuments(t.Context(), bson.D{{Key: "_id", Value: name}})
			if (err == nil) != tc.good || countErr != nil || (n == 1) != tc.good {
				t.Errorf("%v, %d there, %v", err, n, countErr)
			}
			var server driver.ServerError
			if !tc.good && (!errors.As(err, &server) || server.HasErrorCode(1)) {
				t.Errorf("not refused but %v", err)
			}
		})
	}
}

// A database of before validators were made, or of an earlier layout, has the present one afterwards, and its documents.
func TestAnOldCollectionIsBroughtUp(t *testing.T) {
	db, ctx := bare(t, mongo.Options{URI: server(t)}), t.Context()
	if _, err := db.Transactions().Claim(ctx, []store.Claim{sample(1)}); err != nil {
		t.Fatal(err)
	}
	if err := db.Raw().RunCommand(ctx, bson.D{{Key: "collMod", Value: "transactions"},
		{Key: "validator", Value: bson.D{{Key: "$jsonSchema", Value: bson.D{{Key: "required", Value: bson.A{"run"}}}}}}}).Err(); err != nil {
		t.Fatal(err)
	}
	if err := db.Ensure(ctx); err != nil {
		t.Fatal(err)
	}
	if diff := same(t, mongo.Collections()["transactions"], validators(t, db)["transactions"]); diff != "" {
		t.Error(diff)
	}
	if _, err := db.Raw().Collection("transactions").InsertOne(ctx, bson.D{{Key: "_id", Value: "t/bad"}, {Key: "run", Value: 1}}); err == nil {
		t.Error("a bad document was taken")
	}
	if e, err := db.Transactions().Get(ctx, sample(1).Key); err != nil || e.Digest != "1.x" {
		t.Errorf("%+v, %v", e, err)
	}
}

func TestANewerLayoutIsLeftAsItIs(t *testing.T) {
	db, ctx := bare(t, mongo.Options{URI: server(t)}), t.Context()
	if _, err := db.Raw().Collection("meta").InsertOne(ctx, bson.D{{Key: "_id", Value: "schema"}, {Key: "number", Value: mongo.SchemaNumber + 1}}); err != nil {
		t.Fatal(err)
	}
	if err := db.Raw().CreateCollection(ctx, "transactions"); err != nil {
		t.Fatal(err)
	}
	if err := db.Ensure(ctx); err != nil {
		t.Fatal(err)
	}
	for name, v := range validators(t, db) {
		if len(v) > 0 {
			t.Errorf("%s has a validator of ours", name)
		}
	}
	indexes, err := db.Raw().Collection("transactions").Indexes().ListSpecifications(ctx)
	if err != nil || len(indexes) != 1 {
		t.Errorf("%d indexes, %v", len(indexes), err)
	}
	// And it is still written to.
	if won, err := db.Transactions().Claim(ctx, []store.Claim{sample(1)}); err != nil || !won[0].Won {
		t.Errorf("%+v, %v", won, err)
	}
}

// dates are the days on which documents go, by _id; those that stay are not in it.
func dates(t *testing.T, db *mongo.DB, collection string) map[string]time.Time {
	t.Helper()
	cursor, err := db.Raw().Collection(collection).Find(t.Context(), bson.D{})
	if err != nil {
		t.Fatal(err)
	}
	var found []struct {
		ID       string     `bson:"_id"`
		ExpireAt *time.Time `bson:"expire_at"`
	}
	if err := cursor.All(t.Context(), &found); err != nil {
		t.Fatal(err)
	}
	out := map[string]time.Time{}
	for _, x := range found {
		if x.ExpireAt != nil {
			out[x.ID] = x.ExpireAt.UTC()
		}
	}
	return out
}

func TestWhatIsDoneGoesInTimeAndWhatIsNotStays(t *testing.T) {
	const day = 24 * time.Hour
	now := noon
	db := bare(t, mongo.Options{URI: server(t), KeepTransactions: 10 * day, KeepDeliveries: 3 * day, Now: func() time.Time { return now }})
	ctx := t.Context()
	if err := db.Ensure(ctx); err != nil {
		t.Fatal(err)
	}
	for _, c := range []string{"transactions", "deliveries"} {
		indexes, err := db.Raw().Collection(c).Indexes().ListSpecifications(ctx)
		if err != nil {
			t.Fatal(err)
		}
		expiring := 0
		for _, i := range indexes {
			if i.ExpireAfterSeconds != nil && *i.ExpireAfterSeconds == 0 && i.KeysDocument.Lookup("expire_at").Type != 0 {
				expiring++
			}
		}
		if expiring != 1 {
			t.Errorf("%s: %d indexes by which documents go", c, expiring)
		}
	}
	_, err1 := db.Transactions().Claim(ctx, []store.Claim{sample(1), sample(2)})
	_, err2 := db.Transactions().Decide(ctx, []store.Decide{decided(2), decided(3)})
	pending, delivered := row(1), row(5)
	back, cancelled := row(2), row(3)
	cancelled.EndpointID = "gone"
	_, err3 := db.Deliveries().Insert(ctx, []store.Delivery{pending, delivered, back, cancelled})
	ended := back
	ended.Status = store.Exhausted
	err4 := db.Deliveries().Update(ctx, []store.Delivery{ended})
	now = noon.Add(day)
	_, err5 := db.Deliveries().Cancel(ctx, "t", "gone", store.Cancelled)
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		t.Fatal(err)
	}
	of := func(r store.Delivery) string { return r.Tenant + "/" + r.EndpointID + "/" + r.WebhookID }
	at := decided(2).DecidedAt.Add(10 * day)
	if diff := cmp.Diff(map[string]time.Time{"t/2": at, "t/3": at}, dates(t, db, "transactions")); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]time.Time{of(delivered): noon.Add(3 * day), of(back): noon.Add(3 * day), of(cancelled): noon.Add(4 * day)},
		dates(t, db, "deliveries")); diff != "" {
		t.Error(diff)
	}
	if err := db.Deliveries().Update(ctx, []store.Delivery{back}); err != nil { // resent: owed again
		t.Fatal(err)
	}
	if _, ok := dates(t, db, "deliveries")[of(back)]; ok {
		t.Error("a pending row goes")
	}
}

// A server looks for what has expired once a minute.
func TestWhatHasExpiredIsRemoved(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	db, ctx := fresh(t), t.Context()
	old := decided(1)
	old.DecidedAt = noon.AddDate(-10, 0, 0)
	if _, err := db.Transactions().Decide(ctx, []store.Decide{old, decided(2)}); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(3 * time.Minute)
	for tick := time.NewTicker(time.Second); ; <-tick.C {
		_, err := db.Transactions().Get(ctx, old.Key)
		if errors.Is(err, store.ErrNotFound) {
			break
		}
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("still there, %v", err)
		}
	}
	if _, err := db.Transactions().Get(ctx, decided(2).Key); err != nil {
		t.Error(err)
	}
}
