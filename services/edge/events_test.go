package edge_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"

	"crivo/pkg/stage"
	"crivo/pkg/txn"
	"crivo/services/store"
	"crivo/streams"
	"crivo/streams/event"
)

// listening is an open stream of events.
type listening struct {
	t      testing.TB
	status int
	header http.Header
	body   io.ReadCloser
	lines  *bufio.Scanner
	id     string // the last one
}

func listen(t testing.TB, client *http.Client, url, key, id string) *listening {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/v1/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	if id != "" {
		req.Header.Set("Last-Event-ID", id)
	}
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = res.Body.Close() })
	l := &listening{t: t, status: res.StatusCode, header: res.Header, body: res.Body, lines: bufio.NewScanner(res.Body)}
	l.lines.Buffer(nil, 2<<20)
	return l
}

// block reads up to the next empty line and keeps the id; false at the stream's end.
func (l *listening) block() (fields map[string]string, ok bool) {
	fields = map[string]string{}
	for l.lines.Scan() {
		if l.lines.Text() == "" {
			if id, ok := fields["id"]; ok {
				l.id = id
			}
			return fields, true
		}
		name, value, _ := strings.Cut(l.lines.Text(), ":")
		fields[name] = strings.TrimPrefix(value, " ")
	}
	return nil, false
}

// greeted reads the beginning, which holds an id already.
func (l *listening) greeted() *listening {
	l.t.Helper()
	if first, ok := l.block(); l.status != http.StatusOK || !ok || first["id"] == "" || first["data"] != "" {
		l.t.Fatalf("%d, begins with %v", l.status, first)
	}
	return l
}

// ids reads the next n decisions and returns whose they are.
func (l *listening) ids(n int) (out []string) {
	l.t.Helper()
	for len(out) < n {
		b, ok := l.block()
		if !ok {
			l.t.Fatalf("ended after %v: %v", out, l.lines.Err())
		}
		if b["data"] == "" {
			continue
		}
		out = append(out, answer{body: b["data"]}.member("id"))
	}
	return out
}

// ends reads to the end, which must be a whole one.
func (l *listening) ends() {
	l.t.Helper()
	for {
		b, ok := l.block()
		if !ok {
			if err := l.lines.Err(); err != nil {
				l.t.Errorf("ended by %v", err)
			}
			return
		}
		if b["data"] != "" {
			l.t.Errorf("said %v", b)
		}
	}
}

func (e *running) listen(id string) *listening {
	e.t.Helper()
	l := listen(e.t, http.DefaultClient, e.url, e.key, id)
	stop := time.AfterFunc(6*within, func() { _ = l.body.Close() })
	e.t.Cleanup(func() { stop.Stop() })
	return l
}

// refused is the status and the slug of a stream that is not opened.
func (e *running) refused(id string) string {
	e.t.Helper()
	l := e.listen(id)
	if l.status == http.StatusOK {
		return "200" // and no end of it
	}
	body, err := io.ReadAll(l.body)
	if err != nil {
		e.t.Fatal(err)
	}
	return fmt.Sprint(l.status, " ", answer{status: l.status, header: l.header, body: string(body)}.slug())
}

func decisionOf(tenant, id string) event.Decided {
	now := txn.At(time.Now()).Time
	return decidedEvent(store.Claim{Key: store.Key{Tenant: tenant, ID: id}, Run: 1, ClaimedAt: now, AcceptedAt: now, Deadline: now.Add(2 * time.Second)})
}

// announce publishes decisions as persist does.
func (r *rig) announce(tenant string, ids ...string) {
	r.t.Helper()
	for _, id := range ids {
		data, err := event.Encode(decisionOf(tenant, id))
		if err != nil {
			r.t.Fatal(err)
		}
		r.publish(tenant, id, data)
	}
}

func (r *rig) publish(tenant, id string, data []byte) {
	r.t.Helper()
	out := streams.Message(streams.Ident{Tenant: tenant, ID: id, Run: 1}, streams.EventDecided, data)
	if _, err := stage.Publish(r.t.Context(), r.js, []stage.Output{out}); err != nil {
		r.t.Fatal(err)
	}
}

func numbered(prefix string, n int) (out []string) {
	for i := range n {
		out = append(out, fmt.Sprint(prefix, "-", i))
	}
	return out
}

func TestEventsAreHeardOnceInOrderAndByTheirTenantAlone(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	a, b := r.edge("a"), r.edge("b")
	r.announce("default", "before")
	first, second := a.listen("").greeted(), b.listen("").greeted()
	beginning := first.id
	r.announce("other", "not-ours")
	r.publish("default", "poison", []byte("not a decision"))
	want := numbered("t", 300) // more than a page
	r.announce("default", want...)
	for _, l := range []*listening{first, second} {
		if diff := cmp.Diff(want, l.ids(len(want))); diff != "" {
			t.Error(diff)
		}
	}
	// An id is good at the other edge, for who listens already and for who is the first there.
	if diff := cmp.Diff(want, b.listen(beginning).greeted().ids(len(want))); diff != "" {
		t.Error("from the beginning on:", diff)
	}
	middle := a.listen(beginning).greeted()
	middle.ids(100)
	if diff := cmp.Diff(want[100:], r.edge("d").listen(middle.id).greeted().ids(200)); diff != "" {
		t.Error("from the middle on:", diff)
	}
	r.announce("default", "last")
	for _, l := range []*listening{first, second, b.listen(first.id).greeted()} {
		if got := l.ids(1); got[0] != "last" {
			t.Errorf("heard %v", got)
		}
	}
}

func TestAnEventIsTheAnswerOfTheQuery(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := r.edge("a")
	l := e.listen("").greeted()
	key := e.accepted("p")
	r.decide(key, "a")
	entry, err := r.memory.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	r.publish("default", "p", entry.Event)
	b, _ := l.block()
	want := e.do(http.MethodGet, "/v1/transactions/p", "").body
	if b["event"] != "transaction.decided" || b["data"] != want || b["id"] == "" {
		t.Errorf("heard %v, asked %s", b, want)
	}
}

func TestAPlaceThatIsGoneIsSaid(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := r.edge("a")
	r.announce("default", numbered("old", 3)...)
	start := e.listen("").greeted() // after the third
	stream, err := r.js.Stream(t.Context(), streams.Decided)
	if err != nil {
		t.Fatal(err)
	}
	r.announce("default", "fourth")
	start.ids(1)
	early := e.listen("").greeted().id
	r.announce("default", "fifth", "sixth")
	if err := stream.Purge(t.Context(), jetstream.WithPurgeSequence(5)); err != nil { // the fifth is the first that is left
		t.Fatal(err)
	}
	if got := e.listen(early).greeted().ids(2); got[0] != "fifth" || got[1] != "sixth" {
		t.Errorf("after the fourth: %v", got)
	}
	if err := stream.Purge(t.Context(), jetstream.WithPurgeSequence(6)); err != nil {
		t.Fatal(err)
	}
	if got := e.refused(early); got != "410 gone" {
		t.Errorf("after the fourth without the fifth: %s", got)
	}
	for _, id := range []string{"x", "%", early[:len(early)-1], strings.Repeat("A", 66)} {
		if got := e.refused(id); got != "400 event-id" {
			t.Errorf("%q: %s", id, got)
		}
	}
	open := e.listen("").greeted()
	config := stream.CachedInfo().Config
	if err := r.js.DeleteStream(t.Context(), streams.Decided); err != nil {
		t.Fatal(err)
	}
	if _, err := r.js.CreateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	r.announce("default", numbered("new", 20)...) // as many as if nothing had happened
	open.ends()
	if got := e.refused(open.id); got != "410 gone" {
		t.Errorf("of the stream that was: %s", got)
	}
	again := e.listen("").greeted()
	r.announce("default", "after")
	if got := again.ids(1); got[0] != "after" {
		t.Errorf("heard %v", got)
	}
}

func TestListenersEndWithTheEdgeTheirKeyAndTheirNumber(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := r.edge("a")
	made := e.do(http.MethodPost, "/v1/keys", `{"tenant":"default","roles":["read"]}`)
	withdrawn := *e
	withdrawn.key = made.member("key")
	theirs := withdrawn.listen("").greeted()
	if a := e.do(http.MethodDelete, "/v1/keys/"+made.member("id"), ""); a.status != http.StatusNoContent {
		t.Fatal(a)
	}
	theirs.ends()

	submits := *e
	submits.key = e.do(http.MethodPost, "/v1/keys", `{"tenant":"default","roles":["submit","admin"]}`).member("key")
	if got := submits.refused(""); got != "403 forbidden" {
		t.Error(got)
	}
	if a := e.do(http.MethodHead, "/v1/events", ""); a.status != http.StatusOK || a.header.Get("Content-Type") != "text/event-stream" {
		t.Errorf("%+v", a)
	}
	all := make([]*listening, 100)
	var opened sync.WaitGroup
	for i := range all {
		opened.Go(func() { all[i] = e.listen("").greeted() })
	}
	opened.Wait()
	if got := e.refused(""); got != "429 listeners" {
		t.Error(got)
	}
	r.announce("default", "one")
	for _, l := range all {
		l.ids(1)
	}
	_ = all[0].body.Close()
	e.await("room for one more", func() bool {
		if l := e.listen(""); l.status == http.StatusOK {
			all[0] = l.greeted()
			return true
		}
		return false
	})
	id := all[1].id
	e.stop() // also waits for them
	for _, l := range all {
		l.ends()
	}
	r.announce("default", "meanwhile")
	if got := r.edge("a").listen(id).greeted().ids(1); got[0] != "meanwhile" {
		t.Errorf("after a restart: %v", got)
	}
}

// shelf is a stream of decisions in memory, each of one tenant.
type shelf struct {
	mu      sync.Mutex
	extent  streams.Extent
	tenants []string // of sequence 1 on
	lags    bool     // After does not see what came last
	down    bool
	reads   int
}

func (s *shelf) add(tenant string, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for range n {
		s.tenants = append(s.tenants, tenant)
		s.extent.Last++
	}
}

func (s *shelf) readings() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reads
}

func (s *shelf) Extent(context.Context) (streams.Extent, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return streams.Extent{}, errDown
	}
	return s.extent, nil
}

func (s *shelf) After(_ context.Context, tenant string, sequence uint64) (out []streams.Announced, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads++
	if s.down {
		return nil, errDown
	}
	for n := max(sequence+1, s.extent.First); n <= s.extent.Last && !s.lags && len(out) < 256; n++ {
		if s.tenants[n-1] != tenant {
			continue
		}
		d := decisionOf(tenant, fmt.Sprint(n))
		d.Engine = strings.Repeat("x", 1000)
		data, err := event.Encode(d)
		if err != nil {
			return nil, err
		}
		out = append(out, streams.Announced{Sequence: n, Data: data})
	}
	return out, nil
}

func (s *shelf) Quiet(_ context.Context, tenant string, sequence uint64) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := sequence + 1; n <= s.extent.Last; n++ {
		if s.tenants[n-1] == tenant {
			return false, nil
		}
	}
	return true, nil
}

// onShelf runs do against an edge whose decisions are a shelf's.
func onShelf(t *testing.T, do func(b *bubble, s *shelf)) {
	t.Helper()
	inBubble(t, false, func(b *bubble) {
		s := &shelf{extent: streams.Extent{Created: time.Now(), First: 1}}
		b.served.Listen(s)
		do(b, s)
	})
}

func (b *bubble) refused() answer {
	b.t.Helper()
	a, _ := b.ask(http.MethodGet, "/v1/events", "")
	return a
}

func (b *bubble) listen(id string) *listening {
	b.t.Helper()
	return listen(b.t, b.client, "http://edge", bootstrap, id)
}

func TestASilentStreamSaysThatItIsThereAndKeepsItsPlace(t *testing.T) {
	t.Parallel()
	onShelf(t, func(b *bubble, s *shelf) {
		s.add("default", 3)
		l := b.listen("").greeted()
		began := time.Now()
		for n := 1; n <= 4; n++ {
			s.add("other", 100)
			if beat, ok := l.block(); !ok || beat["data"] != "" || time.Since(began) != time.Duration(n)*15*time.Second {
				t.Fatalf("after %s: %v", time.Since(began), beat)
			}
		}
		// What others decided is forgotten; the place has moved on past it.
		s.mu.Lock()
		s.extent.First = 200
		s.mu.Unlock()
		_ = l.body.Close()
		s.add("default", 1)
		if got := b.listen(l.id).greeted().ids(1); got[0] != "404" {
			t.Errorf("heard %v", got)
		}
	})
}

func TestASlowListenerIsCutAndTheOthersGoOn(t *testing.T) {
	t.Parallel()
	onShelf(t, func(b *bubble, s *shelf) {
		slow, quick := b.listen("").greeted(), b.listen("").greeted()
		s.add("default", 1500) // more than an edge keeps
		quick.ids(1500)
		began := time.Now()
		synctest.Wait()
		time.Sleep(11 * time.Second)
		heard := 0
		for {
			f, ok := slow.block()
			if !ok {
				break
			}
			if f["data"] != "" {
				heard++
			}
		}
		if heard >= 1500 || slow.lines.Err() == nil {
			t.Errorf("the slow one heard %d in %s, then %v", heard, time.Since(began), slow.lines.Err())
		}
		s.add("default", 1)
		quick.ids(1)
		if got := b.listen(slow.id).greeted().ids(1501 - heard); got[0] != fmt.Sprint(heard+1) || got[1500-heard] != "1501" {
			t.Errorf("resumed with %s to %s", got[0], got[1500-heard])
		}
	})
}

func TestWhoIsBehindAReplicaThatLagsWaits(t *testing.T) {
	t.Parallel()
	onShelf(t, func(b *bubble, s *shelf) {
		gone := b.listen("").greeted()
		id := gone.id
		_ = gone.body.Close()
		synctest.Wait() // now nobody reads the stream: the next ones begin where it ends, and are behind
		s.add("other", 1)
		s.add("default", 2)
		s.add("other", 1)
		s.mu.Lock()
		s.lags = true
		s.mu.Unlock()
		waits, l := b.listen(id).greeted(), b.listen(id).greeted()
		time.Sleep(10 * time.Second) // sooner than the first sign of life, which nobody takes here
		s.mu.Lock()
		s.lags = false
		s.mu.Unlock()
		defer time.AfterFunc(5*time.Second, func() { _ = waits.body.Close() }).Stop() // else it says for ever that it is there
		if diff := cmp.Diff([]string{"2", "3"}, waits.ids(2)); diff != "" {
			t.Error(diff)
		}
		s.mu.Lock()
		s.down = true
		s.mu.Unlock()
		time.Sleep(time.Second) // who is behind may be cut by a broker that is away, and comes back
		s.mu.Lock()
		s.down = false
		s.mu.Unlock()
		l = b.listen(l.id).greeted()
		if diff := cmp.Diff([]string{"2", "3"}, l.ids(2)); diff != "" {
			t.Error(diff)
		}
		s.add("default", 1)
		if got := l.ids(1); got[0] != "5" {
			t.Errorf("heard %v", got)
		}
	})
}

func TestABrokerThatIsAwayIsWaitedFor(t *testing.T) {
	t.Parallel()
	onShelf(t, func(b *bubble, s *shelf) {
		l := b.listen("").greeted()
		s.mu.Lock()
		s.down = true
		s.mu.Unlock()
		s.add("default", 1)
		time.Sleep(10 * time.Second) // sooner than the first sign of life, which nobody takes here
		if a := b.refused(); a.status != http.StatusServiceUnavailable || a.slug() != "broker" {
			t.Errorf("%+v", a)
		}
		s.mu.Lock()
		s.down = false
		s.mu.Unlock()
		if got := l.ids(1); got[0] != "1" {
			t.Errorf("heard %v", got)
		}
		// Hundreds who wait read nothing each.
		before := s.readings()
		for range 50 {
			b.listen("").greeted()
		}
		time.Sleep(10 * time.Second)
		if reads := s.readings() - before; reads > 100 {
			t.Errorf("%d readings in ten idle seconds", reads)
		}
		b.served.Drain()
		l.ends()
		if a := b.refused(); a.status != http.StatusServiceUnavailable || a.slug() != "draining" {
			t.Errorf("%+v", a)
		}
	})
}
