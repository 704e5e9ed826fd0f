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
	"golang.org/x/sync/errgroup"

	"crivo/pkg/txn"
	"crivo/services/feed"
	"crivo/streams/event"
	"crivo/test/system"
)

// ledger stands outside the system and remembers what was sent and what the answers were.
type ledger struct {
	s *system.System

	mu       sync.Mutex
	made     *feed.Synthetic
	sent     map[string][]byte
	accepted map[string]bool
	unknown  map[string]bool // sent, and not answered 2xx yet
	recent   []string        // accepted since the last repeat
}

func newLedger(s *system.System) *ledger {
	return &ledger{s: s, made: feed.NewSynthetic("k", 1), sent: map[string][]byte{}, accepted: map[string]bool{}, unknown: map[string]bool{}}
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
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
		if err != nil && !patient {
			return
		}
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
	for _, id := range known[max(0, len(known)-sample):] {
		if a := l.insist(t, id); a.Header.Get("Idempotent-Replayed") != "true" {
			t.Errorf("%s was accepted before, its repeat says %d %s", id, a.Status, a.Body)
		}
	}
	for _, id := range ids {
		l.insist(t, id)
		l.settle(id)
	}
}

// insist sends until the answer is 2xx; refusals for a while are fine, anything else is not.
func (l *ledger) insist(t *testing.T, id string) system.Answer {
	t.Helper()
	l.mu.Lock()
	body := l.sent[id]
	l.mu.Unlock()
	for give := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		a, err := l.s.Do(t.Context(), http.MethodPost, "/v1/transactions", body)
		switch {
		case err == nil && a.Status/100 == 2:
			return a
		case err == nil && a.Status != http.StatusServiceUnavailable:
			t.Fatalf("repeat of %s: %d %s", id, a.Status, a.Body)
		case time.Now().After(give):
			t.Fatalf("repeat of %s: %d %s %v", id, a.Status, a.Body, err)
		}
	}
}

// judge waits until everything accepted is decided and compares store, stream and webhooks. It returns how many there were.
func (l *ledger) judge(t *testing.T, r *system.Receiver) int {
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
	announced, err := system.Announced(t.Context(), js, func(d event.Decided, _ []byte) string { return verdict(d.Public()) })
	if err != nil {
		t.Fatal(err)
	}
	hooks := r.Verdicts()
	for id := range l.accepted {
		if of := hooks[id]; len(of) != 1 || of[stored[id]] == 0 {
			t.Errorf("%s: store says %q, webhooks %v", id, stored[id], of)
		}
		if of := announced[id]; len(of) != 1 || of[stored[id]] == 0 {
			t.Errorf("%s: store says %q, stream %v", id, stored[id], of)
		}
	}
	for _, told := range []map[string]map[string]int{hooks, announced} {
		for id := range told {
			if l.sent[id] == nil {
				t.Errorf("%s was decided and never sent", id)
			}
		}
	}
	return len(l.accepted)
}

// decisions reads the verdict of everything that was accepted.
func (l *ledger) decisions(t *testing.T) map[string]string {
	t.Helper()
	var readers errgroup.Group
	readers.SetLimit(8)
	var mu sync.Mutex
	out := map[string]string{}
	for id := range l.accepted {
		readers.Go(func() error {
			v, err := l.decision(t.Context(), id)
			mu.Lock()
			defer mu.Unlock()
			if out[id] = v; err != nil {
				t.Error(err)
			}
			return nil
		})
	}
	_ = readers.Wait() // its errors are told above, all of them
	return out
}

// decision reads a transaction's verdict from the store, waiting for it.
func (l *ledger) decision(ctx context.Context, id string) (string, error) {
	for give := time.Now().Add(30 * time.Second); time.Now().Before(give); time.Sleep(20 * time.Millisecond) {
		a, err := l.s.Do(ctx, http.MethodGet, "/v1/transactions/"+id, nil, "Prefer", "wait=10")
		if err != nil {
			return "", err
		}
		var d txn.Decision
		if a.Status != http.StatusOK || json.Unmarshal(a.Body, &d) != nil {
			return "", fmt.Errorf("%s: %d %s", id, a.Status, a.Body)
		}
		if d.Status == "decided" {
			return verdict(d), nil
		}
	}
	return "", fmt.Errorf("%s is lost: accepted, never decided", id)
}

// verdict is what must be the same everywhere, in the receiver's words.
func verdict(d txn.Decision) string {
	codes := make([]string, len(d.Reasons))
	for i, r := range d.Reasons {
		codes[i] = r.Code
	}
	return fmt.Sprintf("%s %d [%s]", d.Verdict.Decision, d.Score, strings.Join(codes, " "))
}
