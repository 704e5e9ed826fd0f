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
	"crivo/streams"
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
	wiped  time.Time     // when the broker lost its disk, if it did: of what was under way only decisions come back

	mu       sync.Mutex
	made     *feed.Synthetic
	sent     map[string][]byte
	accepted map[string]bool
	unknown  map[string]bool            // sent, and not answered 2xx yet
	doubtful map[string]bool            // answered 2xx by a repeat only
	fresh    map[string]bool            // accepted by the first answer that was not a refusal: its first run was published
	heard    map[string]map[string]bool // the decisions that answers told
	refused  int                        // answers other than 2xx, and broken connections
}

func newLedger(s target, tenant string) *ledger {
	return &ledger{s: s, tenant: tenant, made: feed.NewSynthetic("k", seed), sent: map[string][]byte{}, accepted: map[string]bool{}, unknown: map[string]bool{},
		doubtful: map[string]bool{}, fresh: map[string]bool{}, heard: map[string]map[string]bool{}}
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

// settle notes a first answer of 2xx.
func (l *ledger) settle(id string, a system.Answer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.unknown, id)
	l.accepted[id] = true
	l.fresh[id] = a.Header.Get("Idempotent-Replayed") == ""
	var d txn.Decision
	if json.Unmarshal(a.Body, &d) == nil && d.Status == "decided" {
		if l.heard[id] == nil {
			l.heard[id] = map[string]bool{}
		}
		l.heard[id][answer(d)] = true
	}
}

// doubt settles what was not answered when it was sent.
func (l *ledger) doubt(id string, a system.Answer) {
	l.settle(id, a)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.doubtful[id] = true
}

// load sends new transactions from workers until ctx ends, however the system fares. Every other worker gives a transaction up
// when its connection breaks: what was claimed of those is nobody's business but the system's until the next repeat. Half of them
// wait for decisions.
func (l *ledger) load(ctx context.Context, workers int) (done <-chan struct{}) {
	var all sync.WaitGroup
	for n := range workers {
		all.Go(func() {
			for ctx.Err() == nil {
				l.send(ctx, l.next(), n%2 == 0, n%4 < 2)
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
func (l *ledger) send(ctx context.Context, row feed.Row, patient, waits bool) {
	var prefer []string
	if waits {
		prefer = []string{"Prefer", "wait=3"}
	}
	for ctx.Err() == nil {
		a, err := l.s.Do(context.WithoutCancel(ctx), http.MethodPost, "/v1/transactions", row.Body, prefer...)
		if err == nil && a.Status/100 == 2 {
			l.settle(row.ID, a)
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

// repeat sends again everything whose fate is unknown; every repeat must be answered. What was accepted the system must bring to its
// decision by itself.
func (l *ledger) repeat(t *testing.T) {
	t.Helper()
	l.mu.Lock()
	ids := slices.Collect(maps.Keys(l.unknown))
	l.mu.Unlock()
	var all errgroup.Group
	all.SetLimit(8)
	for _, id := range ids {
		all.Go(func() error {
			a, err := l.insist(t.Context(), id)
			if err == nil {
				l.doubt(id, a)
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

// sample is how many of the accepted are sent once more after a judgement.
const sample = 50

// again sends some of what was accepted once more: it gets the decision that stands.
func (l *ledger) again(t *testing.T, stored map[string]txn.Decision) {
	t.Helper()
	var all errgroup.Group
	all.SetLimit(8)
	n := 0
	for id := range l.accepted { // in no order
		if n++; n > sample {
			break
		}
		all.Go(func() error {
			a, err := l.insist(t.Context(), id)
			var d txn.Decision
			if err == nil && (a.Header.Get("Idempotent-Replayed") != "true" || json.Unmarshal(a.Body, &d) != nil || answer(d) != answer(stored[id])) {
				err = fmt.Errorf("%s is decided as %s, its repeat says %d %s", id, answer(stored[id]), a.Status, a.Body)
			}
			return err
		})
	}
	if err := all.Wait(); err != nil {
		t.Error(err)
	}
}

// judge waits until everything accepted is decided and nothing is pending, and compares answers, streams, store and webhooks. It
// counts what it found.
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
	_, js := l.s.Connect(t)
	until(t, "nothing is pending", func() bool { return pending(t.Context(), js) == "" })
	// The keeper announces again what was accepted within five minutes of what it knows to have been heard.
	gone := func(d txn.Decision) bool { return d.AcceptedAt.Before(l.wiped.Add(-4 * time.Minute)) }
	if !l.wiped.IsZero() {
		least := 0
		for id := range l.accepted {
			if !gone(stored[id]) {
				least++
			}
		}
		until(t, "what the stream lost is announced again", func() bool { return l.told(t.Context(), js) >= least })
	} else {
		l.whole(t, js, stored)
	}
	hooks, ids, events := r.Verdicts(), r.IDs(), l.announced(t, js)
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
		} else if of := announced[id]; (len(of) > 0 || !gone(d)) && (len(of) != 1 || of[answer(d)] == 0) {
			t.Errorf("%s: store says %s, stream %v", id, answer(d), of)
			sum.double += min(len(of), 1)
		}
		for told := range l.heard[id] {
			if told != answer(d) {
				t.Errorf("%s: store says %s, a client was told %s", id, answer(d), told)
				sum.double++
			}
		}
		if len(ids[id]) > 1 {
			t.Errorf("%s: one decision was told by webhooks %v", id, ids[id])
			sum.double++
		}
		for _, n := range ids[id] {
			sum.repeated += n - 1
		}
	}
	l.again(t, stored)
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
	repeated                        int // webhooks that came again, under the same id
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
	return fmt.Sprintf("accepted %d, decided %d, lost %d, double %d, by guard %d, buried %d, late %d of %d, and %d whose fate was unknown, %d webhooks repeated", s.accepted, s.decided,
		s.lost, s.double, s.guard, s.burial, s.late, s.decided, s.lateUnknown, s.repeated)
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

// decision reads a transaction's decision from the store, waiting for it, and for an edge or a store that is away.
func (l *ledger) decision(ctx context.Context, id string) (d txn.Decision, err error) {
	for give := time.Now().Add(time.Minute); time.Now().Before(give); time.Sleep(20 * time.Millisecond) {
		d = txn.Decision{}
		a, asked := l.s.Do(ctx, http.MethodGet, "/v1/transactions/"+id, nil, "Prefer", "wait=10")
		switch {
		case ctx.Err() != nil:
			return d, ctx.Err()
		case asked != nil:
			err = asked
		case a.Status == http.StatusServiceUnavailable:
			err = fmt.Errorf("%s: %s", id, a.Body)
		case a.Status != http.StatusOK || json.Unmarshal(a.Body, &d) != nil:
			return d, fmt.Errorf("%s: %d %s", id, a.Status, a.Body)
		case d.Status == "decided":
			return d, nil
		default:
			err = fmt.Errorf("%s is lost: accepted, never decided", id)
		}
	}
	return d, err
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
func (l *ledger) announced(t *testing.T, js jetstream.JetStream) map[string][]event.Decided {
	t.Helper()
	out := map[string][]event.Decided{}
	err := system.Announced(t.Context(), js, l.tenant, func(d event.Decided, _ []byte) { out[d.ID] = append(out[d.ID], d) })
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// told is how many decisions of the tenant TX_DECIDED has.
func (l *ledger) told(ctx context.Context, js jetstream.JetStream) int {
	stream, err := js.Stream(ctx, streams.Decided)
	if err != nil {
		return 0
	}
	subject := streams.Subject(streams.EventDecided, l.tenant)
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(subject))
	if err != nil {
		return 0
	}
	return int(info.State.Subjects[subject])
}

// pending names a step that has not finished with everything in its stream.
func pending(ctx context.Context, js jetstream.JetStream) string {
	for _, step := range streams.Steps {
		stream, err := js.Stream(ctx, step.Stream)
		if err != nil {
			return err.Error()
		}
		consumer, err := stream.Consumer(ctx, step.Durable)
		if err != nil {
			return err.Error()
		}
		if c := consumer.CachedInfo(); c.NumPending > 0 || c.NumAckPending > 0 || c.AckFloor.Stream < stream.CachedInfo().State.LastSeq {
			return step.Durable
		}
	}
	return ""
}

// whole checks that no step lost what was accepted: the first run of each transaction whose first answer accepted it stands in every
// stream on its way, whoever decided it meanwhile. A step that gives a message up buries it, and tells nobody on the way.
func (l *ledger) whole(t *testing.T, js jetstream.JetStream, stored map[string]txn.Decision) {
	t.Helper()
	for _, step := range streams.Steps[:4] {
		passed := map[string]bool{}
		err := system.Read(t.Context(), js, step.Stream, l.tenant, true, func(m jetstream.Msg) error {
			i, err := streams.ReadIdent(m.Headers())
			passed[i.ID] = passed[i.ID] || i.Run == 1
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		var lacking []string
		for id, fresh := range l.fresh {
			if fresh && !passed[id] && !buried(stored[id]) {
				lacking = append(lacking, id)
			}
		}
		if len(lacking) > 0 {
			t.Errorf("%s lacks the first run of %d that were accepted: %v", step.Stream, len(lacking), lacking[:min(len(lacking), 10)])
		}
	}
}

func buried(d txn.Decision) bool {
	return slices.ContainsFunc(d.Reasons, func(r txn.Reason) bool { return r.Code == streams.Faulted })
}
