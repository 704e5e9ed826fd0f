package keeper_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"crivo/pkg/app"
	"crivo/pkg/stage"
	"crivo/pkg/txn"
	"crivo/services/broker"
	"crivo/services/keeper"
	"crivo/services/rules"
	"crivo/services/store"
	"crivo/services/store/memory"
	"crivo/services/store/sqlite"
	"crivo/streams"
	"crivo/streams/event"
)

// within is how long a fact may take to show.
const within = 30 * time.Second

// start is the hour at which every test begins; only the test moves the clock.
var start = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// world is a broker, a store, a clock and what the keeper under test says of itself.
type world struct {
	testing.TB
	dir      string
	server   *broker.Server
	url      string
	js       jetstream.JetStream
	shell    app.Shell
	store    *fragile
	layout   streams.Layout
	registry *prometheus.Registry
	sets     *memory.Registry
	rules    *rules.Set
	ahead    atomic.Int64 // of start
	notes    *memory.Registry
	outbox   keeper.Outbox
	replays  keeper.Replays // nil: those in sets
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{TB: t, dir: t.TempDir(), registry: prometheus.NewRegistry(), notes: memory.NewRegistry(), layout: streams.Layout{Replicas: 1, SubmittedBytes: 64 << 20},
		sets: memory.NewRegistry()}
	w.startBroker(-1)
	health := &app.Health{}
	nc, err := app.Connect(app.Connection{URL: w.url, Name: "keeper", Inbox: "_INBOX", Log: zerolog.Nop(), Health: health})
	w.must(err)
	t.Cleanup(nc.Close)
	w.js, err = jetstream.New(nc)
	w.must(err)
	db, err := sqlite.OpenTransactions(filepath.Join(w.dir, "transactions.db"), sqlite.Options{})
	w.must(err)
	t.Cleanup(func() { _ = db.Close() })
	w.store = &fragile{Transactions: db}
	w.shell = app.Shell{Name: "keeper", Conn: nc, JS: w.js, Log: zerolog.Nop(), Metrics: w.registry, Health: health, Steps: stage.NewMetrics(w.registry),
		Clock: app.NewClock(func() time.Time { return start.Add(time.Duration(w.ahead.Load())) })}
	return w
}

func (w *world) startBroker(port int) {
	w.Helper()
	s, err := broker.Start(broker.Options{Dir: filepath.Join(w.dir, "nats"), Host: "127.0.0.1", Port: port})
	w.must(err)
	w.server, w.url = s, s.URL()
	w.Cleanup(s.Close)
}

// restartBroker starts it again on the same port and folder, once nobody else has the port.
func (w *world) restartBroker() {
	w.Helper()
	at, err := url.Parse(w.url)
	w.must(err)
	port, err := strconv.Atoi(at.Port())
	w.must(err)
	w.until("a free port", func() bool {
		l, err := net.Listen("tcp", at.Host)
		return err == nil && l.Close() == nil
	})
	w.startBroker(port)
}

// run keeps until the test ends, or stop is called.
func (w *world) run() (stop func()) {
	w.Helper()
	ctx, cancel := context.WithCancel(w.Context())
	ended := make(chan error, 1)
	tenants := func(context.Context) ([]store.Tenant, error) { return []store.Tenant{{ID: "t", DeadlineMS: 2000}}, nil }
	cfg := keeper.Config{Shell: w.shell, Transactions: w.store, RuleSets: w.sets, Rules: w.rules, Layout: w.layout, Tenants: tenants, State: w.notes,
		Every: 50 * time.Millisecond, Replays: w.replays, Outbox: w.outbox}
	if cfg.Replays == nil && w.outbox != nil {
		cfg.Replays = w.sets
	}
	go func() { ended <- keeper.Run(ctx, cfg) }()
	once := false
	stop = func() {
		if once {
			return
		}
		once = true
		cancel()
		if err := <-ended; err != nil {
			w.Error(err)
		}
	}
	w.Cleanup(stop)
	return stop
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// until waits for a fact.
func (w *world) until(what string, fact func() bool) {
	w.Helper()
	for give := time.Now().Add(within); !fact(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(give) {
			w.Fatalf("never: %s", what)
		}
	}
}

// rounds waits until the keeper has gone through n whole rounds that began after the call.
func (w *world) rounds(n int64) {
	w.Helper()
	from := w.store.rounds.Load()
	w.until("rounds of the keeper", func() bool { return w.store.rounds.Load() > from+n })
}

// found reads crivo_keeper_finds_total.
func (w *world) found(what string) int {
	return int(w.metric("crivo_keeper_finds_total", what))
}

func (w *world) metric(name, label string) float64 {
	families, err := w.registry.Gather()
	w.must(err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && len(m.GetLabel()) == 1 && m.GetLabel()[0].GetValue() == label {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return 0
}

func (w *world) state(stream string) (out jetstream.StreamState) {
	w.Helper()
	w.until("the state of "+stream, func() bool {
		s, err := w.js.Stream(w.Context(), stream)
		if err == nil {
			out = s.CachedInfo().State
		}
		return err == nil
	})
	return out
}

func (w *world) publish(outputs ...stage.Output) {
	w.Helper()
	for len(outputs) > 0 {
		n := min(500, len(outputs))
		if _, err := stage.Publish(w.Context(), w.js, outputs[:n]); err != nil {
			w.Fatal(err)
		}
		outputs = outputs[n:]
	}
}

// acknowledge takes the next n messages of a step, as if it had done its work.
func (w *world) acknowledge(step stage.Spec, n int) {
	w.Helper()
	c, err := w.js.Consumer(w.Context(), step.Stream, step.Durable)
	w.must(err)
	for n > 0 {
		got, err := c.Fetch(min(n, 500), jetstream.FetchMaxWait(within))
		w.must(err)
		for m := range got.Messages() {
			w.must(m.Ack())
			n--
		}
		w.must(got.Error())
	}
	w.until("all acknowledged", func() bool {
		info, err := c.Info(w.Context())
		w.must(err)
		return info.NumAckPending == 0
	})
}

func (w *world) claim(claims ...store.Claim) {
	w.Helper()
	_, err := w.store.Transactions.Claim(w.Context(), claims)
	w.must(err)
}

func (w *world) decide(unannounced bool, claims ...store.Claim) {
	w.Helper()
	decides := make([]store.Decide, len(claims))
	for i, c := range claims {
		decides[i] = store.Decide{Claim: c, Event: decided(c, txn.Approve), Decision: txn.Approve, DecidedAt: start, Unannounced: unannounced}
	}
	_, err := w.store.Transactions.Decide(w.Context(), decides)
	w.must(err)
}

func (w *world) entry(id string) store.Entry {
	w.Helper()
	e, err := w.store.Transactions.Get(w.Context(), store.Key{Tenant: "t", ID: id})
	w.must(err)
	return e
}

// fragile is a transaction store that can be away.
type fragile struct {
	*sqlite.Transactions
	away      atomic.Bool
	failRaise atomic.Value // the id whose run cannot be raised
	slow      atomic.Int64 // nanoseconds that one Raise takes
	rounds    atomic.Int64
	blind     atomic.Bool // decisions cannot be compared
	blinded   atomic.Int64
	lost      atomic.Pointer[sync.Map] // keys whose decision an older backup lacks
}

func newClaim(id string) store.Claim {
	return store.Claim{Key: store.Key{Tenant: "t", ID: id}, Digest: "1.digest", Run: 1, ClaimedAt: start, AcceptedAt: start,
		Deadline: start.Add(2 * time.Second), Body: []byte(`{"id":"` + id + `","type":"pix","amount":1}`)}
}

func claims(prefix string, n int) []store.Claim {
	out := make([]store.Claim, n)
	for i := range out {
		out[i] = newClaim(fmt.Sprintf("%s%06d", prefix, i))
	}
	return out
}

// submitted is the event that a claim's first edge published.
func submitted(c store.Claim) event.Submitted {
	return event.Submitted{Schema: event.Schema, Tenant: c.Tenant, ID: c.ID, Run: c.Run, ClaimedAt: txn.At(c.ClaimedAt),
		AcceptedAt: txn.At(c.AcceptedAt), Deadline: txn.At(c.Deadline), Digest: c.Digest, Tx: txn.Sealed{ID: c.ID, Type: "pix", Amount: 1}}
}

func decided(c store.Claim, decision string) []byte {
	var d event.Decided
	d.Submitted = submitted(c)
	d.Verdict = txn.Verdict{Decision: decision, Reasons: []txn.Reason{{Code: "A"}, {Code: "B"}}}
	d.DecidedAt, d.By = txn.At(start.Add(time.Second)), event.ByPipeline
	data, err := event.Encode(d)
	if err != nil {
		panic(err)
	}
	return data
}

// outputs are messages of a step's stream for claims; data nil makes small ones.
func outputs(name string, data func(store.Claim) []byte, claims []store.Claim) []stage.Output {
	out := make([]stage.Output, len(claims))
	for i, c := range claims {
		ident := streams.Ident{Tenant: c.Tenant, ID: c.ID, Run: c.Run, AcceptedAt: c.AcceptedAt, Deadline: c.Deadline, Digest: c.Digest}
		out[i] = streams.Message(ident, name, data(c))
	}
	return out
}

func (f *fragile) gone() error {
	if f.away.Load() {
		return errors.New("the store is away")
	}
	return nil
}

func (f *fragile) Overdue(ctx context.Context, then time.Time, limit int) ([]store.Entry, error) {
	if err := f.gone(); err != nil {
		return nil, err
	}
	return f.Transactions.Overdue(ctx, then, limit)
}

func (f *fragile) Undecided(ctx context.Context, keys []store.Key) ([]store.Key, error) {
	if f.blind.Load() {
		f.blinded.Add(1)
		return nil, errors.New("the store is away")
	}
	if err := f.gone(); err != nil {
		return nil, err
	}
	open, err := f.Transactions.Undecided(ctx, keys)
	if lost := f.lost.Load(); lost != nil {
		for _, key := range keys {
			if _, lacks := lost.Load(key); lacks {
				open = append(open, key)
			}
		}
	}
	return open, err
}

func (f *fragile) Decide(ctx context.Context, decides []store.Decide) ([]store.Outcome, error) {
	if lost := f.lost.Load(); lost != nil {
		for _, d := range decides {
			lost.Delete(d.Key)
		}
	}
	return f.Transactions.Decide(ctx, decides)
}

func (f *fragile) Unannounced(ctx context.Context, then time.Time, limit int) ([]store.Entry, error) {
	f.rounds.Add(1)
	if err := f.gone(); err != nil {
		return nil, err
	}
	return f.Transactions.Unannounced(ctx, then, limit)
}

func (f *fragile) Raise(ctx context.Context, r store.Raise) (store.Entry, error) {
	if f.failRaise.Load() == r.ID {
		return store.Entry{}, errors.New("the store is away")
	}
	time.Sleep(time.Duration(f.slow.Load()))
	return f.Transactions.Raise(ctx, r)
}

// message reads one message of a stream.
func (w *world) message(stream string, sequence uint64) *jetstream.RawStreamMsg {
	w.Helper()
	s, err := w.js.Stream(w.Context(), stream)
	w.must(err)
	m, err := s.GetMsg(w.Context(), sequence)
	w.must(err)
	return m
}

// provision makes the streams before the keeper runs.
func (w *world) provision() {
	w.Helper()
	_, err := streams.Ensure(w.Context(), w.js, w.layout)
	w.must(err)
}

// forward moves the clock to d after the start.
func (w *world) forward(d time.Duration) { w.ahead.Store(int64(d)) }

func TestWhatIsMissingIsProvisionedAtStartAndAgain(t *testing.T) {
	w := newWorld(t)
	w.run()
	there := func(stream, durable string) bool {
		_, err := w.js.Consumer(w.Context(), stream, durable)
		return err == nil
	}
	w.until("all streams and consumers", func() bool {
		for _, s := range streams.Steps {
			if !there(s.Stream, s.Durable) {
				return false
			}
		}
		_, err := w.js.KeyValue(w.Context(), streams.AttemptsBucket)
		return err == nil
	})
	w.must(w.js.DeleteStream(w.Context(), streams.Scored))
	w.must(w.js.DeleteConsumer(w.Context(), streams.Decided, streams.Notify.Durable))
	w.until("what was deleted is back", func() bool {
		return there(streams.Scored, streams.Persist.Durable) && there(streams.Decided, streams.Notify.Durable)
	})
}

// What the broker refuses to provision keeps nobody from being decided, and nothing else from being made.
func TestWhatCannotBeProvisionedHoldsNothingUp(t *testing.T) {
	w := newWorld(t)
	w.provision()
	w.must(w.js.DeleteConsumer(w.Context(), streams.Decided, streams.Notify.Durable))
	w.layout.Replicas = 3 // it has no peers for that
	w.claim(newClaim("a"))
	w.run()
	w.forward(time.Minute)
	w.until("a to run again", func() bool { return w.entry("a").Run == 2 })
	w.until("the consumer", func() bool {
		_, err := w.js.Consumer(w.Context(), streams.Decided, streams.Notify.Durable)
		return err == nil
	})
	w.until("the keeper to say so", func() bool {
		return strings.Contains(fmt.Sprint(w.shell.Health.Reasons()), "streams are not provisioned")
	})
}

func TestAnOverdueClaimRunsAgainOnceWithMorePatienceEachTime(t *testing.T) {
	w := newWorld(t)
	done := newClaim("done")
	w.claim(newClaim("a"), done)
	w.decide(false, done)
	w.run()
	deadline := 2 * time.Second // of a; each run gets a new one, 2 s after it began
	for run := 2; run <= 4; run++ {
		w.forward(deadline + 3*time.Second<<(run-2) - time.Millisecond)
		w.rounds(2)
		if e := w.entry("a"); e.Run != run-1 {
			t.Fatalf("run %d was started too early", e.Run)
		}
		w.forward(deadline + 3*time.Second<<(run-2) + time.Millisecond)
		w.until("another run", func() bool { return w.entry("a").Run == run })
		w.rounds(2)
		if n := w.state(streams.Submitted).Msgs; n != uint64(run-1) {
			t.Fatalf("%d submissions for run %d", n, run)
		}
		m := w.message(streams.Submitted, uint64(run-1))
		ident, err := streams.ReadIdent(m.Header)
		w.must(err)
		if ident.ID != "a" || ident.Run != run || m.Header.Get(nats.MsgIdHdr) != fmt.Sprint("t/a/submitted/", run) {
			t.Errorf("%+v", ident)
		}
		got, err := event.Decode[event.Submitted](m.Data)
		w.must(err)
		want := submitted(newClaim("a"))
		want.Run = run
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Error(diff) // the promised deadline stands, so that the decision will be late
		}
		deadline += 3*time.Second<<(run-2) + time.Millisecond + 2*time.Second
	}
	if e := w.entry("done"); e.Run != 1 || w.found("claim run again") != 3 {
		t.Errorf("run %d of what is decided, %d runs", e.Run, w.found("claim run again"))
	}
}

// A claim that nobody can run must stop neither itself nor others from being decided.
func TestAClaimThatCannotBeReadIsDecidedAndStopsNobody(t *testing.T) {
	w := newWorld(t)
	broken := newClaim("broken")
	broken.Body, broken.Deadline = []byte("{"), start // the oldest
	w.claim(broken, newClaim("a"))
	w.forward(time.Minute)
	w.run()
	w.until("both are in the flow", func() bool { return w.state(streams.Submitted).Msgs == 1 && w.state(streams.Scored).Msgs == 1 })
	if n := w.found("claim run again"); n != 2 {
		t.Errorf("found %d", n)
	}
	got, err := event.Decode[event.Scored](w.message(streams.Scored, 1).Data)
	w.must(err)
	if got.ID != "broken" || got.Run != 2 || got.Verdict.Decision != txn.Review || got.Verdict.Reasons[0].Code != streams.Faulted {
		t.Errorf("%+v", got)
	}
}

func TestWhatWasRaisedIsPublishedThoughTheStoreFailsMidway(t *testing.T) {
	w := newWorld(t)
	w.provision()
	all := claims("x", 3)
	for i := range all {
		all[i].Deadline = start.Add(time.Duration(i) * time.Millisecond)
	}
	w.claim(all...)
	w.store.failRaise.Store(all[2].ID)
	w.forward(5 * time.Second)
	w.run()
	w.until("the first two ran", func() bool { return w.state(streams.Submitted).Msgs == 2 })
	w.store.failRaise.Store("")
	w.until("the third ran", func() bool { return w.state(streams.Submitted).Msgs == 3 })
}

// Claims that have run often wait long; as many as one sweep looks at must not hide a new one.
func TestPatientClaimsDoNotHideOthers(t *testing.T) {
	w := newWorld(t)
	w.provision()
	patient := claims("patient", 2000)
	for i := range patient {
		patient[i].Run, patient[i].Deadline = 9, start
	}
	w.claim(patient...)
	w.claim(newClaim("a"))
	w.forward(time.Minute)
	w.run()
	w.until("the new one ran", func() bool { return w.entry("a").Run == 2 })
	w.until("it alone is counted", func() bool { return w.found("claim run again") == 1 })
}

// F13: a restored backup lacks decisions that the stream has.
func TestF13DecisionsComeBackFromTheStreamAsTheyWere(t *testing.T) {
	w := newWorld(t)
	w.provision()
	all := claims("x", 1500) // more than one batch
	w.publish(outputs(streams.EventDecided, func(c store.Claim) []byte { return decided(c, txn.Decline) }, all)...)
	w.publish(stage.Output{Subject: streams.Subject(streams.EventDecided, "t"), ID: "nobody's", Data: []byte("no identity")})
	w.publish(outputs(streams.EventDecided, func(store.Claim) []byte { return []byte("unreadable") }, []store.Claim{newClaim("unreadable")})...)
	has := all[7]
	w.claim(all[:1000]...) // the rest is missing altogether
	w.decide(false, has)
	w.forward(time.Hour) // the sweep would run all of them again
	w.run()
	w.until("decisions put back", func() bool { return w.found("decision put back") == len(all)-1 })
	w.rounds(1)
	for _, c := range all {
		want := decided(c, txn.Decline)
		if c.ID == has.ID {
			want = decided(c, txn.Approve)
		}
		if e := w.entry(c.ID); !bytes.Equal(want, e.Event) || !e.DecidedAt.Equal(start.Add(time.Second)) && c.ID != has.ID {
			t.Fatalf("%s: %s", c.ID, e.Event)
		}
	}
	if n := w.state(streams.Submitted).Msgs; n != 0 {
		t.Errorf("%d were run again though a decision stood in the stream", n)
	}
}

// F13: an id must not be claimed anew, with another body, before its decision is back.
func TestF13AStoreThatLacksRecentDecisionsIsMadeWholeFirst(t *testing.T) {
	for name, tc := range map[string]struct {
		kept int // claims that the store still has decided, the oldest
		want int
	}{"a lost store": {0, 600}, "an older backup": {500, 600}, "a whole store": {600, 600}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.provision()
			all := claims("x", 600)
			w.publish(outputs(streams.EventDecided, func(c store.Claim) []byte { return decided(c, txn.Decline) }, all)...)
			w.claim(all[:tc.kept]...)
			w.decide(false, all[:tc.kept]...)
			w.until("the store is whole", func() bool { // as who starts it asks for it
				w.shell.Metrics = prometheus.NewRegistry()
				return keeper.Restore(t.Context(), keeper.Config{Shell: w.shell, Transactions: w.store}) == nil
			})
			found := 0
			for _, c := range all {
				if e, err := w.store.Get(t.Context(), c.Key); err == nil && e.Decided() {
					found++
				}
			}
			if found != tc.want {
				t.Errorf("%d decisions, want %d", found, tc.want)
			}
		})
	}
}

// F13: a database is put back from a backup while the keeper runs and only waits for it.
func TestF13AStoreThatIsReplacedMeanwhileIsMadeWhole(t *testing.T) {
	w := newWorld(t)
	w.provision()
	all := claims("x", 20)
	w.claim(all...)
	w.decide(false, all...)
	w.publish(outputs(streams.EventDecided, func(c store.Claim) []byte { return decided(c, txn.Approve) }, all)...)
	w.run()
	w.rounds(3)
	if n := w.found("decision put back"); n != 0 {
		t.Fatalf("%d put back into a store that has them", n)
	}
	var lost sync.Map
	for _, c := range all[5:] {
		lost.Store(c.Key, true)
	}
	w.store.lost.Store(&lost)
	w.until("all of them are back", func() bool { return w.found("decision put back") == 15 })
	w.rounds(3)
	if n := w.found("decision put back"); n != 15 {
		t.Errorf("%d put back", n)
	}
}

// While nothing can be published, what is raised stays few: each run makes a claim wait longer for the next.
func TestLittleIsRaisedInVain(t *testing.T) {
	w := newWorld(t)
	w.full(streams.Enrich, 300, 300, 300, 0) // its front is undecided, so it stays full
	w.fill(streams.Submitted, 1)
	late := claims("late", 300)
	w.claim(late...)
	raised := func() (n int64) {
		for _, c := range late {
			if w.entry(c.ID).Run > 1 {
				n++
			}
		}
		return n
	}
	w.forward(time.Minute)
	w.run()
	w.rounds(5)
	if n, rounds := raised(), w.store.rounds.Load()+1; n > rounds {
		t.Errorf("%d raised in %d rounds that published nothing", n, rounds)
	}
	w.decide(false, claims("x", 1)...)
	w.forward(time.Hour)
	w.until("all ran again", func() bool { return raised() == 300 && w.state(streams.Submitted).LastSeq >= 600 })
}

// A slow store keeps the keeper from nothing else: what one round does not get through, the next does.
func TestASlowStoreIsSweptInParts(t *testing.T) {
	w := newWorld(t)
	w.provision()
	late := claims("late", 30)
	w.claim(late...)
	w.store.slow.Store(int64(20 * time.Millisecond))
	w.forward(time.Minute)
	w.run()
	w.until("all ran again", func() bool { return w.state(streams.Submitted).Msgs == 30 })
	if n := w.store.rounds.Load(); n < 3 {
		t.Errorf("in %d rounds", n+1)
	}
}

func TestNothingRunsAgainBeforeDecisionsWereCompared(t *testing.T) {
	w := newWorld(t)
	w.provision()
	c := newClaim("a")
	w.publish(outputs(streams.EventDecided, func(c store.Claim) []byte { return decided(c, txn.Decline) }, []store.Claim{c})...)
	w.claim(c)
	w.forward(time.Hour)
	w.store.blind.Store(true)
	w.run()
	w.until("failed comparisons", func() bool { return w.store.blinded.Load() > 3 })
	w.until("the health to say so", func() bool {
		return strings.Contains(fmt.Sprint(w.shell.Health.Degraded()), "keeper putting decisions back")
	})
	if e := w.entry("a"); e.Run != 1 || e.Decided() {
		t.Errorf("%+v", e)
	}
	w.store.blind.Store(false)
	w.until("the decision is back", func() bool { return w.entry("a").Decided() })
	w.until("the health to say so", func() bool { return len(w.shell.Health.Degraded()) == 0 })
	if n := w.state(streams.Submitted).Msgs; n != 0 {
		t.Errorf("%d runs", n)
	}
}

func TestWhatWasNotAnnouncedIs(t *testing.T) {
	w := newWorld(t)
	all := claims("x", 300)
	w.claim(all...)
	w.decide(true, all...)
	told := newClaim("told")
	w.claim(told)
	w.decide(false, told)
	w.forward(5 * time.Second)
	w.run()
	w.rounds(2)
	if n := w.state(streams.Decided).Msgs; n != 0 {
		t.Fatalf("%d announced while whoever decided may still do it", n)
	}
	w.forward(5*time.Second + time.Millisecond)
	w.until("marks are cleared", func() bool {
		silent, err := w.store.Transactions.Unannounced(w.Context(), start.Add(time.Hour), 1)
		return err == nil && len(silent) == 0
	})
	w.rounds(1)
	if n := w.state(streams.Decided).Msgs; n != 300 {
		t.Fatalf("%d announced", n)
	}
	if n := w.state(streams.Submitted).Msgs; n != 300 {
		t.Fatalf("%d submitted, for the features", n)
	}
	s, err := event.Decode[event.Submitted](w.message(streams.Submitted, 1).Data)
	w.must(err)
	if diff := cmp.Diff(submitted(newClaim(s.ID)), s, cmpopts.EquateEmpty()); diff != "" {
		t.Error(diff)
	}
	m := w.message(streams.Decided, 1)
	ident, err := streams.ReadIdent(m.Header)
	w.must(err)
	if want := decided(newClaim(ident.ID), txn.Approve); !bytes.Equal(want, m.Data) || m.Header.Get(nats.MsgIdHdr) != "t/"+ident.ID+"/decided" {
		t.Errorf("%s: %s", m.Header.Get(nats.MsgIdHdr), m.Data)
	}
}

func TestTheKeeperOutlivesBrokerAndStore(t *testing.T) {
	w := newWorld(t)
	w.run()
	w.rounds(1)
	w.server.Close()
	w.until("not ready", func() bool { return w.shell.Health.Reasons()["keeper provisioning"] != "" })
	w.store.away.Store(true)
	w.restartBroker()
	w.until("ready again", func() bool { return w.shell.Health.Reasons()["keeper provisioning"] == "" })
	w.claim(newClaim("a"))
	w.forward(time.Minute)
	w.rounds(2)
	if n := w.state(streams.Submitted).Msgs; n != 0 {
		t.Fatal("a store that is away was read")
	}
	w.store.away.Store(false)
	w.until("the claim runs again", func() bool { return w.state(streams.Submitted).Msgs == 1 })
}
