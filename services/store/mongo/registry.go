package mongo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-json-experiment/json"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"crivo/services/store"
)

// Registry holds tenants, keys, endpoints, lists, rule sets and the audit log, a collection each.
type Registry struct{ db *mongo.Database }

// record is a tenant, a key, an endpoint or its replay. What is only read whole is JSON text: names in it that a server could take for
// operators are no more than text.
type record struct {
	ID      string `bson:"_id"` // of a key and of an endpoint "tenant/id"
	Tenant  string `bson:"tenant,omitempty"`
	Hash    string `bson:"hash,omitempty"`
	Source  string `bson:"source,omitempty"`
	Secrets string `bson:"secrets,omitempty"`
	Version int    `bson:"version,omitempty"`
	Doc     string `bson:"doc"`
}

// act is one record of the audit log.
type act struct {
	ID  bson.ObjectID `bson:"_id"`
	At  time.Time     `bson:"at"`
	Doc string        `bson:"doc"`
}

// Tenants returns all tenants by id.
func (r *Registry) Tenants(ctx context.Context) ([]store.Tenant, error) {
	return all[store.Tenant](ctx, r.db.Collection(tenants), nil)
}

// PutTenant adds a tenant or returns store.ErrChanged.
func (r *Registry) PutTenant(ctx context.Context, t store.Tenant) error {
	return r.add(ctx, tenants, record{ID: t.ID}, t)
}

// Keys returns every tenant's keys.
func (r *Registry) Keys(ctx context.Context) ([]store.APIKey, error) {
	return all(ctx, r.db.Collection(keys), func(k *store.APIKey, x record) error {
		k.Hash, k.Source = x.Hash, x.Source
		return nil
	})
}

// PutKey adds or replaces a key.
func (r *Registry) PutKey(ctx context.Context, k store.APIKey) error {
	return r.put(ctx, keys, record{ID: k.Tenant + "/" + k.ID, Tenant: k.Tenant, Hash: k.Hash, Source: k.Source}, k)
}

// DeleteKey removes a key or returns store.ErrNotFound.
func (r *Registry) DeleteKey(ctx context.Context, tenant, id string) error {
	return r.remove(ctx, keys, tenant+"/"+id)
}

// Endpoints returns every tenant's endpoints.
func (r *Registry) Endpoints(ctx context.Context) ([]store.Endpoint, error) {
	return all(ctx, r.db.Collection(endpoints), func(e *store.Endpoint, x record) error {
		e.Tenant, e.Version = x.Tenant, x.Version
		return json.Unmarshal([]byte(x.Secrets), &e.Secrets)
	})
}

// PutEndpoint adds or replaces an endpoint.
func (r *Registry) PutEndpoint(ctx context.Context, e store.Endpoint) error {
	secrets, err := json.Marshal(e.Secrets)
	if err != nil {
		return fmt.Errorf("put: %w", err)
	}
	return r.put(ctx, endpoints, record{ID: e.Tenant + "/" + e.ID, Tenant: e.Tenant, Secrets: string(secrets)}, e)
}

// ChangeEndpoint replaces an endpoint that stands in e's version.
func (r *Registry) ChangeEndpoint(ctx context.Context, e store.Endpoint) error {
	secrets, err := json.Marshal(e.Secrets)
	if err != nil {
		return fmt.Errorf("change: %w", err)
	}
	return r.change(ctx, endpoints, record{ID: e.Tenant + "/" + e.ID, Tenant: e.Tenant, Secrets: string(secrets), Version: e.Version}, e)
}

// Replays returns the last replay of every endpoint that had one.
func (r *Registry) Replays(ctx context.Context) ([]store.Replay, error) {
	return all(ctx, r.db.Collection(replays), func(p *store.Replay, x record) error {
		p.Version = x.Version
		return nil
	})
}

// PutReplay adds a replay, or replaces the one that stands in x's version.
func (r *Registry) PutReplay(ctx context.Context, x store.Replay) error {
	made := record{ID: x.Tenant + "/" + x.EndpointID, Tenant: x.Tenant, Version: x.Version}
	if x.Version > 0 {
		return r.change(ctx, replays, made, x)
	}
	made.Version = 1
	return r.add(ctx, replays, made, x)
}

// add puts a record where none stands, else it returns store.ErrChanged.
func (r *Registry) add(ctx context.Context, name string, x record, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("put: %w", err)
	}
	x.Doc = string(text)
	_, err = r.db.Collection(name).InsertOne(ctx, x)
	switch {
	case mongo.IsDuplicateKeyError(err):
		return store.ErrChanged
	case err != nil:
		return failed("put", err)
	}
	return nil
}

// change replaces the record that stands in x's version and counts that up, else it returns store.ErrChanged.
func (r *Registry) change(ctx context.Context, name string, x record, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("change: %w", err)
	}
	stands := bson.D{byID(x.ID), {Key: "version", Value: x.Version}}
	if x.Version == 0 { // not written
		stands[1].Value = bson.D{{Key: "$exists", Value: false}}
	}
	x.Doc, x.Version = string(text), x.Version+1
	res, err := r.db.Collection(name).ReplaceOne(ctx, stands, x)
	switch {
	case err != nil:
		return failed("change", err)
	case res.MatchedCount == 0:
		return store.ErrChanged
	}
	return nil
}

// DeleteEndpoint removes an endpoint or returns store.ErrNotFound.
func (r *Registry) DeleteEndpoint(ctx context.Context, tenant, id string) error {
	return r.remove(ctx, endpoints, tenant+"/"+id)
}

// Record appends one act to the audit log.
func (r *Registry) Record(ctx context.Context, a store.Act) error {
	text, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("record: %w", err)
	}
	if _, err = r.db.Collection(acts).InsertOne(ctx, act{bson.NewObjectID(), a.At.Time, string(text)}); err != nil {
		return failed("record", err)
	}
	return nil
}

// anyTime is that of every act; said because some planners take an index for a condition and not for an order.
var anyTime = bson.D{{Key: "at", Value: bson.D{{Key: "$gte", Value: time.Time{}}}}}

// Acts returns the newest acts first.
func (r *Registry) Acts(ctx context.Context, limit int) ([]store.Act, error) {
	found, err := find[act](ctx, r.db.Collection(acts), anyTime, limit, options.Find().SetSort(down("at", "_id")).SetLimit(int64(limit)))
	if err != nil {
		return nil, failed("acts", err)
	}
	out := make([]store.Act, len(found))
	for i, x := range found {
		if err := json.Unmarshal([]byte(x.Doc), &out[i]); err != nil {
			return nil, fmt.Errorf("act %s: %w", x.ID.Hex(), err)
		}
	}
	return out, nil
}

// State returns what was last put under a name, or store.ErrNotFound.
func (r *Registry) State(ctx context.Context, name string) ([]byte, error) {
	var x record
	err := r.db.Collection(states).FindOne(ctx, bson.D{byID(name)}).Decode(&x)
	if errors.Is(err, mongo.ErrNoDocuments) {
		return nil, store.ErrNotFound
	}
	if err != nil {
		return nil, failed("state", err)
	}
	var value []byte
	if err := json.Unmarshal([]byte(x.Doc), &value); err != nil {
		return nil, fmt.Errorf("state %s: record unreadable", name)
	}
	return value, nil
}

// PutState replaces what stands under a name.
func (r *Registry) PutState(ctx context.Context, name string, value []byte) error {
	return r.put(ctx, states, record{ID: name}, value)
}

// SwapState replaces from, or returns store.ErrChanged.
func (r *Registry) SwapState(ctx context.Context, name string, from, to []byte) error {
	stands, err1 := json.Marshal(from)
	next, err2 := json.Marshal(to)
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	c := r.db.Collection(states)
	if from == nil {
		_, err := c.InsertOne(ctx, record{ID: name, Doc: string(next)})
		if mongo.IsDuplicateKeyError(err) {
			return store.ErrChanged
		}
		if err != nil {
			return failed("state", err)
		}
		return nil
	}
	res, err := c.UpdateOne(ctx, bson.D{byID(name), {Key: "doc", Value: string(stands)}}, bson.D{{Key: "$set", Value: bson.D{{Key: "doc", Value: string(next)}}}})
	switch {
	case err != nil:
		return failed("state", err)
	case res.MatchedCount == 0:
		return store.ErrChanged
	}
	return nil
}

// put replaces or adds one record, whose document is v as JSON.
func (r *Registry) put(ctx context.Context, name string, x record, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("put: %w", err)
	}
	x.Doc = string(text)
	replace := func() error {
		_, err := r.db.Collection(name).ReplaceOne(ctx, bson.D{byID(x.ID)}, x, options.Replace().SetUpsert(true))
		return err
	}
	err = replace()
	if mongo.IsDuplicateKeyError(err) { // another process added it meanwhile: now it can be replaced
		err = replace()
	}
	if err != nil {
		return failed("put", err)
	}
	return nil
}

func (r *Registry) remove(ctx context.Context, name, id string) error {
	return r.removeOne(ctx, name, bson.D{byID(id)})
}

func (r *Registry) removeOne(ctx context.Context, name string, filter bson.D) error {
	res, err := r.db.Collection(name).DeleteOne(ctx, filter)
	switch {
	case err != nil:
		return failed("delete", err)
	case res.DeletedCount == 0:
		return store.ErrNotFound
	}
	return nil
}

// all reads every record of a collection by id; more adds what its JSON does not show, nil for nothing.
func all[T any](ctx context.Context, c *mongo.Collection, more func(*T, record) error) ([]T, error) {
	found, err := find[record](ctx, c, bson.D{}, mostWrites, options.Find().SetSort(up("_id")))
	if err != nil {
		return nil, failed("list "+c.Name(), err)
	}
	out := make([]T, len(found))
	for i, x := range found {
		err := json.Unmarshal([]byte(x.Doc), &out[i])
		if err == nil && more != nil {
			err = more(&out[i], x)
		}
		if err != nil {
			return nil, fmt.Errorf("list %s: record unreadable", c.Name())
		}
	}
	return out, nil
}
