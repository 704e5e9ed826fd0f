package fault_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"crivo/pkg/txn"
)

// Nothing is decided while the store is away, and nothing innocent is buried for it.
func TestF04TheStoreDownSlowOrFailing(t *testing.T) {
	b := theSingle(t)
	x := newTrial(t, b.Cluster)
	for _, fault := range []struct {
		seconds     int
		begin, mend func()
	}{
		{3, b.writes.fail, b.writes.relent}, // first: a webhook whose row was made unnoticed waits for its lease
		{5, func() { refuses(t, b.mongo) }, func() { heal(b.mongo) }},
		{2, func() { swallows(t, b.mongo) }, func() { heal(b.mongo) }},
		{2, func() { slow(100)(t, b.mongo) }, func() { heal(b.mongo) }}, // some writes are in time, most are not
	} {
		x.await(t, 20)
		fault.begin()
		hold(t, fault.seconds)
		began := time.Now()
		fault.mend()
		x.recovered(t, began)
	}
	if b.writes.failed.Load() == 0 {
		t.Error("no write failed")
	}
	t.Logf("%d writes failed", b.writes.failed.Load())
	x.finish(t)
}

// Each half of the database itself is killed, where the environment names the program that starts it and its folder:
// CRIVO_TEST_DOCDB="docdb DIR".
func TestF04TheStoreKilled(t *testing.T) {
	program, dir, ok := strings.Cut(os.Getenv("CRIVO_TEST_DOCDB"), " ")
	if !ok {
		t.Skip("CRIVO_TEST_DOCDB names no program and folder")
	}
	docdb := func(args ...string) {
		t.Helper()
		cmd := exec.Command(program, append(args, "--dir", dir)...)
		// Not its output: what it starts would hold the pipe for ever.
		if err := cmd.Run(); err != nil {
			t.Errorf("%v: %v", args, err)
		}
	}
	b := theSingle(t)
	_, host, _ := strings.Cut(os.Getenv("CRIVO_TEST_MONGO_URI"), "://")
	host, query, _ := strings.Cut(host, "/?replicaSet=")
	_, port, _ := strings.Cut(host, ":")
	start := func() { docdb("start", "--port", port, "--replica-set", query) }
	t.Cleanup(start)
	// One half may go down after the other when the start has looked at it already.
	stays := func() {
		for range 6 {
			time.Sleep(500 * time.Millisecond)
			if c, err := net.DialTimeout("tcp", host, time.Second); err != nil {
				t.Logf("once more: %v", err)
				start()
			} else if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	x := newTrial(t, b.Cluster)
	for n := range kills(t, 2) {
		x.await(t, 20)
		docdb("kill", []string{"engine", "gateway"}[n%2])
		x.killed++
		hold(t, 1)
		began := time.Now()
		start()
		var beside sync.WaitGroup
		beside.Go(stays)
		x.recovered(t, began)
		beside.Wait()
	}
	x.finish(t)
}

// Decisions go on without histories and say so; a history that is known is right, and all are known again at last.
func TestF05RedisDownSlowOrEmptied(t *testing.T) {
	b := theSingle(t)
	x := newTrial(t, b.Cluster)
	p := probes{trial: x}
	p.whole(t)
	for _, fault := range []func(){
		func() { refuses(t, b.redis) },
		func() { swallows(t, b.redis) },
		func() { slow(500)(t, b.redis) },
	} {
		p.whole(t)
		fault()
		if d := p.send(t); !degraded(d) {
			t.Errorf("decided as if the features were there: %v", d.Degraded)
		}
		hold(t, 1)
		p.send(t)
		began := time.Now()
		heal(b.redis)
		p.whole(t)
		x.recovered(t, began)
	}
	began := time.Now()
	empty(t, b.features)
	p.send(t)
	p.whole(t)
	x.recovered(t, began)
	x.finish(t)
	p.check(t)
}

// probes are one payer's transactions, one after the other, whose windows are therefore known beforehand.
type probes struct {
	*trial
	ids []string
}

// send submits the next one and returns its decision.
func (p *probes) send(t *testing.T) txn.Decision {
	t.Helper()
	id := fmt.Sprint("probe-", len(p.ids)+1)
	body := fmt.Appendf(nil, `{"id":%q,"type":"pix","amount":100,"currency":"BRL","created_at":%q,"payer":{"customer_id":"probe"}}`,
		id, time.Now().UTC().Format("2006-01-02T15:04:05.000Z"))
	p.mu.Lock()
	p.sent[id], p.unknown[id] = body, true
	p.mu.Unlock()
	p.ids = append(p.ids, id)
	return p.settled(t, id)
}

// whole sends until the histories are complete.
func (p *probes) whole(t *testing.T) {
	t.Helper()
	for give := time.Now().Add(time.Minute); degraded(p.send(t)); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(give) {
			t.Fatal("histories are not whole again")
		}
	}
}

func degraded(d txn.Decision) bool {
	for _, what := range d.Degraded {
		if strings.HasPrefix(what, "features: ") {
			return true
		}
	}
	return false
}

// check compares every window that was known with how many there were.
func (p *probes) check(t *testing.T) {
	t.Helper()
	_, js := p.Connect(t)
	events, unknown := p.announced(t, js), 0
	for n, id := range p.ids {
		for _, d := range events[id] {
			switch v := d.Features["payer.count_1h"]; {
			case !v.Known:
				unknown++
			case v.Number != float64(n+1):
				t.Errorf("%s, by %s: %v payments in an hour", id, d.By, v.Number)
			}
		}
	}
	t.Logf("%d probes, windows of %d unknown", len(p.ids), unknown)
}

func empty(t *testing.T, url string) {
	t.Helper()
	o, err := redis.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(o)
	defer client.Close()
	if err := client.FlushDB(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
}
