package edge_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"

	"crivo/pkg/stage"
	"crivo/pkg/txn"
	"crivo/services/store"
	"crivo/streams"
	"crivo/streams/event"
)

const lettersPath = "/v1/dead-letters"

// buried is a letter as a step's runner writes it.
func (r *rig) buried(step stage.Spec, cause string, header nats.Header, sequence uint64) stage.Output {
	r.t.Helper()
	m := stage.Message{Subject: "tx.x.y", Header: header, Data: []byte("rubbish"), Sequence: sequence, Stored: r.clock.Now().Add(-time.Minute)}
	out, err := streams.Bury(step, nil)(r.t.Context(), stage.Burial{Step: step.Step, Message: m, Cause: cause, Err: errors.New("why"), Attempts: 3})
	if err != nil {
		r.t.Fatal(err)
	}
	return out[0]
}

func (r *rig) bury(letters ...stage.Output) {
	r.t.Helper()
	for part := range slices.Chunk(letters, 500) {
		if _, err := (stage.Publisher{JS: r.js, BatchFrom: 2}).Publish(r.t.Context(), part); err != nil {
			r.t.Fatal(err)
		}
	}
}

// identity is what the headers of a transaction's messages say.
func identity(tenant, id string) nats.Header {
	return streams.Ident{Tenant: tenant, ID: id, Run: 1, AcceptedAt: time.UnixMilli(1), Deadline: time.UnixMilli(2), Digest: "k:d"}.Header()
}

type letterPage struct {
	Items []struct {
		ID            string  `json:"id"`
		Step          string  `json:"step"`
		Cause         string  `json:"cause"`
		Tenant        *string `json:"tenant"`
		TransactionID *string `json:"transaction_id"`
		LastAt        string  `json:"last_at"`
	} `json:"items"`
	Next string `json:"next_cursor"`
}

func (p letterPage) ids() []string {
	out := []string{}
	for _, l := range p.Items {
		out = append(out, l.ID)
	}
	return out
}

func (e *running) letters(query string) letterPage {
	e.t.Helper()
	a := e.do(http.MethodGet, lettersPath+query, "")
	var page letterPage
	if err := json.Unmarshal([]byte(a.body), &page); err != nil || a.status != http.StatusOK {
		e.t.Fatalf("%s: %d %s", query, a.status, a.body)
	}
	return page
}

// messages returns a stream's messages as "id".
func (r *rig) messages(stream string) (ids []string) {
	r.t.Helper()
	s, err := r.js.Stream(r.t.Context(), stream)
	if err != nil {
		r.t.Fatal(err)
	}
	state := s.CachedInfo().State
	for n := state.FirstSeq; state.Msgs > 0 && n <= state.LastSeq; n++ {
		if m, err := s.GetMsg(r.t.Context(), n); err == nil {
			ids = append(ids, m.Header.Get(nats.MsgIdHdr))
		}
	}
	return ids
}

func (r *rig) acts(action string) (targets []string) {
	r.t.Helper()
	acts, err := r.registry.Acts(r.t.Context(), 1000)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, a := range acts {
		if a.Action == action {
			targets = append(targets, a.Target)
		}
	}
	return targets
}

// accepted puts a transaction into the store of which nobody decides.
func (e *running) accepted(id string) store.Key {
	e.t.Helper()
	if a := e.patient(e.payment(id)); a.status != http.StatusAccepted {
		e.t.Fatalf("%s: %d %s", id, a.status, a.body)
	}
	return store.Key{Tenant: "default", ID: id}
}

func (r *rig) entry(key store.Key) store.Entry {
	r.t.Helper()
	entry, err := r.memory.Get(r.t.Context(), key)
	if err != nil {
		r.t.Fatal(err)
	}
	return entry
}

func TestARedriveDoesWhatIsLeftToDo(t *testing.T) {
	t.Parallel()
	key := store.Key{Tenant: "default", ID: "x"}
	decided := func(e *running) { e.accepted("x"); e.decide(key, ""); e.announcedBefore(key) }
	silent := func(e *running) { e.accepted("x"); e.decideSilently(key) }
	for name, tc := range map[string]struct {
		before    func(e *running)
		step      stage.Spec
		header    nats.Header
		status    int
		outcome   string
		run       int      // of the claim afterwards, 0: there is none
		submitted []string // in TX_SUBMITTED afterwards
		decided   []string // in TX_DECIDED afterwards
	}{
		"an undecided one runs again": {func(e *running) { e.accepted("x") }, streams.Score, identity("default", "x"), 200, "rerun", 2,
			[]string{"default/x/submitted/1", "default/x/submitted/2"}, nil},
		"an undecided one, by notify": {func(e *running) { e.accepted("x") }, streams.Notify, identity("default", "x"), 200, "rerun", 2,
			[]string{"default/x/submitted/1", "default/x/submitted/2"}, nil},
		"a decided one needs nothing": {decided, streams.Score, identity("default", "x"), 200, "already_decided", 1,
			[]string{"default/x/submitted/1"}, []string{"default/x/decided"}},
		"a decided one that notify gave up is announced, within the broker's window": {decided, streams.Notify, identity("default", "x"), 200, "announced", 1,
			[]string{"default/x/submitted/1"}, []string{"default/x/decided", "default/x/decided/redrive/1"}},
		"a decided one that nobody announced": {silent, streams.Persist, identity("default", "x"), 200, "announced", 1,
			[]string{"default/x/submitted/1"}, []string{"default/x/decided"}},
		"half an identity":      {nil, streams.Score, nats.Header{streams.HeaderTenant: {"default"}}, 409, "", 0, nil, nil},
		"not in the store":      {nil, streams.Score, identity("default", "x"), 409, "", 0, nil, nil},
		"no tenant's":           {nil, streams.Score, nil, 409, "", 0, nil, nil},
		"an unknown tenant's":   {nil, streams.Score, identity("ghost", "x"), 409, "", 0, nil, nil},
		"the store is down":     {func(e *running) { e.store.breaks("get", down) }, streams.Score, identity("default", "x"), 503, "", 0, nil, nil},
		"no run can be raised":  {func(e *running) { e.accepted("x"); e.store.breaks("raise", down) }, streams.Score, identity("default", "x"), 503, "", 1, []string{"default/x/submitted/1"}, nil},
		"no submission is kept": {func(e *running) { e.accepted("x"); e.dropStream() }, streams.Score, identity("default", "x"), 503, "", 2, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			e := r.edge("a")
			if tc.before != nil {
				tc.before(e)
			}
			r.bury(r.buried(tc.step, stage.CausePanic, tc.header, 1))
			r.clock.add(200 * time.Millisecond) // not so long that it would be stalled
			a := e.do(http.MethodPost, lettersPath+"/dl_1/redrive", "")
			if a.status != tc.status || a.member("outcome") != tc.outcome {
				t.Fatalf("%d %s", a.status, a.body)
			}
			if a.status == http.StatusConflict && (a.slug() != "conflict" || !strings.Contains(a.member("detail"), "discarded")) {
				t.Errorf("refused with %s", a.body)
			}
			if tc.run > 0 {
				if entry := r.entry(key); entry.Run != tc.run || entry.AcceptedAt.After(r.clock.began) || entry.Deadline.After(entry.AcceptedAt.Add(2*time.Second)) != (tc.run == 2) {
					t.Errorf("stored: %+v", entry.Claim)
				}
			}
			if a.status != http.StatusServiceUnavailable || tc.run != 2 {
				if diff := cmp.Diff(tc.submitted, r.messages(streams.Submitted)); diff != "" {
					t.Errorf("submitted: %s", diff)
				}
			}
			if len(tc.submitted) == 2 { // under what was promised at first
				if s := r.submitted(); s[1].AcceptedAt != s[0].AcceptedAt || s[1].Deadline != s[0].Deadline {
					t.Errorf("run 2: accepted at %s, promised by %s", s[1].AcceptedAt, s[1].Deadline)
				}
			}
			if diff := cmp.Diff(tc.decided, r.messages(streams.Decided)); diff != "" {
				t.Errorf("decided: %s", diff)
			}
			status := map[bool]int{true: http.StatusNotFound, false: http.StatusOK}[tc.status == http.StatusOK]
			if a := e.do(http.MethodGet, lettersPath+"/dl_1", ""); a.status != status {
				t.Errorf("the letter afterwards: %d %s", a.status, a.body)
			}
			if acts := r.acts("deadletter.redrive"); tc.status == http.StatusOK && !slices.Equal(acts, []string{"dl_1"}) || tc.status == http.StatusConflict && len(acts) > 0 {
				t.Errorf("on record: %v", acts)
			}
		})
	}
}

// announcedBefore publishes a decision a moment ago, as persist did.
func (r *rig) announcedBefore(key store.Key) {
	r.t.Helper()
	out := streams.Message(streams.Ident{Tenant: key.Tenant, ID: key.ID, Run: 1}, streams.EventDecided, r.entry(key).Event)
	if _, err := stage.Publish(r.t.Context(), r.js, []stage.Output{out}); err != nil {
		r.t.Fatal(err)
	}
}

// decideSilently decides a transaction that nobody is known to have announced.
func (r *rig) decideSilently(key store.Key) {
	r.t.Helper()
	claim := r.entry(key).Claim
	d := decidedEvent(claim)
	data, err := event.Encode(d)
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := r.memory.Decide(r.t.Context(), []store.Decide{{Claim: claim, Event: data, Decision: txn.Approve, DecidedAt: d.DecidedAt.Time, Unannounced: true}}); err != nil {
		r.t.Fatal(err)
	}
}

func TestALetterRedrivenTwiceAtOnceIsRunOnceEach(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e, other := r.edge("a"), r.edge("b")
	key := e.accepted("x")
	r.bury(r.buried(streams.Score, stage.CauseCrash, identity("default", "x"), 1))
	var work sync.WaitGroup
	statuses := make([]int, 8)
	for i := range statuses {
		work.Go(func() {
			a, err := []*running{e, other}[i%2].ask(http.MethodPost, lettersPath+"/dl_1/redrive", "")
			if err != nil {
				t.Error(err)
			}
			statuses[i] = a.status
		})
	}
	work.Wait()
	for _, status := range statuses {
		if status != http.StatusOK && status != http.StatusNotFound {
			t.Errorf("answers %v", statuses)
		}
	}
	var want []string
	for run := 1; run <= r.entry(key).Run; run++ {
		want = append(want, "default/x/submitted/"+strconv.Itoa(run))
	}
	got := r.messages(streams.Submitted)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" || len(want) < 2 {
		t.Errorf("each run once: %s", diff)
	}
	if page := e.letters(""); len(page.Items) != 0 {
		t.Errorf("left: %v", page)
	}
}

func TestWhoseLettersTheyAre(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := r.edge("a")
	e.made("/v1/tenants", `{"id":"acme"}`)
	e.made("/v1/tenants", `{"id":"other"}`)
	r.bury(r.buried(streams.Score, stage.CausePanic, identity("acme", "1"), 1), r.buried(streams.Enrich, stage.CauseDecode, nil, 2),
		r.buried(streams.Notify, stage.CauseReject, identity("other", "3"), 3), r.buried(streams.Persist, stage.CauseReject, identity("ghost", "4"), 4))
	key := func(tenant, role string) *running {
		return e.as(e.made("/v1/keys", fmt.Sprintf(`{"tenant":%q,"roles":[%s]}`, tenant, role)).member("key"))
	}
	for _, tc := range []struct {
		name string
		who  *running
		sees []string
	}{
		{"acme's admin", key("acme", `"admin"`), []string{"dl_1"}},
		{"acme's operator", key("acme", `"operator"`), []string{"dl_2", "dl_4"}},
		{"both", key("acme", `"admin","operator"`), []string{"dl_1", "dl_2", "dl_4"}},
		{"another's admin", key("other", `"admin"`), []string{"dl_3"}},
		{"default's all", e, []string{"dl_2", "dl_4"}},
	} {
		if diff := cmp.Diff(tc.sees, tc.who.letters("").ids()); diff != "" {
			t.Errorf("%s: %s", tc.name, diff)
		}
		for _, id := range []string{"dl_1", "dl_2", "dl_3", "dl_4"} {
			want := http.StatusNotFound
			if slices.Contains(tc.sees, id) {
				want = http.StatusOK
			} else {
				for method, path := range map[string]string{http.MethodDelete: "", http.MethodPost: "/redrive"} {
					if a := tc.who.do(method, lettersPath+"/"+id+path, ""); a.status != http.StatusNotFound {
						t.Errorf("%s: %s %s%s: %d", tc.name, method, id, path, a.status)
					}
				}
			}
			if a := tc.who.do(http.MethodGet, lettersPath+"/"+id, ""); a.status != want {
				t.Errorf("%s: %s: %d %s", tc.name, id, a.status, a.body)
			}
		}
		a := tc.who.do(http.MethodPost, lettersPath+"/redrive", `{"dry_run":true}`)
		if a.member("matched") != strconv.Itoa(len(tc.sees)) || a.member("redriven") != "0" {
			t.Errorf("%s counts %s", tc.name, a.body)
		}
	}
	for _, role := range []string{`"read"`, `"submit"`} {
		if a := key("acme", role).do(http.MethodGet, lettersPath, ""); a.status != http.StatusForbidden {
			t.Errorf("role %s: %d", role, a.status)
		}
	}
	page := e.letters("")
	if page.Items[0].Tenant != nil || page.Items[0].TransactionID != nil || *page.Items[1].Tenant != "ghost" || *page.Items[1].TransactionID != "4" {
		t.Errorf("shown as %+v", page)
	}
	if a := e.do(http.MethodPost, "/v1/tenants", `{"id":"unknown"}`); a.status != http.StatusUnprocessableEntity {
		t.Errorf("a tenant may have the name of none: %d", a.status)
	}
}

func TestLettersComeInPages(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := r.edge("a")
	e.made("/v1/tenants", `{"id":"other"}`)
	var letters []stage.Output
	steps := []stage.Spec{streams.Enrich, streams.Score, streams.Notify}
	causes := []string{stage.CauseReject, stage.CausePanic}
	want := map[string][]string{}
	for n := uint64(1); n <= 700; n++ {
		tenant, step, cause := []string{"default", "other"}[n%7/6], steps[n%3], causes[n%2]
		letters = append(letters, r.buried(step, cause, identity(tenant, strconv.FormatUint(n, 10)), n))
		if tenant == "default" {
			id := "dl_" + strconv.FormatUint(n, 10)
			for _, filter := range []string{"", "step=" + step.Step, "cause=" + cause, "step=" + step.Step + "&cause=" + cause} {
				want[filter] = append(want[filter], id)
			}
		}
	}
	r.bury(letters...)
	admin := e.as(e.made("/v1/keys", `{"roles":["admin"]}`).member("key"))
	for who, e := range map[string]*running{"admin": admin, "admin and operator": e} {
		for filter, ids := range want {
			var got []string
			pages := 0
			for cursor := ""; ; pages++ {
				page := e.letters("?limit=90&" + filter + "&cursor=" + cursor)
				if len(page.Items) > 90 {
					t.Fatalf("a page of %d", len(page.Items))
				}
				got = append(got, page.ids()...)
				if cursor = page.Next; cursor == "" {
					break
				}
			}
			if diff := cmp.Diff(ids, got); diff != "" || pages != (len(ids)-1)/90 {
				t.Errorf("%s, %q in %d pages: %s", who, filter, pages+1, diff)
			}
		}
	}
	all := e.letters("?limit=500")
	from, to := all.Items[100].LastAt, all.Items[300].LastAt
	var within []string
	for _, l := range all.Items {
		if l.LastAt >= from && l.LastAt < to {
			within = append(within, l.ID)
		}
	}
	if diff := cmp.Diff(within, e.letters("?limit=500&from="+from+"&to="+to).ids()); diff != "" {
		t.Errorf("from %s to %s: %s", from, to, diff)
	}
	if a := e.do(http.MethodPost, lettersPath+"/redrive", fmt.Sprintf(`{"where":{"from":%q,"to":%q,"step":"score"},"dry_run":true}`, from, to)); a.member("matched") == "0" || a.member("redriven") != "0" {
		t.Errorf("counted %s", a.body)
	}
	s, err := r.js.Stream(t.Context(), streams.DeadLetters)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.CachedInfo().State.Consumers; got != 0 {
		t.Errorf("%d consumers were made", got)
	}
}

func TestAPageIsBoundedByWhatIsReadForIt(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := r.edge("a")
	e.made("/v1/tenants", `{"id":"other"}`)
	var letters []stage.Output
	for n := uint64(1); n <= 2100; n++ {
		letters = append(letters, r.buried(streams.Score, stage.CausePanic, identity("other", "1"), n))
	}
	r.bury(append(letters, r.buried(streams.Score, stage.CausePanic, identity("default", "mine"), 9999))...)
	page := e.letters("")
	if len(page.Items) != 0 || page.Next == "" {
		t.Errorf("read on through others' letters: %+v", page)
	}
	if page = e.letters("?cursor=" + page.Next); len(page.Items) != 1 || page.Next != "" {
		t.Errorf("then %+v", page)
	}
	if a := e.do(http.MethodPost, lettersPath+"/redrive", `{"dry_run":true}`); a.member("matched") != "1" || a.member("next_cursor") != "" {
		t.Errorf("counted %s", a.body)
	}
}

func TestManyLettersAreRedriven(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := r.edge("a")
	var letters []stage.Output
	for n := range 20 {
		id := "t" + strconv.Itoa(n)
		key := e.accepted(id)
		if n%4 == 1 {
			r.decide(key, "a")
		}
		letters = append(letters, r.buried([]stage.Spec{streams.Score, streams.Notify}[n%2], stage.CausePanic, identity("default", id), uint64(n+1)))
	}
	r.bury(append(letters, r.buried(streams.Score, stage.CausePanic, nats.Header{streams.HeaderTenant: {"default"}}, 99))...)
	if a := e.do(http.MethodPost, lettersPath+"/redrive", `{"where":{"step":"notify"},"dry_run":true}`); a.body != `{"matched":10,"redriven":0,"outcomes":{},"next_cursor":null}` {
		t.Errorf("counted %s", a.body)
	}
	if got := len(e.letters("").Items); got != 21 {
		t.Errorf("%d are left after counting", got)
	}

	var gets atomic.Int64
	r.store.breaks("get", func(context.Context) error { // down in the middle of it
		if gets.Add(1) > 3 {
			return errDown
		}
		return nil
	})
	first := e.do(http.MethodPost, lettersPath+"/redrive", `{"where":{"step":"notify"}}`)
	if first.status != http.StatusOK || first.member("redriven") != "3" || first.member("matched") != "3" || first.member("next_cursor") == "" {
		t.Fatalf("broken off: %d %s", first.status, first.body)
	}
	goOn := fmt.Sprintf(`{"where":{"step":"notify"},"cursor":%q}`, first.member("next_cursor"))
	if a := e.do(http.MethodPost, lettersPath+"/redrive", goOn); a.status != http.StatusServiceUnavailable || a.slug() != "store" {
		t.Errorf("still down: %d %s", a.status, a.body)
	}
	r.store.breaks("get", nil)
	r.bury(r.buried(streams.Notify, stage.CausePanic, identity("default", "t1"), 100)) // news, and not for this redrive
	if a := e.do(http.MethodPost, lettersPath+"/redrive", goOn); a.status != http.StatusOK || a.member("redriven") != "7" || a.member("next_cursor") != "" {
		t.Errorf("going on: %d %s", a.status, a.body)
	}
	a := e.do(http.MethodPost, lettersPath+"/redrive", `{}`)
	if a.body != `{"matched":12,"redriven":11,"outcomes":{"announced":1,"rerun":10},"next_cursor":null}` {
		t.Errorf("the rest: %s", a.body)
	}
	if page := e.letters(""); len(page.Items) != 1 || page.Items[0].TransactionID != nil {
		t.Errorf("left: %+v", page)
	}
	if got := len(r.messages(streams.Submitted)); got != 20+15 {
		t.Errorf("%d submissions", got)
	}
	if got := len(r.acts("deadletter.redrive")); got != 21 {
		t.Errorf("%d acts on record", got)
	}
}

func TestADiscardedLetterIsGoneAndOnRecord(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var broken atomic.Bool
	r.audit = func(ctx context.Context, act store.Act) error {
		if broken.Load() {
			return errDown
		}
		return r.registry.Record(ctx, act)
	}
	e := r.edge("a")
	r.bury(r.buried(streams.Score, stage.CausePanic, identity("default", "x"), 1), r.buried(streams.Enrich, stage.CauseDecode, nil, 2))
	broken.Store(true)
	if a := e.do(http.MethodDelete, lettersPath+"/dl_1", ""); a.status != http.StatusServiceUnavailable {
		t.Errorf("without a record: %d", a.status)
	}
	broken.Store(false)
	for _, id := range []string{"dl_1", "dl_2"} {
		if a := e.do(http.MethodDelete, lettersPath+"/"+id, ""); a.status != http.StatusNoContent || a.body != "" {
			t.Errorf("%s: %d %s", id, a.status, a.body)
		}
		if a := e.do(http.MethodDelete, lettersPath+"/"+id, ""); a.status != http.StatusNotFound {
			t.Errorf("%s again: %d", id, a.status)
		}
	}
	if diff := cmp.Diff([]string{"dl_2", "dl_1"}, r.acts("deadletter.discard")); diff != "" {
		t.Errorf("on record: %s", diff)
	}
	for _, id := range []string{"dl_3", "dl_0", "dl_01", "dl_+1", "dl_", "1", "x", "dl_99999999999999999999"} {
		if a := e.do(http.MethodGet, lettersPath+"/"+id, ""); a.status != http.StatusNotFound {
			t.Errorf("%s: %d", id, a.status)
		}
	}
}

func TestWhatIsWrongWithAQueryForLetters(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := r.edge("a")
	if page := e.letters("?step=score"); len(page.Items) != 0 || page.Next != "" {
		t.Errorf("none: %+v", page)
	}
	if a := e.do(http.MethodPost, lettersPath+"/redrive", `{}`); a.body != `{"matched":0,"redriven":0,"outcomes":{},"next_cursor":null}` {
		t.Errorf("none: %s", a.body)
	}
	for _, tc := range []struct {
		method, path, body string
		status             int
		want               []string
	}{
		{http.MethodGet, "?step=%3E&cause=*&from=x&to=&limit=0", "", 422, []string{`"/step","code":"format"`, `"/cause","code":"format"`,
			`"/from","code":"format"`, `"/to","code":"format"`, `"/limit","code":"range"`}},
		{http.MethodGet, "?cursor=nonsense!", "", 400, nil},
		{http.MethodGet, "?cursor=0-0", "", 400, nil},
		{http.MethodPost, "/redrive", `{"where":{"step":"x","cause":1,"stp":"y"},"dry":true}`, 422, []string{`"/dry","code":"unknown_field"`}},
		{http.MethodPost, "/redrive", `{"where":{"step":"x","cause":1,"stp":"y"}}`, 422, []string{`"/where/cause","code":"type"`, `"/where/stp","code":"unknown_field"`}},
		{http.MethodPost, "/redrive", `{"where":{"step":"x","cause":"y"}}`, 422, []string{`"/where/step","code":"format"`, `"/where/cause","code":"format"`}},
		{http.MethodPost, "/redrive", `{"where":"all"}`, 422, []string{`"/where","code":"type"`}},
		{http.MethodPost, "/redrive", `{"where":{"step":"score","step":"notify"}}`, 400, nil},
		{http.MethodPost, "/redrive", `{"cursor":"x"}`, 400, nil},
	} {
		a := e.do(tc.method, lettersPath+tc.path, tc.body)
		if a.status != tc.status {
			t.Errorf("%s%s: %d %s", tc.path, tc.body, a.status, a.body)
		}
		for _, want := range tc.want {
			if !strings.Contains(a.body, want) {
				t.Errorf("%s%s: no %s in %s", tc.path, tc.body, want, a.body)
			}
		}
	}
	if err := r.js.DeleteStream(t.Context(), streams.DeadLetters); err != nil {
		t.Fatal(err)
	}
	if a := e.do(http.MethodGet, lettersPath, ""); a.status != http.StatusServiceUnavailable || a.slug() != "broker" {
		t.Errorf("without the stream: %d %s", a.status, a.body)
	}
}
