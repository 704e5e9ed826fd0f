package pipeline_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/redis/go-redis/v9"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"crivo/pkg/txn"
	"crivo/services/feed"
	"crivo/test/system"
)

// One process with any one of its embedded parts replaced by a real one decides as it did before.
func TestEachPartCanBeARealOne(t *testing.T) {
	mongoURI, redisURL := realParts(t)
	brokers := system.NewCluster(t, system.ClusterOptions{Nodes: 1})
	for name, args := range map[string][]string{
		"MongoDB": {"--mongo-uri", mongoURI, "--mongo-database", database()},
		"Redis":   {"--redis-url", redisURL},
		"NATS":    {"--nats-url", brokers.NATSURL, "--nats-creds", brokers.OperatorCreds()},
	} {
		t.Run(name, func(t *testing.T) {
			s := system.New(t, system.Options{Args: args})
			made := feed.NewSynthetic("mixed-"+name, 1)
			var d txn.Decision
			whole := 0 // a busy machine's features may miss their 100 ms
			for give := time.Now().Add(time.Minute); whole < 20 && time.Now().Before(give); {
				if d = decide(t, s, made); len(d.Degraded) == 0 {
					whole++
				}
			}
			if whole < 20 {
				t.Errorf("%s lacks %v", d.ID, d.Degraded)
			}
		})
	}
}

// decide sends one more transaction and returns its decision.
func decide(t *testing.T, s *system.System, made *feed.Synthetic) (d txn.Decision) {
	t.Helper()
	a, err := s.Ask(t.Context(), http.MethodPost, "/v1/transactions", made.Next(time.Now()).Body, "Prefer", "wait=10")
	if err != nil || a.Status != http.StatusOK {
		t.Fatalf("%d %s %v", a.Status, a.Body, err)
	}
	if err := json.Unmarshal(a.Body, &d); err != nil {
		t.Fatalf("%s: %v", a.Body, err)
	}
	return d
}

// Redis is missed and not needed: without it the system starts, is ready and decides, and it is whole once Redis comes.
func TestRedisMayComeLater(t *testing.T) {
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Skip("no redis-server in the path")
	}
	port := freePort(t)
	s := system.New(t, system.Options{Args: []string{"--redis-url", "redis://127.0.0.1:" + port}})
	made := feed.NewSynthetic("later", 1)
	if d := decide(t, s, made); !slices.Contains(d.Degraded, "features: unavailable") {
		t.Errorf("%s lacks %v", d.ID, d.Degraded)
	}
	if body := get(t, s.Ops+"/readyz"); !strings.Contains(body, `{"degraded":{"features":`) || !strings.Contains(body, `"status":"ready"`) {
		t.Errorf("/readyz says %s", body)
	}
	server := exec.CommandContext(t.Context(), "redis-server", "--port", port, "--bind", "127.0.0.1", "--dir", t.TempDir(), "--save", "")
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Wait() }) // the end of the test's context ends it
	for give := time.Now().Add(time.Minute); len(decide(t, s, made).Degraded) > 0; {
		if time.Now().After(give) {
			t.Fatal("still incomplete")
		}
	}
	for give := time.Now().Add(time.Minute); get(t, s.Ops+"/readyz") != "ok\n"; {
		if time.Now().After(give) {
			t.Fatal("still called degraded")
		}
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func database() string { return "crivo_pipeline_" + strconv.FormatInt(time.Now().UnixNano(), 36) }

// The canary over what separate services leave in MongoDB, in Redis, in NATS files and in their logs.
func TestNothingPersonalIsLeftInRealParts(t *testing.T) {
	const n = 300
	mongoURI, redisURL := realParts(t)
	redisURL = emptied(t, redisURL)
	name := database()
	c := system.NewCluster(t, system.ClusterOptions{MongoURI: mongoURI, Database: name, RedisURL: redisURL, Nodes: 1, Copies: 1})
	r, err := c.Receive(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	nc, _ := c.Connect(t)
	for i := range n {
		if i%2 == 0 {
			acceptHTTP(t, &c.System, i)
		} else {
			acceptNATS(t, nc, i)
		}
	}
	if !r.Await(t.Context(), n, 20*time.Second) {
		t.Fatalf("%d of %d decided", len(r.Verdicts()), n)
	}
	listed := block(t, &c.System)
	outputs := map[string]string{"MongoDB": dumpMongo(t, mongoURI, name), "Redis": dumpRedis(t, redisURL), "refusal": refuse(t, &c.System, nc), "list": listed}
	for service, ops := range c.Operations {
		outputs["metrics of "+service] = get(t, "http://"+ops+"/metrics")
	}
	c.Stop()
	scan(t, c.Dir, outputs)
}

// dumpMongo returns every document of a database as it stands there, keys and values.
func dumpMongo(t *testing.T, uri, name string) string {
	t.Helper()
	client, err := mongo.Connect(options.Client().ApplyURI(uri))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Disconnect(context.Background()) }()
	collections, err := client.Database(name).ListCollectionNames(t.Context(), bson.D{})
	if err != nil {
		t.Fatal(err)
	}
	var out []byte
	for _, c := range collections {
		cursor, err := client.Database(name).Collection(c).Find(t.Context(), bson.D{})
		if err != nil {
			t.Fatal(err)
		}
		for cursor.Next(t.Context()) {
			out = append(out, cursor.Current...)
		}
		if err := cursor.Err(); err != nil {
			t.Fatal(err)
		}
	}
	if len(out) < 1<<20 {
		t.Errorf("%d bytes in %v: too few to prove anything", len(out), collections)
	}
	return string(out)
}

// emptied is another database of a Redis server, with nothing in it: what other tests left is not looked through.
func emptied(t *testing.T, url string) string {
	t.Helper()
	o, err := redis.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	o.DB = 9
	client := redis.NewClient(o)
	defer client.Close()
	if err := client.FlushDB(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	return "redis://" + o.Addr + "/9"
}

// dumpRedis returns every key of a database with all that it holds.
func dumpRedis(t *testing.T, url string) string {
	t.Helper()
	o, err := redis.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(o)
	defer client.Close()
	var out strings.Builder
	keys := client.Scan(t.Context(), 0, "*", 1000).Iterator()
	for keys.Next(t.Context()) {
		key := keys.Val()
		kind := client.Type(t.Context(), key).Val()
		switch kind {
		case "hash":
			fmt.Fprintln(&out, key, client.HGetAll(t.Context(), key).Val())
		case "zset":
			fmt.Fprintln(&out, key, client.ZRange(t.Context(), key, 0, -1).Val())
		case "string":
			fmt.Fprintln(&out, key, client.Get(t.Context(), key).Val())
		default:
			t.Errorf("%s: a %s, which this test cannot read", key, kind)
		}
	}
	if err := keys.Err(); err != nil {
		t.Fatal(err)
	}
	if out.Len() == 0 {
		t.Error("Redis holds nothing: that proves nothing")
	}
	return out.String()
}
