package e2e_test

import (
	"bytes"
	"encoding/csv"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
)

const searches = "/v1/transactions/search"

// found is a page as a client reads it.
type found struct {
	Items []struct {
		ID          string `json:"id"`
		Decision    string `json:"decision"`
		Disposition string `json:"disposition"`
		Transaction struct {
			Amount   int64  `json:"amount"`
			Currency string `json:"currency"`
		} `json:"transaction"`
	} `json:"items"`
	Next *string `json:"next_cursor"`
}

func (f found) ids() []string {
	out := []string{}
	for _, x := range f.Items {
		out = append(out, x.ID)
	}
	return out
}

func (c client) search(t *testing.T, body string) (out found) {
	t.Helper()
	c.post(t, searches, body).want(t, http.StatusOK).decode(t, &out)
	return out
}

// person is the body of a transaction between two people, who are told apart by their document and account.
func person(id, payer, account, payee string, amount int) string {
	return fmt.Sprintf(`{"id":%q,"type":"pix","amount":%d,"currency":"BRL","created_at":%q,"payer":{"document":%q,
		"account":{"ispb":"12345678","branch":"0001","number":%q}},"payee":{"document":%q}}`, id, amount, now.Format(time.RFC3339), payer, account, payee)
}

// Documents; the check digits of the last are wrong, which is a review.
const ana, bruno, carla = "529.982.247-25", "111.444.777-35", "529.982.247-26"

func TestASearchFindsByWhatIsKeptSealed(t *testing.T) {
	t.Parallel()
	c, other := newTenant(t), newTenant(t)
	a, b, d := newID(), newID(), newID()
	c.decided(t, person(a, ana, "1044266", bruno, 100))
	c.decided(t, person(b, bruno, "7", ana, 200))
	review := c.decided(t, person(d, carla, "1044266", bruno, 300))
	foreign := newID()
	other.decided(t, person(foreign, ana, "1044266", bruno, 400))
	if review.text("decision") != "review" {
		t.Fatalf("decided %s", review.body)
	}
	whole := c.search(t, `{}`)
	if !slices.Equal(whole.ids(), []string{d, b, a}) || whole.Next != nil || whole.Items[0].Transaction.Amount != 300 || whole.Items[0].Transaction.Currency != "BRL" {
		t.Errorf("everything: %+v", whole)
	}
	for conditions, want := range map[string][]string{
		`"document":"52998224725"`:                                                                  {b, a}, // as payee and as payer
		`"document":"529.982.247-25","order":"oldest"`:                                              {a, b},
		`"document":"529.982.247-26"`:                                                               {d},
		`"account":{"ispb":"12345678","branch":"0001","number":"1044266"}`:                          {d, a},
		`"account":{"ispb":"12345678","branch":"0001","number":"1044266"},"document":"` + ana + `"`: {a},
		`"account":{"number":"1044266"}`:                                                            {},
		`"document":"` + bruno + `","decision":"review"`:                                            {d},
		`"decision":"review"`:                                                                       {d},
		`"disposition":"open"`:                                                                      {d},
		`"disposition":"open","document":"` + ana + `"`:                                             {},
		`"reason":"DOCUMENT_INVALID"`:                                                               {d},
		`"reason":"DOCUMENT_INVALID","decision":"decline"`:                                          {},
		`"to":"2020-01-01T00:00:00Z"`:                                                               {},
		`"from":"2020-01-01T00:00:00Z","to":"2126-01-01T00:00:00+03:00"`:                            {d, b, a},
	} {
		if got := c.search(t, `{`+conditions+`}`); !slices.Equal(got.ids(), want) {
			t.Errorf("%s: %v, want %v", conditions, got.ids(), want)
		}
	}
	first := c.search(t, `{"limit":2}`)
	if !slices.Equal(first.ids(), []string{d, b}) || first.Next == nil {
		t.Fatalf("the first page: %+v", first)
	}
	if rest := c.search(t, fmt.Sprintf(`{"limit":2,"cursor":%q}`, *first.Next)); !slices.Equal(rest.ids(), []string{a}) || rest.Next != nil {
		t.Errorf("the second page: %+v", rest)
	}
	for _, who := range []client{other, c} {
		a := who.post(t, searches, fmt.Sprintf(`{"decision":"approve","cursor":%q}`, *first.Next)).problem(t, http.StatusUnprocessableEntity, "invalid")
		if got := a.faults(t); !slices.Equal(got, []string{"/cursor format"}) {
			t.Errorf("the cursor of another search: %v", got)
		}
	}
	if got := other.search(t, `{"document":"`+ana+`"}`); !slices.Equal(got.ids(), []string{foreign}) {
		t.Errorf("another tenant finds %v", got.ids())
	}
	c.as(operator().newKey(t, c.tenant, "", "submit")).post(t, searches, `{}`).problem(t, http.StatusForbidden, "forbidden")
	if a, _, err := c.exchange(http.MethodGet, searches, nil); err != nil || a.status != http.StatusNotFound { // a transaction may have this id
		t.Errorf("a transaction called search: %d %s, %v", a.status, a.body, err)
	}
}

func TestAnExportIsWholeAndHarmless(t *testing.T) {
	t.Parallel()
	c := newTenant(t)
	ids := []string{"-" + newID(), newID()}
	for _, id := range ids {
		c.decided(t, person(id, carla, "1", bruno, 100))
	}
	const note = `=HYPERLINK("http://evil.example/";"x");` + "\n" + `-1, "quoted"`
	body, err := json.Marshal(map[string]string{"disposition": "approved", "note": note})
	if err != nil {
		t.Fatal(err)
	}
	c.dispose(t, ids[0], string(body)).want(t, http.StatusOK)
	a := c.post(t, searches, `{"order":"oldest"}`, "Accept", "text/csv").want(t, http.StatusOK)
	rows, err := csv.NewReader(bytes.NewReader(a.body)).ReadAll()
	if err != nil || len(rows) != 3 {
		t.Fatalf("%s: %v", a.body, err)
	}
	cell := func(row int, name string) string { return rows[row][slices.Index(rows[0], name)] }
	if cell(1, "id") != "'"+ids[0] || cell(2, "id") != ids[1] || cell(1, "amount") != "100" || cell(1, "reasons") != "DOCUMENT_INVALID" || cell(1, "disposition") != "approved" ||
		cell(2, "disposition") != "" || cell(1, "note") != "'"+strings.Replace(note, "\n-1", "\n'-1", 1) {
		t.Errorf("%s", a.body)
	}
	lines := c.unchecked(t, searches, `{"order":"oldest","limit":1}`, "Accept", "application/x-ndjson").want(t, http.StatusOK)
	if n := bytes.Count(lines.body, []byte("\n")); n != 1 || lines.text("id") != ids[0] || lines.text("note") != note {
		t.Errorf("%d lines: %s", n, lines.body)
	}
	c.post(t, searches, `{"limit":0}`, "Accept", "text/csv").problem(t, http.StatusUnprocessableEntity, "invalid")
}

// unchecked is post for an answer of lines, which a validator of JSON cannot read.
func (c client) unchecked(t *testing.T, path, body string, headers ...string) answer {
	t.Helper()
	return patient(t, func() answer {
		a, _, err := c.exchange(http.MethodPost, path, strings.NewReader(body), headers...)
		if err != nil {
			t.Fatal(err)
		}
		return a
	})
}

// dispose closes a review. Where a 503 came first the act may have been done by then, which a repeat is told by a 409.
func (c client) dispose(t *testing.T, id, body string) answer {
	t.Helper()
	a := c.post(t, "/v1/transactions/"+id+"/disposition", body)
	if a.status == http.StatusConflict && a.repeats > 0 {
		return c.get(t, "/v1/transactions/"+id)
	}
	return a
}

func TestAnAnalystClosesAReviewOnce(t *testing.T) {
	t.Parallel()
	c, other := newTenant(t), newTenant(t)
	id, fine := newID(), newID()
	brief, whole := c.receive(t, `,"events":["transaction.disposed"]`), c.receive(t, `,"events":["transaction.disposed"],"payload":"full"`)
	body := person(id, carla, "1", bruno, 100)
	before, approved := c.decided(t, body), c.decided(t, person(fine, ana, "1", bruno, 100))
	if before.text("decision") != "review" || approved.text("decision") != "approve" {
		t.Fatalf("decided %s and %s", before.body, approved.body)
	}
	const wish = `{"disposition":"approved","note":"CANARY-note: Carla called back"}`
	other.dispose(t, id, wish).problem(t, http.StatusNotFound, "not-found")
	c.dispose(t, newID(), wish).problem(t, http.StatusNotFound, "not-found")
	c.dispose(t, fine, wish).problem(t, http.StatusConflict, "conflict")
	c.as(operator().newKey(t, c.tenant, "", "read", "submit")).dispose(t, id, wish).problem(t, http.StatusForbidden, "forbidden")
	a := c.dispose(t, id, `{"disposition":"perhaps","because":1}`).problem(t, http.StatusUnprocessableEntity, "invalid")
	if got := a.faults(t); !slices.Equal(got, []string{"/because unknown_field"}) {
		t.Errorf("faults %v", got)
	}
	if queue := c.search(t, `{"disposition":"open"}`); !slices.Equal(queue.ids(), []string{id}) {
		t.Errorf("the queue: %v", queue.ids())
	}
	closed := c.dispose(t, id, wish).want(t, http.StatusOK)
	if !bytes.HasPrefix(closed.body, bytes.TrimSuffix(before.body, []byte("}"))) || closed.text("disposition") != "approved" || !strings.HasPrefix(closed.text("note"), "CANARY-note") ||
		closed.text("disposed_by") == "" || closed.text("disposed_at") == "" {
		t.Errorf("closed: %s", closed.body)
	}
	if got := c.get(t, "/v1/transactions/"+id, "Prefer", "wait=1").want(t, http.StatusOK); !bytes.Equal(got.body, closed.body) {
		t.Errorf("got later: %s", got.body)
	}
	if again := c.submit(t, body).want(t, http.StatusOK); !bytes.Equal(again.body, before.body) {
		t.Errorf("the decision became %s", again.body)
	}
	for _, second := range []string{wish, `{"disposition":"declined"}`} {
		c.post(t, "/v1/transactions/"+id+"/disposition", second).problem(t, http.StatusConflict, "conflict")
	}
	if queue := c.search(t, `{"disposition":"open"}`); len(queue.Items) != 0 {
		t.Errorf("the queue: %v", queue.ids())
	}
	told, want := brief.first(t), fmt.Sprintf(`{"type":"transaction.disposed","timestamp":%[1]q,"data":{"id":%[2]q,"decision":"review","disposition":"approved","disposed_at":%[1]q}}`,
		closed.text("disposed_at"), id)
	if string(told.body) != want {
		t.Errorf("told %s, want %s", told.body, want)
	}
	if all := whole.first(t); !bytes.Contains(all.body, []byte(`"disposed_by":"key_`)) || !bytes.Contains(all.body, []byte(`"reasons":[{`)) || bytes.Contains(all.body, []byte("note")) {
		t.Errorf("told %s", all.body)
	}
	for _, r := range []*receiver{brief, whole} {
		if rows := c.deliveries(t, r.id); len(rows) != 1 {
			t.Errorf("%d deliveries of one disposition", len(rows))
		}
	}
	if done := c.search(t, `{"disposition":"approved"}`); !slices.Equal(done.ids(), []string{id}) || done.Items[0].Decision != "review" || done.Items[0].Disposition != "approved" {
		t.Errorf("what was closed: %+v", done)
	}
	noWhere(t, "CANARY-note")
}

// noWhere sees that a text stands in no file of the system and in nothing that it said.
func noWhere(t *testing.T, canary string) {
	t.Helper()
	if strings.Contains(said.String(), canary) {
		t.Errorf("the log tells %s", canary)
	}
	err := filepath.WalkDir(crivo.Data, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil
		}
		if data, err := os.ReadFile(path); err == nil && bytes.Contains(data, []byte(canary)) {
			t.Errorf("%s tells %s", path, canary)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
