// Command webhooks measures what endpoints that fail cost the healthy ones (W17): 100 endpoints hear of every decision, first
// all of them well, then one hanging, one answering 500 and one slow. It prints how long decisions took to reach the other 97 in
// both runs, and exits 1 where one did not arrive or where their p99 rose by 20 % or more. Runs alternate, and the medians of
// their p99 are compared, since a machine has moods.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"crivo/pkg/app"
	"crivo/pkg/seal"
	"crivo/pkg/stage"
	"crivo/pkg/txn"
	"crivo/pkg/webhook"
	"crivo/services/broker"
	"crivo/services/notify"
	"crivo/services/store"
	"crivo/services/store/memory"
	"crivo/services/store/sqlite"
	"crivo/streams"
	"crivo/streams/event"
)

const tenant = "load"

type load struct {
	endpoints, sick int
	rate            float64 // decisions a second
	warm, during    time.Duration
	slow            time.Duration // of the slow one's answers
}

func main() {
	var l load
	flag.IntVar(&l.endpoints, "endpoints", 100, "endpoints in all")
	flag.Float64Var(&l.rate, "rate", 5, "decisions a second, each told to every endpoint")
	flag.DurationVar(&l.warm, "warm", 5*time.Second, "how long to send before it is measured: connections are made")
	flag.DurationVar(&l.during, "duration", 20*time.Second, "how long to send and measure in one run")
	flag.DurationVar(&l.slow, "slow", 2*time.Second, "what the slow endpoint takes")
	pairs := flag.Int("pairs", 3, "pairs of runs")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := l.compare(ctx, *pairs); err != nil {
		fmt.Fprintln(os.Stderr, "webhooks:", err)
		os.Exit(1)
	}
}

// compare makes pairs of runs and prints them.
func (l load) compare(ctx context.Context, pairs int) error {
	var undisturbed, disturbed []float64
	for range pairs {
		for _, sick := range []int{0, 3} {
			l.sick = sick
			h, err := l.run(ctx)
			if err != nil {
				return err
			}
			p99 := float64(h.ValueAtPercentile(99)) / 1000
			fmt.Printf("%d sick: %d deliveries to the healthy, p50 %.1f ms, p99 %.1f ms, most %.1f ms\n", sick, h.TotalCount(),
				float64(h.ValueAtPercentile(50))/1000, p99, float64(h.Max())/1000)
			if sick == 0 {
				undisturbed = append(undisturbed, p99)
			} else {
				disturbed = append(disturbed, p99)
			}
		}
	}
	ratio := median(disturbed) / median(undisturbed)
	fmt.Printf("healthy p99: %.1f ms undisturbed, %.1f ms beside the sick, ratio %.2f (%d endpoints, %.0f deliveries a second)\n",
		median(undisturbed), median(disturbed), ratio, l.endpoints, l.rate*float64(l.endpoints))
	if ratio >= 1.2 {
		return errors.New("the healthy ones are slowed down by a fifth or more")
	}
	return nil
}

func median(of []float64) float64 {
	slices.Sort(of)
	return of[len(of)/2]
}

// run tells decisions for a while, in a world of its own, and returns the microseconds that they took to the healthy endpoints.
func (l load) run(ctx context.Context) (*hdrhistogram.Histogram, error) {
	dir, err := os.MkdirTemp("", "crivo-webhooks-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	sink := newSink(l.slow)
	defer sink.close()
	cfg, registry, closeAll, err := open(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer closeAll()
	for i := range l.endpoints {
		if err := l.register(ctx, cfg, registry, sink.server.URL, i); err != nil {
			return nil, err
		}
	}
	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- notify.Run(running, cfg) }()
	err = l.send(ctx, cfg, sink)
	sink.release()
	stop()
	return sink.took, errors.Join(err, <-ended)
}

// open starts a broker and the stores, and returns what notify needs.
func open(ctx context.Context, dir string) (cfg notify.Config, registry *memory.Registry, closeAll func(), err error) {
	var opened []func()
	closeAll = func() {
		for _, c := range slices.Backward(opened) {
			c()
		}
	}
	defer func() {
		if err != nil {
			closeAll()
		}
	}()
	server, err := broker.Start(broker.Options{Dir: filepath.Join(dir, "nats"), Host: "127.0.0.1", Port: -1})
	if err != nil {
		return cfg, nil, nil, err
	}
	opened = append(opened, server.Close)
	health, metrics := &app.Health{}, prometheus.NewRegistry()
	nc, err := app.Connect(app.Connection{URL: server.URL(), Name: "notify", Inbox: "_INBOX", Log: zerolog.Nop(), Health: health})
	if err != nil {
		return cfg, nil, nil, err
	}
	opened = append(opened, nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		return cfg, nil, nil, err
	}
	if _, err = streams.Ensure(ctx, js, streams.Layout{Replicas: 1, SubmittedBytes: 64 << 20}); err != nil {
		return cfg, nil, nil, err
	}
	keys, err := seal.Open(filepath.Join(dir, "keys"), true)
	if err == nil {
		err = keys.Add(tenant)
	}
	if err != nil {
		return cfg, nil, nil, err
	}
	db, err := sqlite.OpenDeliveries(filepath.Join(dir, "deliveries.db"), sqlite.Options{Sync: true})
	if err != nil {
		return cfg, nil, nil, err
	}
	opened = append(opened, func() { _ = db.Close() })
	registry = memory.NewRegistry()
	return notify.Config{Deliveries: db, Endpoints: registry, States: registry, Keys: keys, Audit: registry.Record, Version: "load",
		Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
		Shell: app.Shell{Name: "notify", Conn: nc, JS: js, Clock: app.NewClock(nil), Log: zerolog.Nop(), Metrics: metrics, Health: health,
			Steps: stage.NewMetrics(metrics)}}, registry, closeAll, nil
}

// register makes the endpoint of a number; the last ones are the sick, unless nobody is.
func (l load) register(ctx context.Context, cfg notify.Config, registry *memory.Registry, url string, number int) error {
	kinds := []string{"hangs", "fails", "slow"}
	kind := "healthy"
	switch last := number - (l.endpoints - len(kinds)); {
	case last < 0:
	case l.sick == 0:
		kind = "spare" // well, but not counted, so that both runs count the same endpoints
	default:
		kind = kinds[last]
	}
	id := "ep_" + strconv.Itoa(number)
	box, err := cfg.Keys.Box(tenant)
	if err != nil {
		return err
	}
	sealed, err := store.SealSecret(box, id, webhook.NewSecret())
	if err != nil {
		return err
	}
	return registry.PutEndpoint(ctx, store.Endpoint{ID: id, Tenant: tenant, URL: url + "/" + kind + "/" + id, Payload: "thin", Status: "active",
		Secrets: []store.Secret{sealed}, CreatedAt: txn.At(time.Now())})
}

// send announces decisions at their times, whatever became of the earlier ones, and waits until the healthy have them all.
func (l load) send(ctx context.Context, cfg notify.Config, sink *sink) error {
	start, n := time.Now(), 0
	for due := start; due.Sub(start) < l.warm+l.during; due = start.Add(time.Duration(float64(n) / l.rate * float64(time.Second))) {
		if err := stage.Sleep(ctx, time.Until(due)); err != nil {
			return err
		}
		out, err := announcement(strconv.Itoa(n), due)
		if err != nil {
			return err
		}
		if due.Sub(start) >= l.warm {
			sink.sent(strconv.Itoa(n), due)
		}
		if _, err := stage.Publish(ctx, cfg.JS, []stage.Output{out}); err != nil {
			return err
		}
		n++
	}
	want := int64(n * (l.endpoints - 3))
	for give := time.Now().Add(time.Minute); sink.count() < want; {
		if time.Now().After(give) {
			return fmt.Errorf("%d of %d deliveries arrived", sink.count(), want)
		}
		if err := stage.Sleep(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

func announcement(id string, at time.Time) (stage.Output, error) {
	var d event.Decided
	d.Submitted = event.Submitted{Schema: event.Schema, Tenant: tenant, ID: id, Run: 1, ClaimedAt: txn.At(at), AcceptedAt: txn.At(at),
		Deadline: txn.At(at.Add(2 * time.Second)), Digest: "1.digest", Tx: txn.Sealed{ID: id, Type: "pix", Amount: 1}}
	d.Verdict = txn.Verdict{Decision: txn.Approve, RiskBand: "low", RuleSet: txn.RuleSet{Name: "default", Version: 1, Digest: "sha256:0"}}
	d.Engine, d.By, d.DecidedAt = "load", event.ByPipeline, txn.At(at)
	data, err := event.Encode(d)
	ident := streams.Ident{Tenant: tenant, ID: id, Run: 1, AcceptedAt: at, Deadline: at.Add(2 * time.Second), Digest: "1.digest"}
	return streams.Message(ident, streams.EventDecided, data), err
}

// sink is all receivers: what one is comes first in its path.
type sink struct {
	server   *httptest.Server
	slow     time.Duration
	released chan struct{}

	mu   sync.Mutex
	due  map[string]time.Time // by transaction, of what is measured
	all  int64
	took *hdrhistogram.Histogram
}

func newSink(slow time.Duration) *sink {
	s := &sink{slow: slow, released: make(chan struct{}), due: map[string]time.Time{}, took: hdrhistogram.New(1, time.Minute.Microseconds(), 3)}
	s.server = httptest.NewServer(s)
	return s
}

func (s *sink) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	arrived := time.Now()
	wait := func(d time.Duration) {
		select {
		case <-time.After(d):
		case <-s.released:
		case <-r.Context().Done():
		}
	}
	switch kind, _, _ := strings.Cut(r.URL.Path[1:], "/"); kind {
	case "hangs":
		wait(time.Hour)
	case "fails":
		w.WriteHeader(http.StatusInternalServerError)
		return
	case "slow":
		wait(s.slow)
	case "healthy":
		s.arrived(r, arrived)
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *sink) arrived(r *http.Request, at time.Time) {
	var body struct {
		Data struct {
			ID string `json:"id"`
		} `json:"data"`
	}
	if err := json.UnmarshalRead(r.Body, &body); err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all++
	if due, ok := s.due[body.Data.ID]; ok {
		_ = s.took.RecordValue(min(at.Sub(due), time.Minute).Microseconds())
	}
}

func (s *sink) sent(id string, due time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.due[id] = due
}

func (s *sink) count() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all
}

// release lets everybody go who hangs.
func (s *sink) release() { close(s.released) }

func (s *sink) close() { s.server.Close() }
