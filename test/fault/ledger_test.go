package fault_test

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"crivo/pkg/stage"
	"crivo/pkg/txn"
	"crivo/services/feed"
	"crivo/streams/event"
	"crivo/test/system"
)

// target is what a ledger watches: one process, or a tenant's view of many.
type target interface {
	Do(ctx context.Context, method, path string, body []byte, headers ...string) (system.Answer, error)
	Connect(t testing.TB) (*nats.Conn, jetstream.JetStream)
}

// ledger stands outside the system and remembers what was sent and what the answers were.
type ledger struct {
	s      target
	tenant string
	pause  time.Duration // of a worker after each acceptance
	fickle bool          // every other worker gives up what is refused, too
	wiped  bool          // the broker lost its disk: the stream need not hold everything

	mu       sync.Mutex
	made     *feed.Synthetic
	sent     map[string][]byte
	accepted map[string]bool
	unknown  map[string]bool // sent, and not answered 2xx yet
	recent   []string        // accepted since the last repeat
	doubtful map[string]bool // answered 2xx by a repeat only
	refused  int             // answers other than 2xx, and broken connections
}

func newLedger(s target, tenant string) *ledger {
	return &ledger{s: s, tenant: tenant, made: feed.NewSynthetic("k", seed), sent: map[string][]byte{}, accepted: map[string]bool{}, unknown: map[string]bool{},
		doubtful: map[string]bool{}}
}

// witnessed is a system's receiver and a ledger of its tenant default.
func witnessed(t *testing.T, s *system.System) (*ledger, *system.Receiver) {
	t.Helper()
	r, err := s.Receive(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return newLedger(s, "default"), r
}

// under keeps the system under load until stop is called, which waits for the last answers.
func (l *ledger) under(t *testing.T, workers int) (stop func()) {
	t.Helper()
	loading, end := context.WithCancel(t.Context())
	done := l.load(loading, workers)
	return func() { end(); <-done }
}

// next makes one more transaction; it counts as sent from here on.
func (l *ledger) next() feed.Row {
	l.mu.Lock()
	defer l.mu.Unlock()
	row := l.made.Next(time.Now())
	l.sent[row.ID], l.unknown[row.ID] = row.Body, true
	return row
}

func (l *ledger) settle(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.unknown, id)
	l.accepted[id] = true
	l.recent = append(l.recent, id)
}

// doubt settles what was not answered when it was sent.
func (l *ledger) doubt(id string) {
	l.settle(id)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.doubtful[id] = true
}

// load sends new transactions from workers until ctx ends, however the system fares. Every other worker gives a transaction up
// when its connection breaks: what was claimed of those is nobody's business but the system's until the next repeat.
func (l *ledger) load(ctx context.Context, workers int) (done <-chan struct{}) {
	var all sync.WaitGroup
	for n := range workers {
		all.Go(func() {
			for ctx.Err() == nil {
				l.send(ctx, l.next(), n%2 == 0)
			}
		})
	}
	ended := make(chan struct{})
	go func() {
		all.Wait()
		close(ended)
	}()
	return ended
}

// send sends a transaction until it is accepted, waiting while the system refuses, as a client does.
func (l *ledger) send(ctx context.Context, row feed.Row, patient bool) {
	for ctx.Err() == nil {
		a, err := l.s.Do(context.WithoutCancel(ctx), http.MethodPost, "/v1/transactions", row.Body)
		if err == nil && a.Status/100 == 2 {
			l.settle(row.ID)
			_ = stage.Sleep(ctx, l.pause)
			return
		}
		l.mu.Lock()
		l.refused++
		l.mu.Unlock()
		if !patient && (err != nil || l.fickle) {
			_ = stage.Sleep(ctx, 250*time.Millisecond)
			return
		}
		_ = stage.Sleep(ctx, 20*time.Millisecond)
	}
}

// await returns once n more transactions are accepted.
func (l *ledger) await(t *testing.T, n int) {
	t.Helper()
	count := func() int {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.accepted)
	}
	goal := count() + n
	for give := time.Now().Add(time.Minute); count() < goal; time.Sleep(2 * time.Millisecond) {
		if time.Now().After(give) {
			t.Fatal("no more acceptances for a minute")
		}
	}
}

// repeat sends again everything whose fate is unknown and up to sample of what was accepted; every repeat must be answered.
func (l *ledger) repeat(t *testing.T, sample int) {
	t.Helper()
	l.mu.Lock()
	ids := slices.Collect(maps.Keys(l.unknown))
	known := l.recent
	l.recent = nil
	l.mu.Unlock()
	var all errgroup.Group
	all.SetLimit(8)
	for _, id := range known[max(0, len(known)-sample):] {
		all.Go(func() error {
			a, err := l.insist(t.Context(), id)
			if err == nil && a.Header.Get("Idempotent-Replayed") != "true" {
				err = fmt.Errorf("%s was accepted before, its repeat says %d %s", id, a.Status, a.Body)
			}
			return err
		})
	}
	for _, id := range ids {
		all.Go(func() error {
			_, err := l.insist(t.Context(), id)
			if err == nil {
				l.doubt(id)
			}
			return err
		})
	}
	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}
}

// insist sends until the answer is 2xx; refusals for a while are fine, anything else is not.
func (l *ledger) insist(ctx context.Context, id string) (system.Answer, error) {
	l.mu.Lock()
	body := l.sent[id]
	l.mu.Unlock()
	for give := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		a, err := l.s.Do(ctx, http.MethodPost, "/v1/transactions", body)
		switch {
		case err == nil && a.Status/100 == 2:
			return a, nil
		case err == nil && a.Status != http.StatusServiceUnavailable, time.Now().After(give):
			return a, fmt.Errorf("repeat of %s: %d %s %w", id, a.Status, a.Body, err)
		}
	}
}

// judge waits until everything accepted is decided and compares store, stream and webhooks. It counts what it found.
func (l *ledger) judge(t *testing.T, r *system.Receiver) tally {
	t.Helper()
	if len(l.unknown) > 0 {
		t.Fatalf("%d fates unknown", len(l.unknown))
	}
	stored := l.decisions(t)
	if !r.Await(t.Context(), len(l.accepted), 40*time.Second) {
		t.Errorf("%d of %d transactions came by webhook", len(r.Verdicts()), len(l.accepted))
	}
	if n := r.Unverified(); n > 0 {
		t.Errorf("%d webhooks did not verify", n)
	}
	hooks, events := r.Verdicts(), l.announced(t)
	announced := map[string]map[string]int{}
	for id, of := range events {
		announced[id] = map[string]int{}
		for _, d := range of {
			announced[id][answer(d.Public())]++
		}
	}
	sum := tally{accepted: len(l.accepted)}
	for id := range l.accepted {
		d := stored[id]
		if sum.count(d, events[id], l.doubtful[id]); d.Status != "decided" {
			continue // told already
		}
		want := verdict(d)
		if of := hooks[id]; len(of) != 1 || of[want] == 0 {
			t.Errorf("%s: store says %q, webhooks %v", id, want, of)
			sum.double += min(len(of), 1)
		} else if of := announced[id]; (len(of) > 0 || !l.wiped) && (len(of) != 1 || of[answer(d)] == 0) {
			t.Errorf("%s: store says %s, stream %v", id, answer(d), of)
			sum.double += min(len(of), 1)
		}
	}
	for _, told := range []map[string]map[string]int{hooks, announced} {
		for id := range told {
			if l.sent[id] == nil {
				t.Errorf("%s was decided and never sent", id)
			}
		}
	}
	return sum
}

// tally is what a judgement counted.
type tally struct {
	accepted, decided, lost, double int
	guard, burial, late             int // as the decisions say
	lateUnknown                     int // late, and not answered 2xx before a repeat: nobody was promised anything
}

func (s *tally) count(d txn.Decision, announced []event.Decided, doubtful bool) {
	if d.Status != "decided" {
		s.lost++
		return
	}
	s.decided++
	switch {
	case d.Late && doubtful:
		s.lateUnknown++
	case d.Late:
		s.late++
	}
	switch {
	case len(announced) == 0:
	case announced[0].By == event.ByGuard:
		s.guard++
	case announced[0].By == event.ByBurial:
		s.burial++
	}
}

func (s tally) String() string {
	return fmt.Sprintf("accepted %d, decided %d, lost %d, double %d, by guard %d, buried %d, late %d of %d, and %d whose fate was unknown", s.accepted, s.decided, s.lost, s.double,
		s.guard, s.burial, s.late, s.decided, s.lateUnknown)
}

// decisions reads the decision of everything that was accepted.
func (l *ledger) decisions(t *testing.T) map[string]txn.Decision {
	t.Helper()
	var readers errgroup.Group
	readers.SetLimit(8)
	var mu sync.Mutex
	out := map[string]txn.Decision{}
	for id := range l.accepted {
		readers.Go(func() error {
			d, err := l.decision(t.Context(), id)
			mu.Lock()
			defer mu.Unlock()
			if out[id] = d; err != nil {
				t.Error(err)
			}
			return nil
		})
	}
	_ = readers.Wait() // its errors are told above, all of them
	return out
}

// decision reads a transaction's decision from the store, waiting for it.
func (l *ledger) decision(ctx context.Context, id string) (txn.Decision, error) {
	for give := time.Now().Add(time.Minute); time.Now().Before(give); time.Sleep(20 * time.Millisecond) {
		a, err := l.s.Do(ctx, http.MethodGet, "/v1/transactions/"+id, nil, "Prefer", "wait=10")
		if err != nil {
			return txn.Decision{}, err
		}
		var d txn.Decision
		if a.Status != http.StatusOK || json.Unmarshal(a.Body, &d) != nil {
			return txn.Decision{}, fmt.Errorf("%s: %d %s", id, a.Status, a.Body)
		}
		if d.Status == "decided" {
			return d, nil
		}
	}
	return txn.Decision{}, fmt.Errorf("%s is lost: accepted, never decided", id)
}

// verdict is what must be the same everywhere, in the receiver's words.
func verdict(d txn.Decision) string {
	codes := make([]string, len(d.Reasons))
	for i, r := range d.Reasons {
		codes[i] = r.Code
	}
	return fmt.Sprintf("%s %d [%s]", d.Verdict.Decision, d.Score, strings.Join(codes, " "))
}

// answer is all that a client sees: who announces a decision announces the winner's.
func answer(d txn.Decision) string {
	text, err := json.Marshal(&d, json.Deterministic(true))
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// announced reads what TX_DECIDED has of the tenant: each transaction's events.
func (l *ledger) announced(t *testing.T) map[string][]event.Decided {
	t.Helper()
	_, js := l.s.Connect(t)
	out := map[string][]event.Decided{}
	err := system.Announced(t.Context(), js, l.tenant, func(d event.Decided, _ []byte) { out[d.ID] = append(out[d.ID], d) })
	if err != nil {
		t.Fatal(err)
	}
	return out
}
