package mongo_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/event"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"crivo/pkg/txn"
	"crivo/services/store"
	"crivo/services/store/mongo"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// recorder keeps the commands that the driver sends.
type recorder struct {
	mu   sync.Mutex
	sent []bson.Raw
}

func (r *recorder) monitor() *event.CommandMonitor {
	return &event.CommandMonitor{Started: func(_ context.Context, e *event.CommandStartedEvent) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.sent = append(r.sent, slices.Clone(e.Command))
	}}
}

// take returns what was sent since the last time.
func (r *recorder) take() []bson.Raw {
	r.mu.Lock()
	defer r.mu.Unlock()
	sent := r.sent
	r.sent = nil
	return sent
}

// query is one look-up of documents, whatever is then done with them.
type query struct {
	collection string
	find       bson.D // filter, sort, limit, projection
}

// queries are the look-ups of a command; none for an insert.
func queries(command bson.Raw) []query {
	elements, _ := command.Elements()
	name, collection := elements[0].Key(), elements[0].Value().StringValue()
	filter := func(doc bson.Raw, key string) query {
		out := query{collection, bson.D{{Key: "filter", Value: doc.Lookup(key)}}}
		for _, more := range []string{"sort", "limit", "projection"} {
			if v, err := doc.LookupErr(more); err == nil && name == "find" {
				out.find = append(out.find, bson.E{Key: more, Value: v})
			}
		}
		return out
	}
	each := func(list string) (out []query) {
		values, _ := command.Lookup(list).Array().Values()
		for _, v := range values {
			out = append(out, filter(v.Document(), "q"))
		}
		return out
	}
	switch name {
	case "find":
		return []query{filter(command, "filter")}
	case "findAndModify", "distinct":
		return []query{filter(command, "query")}
	case "update":
		return each("updates")
	case "delete":
		return each("deletes")
	}
	return nil
}

// plan is what an explanation says, of MongoDB's or of an engine on PostgreSQL that speaks its protocol.
type plan struct {
	indexes  []string
	scans    bool // documents are looked at that no index named
	examined int64
	returned int64
}

func explained(answer bson.Raw) plan {
	var p plan
	planner := answer.Lookup("queryPlanner").Document()
	if winning, err := planner.LookupErr("winningPlan"); err == nil {
		walk(winning, p.stage)
	} else {
		walk(planner.Lookup("Plan"), p.node)
	}
	if stats, ok := answer.Lookup("executionStats").DocumentOK(); ok {
		p.examined = max(number(stats, "totalDocsExamined"), number(stats, "totalKeysExamined"))
		p.returned = number(stats, "nReturned")
	}
	return p
}

// walk shows each document in v, v first.
func walk(v bson.RawValue, show func(bson.Raw)) {
	var values []bson.RawValue
	if doc, ok := v.DocumentOK(); ok {
		show(doc)
		values, _ = doc.Values()
	} else if array, ok := v.ArrayOK(); ok {
		values, _ = array.Values()
	}
	for _, inner := range values {
		walk(inner, show)
	}
}

func text(doc bson.Raw, key string) string {
	s, _ := doc.Lookup(key).StringValueOK()
	return s
}

func number(doc bson.Raw, key string) int64 {
	n, _ := doc.Lookup(key).AsInt64OK()
	return n
}

// stage reads one stage of MongoDB's.
func (p *plan) stage(doc bson.Raw) {
	switch stage := text(doc, "stage"); {
	case stage == "COLLSCAN":
		p.scans = true
	case stage == "IDHACK":
		p.indexes = append(p.indexes, "_id_")
	case text(doc, "indexName") != "":
		p.indexes = append(p.indexes, text(doc, "indexName"))
	}
}

// node reads one node of PostgreSQL's. The index of _id is also that of the collection: it is only used as ours where an id is in
// the condition.
func (p *plan) node(doc bson.Raw) {
	name := text(doc, "Index Name")
	switch {
	case strings.Contains(text(doc, "Node Type"), "Seq Scan"):
		p.scans = true
	case name == "_id_" && !strings.Contains(text(doc, "Index Cond"), "object_id"):
		p.indexes, p.scans = append(p.indexes, name), true
	case name != "":
		p.indexes = append(p.indexes, name)
	}
}

func TestExplanationsAreRead(t *testing.T) {
	for name, tc := range map[string]struct {
		json    string
		index   string
		scans   bool
		between int64 // examined less returned
	}{
		"a walk of an index": {`{"queryPlanner":{"winningPlan":{"stage":"LIMIT","inputStage":{"stage":"FETCH","inputStage":{"stage":"IXSCAN","indexName":"due"}}},
			"rejectedPlans":[{"stage":"COLLSCAN"}]},"executionStats":{"nReturned":3,"totalKeysExamined":5,"totalDocsExamined":3}}`, "due", false, 2},
		"an index of the other engine": {`{"queryPlanner":{"winningPlan":{"queryPlan":{"stage":"FETCH","inputStage":{"stage":"IXSCAN","indexName":"due"}},"slotBasedPlan":{}}}}`, "due", false, 0},
		"one id":                       {`{"queryPlanner":{"winningPlan":{"stage":"IDHACK"}},"executionStats":{"nReturned":1,"totalKeysExamined":1,"totalDocsExamined":1}}`, "_id_", false, 0},
		"one id, fast":                 {`{"queryPlanner":{"winningPlan":{"stage":"EXPRESS_IXSCAN","keyPattern":"{ _id: 1 }","indexName":"_id_"}}}`, "_id_", false, 0},
		"the whole collection":         {`{"queryPlanner":{"winningPlan":{"stage":"SORT","inputStage":{"stage":"COLLSCAN"}}}}`, "", true, 0},
		"PostgreSQL's index": {`{"queryPlanner":{"Plan":{"Node Type":"Limit","Plans":[{"Node Type":"Bitmap Heap Scan","Plans":[{"Node Type":"Bitmap Index Scan",
			"Index Name":"due","Index Cond":"x"}]}]}}}`, "due", false, 0},
		"PostgreSQL's id":         {`{"queryPlanner":{"Plan":{"Node Type":"Index Scan","Index Name":"_id_","Index Cond":"((shard_key_value = 4) AND (object_id = 1))"}}}`, "_id_", false, 0},
		"PostgreSQL's collection": {`{"queryPlanner":{"Plan":{"Node Type":"Bitmap Index Scan","Index Name":"_id_","Index Cond":"(shard_key_value = 4)"}}}`, "_id_", true, 0},
		"PostgreSQL's table":      {`{"queryPlanner":{"Plan":{"Node Type":"Seq Scan"}}}`, "", true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			var answer bson.Raw
			if err := bson.UnmarshalExtJSON([]byte(tc.json), false, &answer); err != nil {
				t.Fatal(err)
			}
			p := explained(answer)
			if strings.Join(p.indexes, " ") != tc.index || p.scans != tc.scans || p.examined-p.returned != tc.between {
				t.Errorf("got %+v", p)
			}
		})
	}
}

// Every query that the room makes walks an index of the layout, however large the collections are, and looks at no more than
// twice what it returns.
func TestEveryQueryWalksAnIndex(t *testing.T) {
	var sent recorder
	db := fresh(t, func(c *options.ClientOptions) { c.SetMonitor(sent.monitor()) })
	fill(t, db)
	ctx, tx, dl, reg := t.Context(), db.Transactions(), db.Deliveries(), db.Registry()
	key := func(n int) store.Key { return store.Key{Tenant: "t", ID: fmt.Sprint(n)} }
	now := noon.Add(time.Hour)
	var every []string // of the payees
	for n := range 89 {
		every = append(every, fmt.Sprint("q", n))
	}
	list := func(q store.DeliveryQuery) func() error {
		return func() error {
			q.Tenant, q.Limit = "t", 20
			got, next, err := dl.List(ctx, q)
			if err == nil && len(got) == 0 {
				return fmt.Errorf("nothing to list")
			}
			q.Cursor = next
			_, _, more := dl.List(ctx, q)
			return or(err, more)
		}
	}
	search := func(q store.Query) func() error {
		return func() error {
			q.Tenant, q.Limit = "t", 10
			got, next, err := tx.Search(ctx, q)
			if err == nil && (len(got) < 10 || next == "") {
				return fmt.Errorf("%d found", len(got))
			}
			q.Cursor = next
			_, _, more := tx.Search(ctx, q)
			return or(err, more)
		}
	}
	for name, tc := range map[string]struct {
		index string
		call  func() error
		all   bool // asks for the whole collection: no index is better
	}{
		"claim": {"_id_", func() error { _, err := tx.Claim(ctx, []store.Claim{sample(1), sample(2)}); return err }, false},
		"get":   {"_id_", func() error { _, err := tx.Get(ctx, key(1)); return err }, false},
		"raise": {"_id_", func() error {
			_, err := tx.Raise(ctx, store.Raise{Key: key(7), FromRun: 1, AcceptedAt: noon, Deadline: noon})
			return err
		}, false},
		"decide": {"_id_", func() error {
			_, err := tx.Decide(ctx, []store.Decide{decided(1), decided(17), decided(999999)})
			return err
		}, false},
		"overdue":        {"overdue", func() error { _, err := tx.Overdue(ctx, now, 20); return err }, false},
		"unannounced":    {"unannounced", func() error { _, err := tx.Unannounced(ctx, now, 20); return err }, false},
		"announced":      {"_id_", func() error { return tx.Announced(ctx, []store.Key{key(10), key(20)}) }, false},
		"undecided":      {"_id_", func() error { _, err := tx.Undecided(ctx, []store.Key{key(1), key(2), key(7)}); return err }, false},
		"by token":       {"by_token", search(store.Query{Tokens: []string{"p3", "p8"}}), false},
		"by decision":    {"by_decision", search(store.Query{Decision: "review"}), false},
		"open reviews":   {"by_disposition", search(store.Query{Disposition: store.Open}), false},
		"closed reviews": {"by_disposition", search(store.Query{Disposition: store.Declined, From: noon, Oldest: true}), false},
		"two tokens":     {"by_token", search(store.Query{Tokens: []string{"p3"}, Also: every}), false},
		"dispose": {"_id_", func() error {
			_, err := tx.Dispose(ctx, key(1501), store.Disposition{Outcome: store.Approved, By: "k", At: now, Note: []byte("x")})
			return err
		}, false},
		"by reason":     {"by_reason", search(store.Query{Reason: "R8"}), false},
		"by time":       {"by_decision", search(store.Query{From: noon.Add(time.Second), To: noon.Add(3 * time.Second)}), false},
		"oldest first":  {"by_token", search(store.Query{Tokens: []string{"p3"}, From: noon.Add(time.Second), Oldest: true}), false},
		"insert":        {"", func() error { _, err := dl.Insert(ctx, []store.Delivery{row(1), row(2)}); return err }, false},
		"update":        {"_id_", func() error { return dl.Update(ctx, []store.Delivery{row(1), row(2)}) }, false},
		"lease":         {"due _id_", func() error { _, err := dl.Lease(ctx, "e1", now, now.Add(time.Minute), 20); return err }, false},
		"lease any":     {"due _id_", func() error { _, err := dl.Lease(ctx, "", now, now.Add(time.Minute), 1000); return err }, false},
		"due endpoints": {"due", func() error { _, err := dl.DueEndpoints(ctx, now); return err }, false},
		"cancel":        {"due page_of_endpoint", func() error { _, err := dl.Cancel(ctx, "t", "e2", store.Cancelled); return err }, false},
		"delivery":      {"id page", func() error { _, err := dl.Get(ctx, "t", "dlv_8"); return err }, false},
		"resend": {"id page _id_", func() error {
			return dl.Resend(ctx, store.Resend{Tenant: "t", ID: "dlv_9", Trigger: store.Manual, At: now})
		}, false},
		"between": {"by_time", func() error {
			got, err := dl.Between(ctx, store.Span{Tenant: "t", EndpointID: "e1", From: noon.Add(time.Second), To: noon.Add(2 * time.Second), Limit: 20})
			if err == nil && len(got) < 20 {
				err = fmt.Errorf("%d between", len(got))
			}
			if err == nil {
				_, err = dl.Between(ctx, store.Span{Tenant: "t", EndpointID: "e1", From: got[9].CreatedAt, To: noon.Add(2 * time.Second), After: got[9].ID, Limit: 20})
			}
			return err
		}, false},
		"list":           {"page", list(store.DeliveryQuery{}), false},
		"of a status":    {"page", list(store.DeliveryQuery{Status: store.Exhausted}), false},
		"of an endpoint": {"page_of_endpoint page", list(store.DeliveryQuery{EndpointID: "e3"}), false},
		"of both":        {"page_of_endpoint page", list(store.DeliveryQuery{EndpointID: "e3", Status: store.Delivered}), false},
		"of one payment": {"page_of_transaction", list(store.DeliveryQuery{TransactionID: "tx8"}), false},
		"all that":       {"page_of_transaction page_of_endpoint", list(store.DeliveryQuery{TransactionID: "tx8", EndpointID: "e0", Status: store.Delivered}), false},
		"tenants":        {"_id_", func() error { _, err := reg.Tenants(ctx); return err }, true},
		"keys":           {"_id_", func() error { _, err := reg.Keys(ctx); return err }, true},
		"endpoints":      {"_id_", func() error { _, err := reg.Endpoints(ctx); return err }, true},
		"replays":        {"_id_", func() error { _, err := reg.Replays(ctx); return err }, true},
		"change":         {"_id_", func() error { return reg.ChangeEndpoint(ctx, store.Endpoint{ID: "e", Tenant: "t1"}) }, false},
		"put":            {"_id_", func() error { return reg.PutKey(ctx, store.APIKey{ID: "k8", Tenant: "t8"}) }, false},
		"delete":         {"_id_", func() error { _ = reg.DeleteKey(ctx, "t", "k"); return nil }, false},
		"list entries":   {"_id_", func() error { _, err := reg.ListEntries(ctx); return err }, true},
		"list page": {"page", func() error {
			q := store.ListQuery{Tenant: "t", List: "block", Limit: 20}
			got, next, err := reg.ListPage(ctx, q)
			if err == nil && (len(got) < 20 || next == "") {
				return fmt.Errorf("%d listed", len(got))
			}
			q.Cursor = next
			_, _, more := reg.ListPage(ctx, q)
			return or(err, more)
		}, false},
		"list put":     {"_id_", func() error { _, err := reg.PutListEntry(ctx, listed(8)); return err }, false},
		"list delete":  {"id page", func() error { return reg.DeleteListEntry(ctx, "t", "block", "ent_8") }, false},
		"rule sets":    {"version", func() error { _, err := reg.RuleSets(ctx); return err }, true},
		"rule set":     {"_id_", func() error { _, err := reg.RuleSet(ctx, "default", 7); return err }, false},
		"rule set put": {"_id_", func() error { return reg.PutRuleSet(ctx, version(7)) }, false},
		"acts":         {"newest", func() error { _, err := reg.Acts(ctx, 20); return err }, false},
	} {
		t.Run(name, func(t *testing.T) {
			sent.take()
			if err := tc.call(); err != nil {
				t.Fatal(err)
			}
			for _, command := range sent.take() {
				for _, q := range queries(command) {
					proveIndex(t, db, q, tc.index, tc.all)
				}
			}
		})
	}
}

// proveIndex has one query explained and checks the plan; one of indexes must be in it, and all may be.
func proveIndex(t *testing.T, db *mongo.DB, q query, indexes string, all bool) {
	t.Helper()
	answer, err := db.Raw().RunCommand(t.Context(), bson.D{{Key: "explain", Value: append(bson.D{{Key: "find", Value: q.collection}}, q.find...)},
		{Key: "verbosity", Value: "executionStats"}}).Raw()
	if err != nil {
		t.Fatal(err)
	}
	p := explained(answer)
	ours := len(p.indexes) > 0 && !slices.ContainsFunc(p.indexes, func(i string) bool { return !slices.Contains(strings.Fields(indexes), i) })
	if !all && (!ours || p.scans) || p.examined > 2*max(1, p.returned) {
		t.Errorf("%s %v: %+v", q.collection, q.find, p)
	}
}

func or(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// fill puts enough into every collection that walking it whole would be the worse plan.
func fill(t testing.TB, db *mongo.DB) {
	t.Helper()
	ctx, n := context.Background(), 4000
	claims, decides, rows := make([]store.Claim, n), make([]store.Decide, 0, n), make([]store.Delivery, n)
	for i := range n {
		claims[i], rows[i] = sample(i), row(i)
		if i%10 != 7 {
			decides = append(decides, decided(i))
		}
	}
	_, err1 := db.Transactions().Claim(ctx, claims)
	_, err2 := db.Transactions().Decide(ctx, decides)
	_, err3 := db.Deliveries().Insert(ctx, rows)
	err := or(err1, err2, err3)
	for i := range 24 {
		_, closeErr := db.Transactions().Dispose(ctx, sample(30*i+1).Key, store.Disposition{Outcome: store.Declined, By: "k", At: noon})
		err = or(err, closeErr)
	}
	for i := range 400 {
		err = or(err, db.Registry().Record(ctx, store.Act{Action: fmt.Sprint(i)}))
	}
	for i := range 400 {
		_, putErr := db.Registry().PutListEntry(ctx, listed(i))
		err = or(err, putErr)
	}
	for i := range 40 {
		err = or(err, db.Registry().PutRuleSet(ctx, version(i+1)))
	}
	for i := range 3 {
		err = or(err, db.Registry().PutTenant(ctx, store.Tenant{ID: fmt.Sprint("t", i)}),
			db.Registry().PutKey(ctx, store.APIKey{ID: "k", Tenant: fmt.Sprint("t", i)}), db.Registry().PutEndpoint(ctx, store.Endpoint{ID: "e", Tenant: fmt.Sprint("t", i)}))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// listed is an entry of one of two lists.
func listed(n int) store.ListEntry {
	return store.ListEntry{ID: fmt.Sprint("ent_", n), Tenant: "t", List: []string{"block", "other"}[n%2], Kind: "document", Value: fmt.Sprint("1.", n), CreatedAt: txn.At(noon)}
}

func version(n int) store.RuleSet {
	return store.RuleSet{Name: "default", Version: n, Digest: fmt.Sprint("sha256:", n), Source: make([]byte, 4000), CreatedAt: txn.At(noon)}
}

func sample(n int) store.Claim {
	at := noon.Add(time.Duration(n) * time.Millisecond)
	return store.Claim{Key: store.Key{Tenant: "t", ID: fmt.Sprint(n)}, Digest: "1.x", Run: 1, ClaimedAt: at, AcceptedAt: at,
		Deadline: at.Add(2 * time.Second), Body: make([]byte, 700)}
}

func decided(n int) store.Decide {
	return store.Decide{Claim: sample(n), Event: make([]byte, 2000), Decision: []string{"approve", "review", "decline"}[n%3], Reasons: []string{fmt.Sprint("R", n%20)},
		Tokens: []string{fmt.Sprint("p", n%97), fmt.Sprint("q", n%89)}, DecidedAt: noon.Add(time.Second), Unannounced: n%50 == 0}
}

// row is one of few that are pending among many that are delivered.
func row(n int) store.Delivery {
	r := store.Delivery{ID: fmt.Sprint("dlv_", n), Tenant: "t", EndpointID: fmt.Sprint("e", n%4), TransactionID: fmt.Sprint("tx", n), WebhookID: fmt.Sprint("msg_", n),
		Type: "transaction.decided", Body: make([]byte, 300), Status: store.Delivered, NextAttemptAt: noon, LeasedUntil: noon, CreatedAt: noon.Add(time.Duration(n) * time.Millisecond)}
	switch n % 40 {
	case 0, 1, 2, 3:
		r.Status = store.Pending
	case 4:
		r.Status = store.Exhausted
	}
	return r
}
