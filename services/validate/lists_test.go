package validate_test

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"crivo/pkg/app"
	"crivo/pkg/seal"
	"crivo/pkg/stage"
	"crivo/pkg/txn"
	"crivo/services/broker"
	"crivo/services/lists"
	"crivo/services/store"
	"crivo/services/validate"
	"crivo/streams"
	"crivo/streams/event"
)

// within is how long a fact may take to show.
const within = 30 * time.Second

// stored is a store of lists that can be down.
type stored struct {
	mu      sync.Mutex
	entries []store.ListEntry
	err     error
}

func (s *stored) ListEntries(context.Context) ([]store.ListEntry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.entries), s.err
}

func (s *stored) set(err error, entries ...store.ListEntry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entries, s.err = entries, err
}

var errDown = errors.New("down for the test")

// listed is an entry as the API keeps it.
func listed(t *testing.T, k *seal.Keyring, kind, value string) store.ListEntry {
	t.Helper()
	v, err := lists.Understand(kind, value)
	if err != nil {
		t.Fatal(err)
	}
	box, err := k.Box("t")
	if err != nil {
		t.Fatal(err)
	}
	shown, err := v.Shown(box)
	if err != nil {
		t.Fatal(err)
	}
	return store.ListEntry{ID: "ent_1", Tenant: "t", List: lists.Block, Kind: kind, Value: shown}
}

func ending(e store.ListEntry, at time.Time) store.ListEntry {
	expires := txn.At(at)
	e.ExpiresAt = &expires
	return e
}

func TestAStoredEntryIsFoundAsOneOfTheFile(t *testing.T) {
	k := keyring(t)
	of := func(e store.ListEntry, tenant, list string) store.ListEntry {
		e.Tenant, e.List = tenant, list
		return e
	}
	device := listed(t, k, txn.KindDeviceID, "d-1")
	for name, tc := range map[string]struct {
		entries []store.ListEntry
		want    string
	}{
		"nothing":                  {nil, txn.Clear},
		"a CPF with mask":          {[]store.ListEntry{listed(t, k, txn.KindDocument, "529.982.247-25")}, txn.Hit},
		"another CPF":              {[]store.ListEntry{listed(t, k, txn.KindDocument, "111.444.777-35")}, txn.Clear},
		"a company by its root":    {[]store.ListEntry{listed(t, k, txn.KindDocumentRoot, "12.abc.345")}, txn.Hit},
		"an account":               {[]store.ListEntry{listed(t, k, txn.KindAccount, "12345678/1/2")}, txn.Hit},
		"an address":               {[]store.ListEntry{listed(t, k, txn.KindIP, "203.0.113.77")}, txn.Hit},
		"a /24":                    {[]store.ListEntry{listed(t, k, txn.KindIP, "203.0.113.0/24")}, txn.Hit},
		"a /16":                    {[]store.ListEntry{listed(t, k, txn.KindIP, "203.0.0.0/16")}, txn.Hit},
		"another /24":              {[]store.ListEntry{listed(t, k, txn.KindIP, "203.0.114.0/24")}, txn.Clear},
		"a merchant":               {[]store.ListEntry{listed(t, k, lists.KindMerchantID, "m-1")}, txn.Hit},
		"a merchant as a terminal": {[]store.ListEntry{listed(t, k, lists.KindTerminalID, "m-1")}, txn.Clear},
		"another tenant's":         {[]store.ListEntry{of(listed(t, k, lists.KindMerchantID, "m-1"), "u", lists.Block)}, txn.Clear},
		"of another list":          {[]store.ListEntry{of(device, "t", "watch")}, txn.Clear},
		"one that expired":         {[]store.ListEntry{ending(device, now)}, txn.Clear},
		"one that will expire":     {[]store.ListEntry{ending(device, now.Add(time.Second))}, txn.Hit},
	} {
		t.Run(name, func(t *testing.T) {
			l := validate.NewLists("", &stored{entries: tc.entries}, func() time.Time { return now })
			if err := l.Load(t.Context()); err != nil {
				t.Fatal(err)
			}
			if check, degraded := blocklist(t, k, l.Look()); check.Status != tc.want || check.Cache != "fresh" || len(degraded) > 0 {
				t.Errorf("got %+v, degraded %v", check, degraded)
			}
		})
	}
}

func TestTheListIsWhatBothPlacesSay(t *testing.T) {
	k := keyring(t)
	f := &file{path: filepath.Join(t.TempDir(), "list.yaml")}
	s := &stored{}
	l := validate.NewLists(f.path, s, func() time.Time { return now })
	device := listed(t, k, txn.KindDeviceID, "d-1")
	versions := map[string]string{}
	for _, step := range []struct {
		what, text    string // "" leaves the file
		entries       []store.ListEntry
		err           error
		status, cache string
		stale         string
		missed        string // of file and store
	}{
		{"neither was read", broken, nil, errDown, txn.Unknown, "", "invalid", "file"},
		{"a hit in the file, the store away", blocked, nil, errDown, txn.Hit, "stale", "unavailable", ""},
		{"no hit in the file, the store away", others, nil, errDown, txn.Unknown, "", "unavailable", ""},
		{"nothing is stored", "", nil, nil, txn.Clear, "fresh", "", ""},
		{"a stored hit", "", []store.ListEntry{device}, nil, txn.Hit, "fresh", "", ""},
		{"the store is away again", "", nil, errDown, txn.Hit, "stale", "unavailable", "stored"},
		{"the file is broken too", broken, nil, errDown, txn.Hit, "stale", "invalid", "file stored"},
		{"the store is back", "", []store.ListEntry{device}, nil, txn.Hit, "stale", "invalid", "file"},
		{"the file is back", blocked, []store.ListEntry{device}, nil, txn.Hit, "fresh", "", ""},
		{"taken off the one", "", nil, nil, txn.Hit, "fresh", "", ""},
		{"taken off both", "[]", nil, nil, txn.Clear, "fresh", "", ""},
	} {
		if step.text != "" {
			f.write(t, step.text)
		}
		s.set(step.err, step.entries...)
		if err := l.Load(t.Context()); !errors.Is(err, step.err) {
			t.Fatal(err)
		}
		check, degraded := blocklist(t, k, l.Look())
		if check.Status != step.status || check.Cache != step.cache || check.Error != step.stale || (len(degraded) > 0) != (step.stale != "") {
			t.Errorf("%s: got %+v, degraded %v", step.what, check, degraded)
		}
		if (check.AsOf == nil) != (check.Status == txn.Unknown) {
			t.Errorf("%s: as of %v", step.what, check.AsOf)
		}
		for _, place := range []string{"file", "stored"} {
			if strings.Contains(l.Missed(), place) != strings.Contains(step.missed, place) {
				t.Errorf("%s: /readyz misses %q", step.what, l.Missed())
			}
		}
		if earlier, ok := versions[check.Version]; ok && step.stale == "" {
			t.Errorf("%s: the version of %s", step.what, earlier)
		}
		versions[check.Version] = step.what
	}
}

func TestWhatIsStoredUnchangedIsNotMadeAnew(t *testing.T) {
	s := &stored{entries: []store.ListEntry{listed(t, keyring(t), txn.KindDeviceID, "d-1")}}
	l := validate.NewLists("", s, func() time.Time { return now })
	look := func() *validate.Snapshot {
		_ = l.Load(t.Context())
		return l.Look()
	}
	if first := look(); first != look() {
		t.Error("every tenant's tokens would be made anew each time")
	}
	s.set(errDown)
	if spoiled := look(); spoiled != look() {
		t.Error("spoiled again")
	}
}

// served is a running step on a broker.
type served struct {
	t  *testing.T
	k  *seal.Keyring
	js jetstream.JetStream
}

func serve(t *testing.T, l validate.Lists) served {
	t.Helper()
	server, err := broker.Start(broker.Options{Dir: filepath.Join(t.TempDir(), "nats")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	nc, err := server.Connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := streams.Ensure(t.Context(), js, streams.DefaultLayout); err != nil {
		t.Fatal(err)
	}
	s := served{t, keyring(t), js}
	shell := app.Shell{Name: "validate", Conn: nc, JS: js, Clock: app.NewClock(func() time.Time { return now }), Log: zerolog.Nop(), Health: &app.Health{},
		Steps: stage.NewMetrics(prometheus.NewRegistry())}
	ctx, end := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- validate.Run(ctx, validate.Config{Shell: shell, Lists: l, Keys: s.k}) }()
	t.Cleanup(func() {
		end()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return s
}

// checked sends one transaction through and returns what was said of it.
func (s served) checked(run int) txn.Check {
	s.t.Helper()
	m := enrichedMessage(s.t, enriched(s.t, s.k, body))
	ident := streams.Ident{Tenant: "t", ID: "a", Run: run}
	if _, err := (stage.Publisher{JS: s.js}).Publish(s.t.Context(), []stage.Output{streams.Message(ident, streams.EventEnriched, m.Data)}); err != nil {
		s.t.Fatal(err)
	}
	stream, err := s.js.Stream(s.t.Context(), streams.Validated)
	if err != nil {
		s.t.Fatal(err)
	}
	for give := time.Now().Add(within); ; time.Sleep(5 * time.Millisecond) {
		if m, err := stream.GetMsg(s.t.Context(), uint64(run)); err == nil {
			v, err := event.Decode[event.Validated](m.Data)
			if err != nil {
				s.t.Fatal(err)
			}
			return v.Checks[1]
		}
		if time.Now().After(give) {
			s.t.Fatal("waited in vain for a validated event")
		}
	}
}

// await sends transactions until one is checked as wanted, from run on, and returns the next one's run.
func (s served) await(status string, run int) (next int) {
	s.t.Helper()
	for give := time.Now().Add(within); s.checked(run).Status != status; run++ {
		if time.Now().After(give) {
			s.t.Fatalf("waited in vain for %s", status)
		}
	}
	return run + 1
}

func TestAStartWithoutTheStoreDecidesAndTheListComesLater(t *testing.T) {
	was := *validate.FirstLoad
	*validate.FirstLoad = 200 * time.Millisecond
	t.Cleanup(func() { *validate.FirstLoad = was })
	l := &stored{err: errDown}
	s := serve(t, l)
	if got := s.checked(1); got.Status != txn.Unknown || got.Error != "unavailable" {
		t.Fatalf("without the store: %+v", got)
	}
	l.set(nil, listed(t, s.k, txn.KindDeviceID, "d-1"))
	s.await(txn.Hit, 2)
}

// Three changes one after the other are in force before a watcher has looked again twice by itself.
func TestAnAnnouncedChangeIsInForceAtOnce(t *testing.T) {
	t.Parallel()
	l := &stored{}
	s := serve(t, l)
	device := listed(t, s.k, txn.KindDeviceID, "d-1")
	give, run := time.Now().Add(20*time.Second), s.await(txn.Clear, 1)
	for _, change := range []struct {
		entries []store.ListEntry
		want    string
	}{{[]store.ListEntry{device}, txn.Hit}, {nil, txn.Clear}, {[]store.ListEntry{device}, txn.Hit}} {
		l.set(nil, change.entries...)
		if err := streams.Changed(s.js.Conn(), streams.TopicLists); err != nil {
			t.Fatal(err)
		}
		run = s.await(change.want, run)
	}
	if time.Now().After(give) {
		t.Error("waited in vain for announcements to be heard")
	}
}
