package enrich_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/nats-io/nats.go/jetstream"
	goredis "github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"

	"crivo/pkg/stage"
	"crivo/pkg/txn"
	"crivo/services/enrich"
	"crivo/services/store/memory"
	"crivo/services/store/redis"
	"crivo/streams"
	"crivo/streams/event"
)

// partial is a store that does not know everything of an entity.
type partial map[string]enrich.History

func (p partial) Apply(_ context.Context, events []enrich.Event) ([][]enrich.History, error) {
	out := make([][]enrich.History, len(events))
	for i, e := range events {
		for _, entity := range e.Entities {
			out[i] = append(out[i], p[entity.Role])
		}
	}
	return out, nil
}

func TestWhatTheStoreLacksIsUnknown(t *testing.T) {
	all := enrich.History{Known: true, Counts: []int64{1, 2, 3, 4}, Sums: []int64{10, 20, 30, 40}, First: noon.Add(-time.Hour)}
	since := func(before time.Duration) enrich.History {
		h := all
		h.Since = noon.Add(-before)
		return h
	}
	const day = 24 * time.Hour
	for name, tc := range map[string]struct {
		payer    enrich.History
		known    []string // of the payer
		degraded []string
	}{
		"nothing":                 {all, []string{"count_5m", "count_1h", "count_24h", "count_30d", "first_seen_s"}, []string{}},
		"all of an entity":        {enrich.History{}, nil, []string{"features: incomplete"}},
		"what is 30 days back":    {since(30 * day), []string{"count_5m", "count_1h", "count_24h", "count_30d", "first_seen_s"}, []string{}},
		"what is 2 hours back":    {since(2 * time.Hour), []string{"count_5m", "count_1h"}, []string{"features: incomplete"}},
		"almost an hour":          {since(time.Hour - time.Millisecond), []string{"count_5m"}, []string{"features: incomplete"}},
		"what lies in the future": {since(-time.Hour), nil, []string{"features: incomplete"}},
	} {
		t.Run(name, func(t *testing.T) {
			out := step(partial{"payer": tc.payer, "terminal": all}).Handle(context.Background(), []stage.Message{message(t, submitted("a", 0), 1)})
			e := enriched(t, out[0])
			if !slices.Equal(e.Degraded, tc.degraded) || len(e.Features) != 18 {
				t.Errorf("got %v, %d features", e.Degraded, len(e.Features))
			}
			for name, v := range e.Features {
				role, feature, _ := strings.Cut(name, ".")
				known := role == "terminal" || slices.Contains(tc.known, strings.Replace(feature, "sum_", "count_", 1))
				if v.Known != known || !known && v.Number != 0 {
					t.Errorf("%s is %+v", name, v)
				}
			}
			if v := e.Features["terminal.sum_24h"]; v.Number != 30 {
				t.Errorf("another entity's is %+v", v)
			}
		})
	}
}

// mended is a shared store that does as it is told and remembers what was replayed.
type mended struct {
	*memory.Features
	mu     sync.Mutex
	mend   func(ctx context.Context, s enrich.Source, replay enrich.Replay) error
	fail   int // so many more calls of Apply fail
	events []enrich.Event
	rounds int
}

func (m *mended) Mend(ctx context.Context, s enrich.Source, replay enrich.Replay) error {
	m.mu.Lock()
	m.rounds++
	mend := m.mend
	m.mu.Unlock()
	return mend(ctx, s, replay)
}

func (m *mended) Apply(ctx context.Context, events []enrich.Event) ([][]enrich.History, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail > 0 {
		m.fail--
		return nil, errors.New("slow")
	}
	m.events = append(m.events, events...)
	return m.Features.Apply(ctx, events)
}

func (m *mended) set(mend func(ctx context.Context, s enrich.Source, replay enrich.Replay) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mend = mend
}

func shared(t *testing.T, mend func(ctx context.Context, s enrich.Source, replay enrich.Replay) error) *mended {
	t.Helper()
	return &mended{Features: store(t, t.TempDir()).Features, mend: mend}
}

// replayed has a store replay once what follows a sequence, as a round of the mender does.
func (f flow) replayed(c *mended, after uint64) error {
	done := make(chan error, 1)
	c.set(func(ctx context.Context, _ enrich.Source, replay enrich.Replay) error {
		c.set(func(context.Context, enrich.Source, enrich.Replay) error { return nil })
		done <- replay(ctx, after)
		return nil
	})
	end := enrich.Tend(f.ctx, enrich.Config{Shell: f.Shell, Features: c})
	defer end()
	return <-done
}

// lines is a log that is read while it is written.
type lines struct {
	mu sync.Mutex
	bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Buffer.Write(p)
}

func (l *lines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.String(), text)
}

func until(t *testing.T, fact string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(within); !holds(); {
		if time.Now().After(deadline) {
			t.Fatal("never: ", fact)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func TestTheSourceTellsHowFarTheStreamReaches(t *testing.T) {
	f := start(t)
	cfg := enrich.Config{Shell: f.Shell}
	source := func() enrich.Source {
		t.Helper()
		s, err := enrich.SourceOf(f.ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if s := source(); !s.Since.IsZero() || s.Acked != 0 || s.Delivered != 0 || !s.Created.Equal(f.created(t)) {
		t.Errorf("an empty stream: %+v", s)
	}
	f.publish(t, payments(0, 6)...)
	f.acknowledge(t, 4)
	if s := source(); !s.Since.IsZero() || s.First != 1 || s.Acked != 4 || s.Delivered != 4 {
		t.Errorf("a whole stream: %+v", s)
	}
	stream, err := f.JS.Stream(f.ctx, streams.Submitted)
	if err != nil {
		t.Fatal(err)
	}
	m, err := stream.GetMsg(f.ctx, 3)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Purge(f.ctx, jetstream.WithPurgeSequence(3)); err != nil {
		t.Fatal(err)
	}
	if s := source(); s.First != 3 || !s.Since.Equal(m.Time.Add(5*time.Minute)) {
		t.Errorf("a purged stream: %+v, its first message is of %v", s, m.Time)
	}
	if err := stream.Purge(f.ctx); err != nil {
		t.Fatal(err)
	}
	if s := source(); s.First != 7 || s.Since.Before(m.Time.Add(5*time.Minute)) {
		t.Errorf("an emptied stream: %+v", s)
	}
}

func TestAReplayIsOfWhatWasDelivered(t *testing.T) {
	for name, tc := range map[string]struct {
		after uint64
		fail  int
		want  []string
	}{
		"from the first message": {0, 0, []string{"t/id-2", "t/id-3", "t/id-4", "t/id-5", "t/id-6"}}, // two are purged
		"after one of them":      {5, 0, []string{"t/id-5", "t/id-6"}},
		"a store that is slow":   {5, 2, []string{"t/id-5", "t/id-6"}},
		"nothing is missing":     {7, 0, nil},
	} {
		t.Run(name, func(t *testing.T) {
			f := start(t)
			f.publish(t, payments(0, 9)...)
			f.acknowledge(t, 7)
			s, err := f.JS.Stream(f.ctx, streams.Submitted)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Purge(f.ctx, jetstream.WithPurgeSequence(3)); err != nil {
				t.Fatal(err)
			}
			c := shared(t, nil)
			c.fail = tc.fail
			if err := f.replayed(c, tc.after); err != nil {
				t.Error(err)
			}
			var got []string
			for _, e := range c.events {
				got = append(got, e.Key)
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("replayed %v", got)
			}
		})
	}
}

// A replica that lags says of a message that there is none: only the stream's leader knows that.
func TestALaggingReplicaIsNotTakenForTheStream(t *testing.T) {
	f := start(t)
	f.publish(t, payments(0, 4)...)
	f.acknowledge(t, 4)
	s, err := f.JS.Stream(f.ctx, streams.Submitted)
	if err != nil {
		t.Fatal(err)
	}
	// A mirror answers for its origin. This one has the first message alone, and the origin leaves the answers to it.
	_, err = f.JS.CreateStream(f.ctx, jetstream.StreamConfig{Name: "LAGS", MaxMsgs: 1, Discard: jetstream.DiscardNew, MirrorDirect: true,
		Mirror: &jetstream.StreamSource{Name: streams.Submitted}})
	if err != nil {
		t.Fatal(err)
	}
	own := s.CachedInfo().Config
	own.AllowDirect = false
	if _, err := f.JS.UpdateStream(f.ctx, own); err != nil {
		t.Fatal(err)
	}
	for give := time.Now().Add(within); ; {
		_, err := f.Conn.Request("$JS.API.DIRECT.GET."+streams.Submitted, []byte(`{"seq":1}`), time.Second)
		if err == nil {
			break
		}
		if time.Now().After(give) {
			t.Fatalf("the mirror does not answer: %v", err)
		}
	}
	if err := f.replayed(shared(t, nil), 1); err == nil || !strings.Contains(err.Error(), "messages from 2") {
		t.Errorf("what the stream has counted as replayed: %v", err)
	}
	for seq := range uint64(4) { // now they are gone, and the stream goes on as long as it did
		if err := s.DeleteMsg(f.ctx, seq+1); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.replayed(shared(t, nil), 1); err != nil {
		t.Errorf("nobody has it: %v", err)
	}
}

func TestALongReplayComesInOrder(t *testing.T) {
	f := start(t)
	f.publish(t, payments(0, 1300)...)
	f.acknowledge(t, 1000)
	c := shared(t, nil)
	if err := f.replayed(c, 0); err != nil {
		t.Error(err)
	}
	for i, e := range c.events {
		if e.Key != fmt.Sprint("t/id-", i) || e.Sequence != uint64(i+1) {
			t.Fatalf("event %d is %s, %d", i, e.Key, e.Sequence)
		}
	}
	if len(c.events) != 1000 {
		t.Errorf("%d events", len(c.events))
	}
}

func TestWhatIsWrongIsSaidOnceAndTheServiceStaysReady(t *testing.T) {
	f, log := start(t), &lines{}
	f.Log = zerolog.New(log)
	refused := errors.New("refused 1")
	c := shared(t, func(context.Context, enrich.Source, enrich.Replay) error { return refused })
	end := enrich.Tend(f.ctx, enrich.Config{Shell: f.Shell, Features: c})
	defer end()
	says := func(want string) {
		t.Helper()
		until(t, "the health says "+want, func() bool { return f.Health.Degraded()["features"] == want })
		if reasons := f.Health.Reasons(); len(reasons) > 0 {
			t.Errorf("not ready: %v", reasons)
		}
	}
	const unusable = "the feature store cannot be used, the log says why"
	says(unusable)
	c.set(func(context.Context, enrich.Source, enrich.Replay) error { return errors.New("refused 2") })
	says(unusable)
	c.set(func(context.Context, enrich.Source, enrich.Replay) error { return enrich.ErrElsewhere })
	says(enrich.ErrElsewhere.Error())
	c.set(func(context.Context, enrich.Source, enrich.Replay) error { return nil })
	says("")
	rounds := func() int { c.mu.Lock(); defer c.mu.Unlock(); return c.rounds }
	before := rounds()
	until(t, "it goes on", func() bool { return rounds() > before+2 })
	if log.count("features are not whole") != 1 || log.count("whole again") != 1 || log.count("\n") != 2 {
		t.Errorf("logged %s", log.String())
	}
}

// patient has the flow wait for a store to be whole, however slow this machine is.
func patient(t *testing.T) {
	was := *enrich.MendFirst
	*enrich.MendFirst = within
	t.Cleanup(func() { *enrich.MendFirst = was })
}

func TestTheFlowWaitsForAStoreThatIsWholeAtTheSecondTry(t *testing.T) {
	patient(t)
	f := start(t)
	c := shared(t, nil)
	c.set(func(context.Context, enrich.Source, enrich.Replay) error {
		if reasons := f.Health.Reasons(); reasons["features"] == "" {
			t.Error("ready, and does not work yet")
		}
		c.set(func(context.Context, enrich.Source, enrich.Replay) error { return nil })
		return enrich.ErrElsewhere
	})
	end := enrich.Tend(f.ctx, enrich.Config{Shell: f.Shell, Features: c})
	if reasons, degraded := f.Health.Reasons(), f.Health.Degraded(); len(reasons)+len(degraded) > 0 {
		t.Errorf("begins with %v, %v", reasons, degraded)
	}
	end()
}

func TestTheFlowDoesNotWaitForAStoreThatIsAway(t *testing.T) {
	f := start(t)
	c := shared(t, func(ctx context.Context, _ enrich.Source, _ enrich.Replay) error { <-ctx.Done(); return ctx.Err() })
	begun := time.Now()
	end := enrich.Tend(f.ctx, enrich.Config{Shell: f.Shell, Features: c})
	if took := time.Since(begun); took > within {
		t.Errorf("waited %v", took)
	}
	end()
}

// running is a service with its output and what it logs.
type running struct {
	flow
	published int
	out       jetstream.Stream
	log       *lines
}

// run enriches with the features of a Redis until the test ends.
func run(t *testing.T, url, prefix string) *running {
	t.Helper()
	r := &running{flow: start(t), log: &lines{}}
	r.Log = zerolog.New(r.log)
	client, err := redis.Open(redis.Options{URL: url, Prefix: prefix})
	if err != nil {
		t.Fatal(err)
	}
	if r.out, err = r.JS.Stream(r.ctx, streams.Enriched); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(r.ctx)
	done := make(chan error, 1)
	go func() {
		done <- enrich.Run(ctx, enrich.Config{Shell: r.Shell, Features: client.Features(), RuleSet: func() txn.RuleSet { return pinned }})
	}()
	t.Cleanup(func() {
		until(t, "it ends well", func() bool { return len(r.Health.Reasons())+len(r.Health.Degraded()) == 0 })
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		_ = client.Close()
	})
	return r
}

// one publishes one more payment and returns what became of it.
func (r *running) one(t *testing.T) event.Enriched {
	t.Helper()
	r.publish(t, payments(r.published, r.published+1)...)
	r.published++
	var e event.Enriched
	until(t, "it is enriched", func() bool {
		m, err := r.out.GetMsg(r.ctx, uint64(r.published))
		if err == nil {
			e, err = event.Decode[event.Enriched](m.Data)
		}
		return err == nil
	})
	return e
}

// known fails the test unless an event counts every payment so far.
func (r *running) known(t *testing.T, e event.Enriched) {
	t.Helper()
	if len(e.Degraded) > 0 || e.Features["payer.count_30d"] != (event.Value{Known: true, Number: float64(r.published)}) {
		t.Fatalf("payment %d: %v, %v", r.published, e.Degraded, e.Features)
	}
}

// whole sends payments until they are known again, and returns how many were not.
func (r *running) whole(t *testing.T) (degraded int) {
	t.Helper()
	until(t, "all is known", func() bool {
		e := r.one(t)
		if len(e.Degraded) == 1 && strings.HasPrefix(e.Degraded[0], "features: ") && !e.Features["payer.count_30d"].Known {
			degraded++
			return false
		}
		r.known(t, e)
		return true
	})
	return degraded
}

// ours is a server that the test may use with a prefix of its own, and how to lose what it holds of that.
func ours(t *testing.T) (address, prefix string, lose func()) {
	t.Helper()
	address = os.Getenv("CRIVO_TEST_REDIS_URL")
	if address == "" {
		t.Skip("CRIVO_TEST_REDIS_URL is not set")
	}
	o, err := goredis.ParseURL(address)
	if err != nil {
		t.Fatal(err)
	}
	prefix = fmt.Sprint("test-enrich-", time.Now().UnixNano(), "/")
	lose = func() {
		rdb, ctx := goredis.NewClient(o), context.Background()
		defer rdb.Close()
		for keys := rdb.Scan(ctx, 0, prefix+"*", 1000).Iterator(); keys.Next(ctx); {
			rdb.Del(ctx, keys.Val())
		}
	}
	t.Cleanup(lose)
	return address, prefix, lose
}

func TestTheServiceGoesOnWithoutHistoriesAndMakesThemWholeAgain(t *testing.T) {
	patient(t)
	var r *running
	var lose func()
	for try, busy := 0, true; busy; try++ {
		if try == 5 {
			t.Fatal("Redis is too slow")
		}
		var address, prefix string
		address, prefix, lose = ours(t)
		r, busy = run(t, address, prefix), false
		for n := 0; n < 20 && !busy; n++ {
			e := r.one(t)
			if busy = slices.Equal(e.Degraded, []string{"features: unavailable"}); !busy {
				r.known(t, e) // the first one too: a start is no reason for unknown features
			}
		}
	}
	lose()
	t.Logf("%d payments while it was incomplete", r.whole(t))
	if r.log.count("features are replayed from the stream") != r.log.count("features are replayed\"") || r.log.count("features are replayed\"") == 0 {
		t.Errorf("logged %s", r.log.String())
	}
}

func TestTheServiceStartsWithoutRedisAndIsWholeOnceItComes(t *testing.T) {
	address, prefix, _ := ours(t)
	o, err := goredis.ParseURL(address)
	if err != nil {
		t.Fatal(err)
	}
	proxy := toxiproxy.NewProxy(toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop()), "redis", "127.0.0.1:0", o.Addr)
	if err := proxy.Start(); err != nil { // it has its port now
		t.Fatal(err)
	}
	proxy.Stop()
	t.Cleanup(proxy.Stop)
	r := run(t, fmt.Sprintf("redis://%s/%d", proxy.Listen, o.DB), prefix)
	for range 5 {
		if e := r.one(t); !slices.Equal(e.Degraded, []string{"features: unavailable"}) {
			t.Errorf("degraded %v", e.Degraded)
		}
	}
	if reasons, degraded := r.Health.Reasons(), r.Health.Degraded(); len(reasons) > 0 || degraded["features"] == "" {
		t.Errorf("without Redis: not ready %v, degraded %v", reasons, degraded)
	}
	until(t, "its port is free", func() bool { return proxy.Start() == nil })
	r.whole(t)
	until(t, "the health says so", func() bool { return len(r.Health.Degraded()) == 0 })
	until(t, "so does the log", func() bool {
		n := r.log.count("features are not whole")
		return n > 0 && n == r.log.count("features are whole again")
	})
}
