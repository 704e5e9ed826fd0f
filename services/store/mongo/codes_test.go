package mongo_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/event"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"crivo/services/store"
)

// ample is the time that a call has on a busy machine.
const ample = 20 * time.Second

const retryable = "RetryableWriteError"

// brief is the time that a call of these tests has.
func brief(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// What a server says of a claim is done, lost, refused, or unknown; what may be tried again is, under one number.
func TestCodesAreClassed(t *testing.T) {
	const won, lost, refused, unknown = "won", "lost", "refused", "unknown"
	stands := found(bson.D{{Key: "_id", Value: "t/1"}, {Key: "digest", Value: "other"}, {Key: "run", Value: 1}})
	for name, tc := range map[string]struct {
		says  []answer
		want  string
		tries int
	}{
		"no writable primary":             {[]answer{always(trouble(10107, "NotWritablePrimary", retryable))}, won, 2},
		"stepped down":                    {[]answer{always(trouble(189, "PrimarySteppedDown", retryable))}, won, 2},
		"shutting down":                   {[]answer{always(trouble(11600, "InterruptedAtShutdown", retryable))}, won, 2},
		"stepped down before it was held": {[]answer{always(unheld(1, 189, retryable))}, won, 2},
		"the connection is cut":           {[]answer{always(nil)}, won, 2},
		"cut, then the key is there":      {[]answer{always(nil), always(faults(0, map[int]int{0: 11000}))}, lost, 2},
		"another has the key":             {[]answer{always(faults(0, map[int]int{0: 11000}))}, lost, 1},
		"waiting for a majority":          {[]answer{always(unheld(1, 64))}, unknown, 1},
		"no such majority":                {[]answer{always(unheld(1, 100))}, unknown, 1},
		"another has the key, unheld":     {[]answer{always(append(faults(0, map[int]int{0: 11000}), unheld(0, 64)[3]))}, unknown, 1},
		"against the validator":           {[]answer{always(faults(0, map[int]int{0: 121}))}, refused, 1},
		"too large":                       {[]answer{always(faults(0, map[int]int{0: 10334}))}, refused, 1},
		"too large for a command":         {[]answer{always(trouble(10334, "BSONObjectTooLarge"))}, refused, 1},
		"no BSON":                         {[]answer{always(trouble(22, "InvalidBSON"))}, refused, 1},
		"a code that nobody knows":        {[]answer{always(faults(0, map[int]int{0: 525074461}))}, unknown, 1},
		"an internal error":               {[]answer{always(faults(0, map[int]int{0: 1}))}, unknown, 1},
		"an internal error of all":        {[]answer{always(trouble(1, "InternalError"))}, unknown, 1},
		"a value it does not like":        {[]answer{always(trouble(2, "BadValue"))}, unknown, 1},
		"no right to write":               {[]answer{always(trouble(13, "Unauthorized"))}, unknown, 1},
		"its time was up":                 {[]answer{always(trouble(50, "MaxTimeMSExpired"))}, unknown, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newReplica(t)
			tx := r.open(t, unhurried).Transactions()
			p := r.nodes[0]
			p.says("insert", tc.says...)
			p.says("find", always(stands))
			got, err := tx.Claim(brief(t, ample), []store.Claim{sample(1)})
			outcome := unknown
			switch {
			case err != nil:
			case got[0].Won:
				outcome = won
			case errors.Is(got[0].Err, store.ErrRefused):
				outcome, err = refused, got[0].Err
			case got[0].Entry.Digest == "other":
				outcome = lost
			}
			if outcome != tc.want {
				t.Errorf("%s: %+v, %v", outcome, got, err)
			}
			if err != nil && strings.Contains(err.Error(), "529") {
				t.Errorf("quoted: %v", err)
			}
			inserts := p.heard("insert")
			if len(inserts) != tc.tries {
				t.Fatalf("%d tries", len(inserts))
			}
			if n := len(inserts) - 1; inserts[n].Lookup("txnNumber").AsInt64() != inserts[0].Lookup("txnNumber").AsInt64() ||
				same(t, inserts[n].Lookup("lsid"), inserts[0].Lookup("lsid")) != "" {
				t.Error("tried again under another number")
			}
		})
	}
}

// One item's refusal or loss is its own; one that is unknown makes all of them unknown.
func TestItemsOfABulkHaveTheirOwnOutcomes(t *testing.T) {
	r := newReplica(t)
	tx := r.open(t, unhurried).Transactions()
	p := r.nodes[0]
	claims := []store.Claim{sample(0), sample(1), sample(2), sample(3)}
	p.says("insert", always(faults(2, map[int]int{1: 121, 3: 11000})))
	p.says("find", always(found(bson.D{{Key: "_id", Value: "t/3"}, {Key: "digest", Value: "other"}})))
	got, err := tx.Claim(brief(t, ample), claims)
	if err != nil || !got[0].Won || !got[2].Won || !errors.Is(got[1].Err, store.ErrRefused) || got[3].Won || got[3].Entry.Digest != "other" {
		t.Errorf("%+v, %v", got, err)
	}
	p.says("insert", always(faults(2, map[int]int{1: 121, 3: 1})))
	if got, err = tx.Claim(brief(t, ample), claims); err == nil {
		t.Errorf("%+v", got)
	}
	// A command refused whole is made again by halves: the item at fault is found, the others are written.
	bad := func(command bson.Raw) bson.D {
		if strings.Contains(command.Lookup("documents").String(), `"t/2"`) {
			return trouble(10334, "BSONObjectTooLarge")
		}
		return wellDone(command)
	}
	p.says("insert", bad, bad, bad, bad, bad)
	if got, err = tx.Claim(brief(t, ample), claims); err != nil || !got[0].Won || !got[1].Won || !got[3].Won || !errors.Is(got[2].Err, store.ErrRefused) {
		t.Errorf("%+v, %v", got, err)
	}
}

// A new primary is found within the budget of a group write, and gets the repeat under the same number.
func TestAnElectionIsBridged(t *testing.T) {
	r := newReplica(t)
	tx := r.open(t, unhurried).Transactions()
	if _, err := tx.Claim(brief(t, ample), []store.Claim{sample(1)}); err != nil {
		t.Fatal(err)
	}
	const most = 1500 * time.Millisecond
	least := time.Hour
	for n := 0; n < 5 && least > most; n++ { // what takes longer may be a busy machine's
		old, next := r.nodes[n%2], r.nodes[1-n%2]
		before := len(next.heard("insert"))
		old.says("insert", func(bson.Raw) bson.D {
			r.elect()
			return trouble(10107, "NotWritablePrimary", retryable)
		})
		started := time.Now()
		got, err := tx.Claim(brief(t, ample), []store.Claim{sample(2)})
		if least = min(least, time.Since(started)); err != nil || !got[0].Won {
			t.Errorf("%+v, %v", got, err)
		}
		tried, again := old.heard("insert"), next.heard("insert")[before:]
		if first := tried[len(tried)-1]; len(again) != 1 || again[0].Lookup("txnNumber").AsInt64() != first.Lookup("txnNumber").AsInt64() {
			t.Errorf("the new primary heard %v", again)
		}
	}
	t.Logf("bridged in %s", least)
	if least > most {
		t.Errorf("took %s", least)
	}
}

// A set that stays without a primary costs a call its deadline and no more, and is not beset meanwhile.
func TestNoPrimaryCostsACallItsDeadline(t *testing.T) {
	r := newReplica(t)
	tx := r.open(t, unhurried).Transactions()
	down := always(trouble(10107, "NotWritablePrimary", retryable))
	for range 100 {
		r.nodes[0].says("insert", down)
		r.nodes[0].says("update", down)
	}
	for name, call := range map[string]func(context.Context) error{
		"claim": func(ctx context.Context) error { _, err := tx.Claim(ctx, []store.Claim{sample(1)}); return err },
		"ping":  tx.Ping,
	} {
		started := time.Now()
		err := call(brief(t, 700*time.Millisecond))
		if took := time.Since(started); err == nil || took > belowPatience {
			t.Errorf("%s: %v after %s", name, err, took)
		}
	}
	if n := len(r.nodes[0].heard("")); n > 12 {
		t.Errorf("asked %d times", n)
	}
}

// A server that is well and never answers costs a call without a deadline the room's own, and one with a deadline no more than it.
func TestNoCallWaitsForEver(t *testing.T) {
	for name, tc := range map[string]struct {
		ctx  func(t *testing.T) context.Context
		edit func(*options.ClientOptions)
		most time.Duration
	}{
		"no deadline": {func(*testing.T) context.Context { return context.Background() }, hasty(t), 7 * time.Second},
		"a deadline":  {func(t *testing.T) context.Context { return brief(t, 200*time.Millisecond) }, unhurried, belowPatience},
	} {
		t.Run(name, func(t *testing.T) {
			r := newReplica(t)
			r.nodes[0].says("find", always(silence), always(silence), always(silence))
			started := time.Now()
			_, err := r.open(t, tc.edit).Transactions().Get(tc.ctx(t), sample(1).Key)
			if took := time.Since(started); err == nil || errors.Is(err, store.ErrNotFound) || took > tc.most {
				t.Errorf("%v after %s", err, took)
			}
		})
	}
}

// An index on a large collection takes minutes: a caller without a deadline waits for it, one with a deadline no longer than that.
func TestAnIndexHasTimeToBeBuilt(t *testing.T) {
	r := newReplica(t)
	db := r.open(t, unhurried)
	for name, tc := range map[string]struct {
		ctx         context.Context
		least, most time.Duration
	}{
		"no deadline": {context.Background(), 10 * time.Minute, time.Hour},
		"a deadline":  {brief(t, time.Minute), 0, time.Minute},
	} {
		before := len(r.nodes[0].heard("createIndexes"))
		if err := db.Ensure(tc.ctx); err != nil {
			t.Fatal(err)
		}
		built := r.nodes[0].heard("createIndexes")[before:]
		if len(built) == 0 {
			t.Errorf("%s: no index was made", name)
		}
		for _, c := range built {
			if d := time.Duration(c.Lookup("maxTimeMS").AsInt64()) * time.Millisecond; d < tc.least || d > tc.most {
				t.Errorf("%s: %s", name, d)
			}
		}
	}
}

// completed is the document that a Decide wrote, as it was sent.
func completed(update bson.Raw, at int) bson.D {
	values, _ := update.Lookup("updates").Array().Values()
	one := values[at].Document()
	out := bson.D{{Key: "_id", Value: one.Lookup("q", "_id")}, {Key: "digest", Value: one.Lookup("q", "digest")}, {Key: "run", Value: 1}}
	set, _ := one.Lookup("u", "$set").Document().Elements()
	for _, e := range set {
		out = append(out, bson.E{Key: e.Key(), Value: e.Value()})
	}
	return out
}

// The bulk's count does not say which decisions were made. The documents do, also where an answer was lost and the server that
// heard the repeat knew nothing of the first try.
func TestADecisionIsKnownByItsCall(t *testing.T) {
	r := newReplica(t)
	tx := r.open(t, unhurried).Transactions()
	p := r.nodes[0]
	p.says("update", always(nil), always(made(0)))
	p.says("find", func(bson.Raw) bson.D {
		updates := p.asked[len(p.asked)-2] // under the lock of reply
		before := completed(updates, 1)
		for i := range before {
			switch before[i].Key {
			case "call":
				before[i].Value = bson.NewObjectID()
			case "event":
				before[i].Value = []byte("another's")
			}
		}
		claimed := bson.D{{Key: "_id", Value: "t/2"}, {Key: "digest", Value: "another"}, {Key: "run", Value: 1}, {Key: "open", Value: true}}
		return found(completed(updates, 0), before, claimed)
	})
	got, err := tx.Decide(brief(t, ample), []store.Decide{decided(0), decided(1), decided(2), decided(3)})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{store.DecidedNow, store.DecidedBefore, store.DigestConflict, store.DecidedNow} {
		if got[i].Status != want {
			t.Errorf("%d: %s, want %s", i, got[i].Status, want)
		}
	}
	if string(got[1].Entry.Event) != "another's" {
		t.Errorf("got %s", got[1].Entry.Event)
	}
	if n := len(p.heard("insert")); n != 1 {
		t.Errorf("%d inserts for the one without a claim", n)
	}
}

// The usual batch takes one round trip, one that was decided before two, one without claims three.
func TestRoundTripsOfADecision(t *testing.T) {
	r := newReplica(t)
	tx := r.open(t, unhurried).Transactions()
	p := r.nodes[0]
	for name, tc := range map[string]struct {
		says  func()
		trips int
	}{
		"all claimed": {func() {}, 1},
		"decided before": {func() {
			p.says("update", always(made(0)))
			p.says("find", always(found(doc("t/1", false), doc("t/2", false))))
		}, 2},
		"never claimed": {func() { p.says("update", always(made(0))) }, 3},
	} {
		t.Run(name, func(t *testing.T) {
			before := len(p.heard(""))
			tc.says()
			if _, err := tx.Decide(brief(t, ample), []store.Decide{decided(1), decided(2)}); err != nil {
				t.Fatal(err)
			}
			if n := len(p.heard("")) - before; n != tc.trips {
				t.Errorf("%d round trips", n)
			}
		})
	}
}

func doc(id string, open bool) bson.D {
	out := bson.D{{Key: "_id", Value: id}, {Key: "digest", Value: "1.x"}, {Key: "run", Value: 1}}
	if open {
		return append(out, bson.E{Key: "open", Value: true}, bson.E{Key: "body", Value: []byte("{}")})
	}
	return append(out, bson.E{Key: "event", Value: []byte("before")}, bson.E{Key: "decided_at", Value: noon})
}

// What another process has written and a majority does not know yet is waited for, neither taken for absent nor for ours.
func TestWhatAMajorityDoesNotKnowYetIsWaitedFor(t *testing.T) {
	r := newReplica(t)
	tx := r.open(t, unhurried).Transactions()
	p, taken := r.nodes[0], always(faults(0, map[int]int{0: 11000}))
	p.says("insert", taken, taken, taken)
	p.says("find", always(found()), always(found()), always(found(doc("t/1", true))))
	claimed, err := tx.Claim(brief(t, ample), []store.Claim{sample(1)})
	if err != nil || claimed[0].Won || string(claimed[0].Entry.Body) != "{}" {
		t.Errorf("%+v, %v", claimed, err)
	}
	// Claimed between the update and the insert of the whole, then decided by another, whose decision is seen late.
	p.says("update", always(made(0)), always(made(0)), always(made(0)))
	p.says("insert", taken)
	p.says("find", always(found()), always(found(doc("t/1", true))), always(found(doc("t/1", false))))
	outcome, err := tx.Decide(brief(t, ample), []store.Decide{decided(1)})
	if err != nil || outcome[0].Status != store.DecidedBefore || string(outcome[0].Entry.Event) != "before" {
		t.Errorf("%+v, %v", outcome, err)
	}
	// One that never shows is unknown when the time is up.
	for range 100 {
		p.says("insert", taken)
	}
	if claimed, err = tx.Claim(brief(t, 100*time.Millisecond), []store.Claim{sample(1)}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%+v, %v", claimed, err)
	}
}

// A secondary, however far behind, is never asked for what decides something.
func TestOnlyThePrimaryIsAskedForDecisions(t *testing.T) {
	r := newReplica(t)
	r.nodes[1].behind = time.Hour
	db := r.open(t, unhurried)
	ctx, tx, dl, reg := brief(t, ample), db.Transactions(), db.Deliveries(), db.Registry()
	for range 3 {
		_, _ = tx.Claim(ctx, []store.Claim{sample(1)})
		_, _ = tx.Get(ctx, sample(1).Key)
		_, _ = tx.Decide(ctx, []store.Decide{decided(1)})
		_, _ = tx.Raise(ctx, store.Raise{Key: sample(1).Key, FromRun: 1})
		_, _ = tx.Overdue(ctx, noon, 9)
		_, _ = tx.Unannounced(ctx, noon, 9)
		_, _ = tx.Undecided(ctx, []store.Key{sample(1).Key})
		_, _, _ = tx.Search(ctx, store.Query{Tenant: "t", Limit: 1, Newest: true})
		_, _ = dl.Insert(ctx, []store.Delivery{row(1)})
		_, _ = dl.Lease(ctx, "e", noon, noon, 9)
		_, _ = dl.DueEndpoints(ctx, noon)
		_, _ = dl.Get(ctx, "t", "dlv_1")
		_, _ = reg.Keys(ctx)
	}
	if err := ctx.Err(); err != nil {
		t.Fatal(err)
	}
	if asked := r.nodes[1].heard(""); len(asked) > 0 {
		t.Errorf("the secondary was asked %v", asked)
	}
	if n := len(r.nodes[0].heard("")); n < 39 {
		t.Errorf("the primary was asked %d times", n)
	}
	for _, c := range r.nodes[0].heard("find") {
		if level := c.Lookup("readConcern", "level").StringValue(); level != "majority" {
			t.Error(fmt.Sprint("read ", level))
		}
	}
}

// A search goes to a secondary, unless that is too far behind.
func TestASearchIsAnsweredByASecondaryThatKeepsUp(t *testing.T) {
	for name, tc := range map[string]struct {
		behind time.Duration
		asked  int
	}{
		"keeps up": {time.Second, 1},
		"lags":     {time.Hour, 0},
	} {
		t.Run(name, func(t *testing.T) {
			r := newReplica(t)
			r.nodes[1].behind = tc.behind
			known := make(chan struct{})
			tell := sync.OnceFunc(func() { close(known) })
			tx := r.open(t, func(c *options.ClientOptions) {
				unhurried(c)
				c.ServerMonitor.TopologyDescriptionChanged = func(e *event.TopologyDescriptionChangedEvent) {
					servers := e.NewDescription.Servers
					if len(servers) == 2 && servers[0].Kind != "Unknown" && servers[1].Kind != "Unknown" {
						tell()
					}
				}
			}).Transactions()
			ctx := brief(t, ample)
			select {
			case <-known: // both, so it has a choice
			case <-ctx.Done():
				t.Fatal("the set is not known")
			}
			if _, _, err := tx.Search(ctx, store.Query{Tenant: "t", Limit: 1}); err != nil {
				t.Fatal(err)
			}
			asked := r.nodes[tc.asked].heard("find")
			if len(asked) != 1 {
				t.Fatalf("%d asked of the %d.", len(asked), tc.asked)
			}
			if diff := same(t, bson.D{{Key: "mode", Value: "secondaryPreferred"}, {Key: "maxStalenessSeconds", Value: 90}}, asked[0].Lookup("$readPreference")); diff != "" {
				t.Error(diff)
			}
		})
	}
}
