package redis_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	goredis "github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"

	"crivo/services/enrich"
	"crivo/services/store/redis"
)

// within is how long a fact may take to show.
const within = 20 * time.Second

// until waits for a fact.
func until(t testing.TB, fact string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(within); !holds(); {
		if time.Now().After(deadline) {
			t.Fatal("never: ", fact)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// shared is a server that tests may use with a prefix of their own.
func shared(t testing.TB) (address, prefix string) {
	t.Helper()
	address = os.Getenv("CRIVO_TEST_REDIS_URL")
	if address == "" {
		t.Skip("CRIVO_TEST_REDIS_URL is not set")
	}
	prefix = "test-" + rand.Text() + "/"
	t.Cleanup(func() { forget(t, address, prefix) })
	return address, prefix
}

// forget deletes every key that matches a pattern.
func forget(t testing.TB, address, pattern string) {
	t.Helper()
	rdb := plain(t, address)
	defer rdb.Close()
	ctx := context.Background()
	for keys := rdb.Scan(ctx, 0, pattern+"*", 1000).Iterator(); keys.Next(ctx); {
		rdb.Unlink(ctx, keys.Val())
	}
}

// plain is a client that looks at the server beside the room.
func plain(t testing.TB, address string) *goredis.Client {
	t.Helper()
	o, err := goredis.ParseURL(address)
	if err != nil {
		t.Fatal(err)
	}
	return goredis.NewClient(o)
}

// server is a process of the test's own.
type server struct {
	port int
	dir  string
	args []string
	cmd  *exec.Cmd
}

func serve(t testing.TB, args ...string) *server {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Skip("no redis-server in the path")
	}
	s := &server{port: freePort(t), dir: t.TempDir(), args: args}
	s.start(t)
	t.Cleanup(s.kill)
	return s
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func (s *server) start(t testing.TB) {
	t.Helper()
	s.cmd = exec.Command("redis-server", append([]string{"--port", strconv.Itoa(s.port), "--bind", "127.0.0.1", "--dir", s.dir, "--save", ""}, s.args...)...)
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	until(t, "the server answers", func() bool {
		conn, err := net.Dial("tcp", s.addr())
		if err != nil {
			return false
		}
		return conn.Close() == nil
	})
}

func (s *server) kill() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

func (s *server) addr() string { return "127.0.0.1:" + strconv.Itoa(s.port) }
func (s *server) url() string  { return "redis://" + s.addr() }

// cli runs a command on the server and returns what it prints.
func (s *server) cli(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command("redis-cli", append([]string{"-p", strconv.Itoa(s.port)}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// proxied puts a proxy before a server and returns the URL that goes through it.
func proxied(t testing.TB, address string) (*toxiproxy.Proxy, string) {
	t.Helper()
	o, err := goredis.ParseURL(address)
	if err != nil {
		t.Fatal(err)
	}
	p := toxiproxy.NewProxy(toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop()), "redis", "127.0.0.1:0", o.Addr)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Stop)
	return p, "redis://" + p.Listen
}

// hurt adds one toxic to what a server answers, and heal takes all away.
func hurt(t testing.TB, p *toxiproxy.Proxy, kind, attributes string) {
	t.Helper()
	_, err := p.Toxics.AddToxicJson(strings.NewReader(fmt.Sprintf(`{"name":%q,"type":%q,"stream":"downstream","attributes":{%s}}`, kind, kind, attributes)))
	if err != nil {
		t.Fatal(err)
	}
}

func heal(p *toxiproxy.Proxy) { p.Toxics.ResetToxics(context.Background()) }

func open(t testing.TB, address, prefix string) *redis.Client {
	t.Helper()
	c, err := redis.Open(redis.Options{URL: address, Prefix: prefix})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// created is when the tests' stream was made.
var created = time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)

func nothing(context.Context, uint64) error { return nil }

// whole opens a store that is complete.
func whole(t testing.TB, address, prefix string) *redis.Features {
	t.Helper()
	f := open(t, address, prefix).Features()
	until(t, "the store is whole", func() bool { return f.Mend(context.Background(), enrich.Source{Created: created}, nothing) == nil })
	return f
}

// patiently applies events as a caller that waits as long as the room allows, on a busy machine.
func patiently(f enrich.Features, events []enrich.Event) ([][]enrich.History, error) {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	return f.Apply(ctx, events)
}

// unhurried is the time that a call has on a busy machine: one without a deadline gets what the flow would wait, its first dial included.
func unhurried(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	t.Cleanup(cancel)
	return ctx
}

// fastest makes a call up to n times, until one takes no longer than most, and returns the least that it took: the rest is a busy
// machine's.
func fastest(n int, most time.Duration, call func()) time.Duration {
	least := time.Hour
	for ; n > 0 && least > most; n-- {
		start := time.Now()
		call()
		least = min(least, time.Since(start))
	}
	return least
}

// stream is a list of events that stands for the stream; sequences are places in it, from 1.
type stream []enrich.Event

// payments makes n events, a second apart, of payer n%8 at one terminal.
func payments(n int) stream {
	out := make(stream, n)
	for i := range out {
		out[i] = enrich.Event{Key: fmt.Sprint("t/", i+1), Sequence: uint64(i + 1), At: created.Add(time.Duration(i) * time.Second), Amount: 100, Entities: []enrich.Entity{
			{Role: "payer", Key: fmt.Sprint("t/payer/", i%8)}, {Role: "terminal", Key: "t/terminal/9"}}}
	}
	return out
}

func (s stream) source() enrich.Source {
	return enrich.Source{Created: created, First: 1, Acked: uint64(len(s)), Delivered: uint64(len(s))}
}

// replay applies the stream after a sequence and remembers where it began.
func (s stream) replay(f enrich.Features, from *[]uint64) enrich.Replay {
	return func(ctx context.Context, after uint64) error {
		*from = append(*from, after)
		for i := int(after); i < len(s); i += 16 {
			bounded, cancel := context.WithTimeout(ctx, time.Second)
			_, err := f.Apply(bounded, s[i:min(i+16, len(s))])
			cancel()
			if err != nil {
				return err
			}
		}
		return nil
	}
}

// mend mends once, with the patience of a busy machine.
func (s stream) mend(f *redis.Features) (replayed []uint64, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	err = f.Mend(ctx, s.source(), s.replay(f, &replayed))
	return replayed, err
}

// histories applies the last event of the stream again and returns what is known of its payer and its terminal.
func (s stream) histories(t testing.TB, f enrich.Features) []enrich.History {
	t.Helper()
	got, err := patiently(f, s[len(s)-1:])
	if err != nil {
		t.Fatal(err)
	}
	return got[0]
}

// counts are the histories' longest counts, -1 for an unknown one.
func (s stream) counts(t testing.TB, f enrich.Features) []int64 {
	t.Helper()
	var out []int64
	for _, h := range s.histories(t, f) {
		if !h.Known {
			out = append(out, -1)
			continue
		}
		out = append(out, h.Counts[len(h.Counts)-1])
	}
	return out
}
