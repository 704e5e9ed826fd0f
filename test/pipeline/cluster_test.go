package pipeline_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"crivo/services/feed"
	"crivo/services/store"
	"crivo/services/store/mongo"
	"crivo/streams/event"
	"crivo/test/system"
)

// realParts are the databases that the environment names; without them the test is skipped.
func realParts(t *testing.T) (mongoURI, redisURL string) {
	t.Helper()
	mongoURI, redisURL = os.Getenv("CRIVO_TEST_MONGO_URI"), os.Getenv("CRIVO_TEST_REDIS_URL")
	if mongoURI == "" || redisURL == "" {
		t.Skip("CRIVO_TEST_MONGO_URI and CRIVO_TEST_REDIS_URL name no servers")
	}
	return mongoURI, redisURL
}

// rows is how many transactions go through: CRIVO_TEST_ROWS, or few.
func rows(t *testing.T) int {
	t.Helper()
	n, err := strconv.Atoi(os.Getenv("CRIVO_TEST_ROWS"))
	if err != nil {
		return 2000
	}
	return n
}

// Seven services as processes of their own, two of each step and two edges behind nginx, on three NATS servers, MongoDB's
// protocol and Redis: every transaction is decided once, and its webhook verifies.
func TestSeparateServicesDecideEachTransactionOnce(t *testing.T) {
	mongoURI, redisURL := realParts(t)
	database := database()
	c := system.NewCluster(t, system.ClusterOptions{MongoURI: mongoURI, Database: database, RedisURL: redisURL, Nodes: 3, Copies: 2})
	c.BehindNginx(t)
	r, err := c.Receive(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	n := rows(t)
	began := time.Now()
	submit(t, c, n)
	submitted := time.Since(began)
	if !r.Await(t.Context(), n, time.Minute) {
		t.Errorf("%d of %d transactions came by webhook", len(r.Verdicts()), n)
	}
	t.Logf("%d rows accepted in %.1f s (%.0f a second), all webhooks by %.1f s", n, submitted.Seconds(), float64(n)/submitted.Seconds(),
		time.Since(began).Seconds())
	judge(t, c, r, n, database)
}

// submit sends n synthetic transactions through crivo submit, which must have all of them accepted.
func submit(t *testing.T, c *system.Cluster, n int) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "rows.ndjson")
	writeRows(t, path, n)
	cmd := exec.CommandContext(t.Context(), c.Binary, "submit", path, "--url", c.URL, "--workers", "24", "--json")
	cmd.Env = append(os.Environ(), "CRIVO_API_KEY="+c.Key)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	err := cmd.Run()
	var sum struct{ Accepted, Refused, Failed int }
	if json.Unmarshal(out.Bytes(), &sum, json.MatchCaseInsensitiveNames(true)) != nil || sum.Accepted != n || sum.Refused+sum.Failed > 0 {
		t.Fatalf("crivo submit: %v: %s\n%s", err, out.Bytes(), said.Bytes())
	}
}

func writeRows(t *testing.T, path string, n int) {
	t.Helper()
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	out := bufio.NewWriter(file)
	made := feed.NewSynthetic("c", 1)
	for range n {
		fmt.Fprintf(out, "%s\n", made.Next(time.Now()).Body)
	}
	if err := out.Flush(); err != nil {
		t.Fatal(err)
	}
}

// judge compares webhooks, stream and store: n transactions, one verdict each, the same everywhere.
func judge(t *testing.T, c *system.Cluster, r *system.Receiver, n int, database string) {
	t.Helper()
	if bad := r.Unverified(); bad > 0 {
		t.Errorf("%d webhooks did not verify", bad)
	}
	_, js := c.Connect(t)
	announced := map[string]map[string]int{} // each transaction's distinct bytes with their counts
	err := system.Announced(t.Context(), js, "default", func(d event.Decided, data []byte) {
		if announced[d.ID] == nil {
			announced[d.ID] = map[string]int{}
		}
		announced[d.ID][string(data)]++
	})
	if err != nil {
		t.Fatal(err)
	}
	hooks := r.Verdicts()
	if len(hooks) != n || len(announced) != n {
		t.Errorf("%d transactions by webhook, %d in the stream, %d were sent", len(hooks), len(announced), n)
	}
	for id, of := range announced {
		if len(of) != 1 || len(hooks[id]) != 1 {
			t.Errorf("%s: stream %d verdicts, webhooks %v", id, len(of), hooks[id])
		}
	}
	heldBy(t, database, announced)
}

// heldBy checks that the store holds, byte for byte, what was announced of each transaction, and nothing undecided.
func heldBy(t *testing.T, database string, announced map[string]map[string]int) {
	t.Helper()
	db, err := mongo.Open(mongo.Options{URI: os.Getenv("CRIVO_TEST_MONGO_URI"), Database: database})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close(context.Background()) }()
	transactions := db.Transactions()
	for id, of := range announced {
		e, err := transactions.Get(t.Context(), store.Key{Tenant: "default", ID: id})
		if err != nil || of[string(e.Event)] == 0 {
			t.Errorf("%s: the store's bytes were not announced, %v", id, err)
		}
	}
	late, err := transactions.Overdue(t.Context(), time.Now().Add(time.Hour), 10)
	if err != nil || len(late) > 0 {
		t.Errorf("undecided: %d, %v", len(late), err)
	}
}
