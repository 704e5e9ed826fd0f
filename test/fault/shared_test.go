package fault_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"crivo/pkg/stage"
	"crivo/pkg/txn"
	"crivo/streams"
	"crivo/test/system"
)

// The long forms of these tests are named by the environment.
var (
	seed   = uint64(number("CRIVO_FAULT_SEED", 1))
	random = mathrand.New(mathrand.NewPCG(seed, 2)) // of moments; one test runs at a time
)

func number(name string, few int) int {
	text := os.Getenv(name)
	if text == "" {
		return few
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		panic(fmt.Sprintf("%s=%q", name, text))
	}
	return n
}

// kills is how often something is killed: CRIVO_KILLS, or a few.
func kills(t *testing.T, few int) int {
	t.Helper()
	return number("CRIVO_KILLS", few)
}

// hold lets a fault last: CRIVO_FAULT_SECONDS, or a few.
func hold(t *testing.T, few int) {
	t.Helper()
	if err := stage.Sleep(t.Context(), time.Duration(number("CRIVO_FAULT_SECONDS", few))*time.Second); err != nil {
		t.Fatal(err)
	}
}

func TestMain(m *testing.M) {
	system.IfChild()
	status := m.Run()
	for _, stop := range slices.Backward(stops) {
		stop()
	}
	system.Clean()
	if total.cycles > 0 {
		fmt.Println("fault:", total)
	}
	os.Exit(status)
}

// stops are what ends the systems that tests share, in the order that they were started.
var stops []func()

// total is what all tests of a run counted.
var total report

type report struct {
	cycles, kills int
	slowest       time.Duration
	tally
}

func (r *report) add(cycles, kills int, slowest time.Duration, of tally) {
	r.cycles += cycles
	r.kills += kills
	r.slowest = max(r.slowest, slowest)
	r.accepted += of.accepted
	r.decided += of.decided
	r.lost += of.lost
	r.double += of.double
	r.guard += of.guard
	r.burial += of.burial
	r.late += of.late
	r.repeated += of.repeated
	r.lateUnknown += of.lateUnknown
}

func (r report) String() string {
	return fmt.Sprintf("seed %d, %d cycles, %d kills, %s, slowest recovery %.1f s", seed, r.cycles, r.kills, r.tally, r.slowest.Seconds())
}

// pair is three NATS servers, two of each service but the keeper, and two edges behind nginx.
var pair = sync.OnceValues(func() (*system.Cluster, error) {
	c, err := start(system.ClusterOptions{MongoURI: os.Getenv("CRIVO_TEST_MONGO_URI"), Nodes: 3, Copies: 2}, 13)
	if err == nil {
		err = c.Front(context.Background())
	}
	return c, err
})

// rig is one NATS server, one of each service, and proxies between them and everything that they stand on.
type rig struct {
	*system.Cluster
	nats, mongo, redis *toxiproxy.Proxy
	writes             *saboteur // between the proxy and MongoDB
	features           string    // Redis without the proxy
}

var single = sync.OnceValues(func() (*rig, error) {
	b := &rig{}
	o := system.ClusterOptions{Nodes: 1, Copies: 1}
	uri, err := url.Parse(os.Getenv("CRIVO_TEST_MONGO_URI"))
	if err != nil {
		return nil, err
	}
	first, _, _ := strings.Cut(uri.Host, ",")
	if b.writes, err = sabotage(first); err != nil {
		return nil, err
	}
	stops = append(stops, b.writes.close)
	if b.mongo, err = proxy("mongo", b.writes.address()); err != nil {
		return nil, err
	}
	// Else the driver asks the server for its own name and goes there.
	uri.Host, uri.RawQuery = b.mongo.Listen, "directConnection=true"
	o.MongoURI = uri.String()
	database := 14
	redis, err := url.Parse(numbered(database))
	if err != nil {
		return nil, err
	}
	b.features = redis.String()
	if b.redis, err = proxy("redis", redis.Host); err != nil {
		return nil, err
	}
	redis.Host = b.redis.Listen
	o.RedisURL = redis.String()
	o.Between = func(address string) (string, error) {
		b.nats, err = proxy("nats", address)
		if err != nil {
			return "", err
		}
		return b.nats.Listen, nil
	}
	b.Cluster, err = start(o, database)
	return b, err
})

// start starts a system with databases of its own, to be stopped at the end of all tests.
func start(o system.ClusterOptions, redisDatabase int) (*system.Cluster, error) {
	dir, err := os.MkdirTemp("", "crivo-fault-")
	if err != nil {
		return nil, err
	}
	if o.RedisURL == "" {
		o.RedisURL = numbered(redisDatabase)
	}
	o.Database = "crivo_fault_" + strings.ToLower(rand.Text())
	c, err := system.StartCluster(context.Background(), dir, o)
	stops = append(stops, func() {
		c.Stop()
		_ = os.RemoveAll(dir)
	})
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, c.Said())
	}
	return c, err
}

// numbered is the URL of one of the databases of the Redis server: two systems must not share histories.
func numbered(database int) string {
	u, err := url.Parse(os.Getenv("CRIVO_TEST_REDIS_URL"))
	if err != nil {
		return ""
	}
	u.Path = "/" + strconv.Itoa(database)
	return u.String()
}

func proxy(name, upstream string) (*toxiproxy.Proxy, error) {
	p := toxiproxy.NewProxy(toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop()), name, "127.0.0.1:0", upstream)
	if err := p.Start(); err != nil {
		return nil, err
	}
	stops = append(stops, p.Stop)
	return p, nil
}

func realParts(t *testing.T) {
	t.Helper()
	if os.Getenv("CRIVO_TEST_MONGO_URI") == "" || os.Getenv("CRIVO_TEST_REDIS_URL") == "" {
		t.Skip("CRIVO_TEST_MONGO_URI and CRIVO_TEST_REDIS_URL name no servers")
	}
}

// thePair returns the shared system of two of each; the test is skipped where a part of it is lacking.
func thePair(t *testing.T) *system.Cluster {
	t.Helper()
	realParts(t)
	c, err := pair()
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip("nginx is not installed")
	}
	whole(t, c, err, func() {})
	return c
}

// theSingle returns the shared system behind proxies, all of them well.
func theSingle(t *testing.T) *rig {
	t.Helper()
	realParts(t)
	b, err := single()
	if err != nil {
		t.Fatal(err)
	}
	whole(t, b.Cluster, nil, func() {
		b.writes.relent()
		for _, p := range []*toxiproxy.Proxy{b.nats, b.mongo, b.redis} {
			heal(p)
		}
	})
	return b
}

// whole makes sure that a shared system is well when a test begins, and again when it has ended.
func whole(t *testing.T, c *system.Cluster, err error, heal func()) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(c.Said())
		}
		heal()
		for _, p := range c.Processes {
			if err := p.Start(); err != nil {
				t.Error(err)
			}
		}
		if err := c.Ready(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if err := c.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// heal takes a proxy's faults away. One that was stopped listens again.
func heal(p *toxiproxy.Proxy) {
	p.Toxics.ResetToxics(context.Background())
	_ = p.Start() // it runs already, or its port is taken and the system will not get ready
}

// The ways in which what is behind a proxy can be away.
var (
	refuses  = func(_ *testing.T, p *toxiproxy.Proxy) { p.Stop() }
	swallows = func(t *testing.T, p *toxiproxy.Proxy) {
		poison(t, p, "deaf", "upstream", "timeout", `"timeout":0`)
		poison(t, p, "dumb", "downstream", "timeout", `"timeout":0`)
	}
)

// slow makes everything through a proxy take longer, each way.
func slow(ms int) func(*testing.T, *toxiproxy.Proxy) {
	return func(t *testing.T, p *toxiproxy.Proxy) {
		poison(t, p, "late", "upstream", "latency", fmt.Sprintf(`"latency":%d`, ms))
		poison(t, p, "later", "downstream", "latency", fmt.Sprintf(`"latency":%d`, ms))
	}
}

func poison(t *testing.T, p *toxiproxy.Proxy, name, stream, kind, attributes string) {
	t.Helper()
	toxic := fmt.Sprintf(`{"name":%q,"type":%q,"stream":%q,"attributes":{%s}}`, name, kind, stream, attributes)
	if _, err := p.Toxics.AddToxicJson(strings.NewReader(toxic)); err != nil {
		t.Fatal(err)
	}
}

// client sees a shared system under the key of a tenant of its own.
type client struct {
	system.System
	all    *system.Cluster
	tenant string
}

func (c *client) Connect(t testing.TB) (*nats.Conn, jetstream.JetStream) { return c.all.Connect(t) }

// newClient makes a tenant and a key for it, and waits until every edge knows them.
func newClient(t *testing.T, all *system.Cluster) *client {
	t.Helper()
	c := &client{System: all.System, all: all, tenant: "f-" + strings.ToLower(rand.Text())[:12]}
	made := func(path, body string) []byte {
		a, err := all.Ask(t.Context(), http.MethodPost, path, []byte(body))
		if err != nil || a.Status != http.StatusCreated && a.Status != http.StatusConflict { // made by a try whose answer was lost
			t.Fatalf("%s: %d %s %v", path, a.Status, a.Body, err)
		}
		return a.Body
	}
	made("/v1/tenants", fmt.Sprintf(`{"id":%q}`, c.tenant))
	var key struct {
		Key string `json:"key"`
	}
	for give := time.Now().Add(time.Minute); ; { // nginx may ask an edge that has not heard of the tenant
		a, err := all.Do(t.Context(), http.MethodPost, "/v1/keys", fmt.Appendf(nil, `{"tenant":%q,"roles":["submit","read","admin"]}`, c.tenant))
		if err == nil && a.Status == http.StatusCreated && json.Unmarshal(a.Body, &key) == nil {
			break
		}
		if time.Now().After(give) {
			t.Fatalf("key: %d %s %v", a.Status, a.Body, err)
		}
	}
	c.Key = key.Key
	for _, edge := range all.Edges {
		c.URL = "http://" + edge
		for give := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			a, err := c.Do(t.Context(), http.MethodGet, "/v1/transactions/none", nil)
			if err == nil && a.Status == http.StatusNotFound {
				break
			}
			if time.Now().After(give) {
				t.Fatalf("%s does not know the tenant: %d %s %v", edge, a.Status, a.Body, err)
			}
		}
	}
	c.URL = all.URL
	return c
}

// trial is a ledger under load on a shared system, from its start to its judgement.
type trial struct {
	*ledger
	*client
	r       *system.Receiver
	stop    func()
	cycles  int
	killed  int
	slowest time.Duration
}

const (
	workers = 6
	// pace keeps the load moderate: 6 workers make some 150 transactions a second at most.
	pace = 40 * time.Millisecond
)

func newTrial(t *testing.T, all *system.Cluster) *trial {
	t.Helper()
	c := newClient(t, all)
	r, err := c.Receive(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	x := &trial{ledger: newLedger(c, c.tenant), client: c, r: r}
	x.pause, x.fickle = pace, true
	loading, cancel := context.WithCancel(t.Context())
	done := x.load(loading, workers)
	x.stop = func() { cancel(); <-done }
	t.Cleanup(x.stop)
	return x
}

// recovered notes how long after began a new transaction was accepted and decided.
func (x *trial) recovered(t *testing.T, began time.Time) {
	t.Helper()
	row := x.next()
	x.settled(t, row.ID)
	x.cycles++
	x.slowest = max(x.slowest, time.Since(began))
}

// settled sends a transaction until it is accepted and returns its decision.
func (x *trial) settled(t *testing.T, id string) txn.Decision {
	t.Helper()
	a, err := x.insist(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	x.settle(id, a)
	d, err := x.decision(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// kill ends a process as a crash does.
func (x *trial) kill(p *system.Process) {
	p.Kill()
	x.killed++
}

// finish ends the load, settles what is unknown by repeats and judges. Nothing innocent may have been buried.
func (x *trial) finish(t *testing.T) tally {
	t.Helper()
	x.stop()
	x.repeat(t)
	sum := x.judge(t, x.r)
	x.noDeadLetters(t)
	total.add(x.cycles, x.killed, x.slowest, sum)
	t.Logf("%d cycles, %d kills, %d refusals, %s, slowest recovery %.1f s", x.cycles, x.killed, x.refused, sum, x.slowest.Seconds())
	return sum
}

func (x *trial) noDeadLetters(t *testing.T) {
	t.Helper()
	_, js := x.Connect(t)
	stream, err := js.Stream(t.Context(), streams.DeadLetters)
	if err != nil {
		t.Fatal(err)
	}
	info, err := stream.Info(t.Context(), jetstream.WithSubjectFilter("dlq.*.*."+x.client.tenant))
	if err != nil {
		t.Fatal(err)
	}
	if len(info.State.Subjects) > 0 {
		t.Errorf("buried: %v", info.State.Subjects)
	}
}
