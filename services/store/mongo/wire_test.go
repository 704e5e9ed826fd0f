package mongo_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"crivo/services/store"
	"crivo/services/store/mongo"
)

// faulty opens an empty database behind a proxy that can be told to misbehave. The proxy is well again for the clean-up.
func faulty(t *testing.T, edit ...func(*options.ClientOptions)) (*mongo.DB, *toxiproxy.Proxy) {
	t.Helper()
	uri, err := url.Parse(server(t))
	if err != nil {
		t.Fatal(err)
	}
	upstream, _, _ := strings.Cut(uri.Host, ",")
	proxy := toxiproxy.NewProxy(toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop()), "mongo", "127.0.0.1:0", upstream)
	if err := proxy.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxy.Stop)
	uri.Host = proxy.Listen
	values := uri.Query()
	values.Set("directConnection", "true")
	uri.RawQuery = values.Encode()
	db := bare(t, mongo.Options{URI: uri.String()}, edit...)
	t.Cleanup(func() {
		proxy.Toxics.ResetToxics(context.Background())
		_ = proxy.Start()
		well(t, db, 10*time.Second)
	})
	if err := db.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	return db, proxy
}

func poison(t *testing.T, p *toxiproxy.Proxy, toxic string) {
	t.Helper()
	if _, err := p.Toxics.AddToxicJson(strings.NewReader(toxic)); err != nil {
		t.Fatal(err)
	}
}

// well waits until the database is written to again and returns how long that took.
func well(t *testing.T, db *mongo.DB, within time.Duration) time.Duration {
	t.Helper()
	started := time.Now()
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		err := db.Transactions().Ping(ctx)
		cancel()
		if err == nil {
			return time.Since(started)
		}
		if time.Since(started) > within {
			t.Errorf("not well after %s: %v", within, err)
			return within
		}
	}
}

const lost = `{"name":"lost","type":"timeout","stream":"downstream","attributes":{"timeout":0}}`

// A write whose answer is lost is unknown, not failed and not done; the repeat finds what it did.
func TestAnAnswerThatIsLostIsUnknownAndTheRepeatFindsIt(t *testing.T) {
	db, proxy := faulty(t)
	tx, ctx := db.Transactions(), t.Context()
	brief := func() context.Context {
		c, cancel := context.WithTimeout(ctx, 3*time.Second) // within which it is heard
		t.Cleanup(cancel)
		return c
	}
	if _, err := tx.Claim(ctx, []store.Claim{sample(2)}); err != nil {
		t.Fatal(err)
	}
	poison(t, proxy, lost)
	if got, err := tx.Claim(brief(), []store.Claim{sample(1)}); err == nil || errors.Is(err, store.ErrRefused) {
		t.Fatalf("claimed: %+v, %v", got, err)
	}
	proxy.Toxics.ResetToxics(ctx)
	well(t, db, 5*time.Second)
	claimed, err := tx.Claim(ctx, []store.Claim{sample(1)})
	if err != nil || claimed[0].Won || claimed[0].Entry.Digest != "1.x" {
		t.Errorf("claimed again: %+v, %v", claimed, err)
	}
	poison(t, proxy, lost)
	if got, err := tx.Decide(brief(), []store.Decide{decided(1), decided(2), decided(3)}); err == nil {
		t.Fatalf("decided: %+v", got)
	}
	proxy.Toxics.ResetToxics(ctx)
	well(t, db, 5*time.Second)
	// Claims were completed before the answer was lost; the one without a claim was not reached.
	again := []store.Decide{decided(1), decided(2), decided(3)}
	for i := range again {
		again[i].Event = []byte("again")
	}
	got, err := tx.Decide(ctx, again)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{store.DecidedBefore, store.DecidedBefore, store.DecidedNow} {
		if got[i].Status != want || (want == store.DecidedBefore) == (string(got[i].Entry.Event) == "again") {
			t.Errorf("%d: %s, %d bytes", i, got[i].Status, len(got[i].Entry.Event))
		}
	}
}

func TestASlowOrSilentServerCostsACallItsDeadlineAndNoMore(t *testing.T) {
	for name, toxics := range map[string][]string{
		"answers after 5 s":   {`{"name":"slow","type":"latency","stream":"downstream","attributes":{"latency":5000}}`},
		"hears nothing":       {`{"name":"deaf","type":"timeout","stream":"upstream","attributes":{"timeout":0}}`},
		"neither hears, says": {`{"name":"deaf","type":"timeout","stream":"upstream","attributes":{"timeout":0}}`, lost},
	} {
		t.Run(name, func(t *testing.T) {
			db, proxy := faulty(t)
			if _, err := db.Transactions().Claim(t.Context(), []store.Claim{sample(1)}); err != nil {
				t.Fatal(err)
			}
			for _, toxic := range toxics {
				poison(t, proxy, toxic)
			}
			for call, f := range map[string]func(context.Context) error{
				"get": func(ctx context.Context) error { _, err := db.Transactions().Get(ctx, sample(1).Key); return err },
				"claim": func(ctx context.Context) error {
					_, err := db.Transactions().Claim(ctx, []store.Claim{sample(2)})
					return err
				},
				"decide": func(ctx context.Context) error {
					_, err := db.Transactions().Decide(ctx, []store.Decide{decided(2)})
					return err
				},
			} {
				ctx, cancel := context.WithTimeout(t.Context(), 250*time.Millisecond)
				started := time.Now()
				err := f(ctx)
				cancel()
				if took := time.Since(started); err == nil || took > belowPatience {
					t.Errorf("%s: %v after %s", call, err, took)
				}
			}
			proxy.Toxics.ResetToxics(t.Context())
			t.Logf("well after %s", well(t, db, 3*time.Second))
		})
	}
}

// frozen is a connection whose other end is gone without a word: what is written is lost.
type frozen struct {
	net.Conn
	gone *atomic.Bool
}

func (f frozen) Write(b []byte) (int, error) {
	if f.gone.Load() {
		return len(b), nil
	}
	return f.Conn.Write(b)
}

// rink freezes the connections that are open at a time; later ones are sound.
type rink struct {
	mu   sync.Mutex
	gone *atomic.Bool
}

func (r *rink) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gone == nil {
		r.gone = &atomic.Bool{}
	}
	return frozen{c, r.gone}, nil
}

func (r *rink) freeze() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gone.Store(true)
	r.gone = nil
}

// A firewall that forgot the connections must not cost call after call its deadline, one for each connection of the pool.
func TestHalfOpenConnectionsAreLeftWithTheFirstLostHeartbeat(t *testing.T) {
	var lines rink
	db := fresh(t, func(c *options.ClientOptions) { mongo.Dial(c, &lines) })
	const most = 2500 * time.Millisecond
	least := time.Hour
	for n := 0; n < 5 && least > most; n++ { // what takes longer may be a busy machine's; one call after the other takes 4 s each time
		var calls sync.WaitGroup
		for i := range 64 {
			calls.Go(func() { _, _ = db.Transactions().Get(t.Context(), sample(i).Key) })
		}
		calls.Wait()
		lines.freeze()
		least = min(least, well(t, db, 30*time.Second))
	}
	t.Logf("well after %s", least)
	if least > most {
		t.Errorf("well after %s", least)
	}
}

// Connections are cut again and again under load. What was said to be done is there, what was unknown is completed by its repeat,
// and of everything there is one.
func TestCutsUnderLoadLoseAndDoubleNothing(t *testing.T) {
	db, proxy := faulty(t)
	tx := db.Transactions()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	// until repeats a call as its callers do, each time within a budget of its own.
	until := func(call func(context.Context) error) {
		for ctx.Err() == nil {
			brief, end := context.WithTimeout(ctx, 250*time.Millisecond)
			err := call(brief)
			end()
			if err == nil {
				return
			}
		}
	}
	const writers, cuts, size = 4, 15, 8
	var work sync.WaitGroup
	var unknown, groups atomic.Int64
	var enough atomic.Bool
	for range writers {
		work.Go(func() {
			for !enough.Load() {
				g := int(groups.Add(1)) - 1
				claims, decides := make([]store.Claim, size), make([]store.Decide, size)
				for i := range claims {
					n := g*size + i
					claims[i], decides[i] = sample(n), decided(n)
					decides[i].Event = []byte(claims[i].ID + " first")
				}
				until(func(ctx context.Context) error {
					_, err := tx.Claim(ctx, claims)
					if err != nil {
						unknown.Add(1)
					}
					return err
				})
				until(func(ctx context.Context) error {
					got, err := tx.Decide(ctx, decides)
					for i, o := range got {
						if o.Err != nil || o.Status == store.DigestConflict || o.Status == store.DecidedNow && string(o.Entry.Event) != string(decides[i].Event) {
							t.Errorf("%s: %+v", claims[i].ID, o)
						}
					}
					for i := range decides {
						if err != nil { // the repeat would decide otherwise
							decides[i].Event = append([]byte(claims[i].ID+" again "), fmt.Sprint(unknown.Add(1))...)
						}
					}
					return err
				})
			}
		})
	}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for range cuts {
		<-tick.C
		proxy.Stop()
		_ = proxy.Start()
	}
	enough.Store(true)
	work.Wait()
	if ctx.Err() != nil {
		t.Fatal("not done within a minute")
	}
	well(t, db, 5*time.Second)
	for n := range int(groups.Load()) * size {
		e, err := tx.Get(ctx, sample(n).Key)
		if err != nil || !strings.HasPrefix(string(e.Event), e.ID+" ") || e.Body != nil {
			t.Fatalf("%d: %s, %v", n, e.Event, err)
		}
	}
	t.Logf("%d cuts, %d groups, %d calls unknown", cuts, groups.Load(), unknown.Load())
	if unknown.Load() == 0 {
		t.Error("no call was cut: too few to tell")
	}
}
