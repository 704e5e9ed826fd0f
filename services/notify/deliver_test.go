package notify_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"crivo/pkg/stage"
	"crivo/pkg/txn"
	"crivo/pkg/webhook"
	"crivo/services/store"
	"crivo/services/store/memory"
	"crivo/streams"
	"crivo/streams/event"
)

func TestADecisionReachesEveryEndpointOnce(t *testing.T) {
	w := newWorld(t)
	a, b := newReceiver(t, nil), newReceiver(t, nil)
	w.endpoint("a", a.URL+"/hooks")
	w.endpoint("b", b.URL, func(e *store.Endpoint) { e.Headers = map[string]string{"X-Own": "mine", "Webhook-Id": "forged"} })
	w.endpoint("other", b.URL, func(e *store.Endpoint) { e.Tenant = "u" })
	w.run()
	all := ids("x", 50)
	w.decide(all...)
	for id, r := range map[string]*receiver{"a": a, "b": b} {
		rows := w.ended(id, len(all), store.Delivered)
		seen := r.all()
		if len(seen) != len(all) {
			t.Fatalf("%s: %d requests", id, len(seen))
		}
		byID := map[string]store.Delivery{}
		for _, row := range rows {
			byID[row.WebhookID] = row
		}
		for _, g := range seen {
			if err := webhook.Verify(w.secrets[id], g.header, g.body, time.Now()); err != nil {
				t.Fatal(err)
			}
			row := byID[g.header.Get(webhook.HeaderID)]
			if !bytes.Equal(row.Body, g.body) || !strings.HasPrefix(row.WebhookID, "msg_") || strings.ContainsAny(row.WebhookID, "./ ") ||
				strings.Contains(row.WebhookID, row.TransactionID) {
				t.Fatalf("%q, %+v", g.body, row)
			}
			if g.header.Get("Content-Type") != "application/json" || g.header.Get("User-Agent") != "crivo/1.2.3" {
				t.Errorf("%v", g.header)
			}
		}
		if len(byID) != len(all) {
			t.Errorf("%d webhook ids for %d decisions", len(byID), len(all))
		}
	}
	if a.all()[0].path != "/hooks" || b.all()[0].header.Get("X-Own") != "mine" {
		t.Error("path or header are not the endpoint's")
	}
}

func TestW05BodiesAreSentAsTheyAreStored(t *testing.T) {
	w := newWorld(t)
	r := newReceiver(t, nil)
	w.endpoint("thin", r.URL+"/thin")
	w.endpoint("full", r.URL+"/full", func(e *store.Endpoint) { e.Payload = "full" })
	w.run()
	w.decide("x")
	w.ended("thin", 1, store.Delivered)
	w.ended("full", 1, store.Delivered)
	bodies := map[string][]byte{}
	for _, g := range r.all() {
		bodies[g.path] = g.body
	}
	want := `{"type":"transaction.decided","timestamp":"2026-11-22T12:00:00.009Z","data":` +
		`{"id":"x","decision":"review","score":45,"risk_band":"medium","reasons":["B","A"]}}`
	if diff := cmp.Diff(want, string(bodies["/thin"])); diff != "" {
		t.Error(diff)
	}
	want = `{"type":"transaction.decided","timestamp":"2026-11-22T12:00:00.009Z","data":` +
		`{"id":"x","status":"decided","decision":"review","score":45,"risk_band":"medium","reasons":[` +
		`{"code":"B","text":"ação <&> 😀","rule":"b","points":25,"inputs":{"a":"x","z":9007199254740991}},` +
		`{"code":"A","text":"","rule":"","points":0}],"rule_set":{"name":"default","version":7,"digest":"sha256:0"},` +
		`"checks":[],"degraded":[],"engine":"1.0.0","late":false,"accepted_at":"2026-11-22T12:00:00.000Z",` +
		`"decided_at":"2026-11-22T12:00:00.009Z","latency_ms":9}}`
	if diff := cmp.Diff(want, string(bodies["/full"])); diff != "" {
		t.Error(diff)
	}
	for path, body := range bodies {
		if stored := w.rows(path[1:])[0].Body; !bytes.Equal(stored, body) {
			t.Errorf("stored %q, delivered %q", stored, body)
		}
	}
}

// An endpoint's announcement may be slower than a decision on what was accepted after it was made.
func TestAnEndpointHearsOfAllThatIsAcceptedAfterIt(t *testing.T) {
	w := newWorld(t)
	r := newReceiver(t, nil)
	w.endpoint("e", r.URL)
	w.run()
	w.decide("x")
	w.ended("e", 1, store.Delivered)
	w.unannounced("f", r.URL)
	d := decision("y")
	d.AcceptedAt = txn.At(time.Now())
	data, err := event.Encode(d)
	w.must(err)
	out := w.announcement("y")
	out.Data = data
	w.publish([]stage.Output{out})
	w.ended("f", 1, store.Delivered)
}

// A broker whose consumer was deleted announces everything once more: what had passed is no news to who came later.
func TestAnEndpointHearsOfNothingThatWasDecidedLongBeforeIt(t *testing.T) {
	w := newWorld(t)
	r := newReceiver(t, nil)
	madeAt := func(made time.Time) func(*store.Endpoint) {
		return func(e *store.Endpoint) { e.CreatedAt = txn.At(made) }
	}
	w.endpoint("old", r.URL)
	w.endpoint("another clock's", r.URL, madeAt(at.Add(30*time.Second)))
	w.endpoint("new", r.URL, madeAt(at.Add(2*time.Minute)))
	w.run()
	w.decide("x")
	w.ended("old", 1, store.Delivered)
	w.ended("another clock's", 1, store.Delivered)
	if n := len(w.rows("new")); n != 0 {
		t.Errorf("%d rows", n)
	}
}

func TestARepeatedDecisionMakesNoSecondRow(t *testing.T) {
	w := newWorld(t)
	r := newReceiver(t, nil)
	w.endpoint("e", r.URL)
	w.run()
	w.decide("x")
	w.ended("e", 1, store.Delivered)
	again := w.announcement("x")
	again.ID = "" // as outside the broker's window
	again.Header.Set(streams.HeaderRun, "2")
	w.publish(append([]stage.Output{again}, w.announcement("y")))
	w.ended("e", 2, store.Delivered)
	if n := len(r.all()); n != 2 {
		t.Errorf("%d requests for two decisions", n)
	}
}

func TestW04ARetryIsTheSameMessageSignedAnew(t *testing.T) {
	w := newWorld(t)
	w.config.Schedule = []time.Duration{0, time.Minute}
	r := newReceiver(t, func(rw http.ResponseWriter, _ *http.Request, n int) {
		if n == 1 {
			rw.WriteHeader(http.StatusInternalServerError)
		}
	})
	w.endpoint("e", r.URL)
	w.run()
	w.decide("x")
	w.until("a first try", func() bool { rows := w.rows("e"); return len(rows) == 1 && len(rows[0].Attempts) == 1 })
	w.ahead.Store(int64(2 * time.Minute))
	w.ended("e", 1, store.Delivered)
	seen := r.all()
	if len(seen) != 2 {
		t.Fatalf("%d requests", len(seen))
	}
	first, second := seen[0], seen[1]
	for _, g := range seen {
		if err := webhook.Verify(w.secrets["e"], g.header, g.body, time.Now()); err != nil {
			t.Error(err)
		}
	}
	if !bytes.Equal(first.body, second.body) || first.header.Get(webhook.HeaderID) != second.header.Get(webhook.HeaderID) {
		t.Error("id or body differ")
	}
	if first.header.Get(webhook.HeaderTimestamp) == second.header.Get(webhook.HeaderTimestamp) ||
		first.header.Get(webhook.HeaderSignature) == second.header.Get(webhook.HeaderSignature) {
		t.Error("timestamp or signature are the first try's")
	}
}

func TestW03BothSecretsSignUntilTheGraceEnds(t *testing.T) {
	w := newWorld(t)
	r := newReceiver(t, nil)
	w.endpoint("old", r.URL)
	w.endpoint("older", r.URL)
	e := w.endpoint("e", r.URL+"/e")
	box, err := w.config.Keys.Box("t")
	w.must(err)
	for i, name := range []string{"old", "older"} {
		sealed, err := store.SealSecret(box, "e", w.secrets[name])
		w.must(err)
		sealed.Until = time.Now().Add(time.Duration(1-2*i) * time.Hour)
		e.Secrets = append(e.Secrets, sealed)
	}
	w.put(e)
	w.run()
	w.decide("x")
	w.ended("e", 1, store.Delivered)
	w.ended("older", 1, store.Delivered)
	for _, g := range r.all() {
		if g.path != "/e" {
			continue
		}
		for name, want := range map[string]error{"e": nil, "old": nil, "older": webhook.ErrSignature} {
			if err := webhook.Verify(w.secrets[name], g.header, g.body, time.Now()); !errors.Is(err, want) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if s := g.header.Get(webhook.HeaderSignature); len(strings.Split(s, " ")) != 2 {
			t.Errorf("%q", s)
		}
	}
}

func TestW06OnlyTwoHundredsSucceed(t *testing.T) {
	w := newWorld(t)
	w.config.Schedule = []time.Duration{0}
	elsewhere := newReceiver(t, nil)
	r := newReceiver(t, func(rw http.ResponseWriter, req *http.Request, _ int) {
		rw.Header().Set("Location", elsewhere.URL)
		code, _ := strconv.Atoi(req.URL.Path[1:])
		rw.WriteHeader(code)
	})
	codes := []int{200, 204, 299, 300, 301, 302, 303, 304, 307, 308, 400, 404, 429, 500, 503}
	for _, code := range codes {
		w.endpoint(strconv.Itoa(code), fmt.Sprint(r.URL, "/", code))
	}
	w.run()
	w.decide("x")
	for _, code := range codes {
		want, class := store.Exhausted, "status"
		switch code / 100 {
		case 2:
			want, class = store.Delivered, ""
		case 3:
			class = "redirect"
		}
		row := w.ended(strconv.Itoa(code), 1, want)[0]
		if len(row.Attempts) != 1 || row.Attempts[0].Status != code || row.Attempts[0].Error != class {
			t.Errorf("%d: %+v", code, row.Attempts)
		}
	}
	if n := len(elsewhere.all()); n != 0 {
		t.Errorf("the Location was asked %d times", n)
	}
}

func TestW07GoneDisablesTheEndpoint(t *testing.T) {
	w := newWorld(t)
	r := newReceiver(t, status(http.StatusGone))
	e := w.endpoint("e", r.URL, func(e *store.Endpoint) { e.Status = "paused" })
	w.run()
	w.decide(ids("x", 100)...)
	w.ended("e", 100, store.Pending)
	e.Status = "active"
	w.put(e)
	w.ended("e", 100, store.Skipped)
	w.until("disabled", func() bool { return w.endpointStatus("e") == "disabled" })
	ok := newReceiver(t, nil)
	w.endpoint("ok", ok.URL)
	decisions := 0
	w.until("the other endpoint is known", func() bool {
		decisions++
		w.decide(fmt.Sprint("y", decisions))
		return len(ok.all()) > 0
	})
	if n := len(w.rows("e")); n != 100 {
		t.Errorf("%d rows: a disabled endpoint is owed nothing new", n)
	}
	acts, err := w.registry.Acts(t.Context(), 10)
	w.must(err)
	if len(acts) != 1 || acts[0].Action != "endpoint.disable" || acts[0].Target != "e" || acts[0].Tenant != "t" {
		t.Errorf("%+v", acts)
	}
}

// What an operator did while the attempt was under way is not undone by its 410.
func TestW07GoneDisablesOnlyWhatWasTried(t *testing.T) {
	for name, change := range map[string]func(w *world, e store.Endpoint){
		"deleted": func(w *world, e store.Endpoint) { w.must(w.registry.DeleteEndpoint(w.Context(), "t", e.ID)) },
		"moved": func(w *world, e store.Endpoint) {
			e.URL += "/new"
			w.must(w.registry.PutEndpoint(w.Context(), e))
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			arrived, answer := make(chan bool), make(chan bool)
			r := newReceiver(t, func(rw http.ResponseWriter, _ *http.Request, _ int) {
				arrived <- true
				<-answer
				rw.WriteHeader(http.StatusGone)
			})
			e := w.endpoint("e", r.URL)
			stop := w.run()
			w.decide("x")
			<-arrived
			change(w, e)
			before, _ := w.registry.Endpoints(w.Context())
			close(answer)
			w.until("the attempt ended", func() bool { return w.rows("e")[0].Status != store.Pending })
			stop()
			after, _ := w.registry.Endpoints(w.Context())
			if diff := cmp.Diff(before, after); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestW09EndlessFailureIsTriedAsOftenAsTheScheduleSays(t *testing.T) {
	w := newWorld(t)
	r := newReceiver(t, status(http.StatusInternalServerError))
	w.endpoint("e", r.URL)
	w.run()
	w.decide("x")
	row := w.ended("e", 1, store.Exhausted)[0]
	if len(row.Attempts) != len(quick) {
		t.Errorf("%d attempts", len(row.Attempts))
	}
	polls := w.deliveries.polls.Load()
	w.until("more polls", func() bool { return w.deliveries.polls.Load() > polls+1 })
	if n := len(r.all()); n != len(quick) {
		t.Errorf("%d requests", n)
	}
}

func TestW10AReceiverThatHangsIsCut(t *testing.T) {
	w := newWorld(t)
	w.config.Timeout = 200 * time.Millisecond
	// A busy machine may need more than one try to reach what drips its body.
	w.config.Schedule = []time.Duration{0, time.Millisecond, time.Millisecond, time.Millisecond, time.Millisecond}
	drip := func(write func() error) {
		for write() == nil {
			time.Sleep(20 * time.Millisecond) // the receiver's pace
		}
	}
	want := map[string]struct{ status, class string }{
		"hangs":  {store.Exhausted, "timeout"},
		"header": {store.Exhausted, "timeout"},
		"body":   {store.Delivered, ""}, // it has the webhook, and said so
	}
	r := newReceiver(t, func(rw http.ResponseWriter, req *http.Request, _ int) {
		flow := http.NewResponseController(rw)
		switch req.URL.Path {
		case "/hangs":
			<-req.Context().Done()
		case "/header":
			conn, _, err := flow.Hijack()
			if err != nil {
				return
			}
			defer conn.Close()
			_, _ = conn.Write([]byte("HTTP/1.1 200 OK\r\n"))
			drip(func() error {
				_, err := conn.Write([]byte("X: y\r\n"))
				return err
			})
		case "/body":
			drip(func() error {
				_, err := rw.Write([]byte("x"))
				return errors.Join(err, flow.Flush())
			})
		}
	})
	for id := range want {
		w.endpoint(id, r.URL+"/"+id)
	}
	w.run()
	w.decide("x")
	for id, c := range want {
		row := w.ended(id, 1, c.status)[0]
		if a := row.Attempts[len(row.Attempts)-1]; a.Error != c.class {
			t.Errorf("%s: %+v", id, a)
		}
	}
}

func TestW11OfAHugeAnswerLittleIsRead(t *testing.T) {
	const huge = 1 << 30
	wrote := make(chan int, 1)
	for name, header := range map[string]string{"plain": "", "said to be gzip": "gzip"} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			r := newReceiver(t, func(rw http.ResponseWriter, _ *http.Request, _ int) {
				if header != "" {
					rw.Header().Set("Content-Encoding", header)
				}
				rw.Header().Set("Content-Length", strconv.Itoa(huge))
				n, chunk := 0, bytes.Repeat([]byte("a\xff"), 32<<10)
				for n < huge {
					m, err := rw.Write(chunk)
					n += m
					if err != nil {
						break
					}
				}
				wrote <- n
			})
			w.endpoint("e", r.URL)
			w.run()
			w.decide("x")
			row := w.ended("e", 1, store.Delivered)[0]
			if n := len(row.Attempts[0].Response); n != 4096 {
				t.Errorf("%d bytes kept", n)
			}
			if n := <-wrote; n > huge/8 {
				t.Errorf("%d bytes were taken", n)
			}
			if got := r.all()[0].header.Get("Accept-Encoding"); got != "" {
				t.Errorf("asked for %s", got)
			}
		})
	}
}

func TestW22WhatIsOwedToADeletedEndpointIsCancelled(t *testing.T) {
	w := newWorld(t)
	w.config.Schedule = []time.Duration{0, time.Hour}
	r := newReceiver(t, status(http.StatusInternalServerError))
	w.endpoint("e", r.URL)
	stop := w.run()
	w.decide(ids("x", 5)...)
	w.until("first tries", func() bool {
		return len(r.all()) == 5 && !slices.ContainsFunc(w.rows("e"), func(d store.Delivery) bool { return len(d.Attempts) == 0 })
	})
	w.must(w.registry.DeleteEndpoint(t.Context(), "t", "e"))
	w.must(streams.Changed(w.config.Conn, streams.TopicEndpoints))
	w.ended("e", 5, store.Cancelled) // though not due for an hour
	if n := len(r.all()); n != 5 {
		t.Errorf("%d requests", n)
	}
	stop()
	t.Run("also while nobody watched", func(t *testing.T) {
		w := newWorld(t)
		w.insert("gone", time.Now())
		w.run()
		w.ended("gone", 1, store.Cancelled)
	})
}

// What is under way when its endpoint goes ends as the rest does, and not when its next try would be due.
func TestW22AnAttemptUnderWayEndsAsWhatWaits(t *testing.T) {
	for want, change := range map[string]func(w *world, e store.Endpoint){
		store.Cancelled: func(w *world, e store.Endpoint) { w.must(w.registry.DeleteEndpoint(w.Context(), "t", e.ID)) },
		store.Skipped: func(w *world, e store.Endpoint) {
			e.Status = "disabled"
			w.must(w.registry.PutEndpoint(w.Context(), e))
		},
	} {
		t.Run(want, func(t *testing.T) {
			w := newWorld(t)
			w.config.Schedule = []time.Duration{0, time.Hour}
			answer := make(chan bool)
			r := newReceiver(t, func(rw http.ResponseWriter, _ *http.Request, _ int) {
				<-answer
				rw.WriteHeader(http.StatusInternalServerError)
			})
			e := w.endpoint("e", r.URL)
			w.run()
			w.decide("x")
			w.until("an attempt", func() bool { return len(r.all()) == 1 })
			change(w, e)
			watcher := newReceiver(t, nil)
			w.endpoint("watcher", watcher.URL)
			for n := 0; len(watcher.all()) == 0; n++ { // until the change is known
				w.decide(fmt.Sprint("y", n))
				w.polled()
			}
			close(answer)
			w.until("the attempt's end", func() bool {
				return slices.ContainsFunc(w.rows("e"), func(d store.Delivery) bool {
					return d.TransactionID == "x" && len(d.Attempts) == 1 && d.Status == want && d.Attempts[0].NextAttemptAt == nil
				})
			})
		})
	}
}

// insert makes a row whose process died: it was leased until then.
func (w *world) insert(endpoint string, leased time.Time) {
	w.Helper()
	now := time.Now()
	_, err := w.deliveries.Insert(w.Context(), []store.Delivery{{ID: "dlv_1", Tenant: "t", EndpointID: endpoint, TransactionID: "x", WebhookID: "msg_1",
		Type: "transaction.decided", Body: []byte(`{"a":"ç"}`), Status: store.Pending, NextAttemptAt: now, LeasedUntil: leased, CreatedAt: now}})
	w.must(err)
}

func TestW19RowsOfADeadProcessAreDelivered(t *testing.T) {
	w := newWorld(t)
	r := newReceiver(t, nil)
	w.endpoint("e", r.URL)
	w.insert("e", time.Now().Add(600*time.Millisecond))
	w.run()
	polls := w.deliveries.polls.Load()
	w.until("a poll", func() bool { return w.deliveries.polls.Load() > polls })
	if row := w.rows("e")[0]; time.Now().Before(row.LeasedUntil) && len(r.all()) != 0 {
		t.Fatal("sent though another holds the lease")
	}
	w.ended("e", 1, store.Delivered)
	if g := r.all()[0]; g.header.Get(webhook.HeaderID) != "msg_1" || string(g.body) != `{"a":"ç"}` {
		t.Errorf("%+v", g)
	}
}

func TestW25EveryAttemptIsRecorded(t *testing.T) {
	w := newWorld(t)
	w.config.Schedule = []time.Duration{0, time.Millisecond}
	const credential = "s3cret-credential"
	r := newReceiver(t, func(rw http.ResponseWriter, _ *http.Request, n int) {
		if n == 1 {
			rw.WriteHeader(http.StatusInternalServerError)
		}
		_, _ = fmt.Fprintf(rw, `{"you sent":"%s","text":"não"}`, credential) // as a receiver that echoes
	})
	w.endpoint("e", r.URL, func(e *store.Endpoint) { e.Headers = map[string]string{"Authorization": "Bearer " + credential} })
	w.run()
	began := time.Now()
	w.decide("x")
	row := w.ended("e", 1, store.Delivered)[0]
	if h := r.all()[0].header.Get("Authorization"); h != "Bearer "+credential {
		t.Errorf("header %q", h)
	}
	want := []store.Attempt{
		{Number: 1, Trigger: "auto", Status: 500, Error: "status", Response: `{"you sent":"***","text":"não"}`, NextAttemptAt: &txn.Time{}},
		{Number: 2, Trigger: "auto", Status: 200, Response: `{"you sent":"***","text":"não"}`},
	}
	unsteady := cmp.Options{cmpopts.IgnoreFields(store.Attempt{}, "StartedAt", "DNSMS", "ConnectMS", "TLSMS", "FirstByteMS", "DurationMS"),
		cmp.Comparer(func(a, b *txn.Time) bool { return (a == nil) == (b == nil) })}
	if diff := cmp.Diff(want, row.Attempts, unsteady); diff != "" {
		t.Error(diff)
	}
	for i, a := range row.Attempts {
		if a.StartedAt.Before(began.Truncate(time.Millisecond)) || a.NextAttemptAt != nil && a.NextAttemptAt.Before(a.StartedAt.Time) {
			t.Errorf("attempt %d: %+v", i+1, a)
		}
	}
	whole, err := json.Marshal(row)
	if err != nil || strings.Contains(string(whole), credential) || strings.Contains(string(whole), w.secrets["e"].Reveal()) {
		t.Errorf("a secret in %s", whole)
	}
}

func TestW26AFilterDecidesWhatIsOwed(t *testing.T) {
	w := newWorld(t)
	r := newReceiver(t, nil)
	filters := map[string][]string{"all": nil, "exact": {"x", "transaction.decided"}, "prefix": {"transaction.*"}, "star": {"*"},
		"another": {"transaction.disposed"}, "other prefix": {"endpoint.*"}, "half a word": {"transaction.dec"}}
	for id, events := range filters {
		w.endpoint(id, r.URL, func(e *store.Endpoint) { e.Events = events })
	}
	w.run()
	w.decide("x")
	for id := range filters {
		want := 1
		if id == "another" || id == "other prefix" || id == "half a word" {
			want = 0
		}
		w.ended("all", 1, store.Delivered)
		if n := len(w.rows(id)); n != want {
			t.Errorf("%s: %d rows", id, n)
		}
	}
}

// meddled is a registry in which an operator changes an endpoint right before somebody else does.
type meddled struct {
	*memory.Registry
	once sync.Once
}

func (m *meddled) ChangeEndpoint(ctx context.Context, e store.Endpoint) error {
	m.once.Do(func() {
		theirs := e
		theirs.Status, theirs.Description = "active", "theirs"
		_ = m.Registry.ChangeEndpoint(ctx, theirs)
	})
	return m.Registry.ChangeEndpoint(ctx, e)
}

// The only webhook for a long time finds its receiver gone while an operator changes something else about the endpoint.
func TestW07GoneDisablesWhatIsChangedMeanwhile(t *testing.T) {
	w := newWorld(t)
	w.config.Endpoints = &meddled{Registry: w.registry}
	r, watcher := newReceiver(t, status(http.StatusGone)), newReceiver(t, nil)
	w.endpoint("e", r.URL)
	w.endpoint("watcher", watcher.URL, func(e *store.Endpoint) { e.Events = []string{"endpoint.*"} })
	w.run()
	w.decide("x")
	w.until("disabled", func() bool { return w.endpointStatus("e") == "disabled" })
	w.ended("watcher", 1, store.Delivered)
	all, err := w.registry.Endpoints(t.Context())
	w.must(err)
	acts, err := w.registry.Acts(t.Context(), 10)
	w.must(err)
	if all[0].Description != "theirs" || len(acts) != 1 {
		t.Errorf("%+v, %d acts", all[0], len(acts))
	}
}

// A row may be due before this process knows of its endpoint, or of what became of that: it is asked for before anything ends.
func TestARowsEndpointIsLookedUpBeforeTheRowEnds(t *testing.T) {
	w := newWorld(t)
	r := newReceiver(t, nil)
	w.run()
	w.polled()
	w.unannounced("new", r.URL)
	w.insert("new", time.UnixMilli(0))
	w.ended("new", 1, store.Delivered)
	e := w.endpoint("disabled", r.URL, func(e *store.Endpoint) { e.Status = "disabled" })
	now := time.Now()
	_, err := w.deliveries.Insert(t.Context(), []store.Delivery{{ID: "dlv_2", Tenant: "t", EndpointID: e.ID, WebhookID: "msg_2", Body: []byte("{}"),
		Status: store.Pending, NextAttemptAt: now, LeasedUntil: time.UnixMilli(0), CreatedAt: now}})
	w.must(err)
	w.ended("disabled", 1, store.Skipped)
}

// W23: what is asked for by hand is not on the schedule, and its failure is no end that others hear of once more.
func TestW23AResendThatFailsExhaustsNothingAgain(t *testing.T) {
	w := newWorld(t)
	w.config.Schedule = []time.Duration{0}
	r, watcher := newReceiver(t, status(http.StatusInternalServerError)), newReceiver(t, nil)
	w.endpoint("e", r.URL)
	w.endpoint("watcher", watcher.URL, func(e *store.Endpoint) { e.Events = []string{"delivery.*"} })
	w.run()
	w.decide("x")
	id := w.ended("e", 1, store.Exhausted)[0].ID
	w.ended("watcher", 1, store.Delivered)
	w.must(w.deliveries.Resend(t.Context(), store.Resend{Tenant: "t", ID: id, Trigger: store.Manual, At: w.config.Clock.Now()}))
	w.until("one more attempt", func() bool { return len(w.rows("e")[0].Attempts) == 2 })
	w.ended("e", 1, store.Exhausted)
	w.polled()
	if n := len(w.rows("watcher")); n != 1 {
		t.Errorf("told %d times", n)
	}
}

// What cannot be signed is not sent. It goes by the schedule: what was out of reach for a while is delivered, what stays so ends.
// None of it is held against the receiver.
func TestW09WhatCannotBeSignedEndsByTheSchedule(t *testing.T) {
	w := newWorld(t)
	w.freeze()
	w.config.Schedule = []time.Duration{0, time.Hour, time.Hour}
	r, watcher := newReceiver(t, nil), newReceiver(t, nil)
	box, err := w.config.Keys.Box("t")
	w.must(err)
	shut, err := store.SealSecret(box, "another", webhook.NewSecret())
	w.must(err)
	w.endpoint("shut", r.URL+"/shut", func(e *store.Endpoint) { e.Secrets = []store.Secret{shut} })
	w.endpoint("none", r.URL+"/none", func(e *store.Endpoint) { e.Secrets = nil })
	w.endpoint("for a while", r.URL, func(e *store.Endpoint) {
		shut.Until = w.config.Clock.Now().Add(time.Minute)
		e.Secrets = append(e.Secrets, shut)
	})
	w.endpoint("watcher", watcher.URL, func(e *store.Endpoint) { e.Events = []string{"delivery.*", "endpoint.*"} })
	w.run()
	const many = 12 // a breaker judges by ten
	w.decide(ids("x", many)...)
	for tries := 1; tries < 3; tries++ {
		for _, id := range []string{"shut", "none", "for a while"} {
			w.until(fmt.Sprint(tries, " tries for ", id), func() bool {
				rows := w.rows(id)
				return len(rows) == many && !slices.ContainsFunc(rows, func(d store.Delivery) bool { return len(d.Attempts) != tries })
			})
		}
		w.later(2 * time.Hour)
	}
	for _, id := range []string{"shut", "none"} {
		for _, row := range w.ended(id, many, store.Exhausted) {
			if len(row.Attempts) != 3 || slices.ContainsFunc(row.Attempts, func(a store.Attempt) bool { return a.Error != "secret" || a.Status != 0 }) {
				t.Errorf("%s: %+v", id, row.Attempts)
			}
		}
	}
	for _, row := range w.ended("for a while", many, store.Delivered) {
		if row.Attempts[0].Error != "secret" {
			t.Errorf("%+v", row.Attempts)
		}
	}
	w.ended("watcher", 2*many, store.Delivered)
	if told := watcher.types(t); told["delivery.exhausted"] != 2*many || len(told) != 1 {
		t.Errorf("told %v", told)
	}
	if n := len(r.all()); n != many {
		t.Errorf("%d requests", n)
	}
}
