package sqlite_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"crivo/services/store"
	"crivo/services/store/sqlite"
	"crivo/services/store/storetest"
)

func closing[T interface{ Close() error }](t testing.TB, s T, err error) T {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func transactions(t testing.TB, path string) *sqlite.Transactions {
	t.Helper()
	s, err := sqlite.OpenTransactions(path, sqlite.Options{Sync: true})
	return closing(t, s, err)
}

func TestTransactions(t *testing.T) {
	storetest.Transactions(t, func(t *testing.T) store.Transactions { return transactions(t, filepath.Join(t.TempDir(), "t.db")) })
}

func TestSearch(t *testing.T) {
	storetest.Search(t, func(t *testing.T) store.Transactions { return transactions(t, filepath.Join(t.TempDir(), "t.db")) })
}

func TestRegistry(t *testing.T) {
	storetest.Registry(t, func(t *testing.T) store.Registry {
		s, err := sqlite.OpenRegistry(filepath.Join(t.TempDir(), "r.db"), sqlite.Options{})
		return closing(t, s, err)
	})
}

func TestDeliveries(t *testing.T) {
	storetest.Deliveries(t, func(t *testing.T) store.Deliveries {
		s, err := sqlite.OpenDeliveries(filepath.Join(t.TempDir(), "d.db"), sqlite.Options{})
		return closing(t, s, err)
	})
}

// A group is one transaction of the file: it is there whole or not at all, whenever its context ends.
func TestAGroupIsThereWholeOrNotAtAll(t *testing.T) {
	s, ctx := transactions(t, filepath.Join(t.TempDir(), "t.db")), context.Background()
	const size = 40
	for n := range 30 {
		claims, decides := make([]store.Claim, size), make([]store.Decide, size)
		for i := range claims {
			claims[i] = newClaim(fmt.Sprint("g", n, "-", i))
			decides[i] = store.Decide{Claim: claims[i], Event: []byte("x"), Decision: "approve", DecidedAt: time.Now()}
		}
		brief, cancel := context.WithTimeout(ctx, time.Duration(n*60)*time.Microsecond)
		_, claimErr := s.Claim(brief, claims)
		_, decideErr := s.Decide(brief, decides)
		cancel()
		claimed, decided := 0, 0
		for _, c := range claims {
			e, err := s.Get(ctx, c.Key)
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				t.Fatal(err)
			}
			if err == nil {
				claimed++
			}
			if e.Decided() {
				decided++
			}
		}
		if claimed != 0 && claimed != size || claimErr == nil && claimed != size {
			t.Fatalf("%d of %d claimed, %v", claimed, size, claimErr)
		}
		if decided != 0 && decided != size || decideErr == nil && decided != size {
			t.Fatalf("%d of %d decided, %v", decided, size, decideErr)
		}
	}
}

func TestAFileOfANewerProgramIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t.db")
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec("PRAGMA user_version = 99"); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := sqlite.OpenTransactions(path, sqlite.Options{}); err == nil || !strings.Contains(err.Error(), "newer") {
		t.Errorf("got %v", err)
	}
}

// What a file held before there was a search stays, and is found by what its columns say.
func TestAFileOfTheFirstSchemaIsBroughtUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t.db")
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(sqlite.FirstTransactionSchema + `; PRAGMA user_version = 1;
		INSERT INTO transactions (tenant, id, digest, run, claimed_at, accepted_at, deadline, event, decision, reasons, decided_at)
		VALUES ('t', 'a', '1.x', 1, 1, 1, 1, x'00', 'review', 'A B', 2)`); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	for _, q := range []store.Query{{}, {Decision: "review"}} {
		q.Tenant, q.Limit = "t", 9
		if got, _, err := transactions(t, path).Search(t.Context(), q); err != nil || len(got) != 1 || got[0].ID != "a" {
			t.Errorf("%+v: %+v, %v", q, got, err)
		}
	}
}

// The queries that a sweep and a poll make must walk an index, however large the tables are.
func TestNoQueryScansATable(t *testing.T) {
	dir := t.TempDir()
	transactions(t, filepath.Join(dir, "t.db"))
	d, err := sqlite.OpenDeliveries(filepath.Join(dir, "d.db"), sqlite.Options{})
	closing(t, d, err)
	for file, queries := range map[string][]string{
		"t.db": sqlite.TransactionQueries,
		"d.db": append(sqlite.DeliveryQueries,
			"SELECT * FROM deliveries WHERE status = 'pending' AND next_at <= 1 AND leased_until <= 1 AND endpoint = 'e' ORDER BY next_at LIMIT 1",
			"SELECT * FROM deliveries WHERE id = 'x' AND tenant = 't'",
			"UPDATE deliveries SET status = 'x' WHERE status = 'pending' AND endpoint = 'e' AND tenant = 't'"),
	} {
		db, err := sql.Open("sqlite", filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		for _, q := range queries {
			for _, step := range plan(t, db, q) {
				// What is scanned whole may only be the question itself: the keys that were asked for, the endpoints found.
				if strings.HasPrefix(step, "SCAN") && step != "SCAN e" && step != "SCAN k VIRTUAL TABLE INDEX 1:" || strings.Contains(step, "TEMP B-TREE") {
					t.Errorf("%s: %s", q, step)
				}
			}
		}
		_ = db.Close()
	}
}

// A search walks the index that has its order, in either direction and from the first page on.
func TestASearchWalksItsIndex(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t.db")
	s := transactions(t, path)
	if _, err := s.Decide(t.Context(), []store.Decide{{Claim: newClaim("a"), Event: []byte("x")}, {Claim: newClaim("b"), Event: []byte("x")}}); err != nil {
		t.Fatal(err)
	}
	_, cursor, err := s.Search(t.Context(), store.Query{Tenant: "t", Limit: 1})
	_, oldest, err2 := s.Search(t.Context(), store.Query{Tenant: "t", Limit: 1, Oldest: true})
	if err != nil || err2 != nil || cursor == "" || oldest == "" {
		t.Fatal(cursor, oldest, err, err2)
	}
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	const token, sorted = "SEARCH w USING PRIMARY KEY (chunk=? AND mark=? AND accepted_at>? AND accepted_at<?)", "USE TEMP B-TREE FOR ORDER BY"
	const reason, decision = "SEARCH r EXISTS USING PRIMARY KEY (chunk=? AND mark=? AND accepted_at=? AND id=?)",
		"SEARCH d EXISTS USING COVERING INDEX by_decision (tenant=? AND decision=? AND accepted_at=? AND id=?)"
	const disposition = "SEARCH d EXISTS USING COVERING INDEX by_disposition (tenant=? AND disposition=? AND accepted_at=? AND id=?)"
	const also = "SEARCH a EXISTS USING PRIMARY KEY (chunk=? AND mark=? AND accepted_at=? AND id=?)"
	for name, tc := range map[string]struct {
		query store.Query
		plan  []string // up to the look-up of what was found
	}{
		"time":                {store.Query{}, []string{"SEARCH w USING INDEX by_time (tenant=? AND accepted_at>? AND accepted_at<?)"}},
		"decision":            {store.Query{Decision: "review"}, []string{"SEARCH w USING COVERING INDEX by_decision (tenant=? AND decision=? AND accepted_at>? AND accepted_at<?)"}},
		"reason":              {store.Query{Reason: "R"}, []string{token}},
		"reason and decision": {store.Query{Reason: "R", Decision: "review"}, []string{token, decision}},
		"disposition":         {store.Query{Disposition: "open"}, []string{"SEARCH w USING COVERING INDEX by_disposition (tenant=? AND disposition=? AND accepted_at>? AND accepted_at<?)"}},
		"reason and outcome":  {store.Query{Reason: "R", Disposition: "approved"}, []string{token, disposition}},
		// Chunks are scanned as they are few, and what one token has in them is sorted: the rows are narrow.
		"token":      {store.Query{Tokens: []string{"k.x"}}, []string{"SCAN c", token, sorted}},
		"two tokens": {store.Query{Tokens: []string{"k.x"}, Also: []string{"k.y", "k.z"}}, []string{"SCAN c", token, also, sorted}},
		"everything": {store.Query{Tokens: []string{"k.x", "k.y"}, Reason: "R", Decision: "review"}, []string{"SCAN c", token, reason, decision, sorted}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, q := range []store.Query{{}, {Cursor: cursor}, {Oldest: true}, {Oldest: true, Cursor: oldest}} {
				q.Tokens, q.Also, q.Decision, q.Reason, q.Disposition = tc.query.Tokens, tc.query.Also, tc.query.Decision, tc.query.Reason, tc.query.Disposition
				for _, query := range sqlite.SearchQueries(q) {
					want := append(append([]string{"CO-ROUTINE w"}, tc.plan...), "SCAN w", "SEARCH t USING INDEX sqlite_autoindex_transactions_1 (tenant=? AND id=?)")
					got := plan(t, db, query)
					slices.Sort(want) // of two conditions either may be looked at first
					slices.Sort(got)
					if diff := cmp.Diff(want, got); diff != "" {
						t.Errorf("%s: %s", query, diff)
					}
				}
			}
		})
	}
}

// A page of deliveries searches the index that has its order, whatever is asked for; of any status, it merges one search of each.
func TestAListOfDeliveriesWalksItsIndex(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d.db")
	s, err := sqlite.OpenDeliveries(path, sqlite.Options{})
	closing(t, s, err)
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	const status, endpoint, transaction = "by_status (tenant=? AND status=? AND rowid<?)", "by_endpoint (tenant=? AND endpoint=? AND status=? AND rowid<?)",
		"by_transaction (tenant=? AND txid=? AND number<?)"
	for name, tc := range map[string]struct {
		query    store.DeliveryQuery
		index    string
		searches int
	}{
		"all":               {store.DeliveryQuery{}, status, 5},
		"of a status":       {store.DeliveryQuery{Status: "s"}, status, 1},
		"of an endpoint":    {store.DeliveryQuery{EndpointID: "e"}, endpoint, 5},
		"of both":           {store.DeliveryQuery{EndpointID: "e", Status: "s"}, endpoint, 1},
		"of one payment":    {store.DeliveryQuery{TransactionID: "x"}, transaction, 1},
		"of that, a status": {store.DeliveryQuery{TransactionID: "x", Status: "s"}, transaction, 1},
		"of that, a place":  {store.DeliveryQuery{TransactionID: "x", EndpointID: "e"}, transaction, 1},
		"all that":          {store.DeliveryQuery{TransactionID: "x", EndpointID: "e", Status: "s"}, transaction, 1},
	} {
		t.Run(name, func(t *testing.T) {
			searches, steps := 0, plan(t, db, sqlite.ListQuery(tc.query))
			for _, step := range steps {
				switch {
				case step == "SEARCH deliveries USING INDEX "+tc.index:
					searches++
				case strings.HasPrefix(step, "S") || strings.Contains(step, "TEMP B-TREE"):
					t.Error(step)
				}
			}
			if searches != tc.searches {
				t.Errorf("%d searches of %s: %q", searches, tc.index, steps)
			}
		})
	}
}

// What a file of the first schema holds is listed by the indexes that came later.
func TestDeliveriesOfTheFirstSchemaAreBroughtUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d.db")
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(sqlite.FirstDeliverySchema + `; PRAGMA user_version = 1;
		INSERT INTO deliveries (id, tenant, endpoint, txid, webhook, type, body, status, attempts, next_at, leased_until, created_at)
		VALUES ('dlv', 't', 'e', 'x', 'msg', 'y', x'00', 'exhausted', '[]', 1, 0, 1)`); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := sqlite.OpenDeliveries(path, sqlite.Options{})
	closing(t, s, err)
	for _, q := range []store.DeliveryQuery{{}, {Status: store.Exhausted}, {EndpointID: "e"}, {TransactionID: "x"}} {
		q.Tenant, q.Limit = "t", 9
		if got, _, err := s.List(t.Context(), q); err != nil || len(got) != 1 || got[0].ID != "dlv" {
			t.Errorf("%+v: %+v, %v", q, got, err)
		}
	}
}

// A token's transactions lie in many chunks, and what was accepted early may be decided late.
func TestASearchLooksIntoEveryChunk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t.db")
	s, start := transactions(t, path), time.UnixMilli(1795388711000)
	want := []string{}
	for n := range 30 {
		decides := make([]store.Decide, 200)
		for i := range decides {
			c := newClaim(fmt.Sprint("other", n, "-", i))
			c.AcceptedAt = start.Add(100*time.Hour + time.Duration(n*200+i)*time.Second)
			decides[i] = store.Decide{Claim: c, Event: []byte("x"), Tokens: []string{token(n*200 + i), token(i), token(n)}}
		}
		c := &decides[0].Claim
		c.ID, c.AcceptedAt = fmt.Sprintf("ours%02d", n), start.Add(time.Duration((n*7)%30)*time.Hour) // each hour once, in no order
		decides[0].Tokens = []string{"ours"}
		if _, err := s.Decide(t.Context(), decides); err != nil {
			t.Fatal(err)
		}
	}
	for hour := range 30 {
		want = append(want, fmt.Sprintf("ours%02d", hour*13%30)) // 7·13 is 1 more than three times 30
	}
	got := []string{}
	q := store.Query{Tenant: "t", Tokens: []string{"ours"}, Limit: 4, Oldest: true}
	for {
		found, next, err := s.Search(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			got = append(got, f.ID)
		}
		if q.Cursor = next; next == "" {
			break
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	early, _, err := s.Search(t.Context(), store.Query{Tenant: "t", Tokens: q.Tokens, Limit: 9, To: start.Add(5 * time.Hour)})
	if err != nil || len(early) != 5 || early[0].ID != want[4] {
		t.Errorf("%d within five hours, %v", len(early), err)
	}
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var chunks, most int
	if err := db.QueryRow("SELECT count(*), max(marks) FROM chunks").Scan(&chunks, &most); err != nil || chunks < 4 || most > 5000 {
		t.Errorf("%d chunks of up to %d, %v", chunks, most, err)
	}
}

// plan is what SQLite would do for a query.
func plan(t *testing.T, db *sql.DB, query string) []string {
	t.Helper()
	rows, err := db.Query("EXPLAIN QUERY PLAN " + strings.ReplaceAll(query, "?", "'1'"))
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		var a, b, c int
		var step string
		if err := rows.Scan(&a, &b, &c, &step); err != nil {
			t.Fatal(err)
		}
		out = append(out, step)
	}
	return out
}

const childFile = "CRIVO_TEST_SQLITE_CHILD"

// TestAKilledProcessLosesNothing kills a child that claims and decides; whatever it said was done is there afterwards.
func TestAKilledProcessLosesNothing(t *testing.T) {
	if path := os.Getenv(childFile); path != "" {
		writeForEver(path)
	}
	path := filepath.Join(t.TempDir(), "t.db")
	var claimed, decided []string
	for round := range 5 {
		cmd := exec.Command(os.Args[0], "-test.run", "TestAKilledProcessLosesNothing")
		cmd.Env = append(os.Environ(), childFile+"="+path, fmt.Sprint("ROUND=", round))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines, limit := bufio.NewScanner(out), 20+round*13
		for n := 0; lines.Scan(); n++ {
			what, id, _ := strings.Cut(lines.Text(), " ")
			switch what {
			case "claimed":
				claimed = append(claimed, id)
			case "decided":
				decided = append(decided, id)
			}
			if n == limit {
				_ = cmd.Process.Kill()
			}
		}
		_ = cmd.Wait()
	}
	s := transactions(t, path)
	if len(claimed) < 50 || len(decided) < 50 {
		t.Fatalf("%d claimed, %d decided: too few to tell", len(claimed), len(decided))
	}
	for _, id := range claimed {
		if _, err := s.Get(context.Background(), store.Key{Tenant: "t", ID: id}); err != nil {
			t.Errorf("claim %s: %v", id, err)
		}
	}
	for _, id := range decided {
		if e, err := s.Get(context.Background(), store.Key{Tenant: "t", ID: id}); err != nil || string(e.Event) != id {
			t.Errorf("decision %s: %v", id, err)
		}
	}
}

func writeForEver(path string) {
	s, err := sqlite.OpenTransactions(path, sqlite.Options{})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	for i := 0; ; i++ {
		c := newClaim(fmt.Sprint(os.Getenv("ROUND"), "-", i))
		if _, err := s.Claim(context.Background(), []store.Claim{c}); err == nil {
			fmt.Println("claimed", c.ID)
		}
		if _, err := s.Decide(context.Background(), []store.Decide{{Claim: c, Event: []byte(c.ID), Decision: "approve", DecidedAt: time.Now()}}); err == nil {
			fmt.Println("decided", c.ID)
		}
	}
}

func newClaim(id string) store.Claim {
	now := time.Now()
	return store.Claim{Key: store.Key{Tenant: "t", ID: id}, Digest: "1.x", Run: 1, ClaimedAt: now, AcceptedAt: now, Deadline: now, Body: make([]byte, 700)}
}

// BenchmarkListDeliveries reads the newest page of many rows.
func BenchmarkListDeliveries(b *testing.B) {
	s, err := sqlite.OpenDeliveries(filepath.Join(b.TempDir(), "d.db"), sqlite.Options{})
	closing(b, s, err)
	for n := range 50 {
		rows := make([]store.Delivery, 1000)
		for i := range rows {
			id := fmt.Sprint(n, "-", i)
			rows[i] = store.Delivery{ID: id, Tenant: "t", EndpointID: "e", TransactionID: id, WebhookID: id, Body: make([]byte, 300), Status: store.Delivered}
		}
		if _, err := s.Insert(context.Background(), rows); err != nil {
			b.Fatal(err)
		}
	}
	for name, q := range map[string]store.DeliveryQuery{"all": {}, "endpoint": {EndpointID: "e"}, "transaction": {TransactionID: "7-7"},
		"status": {Status: store.Delivered}, "nothing": {Status: store.Exhausted}, "nothing of an endpoint": {EndpointID: "e", Status: store.Exhausted}} {
		q.Tenant, q.Limit = "t", 50
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if got, _, err := s.List(context.Background(), q); err != nil || (len(got) == 0) != (q.Status == store.Exhausted) {
					b.Fatal(len(got), err)
				}
			}
		})
	}
}

// BenchmarkSearch reads the newest page among a hundred thousand transactions.
func BenchmarkSearch(b *testing.B) {
	s := transactions(b, filepath.Join(b.TempDir(), "t.db"))
	for n := range 100 {
		decides := make([]store.Decide, 1000)
		for i := range decides {
			at := n*1000 + i
			decides[i] = store.Decide{Claim: newClaim(fmt.Sprint(at)), Event: make([]byte, 3000), Decision: "approve", DecidedAt: time.Now(), Reasons: []string{"A"},
				Tokens: []string{token(at % 5000), token(at), "busy"}}
			if at%100 == 0 {
				decides[i].Decision, decides[i].Reasons = "review", []string{"B"}
			}
		}
		if _, err := s.Decide(b.Context(), decides); err != nil {
			b.Fatal(err)
		}
	}
	for name, q := range map[string]store.Query{"time": {}, "decision": {Decision: "review"}, "reason": {Reason: "B"}, "token of few": {Tokens: []string{token(7)}},
		"token of all": {Tokens: []string{"busy"}}, "token and decision": {Tokens: []string{token(100)}, Decision: "review"}} {
		q.Tenant, q.Limit = "t", 50
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if got, _, err := s.Search(context.Background(), q); err != nil || len(got) == 0 {
					b.Fatal(len(got), err)
				}
			}
		})
	}
}

// BenchmarkDueEndpoints looks for what is due among rows that are delivered and rows that wait for a later try.
func BenchmarkDueEndpoints(b *testing.B) {
	s, err := sqlite.OpenDeliveries(filepath.Join(b.TempDir(), "d.db"), sqlite.Options{})
	closing(b, s, err)
	ctx, now, body := context.Background(), time.Now(), make([]byte, 300)
	for n := range 100 {
		rows := make([]store.Delivery, 1000)
		for i := range rows {
			id := fmt.Sprint(n, "-", i)
			rows[i] = store.Delivery{ID: id, Tenant: "t", EndpointID: fmt.Sprint("e", n%3), TransactionID: id, WebhookID: id, Type: "x", Body: body,
				Status: store.Delivered, CreatedAt: now}
			if n >= 50 {
				rows[i].Status, rows[i].NextAttemptAt = store.Pending, now.Add(time.Hour)
			}
		}
		rows[0].Status, rows[0].NextAttemptAt = store.Pending, now
		if _, err := s.Insert(ctx, rows); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if due, err := s.DueEndpoints(ctx, now); err != nil || len(due) != 3 {
			b.Fatal(due, err)
		}
	}
}

// BenchmarkDeliver takes groups of webhooks to three endpoints from being owed to being delivered.
func BenchmarkDeliver(b *testing.B) {
	const size = 64
	s, err := sqlite.OpenDeliveries(filepath.Join(b.TempDir(), "d.db"), sqlite.Options{})
	closing(b, s, err)
	ctx, now, body, rows := context.Background(), time.Now(), make([]byte, 1000), make([]store.Delivery, size)
	for n := 0; b.Loop(); n++ {
		for i := range rows {
			id := fmt.Sprintf("01999b7e-%d-%d", n, i)
			rows[i] = store.Delivery{ID: "dlv_" + id, Tenant: "t", EndpointID: fmt.Sprint("whe_01999b7e-6a35-7ad2-b0a5-", i%3), TransactionID: id, WebhookID: "msg_" + id,
				Type: "transaction.decided", Body: body, Status: store.Pending, CreatedAt: now, NextAttemptAt: now}
		}
		if _, err := s.Insert(ctx, rows); err != nil {
			b.Fatal(err)
		}
		leased, err := s.Lease(ctx, "", now, now.Add(time.Minute), size)
		if err != nil || len(leased) != size {
			b.Fatal(len(leased), err)
		}
		for i := range leased {
			leased[i].Status = store.Delivered
		}
		if err := s.Update(ctx, leased); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N*size)/b.Elapsed().Seconds(), "deliveries/s")
}

// token is one of a hundred thousand, as long as they are and as far apart.
func token(n int) string {
	sum := sha256.Sum256([]byte(fmt.Sprint(n % 100_000)))
	return "1a2b3c4d." + base64.RawURLEncoding.EncodeToString(sum[:18])
}

func BenchmarkClaimAndDecide(b *testing.B) {
	for _, size := range []int{1, 64} {
		b.Run(fmt.Sprint("group=", size), func(b *testing.B) {
			s := transactions(b, filepath.Join(b.TempDir(), "t.db"))
			ctx, event := context.Background(), make([]byte, 3000)
			claims, decides := make([]store.Claim, size), make([]store.Decide, size)
			for n := 0; b.Loop(); n++ {
				for i := range claims {
					claims[i] = newClaim(fmt.Sprint(n, "-", i))
					decides[i] = store.Decide{Claim: claims[i], Event: event, Decision: "approve", DecidedAt: time.Now(), Reasons: []string{"A", "B"},
						Tokens: []string{token(n*size + i), token(3 * i), token(7 * n), token(n + i)}}
				}
				if _, err := s.Claim(ctx, claims); err != nil {
					b.Fatal(err)
				}
				if _, err := s.Decide(ctx, decides); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N*size)/b.Elapsed().Seconds(), "tx/s")
		})
	}
}

func TestDeliveriesThatHaveEndedAreForgottenOldestFirst(t *testing.T) {
	s, err := sqlite.OpenDeliveries(filepath.Join(t.TempDir(), "d.db"), sqlite.Options{})
	d := closing(t, s, err)
	begin := time.UnixMilli(1_795_000_000_000)
	var rows []store.Delivery
	for i := range 1500 {
		rows = append(rows, store.Delivery{ID: fmt.Sprint("dlv_", i), Tenant: "t", EndpointID: "e", TransactionID: "x", WebhookID: fmt.Sprint("msg_", i),
			Type: "transaction.decided", Body: []byte("{}"), Status: store.Delivered, CreatedAt: begin.Add(time.Duration(i) * time.Second),
			NextAttemptAt: begin, LeasedUntil: time.UnixMilli(0)})
	}
	rows[3].Status = store.Pending
	if _, err := d.Insert(t.Context(), rows); err != nil {
		t.Fatal(err)
	}
	total := 0
	for _, want := range []int{999, 300, 0} { // 1,300 rows are old enough, one of them is owed still
		n, err := d.Expire(t.Context(), begin.Add(1300*time.Second))
		if total += n; err != nil || n != want {
			t.Errorf("forgot %d, want %d, %v", n, want, err)
		}
	}
	for id, there := range map[string]bool{"dlv_0": false, "dlv_3": true, "dlv_1299": false, "dlv_1300": true} {
		if _, err := d.Get(t.Context(), "t", id); (err == nil) != there {
			t.Errorf("%s: %v", id, err)
		}
	}
}

// An endpoint that was paused long ago and forgotten keeps what it is owed, and must not keep all that came after.
func TestWhatIsOwedForLongStopsNoForgetting(t *testing.T) {
	s, err := sqlite.OpenDeliveries(filepath.Join(t.TempDir(), "d.db"), sqlite.Options{})
	d := closing(t, s, err)
	begin := time.UnixMilli(1_795_000_000_000)
	var rows []store.Delivery
	for i := range 2600 {
		r := store.Delivery{ID: fmt.Sprint("dlv_", i), Tenant: "t", EndpointID: "e", WebhookID: fmt.Sprint("msg_", i), Type: "transaction.decided", Body: []byte("{}"),
			Status: store.Delivered, CreatedAt: begin.Add(time.Duration(i) * time.Second), NextAttemptAt: begin, LeasedUntil: time.UnixMilli(0)}
		if i < 2100 {
			r.Status = store.Pending
		}
		rows = append(rows, r)
	}
	if _, err := d.Insert(t.Context(), rows); err != nil {
		t.Fatal(err)
	}
	forget := func(until, want int) {
		t.Helper()
		forgotten := 0
		for range 6 {
			n, err := d.Expire(t.Context(), begin.Add(time.Duration(until)*time.Second))
			if err != nil {
				t.Fatal(err)
			}
			forgotten += n
		}
		if forgotten != want {
			t.Errorf("forgot %d, want %d", forgotten, want)
		}
	}
	forget(2500, 400)
	if _, err := d.Cancel(t.Context(), "t", "e", store.Cancelled); err != nil { // what stood before is looked at again
		t.Fatal(err)
	}
	forget(2600, 2200)
}
