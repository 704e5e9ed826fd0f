package sqlite_test

import (
	"bufio"
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

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
			"SELECT * FROM deliveries WHERE tenant = 't' AND txid = 'x' ORDER BY number DESC LIMIT 1",
			"SELECT * FROM deliveries WHERE id = 'x' AND tenant = 't'",
			"UPDATE deliveries SET status = 'x' WHERE status = 'pending' AND endpoint = 'e' AND tenant = 't'"),
	} {
		db, err := sql.Open("sqlite", filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		for _, q := range queries {
			rows, err := db.Query("EXPLAIN QUERY PLAN " + strings.ReplaceAll(q, "?", "'1'"))
			if err != nil {
				t.Fatal(err)
			}
			for rows.Next() {
				var a, b, c int
				var plan string
				if err := rows.Scan(&a, &b, &c, &plan); err != nil {
					t.Fatal(err)
				}
				// What is scanned whole may only be the question itself: the keys that were asked for, the endpoints found.
				if strings.HasPrefix(plan, "SCAN") && plan != "SCAN e" && plan != "SCAN k VIRTUAL TABLE INDEX 1:" || strings.Contains(plan, "TEMP B-TREE") {
					t.Errorf("%s: %s", q, plan)
				}
			}
			_ = rows.Close()
		}
		_ = db.Close()
	}
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

// BenchmarkDueEndpoints looks for what is due among rows that are delivered and rows that wait for a later try.
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
	for name, q := range map[string]store.DeliveryQuery{"all": {}, "endpoint": {EndpointID: "e"}, "transaction": {TransactionID: "7-7"}} {
		q.Tenant, q.Limit = "t", 50
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if got, _, err := s.List(context.Background(), q); err != nil || len(got) == 0 {
					b.Fatal(len(got), err)
				}
			}
		})
	}
}

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

func BenchmarkClaimAndDecide(b *testing.B) {
	for _, size := range []int{1, 64} {
		b.Run(fmt.Sprint("group=", size), func(b *testing.B) {
			s := transactions(b, filepath.Join(b.TempDir(), "t.db"))
			ctx, event := context.Background(), make([]byte, 3000)
			claims, decides := make([]store.Claim, size), make([]store.Decide, size)
			for n := 0; b.Loop(); n++ {
				for i := range claims {
					claims[i] = newClaim(fmt.Sprint(n, "-", i))
					decides[i] = store.Decide{Claim: claims[i], Event: event, Decision: "approve", DecidedAt: time.Now()}
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
