package edge_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"crivo/pkg/txn"
	"crivo/services/edge"
	"crivo/services/store"
	"crivo/services/store/memory"
)

const noteText = "CANARY called Ana back: it was her"

func (e *running) dispose(id, body string) answer {
	e.t.Helper()
	return e.do(http.MethodPost, "/v1/transactions/"+id+"/disposition", body)
}

func TestAReviewIsClosedOnceAndItsDecisionStays(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := r.edge("a")
	r.decided("default", []string{"x", "y"}, txn.Review)
	before := e.do(http.MethodGet, "/v1/transactions/x", "")
	a := e.dispose("x", `{"disposition":"approved","note":"`+noteText+`"}`)
	want := strings.TrimSuffix(before.body, "}") + fmt.Sprintf(`,"disposition":"approved","note":%q,"disposed_at":%q,"disposed_by":"key_bootstrap"}`,
		noteText, txn.At(r.clock.Now()).Format("2006-01-02T15:04:05.000Z"))
	if a.status != http.StatusOK || a.body != want {
		t.Errorf("got %d %s, want %s", a.status, a.body, want)
	}
	if got := e.do(http.MethodGet, "/v1/transactions/x", ""); got.body != want {
		t.Errorf("got later: %s", got.body)
	}
	for _, body := range []string{`{"disposition":"approved","note":"` + noteText + `"}`, `{"disposition":"declined"}`} {
		if a := e.dispose("x", body); a.status != http.StatusConflict || a.slug() != "conflict" || strings.Contains(a.body, "CANARY") {
			t.Errorf("a second one: %d %s", a.status, a.body)
		}
	}
	if a := e.dispose("y", `{"disposition":"declined","note":null}`); a.status != http.StatusOK || a.member("disposition") != "declined" || a.member("note") != "" {
		t.Errorf("without a note: %d %s", a.status, a.body)
	}
	// A repeat of the submission is answered as before.
	kept, err := r.memory.Get(t.Context(), store.Key{Tenant: "default", ID: "x"})
	if err != nil || strings.Contains(string(kept.Disposition.Note), "Ana") || len(kept.Disposition.Note) < len(noteText) || strings.Contains(string(kept.Event), "approved") {
		t.Errorf("kept %+v, %v", kept, err)
	}
	acts, err := r.registry.Acts(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	var recorded []string
	for _, a := range acts {
		recorded = append(recorded, fmt.Sprint(a.Actor, " ", a.Action, " ", a.Target, " ", a.Detail))
	}
	if diff := cmp.Diff([]string{"key_bootstrap transaction.dispose y map[disposition:declined]", "key_bootstrap transaction.dispose x map[disposition:approved]"}, recorded); diff != "" {
		t.Error(diff)
	}
	for queue, want := range map[string]int{"open": 0, "approved": 1, "declined": 1} {
		if got := e.search(`{"disposition":"` + queue + `"}`); len(got.Items) != want {
			t.Errorf("%s: %+v", queue, got)
		}
	}
}

func TestOnlyAnOpenReviewCanBeClosed(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := r.edge("a")
	e.made("/v1/tenants", `{"id":"acme"}`)
	acme := e.as(e.made("/v1/keys", `{"tenant":"acme","roles":["admin"]}`).member("key"))
	reader := e.as(e.made("/v1/keys", `{"roles":["read","submit","operator"]}`).member("key"))
	r.decided("default", []string{"approved"}, txn.Approve)
	r.decided("default", []string{"review", "contested"}, txn.Review)
	e.accepted("processing")
	const fine = `{"disposition":"approved"}`
	for name, tc := range map[string]struct {
		who      *running
		id, body string
		status   int
		says     string
	}{
		"not decided":      {e, "processing", fine, 409, "not decided yet"},
		"no review":        {e, "approved", fine, 409, "only a review"},
		"not there":        {e, "nobody", fine, 404, ""},
		"another tenant's": {acme, "review", fine, 404, ""},
		"no role":          {reader, "review", fine, 403, ""},
		"nothing":          {e, "review", `{}`, 422, `"/disposition","code":"required"`},
		"no such outcome":  {e, "review", `{"disposition":"CANARY"}`, 422, `"/disposition","code":"format"`},
		"open again":       {e, "review", `{"disposition":"open"}`, 422, `"/disposition","code":"format"`},
		"much":             {e, "review", `{"disposition":"approved","note":"` + strings.Repeat("é", 1001) + `"}`, 422, `"/note","code":"too_long"`},
		"unknown":          {e, "review", `{"disposition":1,"outcome":"CANARY"}`, 422, `"/outcome","code":"unknown_field"`},
		"broken":           {e, "review", `{"disposition":`, 400, ""},
	} {
		if a := tc.who.dispose(tc.id, tc.body); a.status != tc.status || a.slug() == "" || !strings.Contains(a.body, tc.says) || strings.Contains(a.body, "CANARY") {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	// One who is slower by a moment.
	r.store.breaks("dispose", func(context.Context) error {
		_, err := r.memory.Dispose(t.Context(), store.Key{Tenant: "default", ID: "contested"}, store.Disposition{Outcome: store.Declined, By: "key_other", At: r.clock.Now()})
		return err
	})
	if a := e.dispose("contested", fine); a.status != http.StatusConflict || a.slug() != "conflict" {
		t.Errorf("contested: %d %s", a.status, a.body)
	}
	r.store.breaks("dispose", down)
	if a := e.dispose("review", fine); a.status != http.StatusServiceUnavailable || a.slug() != "store" {
		t.Errorf("a store that is down: %d %s", a.status, a.body)
	}
	if a := e.do(http.MethodGet, "/v1/transactions/contested", ""); a.member("disposition") != "declined" || a.member("decision") != "review" || a.member("disposed_by") != "key_other" {
		t.Errorf("contested: %s", a.body)
	}
}

func TestWhatCannotBeRecordedIsNotClosed(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	record := r.audit
	r.audit = func(ctx context.Context, a store.Act) error {
		if a.Action == "transaction.dispose" {
			return errDown
		}
		return record(ctx, a)
	}
	e := r.edge("a")
	r.decided("default", []string{"x"}, txn.Review)
	if a := e.dispose("x", `{"disposition":"approved"}`); a.status != http.StatusServiceUnavailable {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := e.do(http.MethodGet, "/v1/transactions/x", ""); a.member("disposition") != "" {
		t.Errorf("closed: %s", a.body)
	}
}

// An analyst may leave in the moment of closing: what the store then has is what must be told.
func TestAReviewIsClosedWhoeverHangsUp(t *testing.T) {
	inBubbleWith(t, false, reviewing, func(b *bubble) {
		b.post("x", "Prefer", "wait=5")
		ctx, hangUp := context.WithCancel(context.Background())
		defer hangUp()
		b.store.breaks("dispose", func(ctx context.Context) error {
			hangUp()
			synctest.Wait() // until the edge knows
			return ctx.Err()
		})
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://edge/v1/transactions/x/disposition", strings.NewReader(`{"disposition":"approved"}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+bootstrap)
		req.Header.Set("Content-Type", "application/json")
		if _, err := b.client.Do(req); err == nil {
			t.Fatal("an answer")
		}
		time.Sleep(time.Second)
		if d := b.entry("x").Disposition; d == nil || d.Outcome != store.Approved {
			t.Errorf("closed: %+v", d)
		}
	})
}

// owing fails to make rows while broken.
type owing struct {
	edge.Deliveries
	broken atomic.Bool
}

func (o *owing) Insert(ctx context.Context, rows []store.Delivery) ([]bool, error) {
	if o.broken.Load() {
		return nil, errDown
	}
	return o.Deliveries.Insert(ctx, rows)
}

// Between a review that was closed and its webhooks the edge may die or the store fail: the analyst's repeat makes them.
func TestARepeatOwesTheWebhooksThatAreMissing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	rows := &owing{Deliveries: memory.NewDeliveries()}
	e := r.edge("a", func(c *edge.Config) { c.Deliveries = rows })
	for _, id := range []string{"hears", "hears too", "deaf"} {
		events := map[bool][]string{true: {"endpoint.*"}}[id == "deaf"]
		if err := r.registry.PutEndpoint(t.Context(), store.Endpoint{ID: id, Tenant: "default", URL: "https://example.com/", Events: events, Payload: "thin", Status: "active"}); err != nil {
			t.Fatal(err)
		}
	}
	r.decided("default", []string{"x", "y"}, txn.Review)
	owes := func(want int) {
		t.Helper()
		list, _, err := rows.List(t.Context(), store.DeliveryQuery{Tenant: "default", Limit: 100})
		if err != nil || len(list) != want {
			t.Errorf("%d rows, want %d: %v", len(list), want, err)
		}
	}
	const wish = `{"disposition":"declined","note":"` + noteText + `"}`
	rows.broken.Store(true)
	for range 2 {
		if a := e.dispose("x", wish); a.status != http.StatusServiceUnavailable || a.slug() != "store" {
			t.Errorf("without rows: %d %s", a.status, a.body)
		}
	}
	rows.broken.Store(false)
	owes(0)
	for range 2 {
		if a := e.dispose("x", wish); a.status != http.StatusConflict || a.slug() != "conflict" {
			t.Errorf("the repeat: %d %s", a.status, a.body)
		}
		owes(2)
	}
	// What was closed long ago is told to nobody who came since.
	rows.broken.Store(true)
	e.dispose("y", wish)
	rows.broken.Store(false)
	r.clock.add(2 * time.Hour)
	if a := e.dispose("y", wish); a.status != http.StatusConflict {
		t.Errorf("later: %d %s", a.status, a.body)
	}
	owes(2)
}
