package edge_test

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"crivo/pkg/txn"
	"crivo/services/edge"
	"crivo/services/store"
	"crivo/streams/event"
)

const searches = "/v1/transactions/search"

// decided puts decisions into the store, one a second, the last the newest; the tenant has keys from an edge's start on.
func (r *rig) decided(tenant string, ids []string, decision string) {
	r.t.Helper()
	box, err := r.keys.Box(tenant)
	if err != nil {
		r.t.Fatal(err)
	}
	var all []store.Decide
	for i, id := range ids {
		tx, err := txn.Decode([]byte(r.payment(id)), r.clock.Now())
		if err != nil {
			r.t.Fatal(err)
		}
		at := r.clock.began.Add(time.Duration(i) * time.Second)
		d := decidedEvent(store.Claim{Key: store.Key{Tenant: tenant, ID: id}, Digest: "1.x", Run: 1, ClaimedAt: at, AcceptedAt: at, Deadline: at.Add(2 * time.Second)})
		if d.Tx, err = txn.Seal(box, tenant, tx); err != nil {
			r.t.Fatal(err)
		}
		d.Verdict.Decision = decision
		data, err := event.Encode(d)
		if err != nil {
			r.t.Fatal(err)
		}
		all = append(all, store.DecideOf(d, data))
	}
	if _, err := r.memory.Decide(r.t.Context(), all); err != nil {
		r.t.Fatal(err)
	}
}

func inOrder(n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprintf("n%04d", i)
	}
	return ids
}

// found is a page as a client reads it.
type found struct {
	Items []struct {
		ID string `json:"id"`
	} `json:"items"`
	Next string `json:"next_cursor"`
}

func (e *running) search(body string) found {
	e.t.Helper()
	a := e.do(http.MethodPost, searches, body)
	if a.status != http.StatusOK {
		e.t.Fatalf("%s: %d %s", body, a.status, a.body)
	}
	var out found
	if err := json.Unmarshal([]byte(a.body), &out); err != nil {
		e.t.Fatal(err)
	}
	return out
}

func TestACursorIsGoodForItsOwnSearchOnly(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := r.edge("a")
	e.made("/v1/tenants", `{"id":"acme"}`)
	acme := e.as(e.made("/v1/keys", `{"tenant":"acme","roles":["read"]}`).member("key"))
	r.decided("default", inOrder(5), txn.Review)
	r.decided("acme", inOrder(5), txn.Review)
	const document = `"document":"529.982.247-25","order":"oldest","limit":2`
	first := e.search(`{` + document + `}`)
	if len(first.Items) != 2 || first.Items[0].ID != "n0000" || strings.Contains(first.Next, "52998224725") {
		t.Fatalf("%+v", first)
	}
	if err := r.keys.Rotate("default"); err != nil {
		t.Fatal(err)
	}
	// Another spelling and another size are the same search, under a new key too; and what the old key sealed is found still.
	rest := e.search(`{"document":"52998224725","order":"oldest","limit":500,"cursor":"` + first.Next + `"}`)
	if len(rest.Items) != 3 || rest.Items[0].ID != "n0002" || rest.Next != "" {
		t.Errorf("%+v", rest)
	}
	flipped := []byte(first.Next)
	flipped[len(flipped)-1] ^= 1
	_, stores, _ := strings.Cut(first.Next, ".")
	_, stores, _ = strings.Cut(stores, ".")
	for name, tc := range map[string]struct {
		who    *running
		body   string
		cursor string
	}{
		"another tenant's":    {acme, document, first.Next},
		"another document's":  {e, `"document":"111.444.777-35","order":"oldest"`, first.Next},
		"no document's":       {e, `"order":"oldest"`, first.Next},
		"the other order's":   {e, `"document":"52998224725"`, first.Next},
		"one condition more":  {e, document + `,"disposition":"open"`, first.Next},
		"an account's":        {e, document + `,"account":{"number":"1"}`, first.Next},
		"another decision's":  {e, document + `,"decision":"review"`, first.Next},
		"another reason's":    {e, document + `,"reason":"NIGHT_LARGE"`, first.Next},
		"an earlier start":    {e, document + `,"from":"2020-01-01T00:00:00Z"`, first.Next},
		"a later end":         {e, document + `,"to":"2126-01-01T00:00:00Z"`, first.Next},
		"changed":             {e, document, string(flipped)},
		"unsigned":            {e, document, stores},
		"signed by nobody":    {e, document, "1." + stores},
		"nonsense":            {e, document, "CANARY"},
		"the form of another": {e, document, "1-0"},
	} {
		a := tc.who.do(http.MethodPost, searches, `{`+tc.body+`,"cursor":"`+tc.cursor+`"}`)
		if a.status != http.StatusUnprocessableEntity || !strings.Contains(a.body, `"pointer":"/cursor","code":"format"`) || strings.Contains(a.body, "CANARY") {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
}

func TestASearchThatIsWrongIsToldFieldByField(t *testing.T) {
	t.Parallel()
	e := newRig(t).edge("a")
	for body, want := range map[string]string{
		`{"document":"","decision":"CANARY","reason":"","disposition":"closed","order":"up","limit":0,"CANARY":1}`: "/CANARY unknown_field",
		`{"document":"","decision":"CANARY","reason":"","disposition":"closed","order":"up","limit":0}`:            "/document format, /decision format, /disposition format, /order format, /reason format, /limit range",
		`{"document":1,"from":"yesterday","limit":"many","cursor":7}`:                                              "/cursor type, /document type, /from type, /limit type",
		`{"limit":501}`:                                        "/limit range",
		`{"account":"1/2/3"}`:                                  "/account type",
		`{"account":{}}`:                                       "/account/number required",
		`{"account":{"number":7,"iban":"CANARY"}}`:             "/account/iban unknown_field, /account/number type",
		`{"account":{"number":"1234567890123456789012345"}}`:   "/account/number too_long",
		`{"decision":"approve","disposition":"open"}`:          "/disposition format",
		`{"document":"12345","account":{"ispb":"123456789"}} `: "/document format, /account/number required, /account/ispb too_long",
	} {
		a := e.do(http.MethodPost, searches, body)
		got := decode[struct {
			Errors txn.Faults `json:"errors"`
		}](t, a.body)
		if a.status != http.StatusUnprocessableEntity || got.Errors.Error() != want || strings.Contains(strings.ReplaceAll(a.body, "/CANARY", ""), "CANARY") {
			t.Errorf("%s: %d %s", body, a.status, a.body)
		}
	}
	if a := e.do(http.MethodPost, searches, `{"decision":"approve"}{}`); a.status != http.StatusBadRequest {
		t.Errorf("trailing data: %d", a.status)
	}
	if a := e.as("nobody").do(http.MethodPost, searches, `{}`); a.status != http.StatusUnauthorized {
		t.Errorf("without a key: %d", a.status)
	}
	if a := e.as(e.made("/v1/keys", `{"roles":["submit"]}`).member("key")).do(http.MethodPost, searches, `{}`); a.status != http.StatusForbidden {
		t.Errorf("without the role: %d", a.status)
	}
}

func TestAnExportIsAllThatIsFound(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := r.edge("a")
	ids := inOrder(1203)
	r.decided("default", ids, txn.Approve)
	for limit, want := range map[string][]string{``: ids, `,"limit":700`: ids[:700], `,"limit":500`: ids[:500], `,"limit":1000000`: ids} {
		a := e.do(http.MethodPost, searches, `{"order":"oldest"`+limit+`}`, "Accept", "text/csv;q=0.5, application/x-ndjson")
		var got []string
		for line := range strings.Lines(a.body) {
			got = append(got, decode[struct {
				ID string `json:"id"`
			}](t, line).ID)
		}
		if a.status != http.StatusOK || a.header.Get("Content-Type") != "application/x-ndjson" || !slices.Equal(want, got) {
			t.Errorf("%q: %d %v, %d lines", limit, a.status, a.header, len(got))
		}
		a = e.do(http.MethodPost, searches, `{"order":"oldest"`+limit+`}`, "Accept", "text/csv")
		rows, err := csv.NewReader(strings.NewReader(a.body)).ReadAll()
		if err != nil || a.header.Get("Content-Type") != "text/csv" || len(rows) != len(want)+1 || rows[len(want)][0] != want[len(want)-1] || rows[1][17] != "13725" {
			t.Errorf("%q: %d %v, %d rows, %v", limit, a.status, a.header, len(rows), err)
		}
	}
	if a := e.do(http.MethodPost, searches, `{"reason":"NOBODY"}`, "Accept", "text/csv"); a.status != http.StatusOK || strings.Count(a.body, "\r\n") != 1 || !strings.HasPrefix(a.body, "id,accepted_at,") {
		t.Errorf("of nothing: %d %q", a.status, a.body)
	}
}

// What breaks on the first page is a problem; later no client can take what it got for the whole.
func TestAnExportThatBreaksIsNotTakenForTheWhole(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := r.edge("a")
	r.decided("default", inOrder(1203), txn.Approve)
	for _, good := range []int64{0, 1, 2} {
		var pages atomic.Int64
		r.store.breaks("search", func(context.Context) error {
			if pages.Add(1) > good {
				return errDown
			}
			return nil
		})
		for _, kind := range []string{"text/csv", "application/x-ndjson"} {
			pages.Store(0)
			a, err := e.ask(http.MethodPost, searches, `{}`, "Accept", kind)
			if good == 0 && (err != nil || a.status != http.StatusServiceUnavailable || a.slug() != "store" || a.header.Get("Retry-After") == "") {
				t.Errorf("%s: %d %s, %v", kind, a.status, a.body, err)
			}
			if good > 0 && (!errors.Is(err, io.ErrUnexpectedEOF) || a.status != http.StatusOK || a.body == "") {
				t.Errorf("%s after %d pages: %d, %d bytes, %v", kind, good, a.status, len(a.body), err)
			}
		}
	}
	// A key that is withdrawn gets no further page.
	made := e.made("/v1/keys", `{"roles":["read"]}`)
	var pages atomic.Int64
	r.store.breaks("search", func(context.Context) error {
		if pages.Add(1) == 2 {
			_, err := e.ask(http.MethodDelete, "/v1/keys/"+made.member("id"), "")
			return err
		}
		return nil
	})
	if a, err := e.as(made.member("key")).ask(http.MethodPost, searches, `{}`, "Accept", "application/x-ndjson"); !errors.Is(err, io.ErrUnexpectedEOF) || strings.Count(a.body, "\n") != 500 {
		t.Errorf("without its key: %d, %d lines, %v", a.status, strings.Count(a.body, "\n"), err)
	}
}

func TestSoManyExportsAtOnceAndNoMore(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := r.edge("a")
	inside, leave := make(chan struct{}), make(chan struct{})
	r.store.breaks("search", func(context.Context) error {
		inside <- struct{}{}
		<-leave
		return nil
	})
	e.made("/v1/tenants", `{"id":"acme"}`)
	acme := e.as(e.made("/v1/keys", `{"tenant":"acme","roles":["read"]}`).member("key"))
	ended := make(chan int)
	// Whoever reads slowly leaves one for others.
	for _, tenant := range []struct {
		who   *running
		seats int
	}{{e, 3}, {acme, 1}} {
		for range tenant.seats {
			go func() {
				a, _ := tenant.who.ask(http.MethodPost, searches, `{}`, "Accept", "text/csv")
				ended <- a.status
			}()
			<-inside
		}
		if a := tenant.who.do(http.MethodPost, searches, `{}`, "Accept", "text/csv"); a.status != http.StatusServiceUnavailable || a.slug() != "overload" || a.header.Get("Retry-After") == "" {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	close(leave)
	for range 4 {
		if status := <-ended; status != http.StatusOK {
			t.Error(status)
		}
	}
	r.store.breaks("search", nil)
	if a := e.do(http.MethodPost, searches, `{}`, "Accept", "text/csv"); a.status != http.StatusOK {
		t.Errorf("afterwards: %d", a.status)
	}
}

func TestACellIsNoFormula(t *testing.T) {
	for cell, want := range map[string]string{
		"": "", "ord-10023": "ord-10023", "2026-11-22T23:05:11.640Z": "2026-11-22T23:05:11.640Z", "a=b, c-d": "a=b, c-d",
		"=1+1": "'=1+1", "-2": "'-2", "+2": "'+2", "@SUM(1)": "'@SUM(1)", "\t=1": "\t'=1", "  =1": "'  =1", "＝1": "'＝1", "\r\n=1": "\r\n'=1",
		"a,=1": "a,'=1", "a;=1": "a;'=1", "a; =1": "a;' =1", `a"=1`: `a"'=1`, "a\n=1": "a\n'=1", "a|-1": "a|'-1", "a;\n-1": "a;\n'-1",
	} {
		if got := edge.Harmless(cell); got != want {
			t.Errorf("%q became %q, want %q", cell, got, want)
		}
	}
}

func TestTheKindOfAnExportIsWhatIsPreferred(t *testing.T) {
	for accept, want := range map[string]string{
		"": "", "*/*": "", "application/json": "", "image/png": "", "text/csv": "text/csv", "TEXT/CSV; charset=utf-8": "text/csv", "text/*": "text/csv",
		"application/x-ndjson": "application/x-ndjson", "text/csv, */*;q=0.1": "text/csv", "application/json, text/csv;q=0.9": "", "text/csv;q=0": "",
		"text/csv;q=0.2, application/x-ndjson;q=0.3": "application/x-ndjson", "text/html;a=\"b,text/csv\"": "", "application/json;q=x, text/csv": "",
	} {
		if got := edge.ExportKind([]string{accept}); got != want {
			t.Errorf("%q: %q, want %q", accept, got, want)
		}
	}
}
