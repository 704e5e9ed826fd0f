package e2e_test

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

const (
	batchPath = "/v1/transactions/batch"
	ndjson    = "application/x-ndjson"
)

// outcome is what a batch's answer says of one item.
type outcome struct {
	Index    int            `json:"index"`
	ID       string         `json:"id"`
	Status   int            `json:"status"`
	Location string         `json:"location"`
	Replayed bool           `json:"idempotent_replayed"`
	Body     jsontext.Value `json:"body"`
	Type     string         `json:"type"`
	Detail   string         `json:"detail"`
	Retry    int            `json:"retry_after"`
	Errors   []struct {
		Pointer string `json:"pointer"`
		Code    string `json:"code"`
	} `json:"errors"`
}

// taken tells whether the item was accepted, now or before.
func (o outcome) taken() bool { return o.Status == http.StatusAccepted || o.Status == http.StatusOK }

// faults are "pointer code" of each.
func (o outcome) faults() (out []string) {
	for _, e := range o.Errors {
		out = append(out, e.Pointer+" "+e.Code)
	}
	slices.Sort(out)
	return out
}

func array(items ...string) string { return "[" + strings.Join(items, ",") + "]" }

// batch sends a batch as it is. What the document is held against is a sound one, since an item may be wrong on purpose.
func (c client) batch(t *testing.T, body []byte, headers ...string) []outcome {
	t.Helper()
	a := c.send(t, http.MethodPost, batchPath, bytes.NewReader(body), array(payment("x")), headers...).want(t, http.StatusMultiStatus)
	var page struct {
		Items []outcome `json:"items"`
	}
	a.decode(t, &page)
	return page.Items
}

// patientBatch is batch until no item is told to come later; again says that some were.
func (c client) patientBatch(t *testing.T, body []byte, headers ...string) (items []outcome, again bool) {
	t.Helper()
	for range 60 {
		items = c.batch(t, body, headers...)
		later := slices.IndexFunc(items, func(o outcome) bool { return o.Status == http.StatusServiceUnavailable })
		if later < 0 {
			return items, again
		}
		if items[later].Retry < 1 {
			t.Fatalf("a 503 that does not say when: %+v", items[later])
		}
		again = true
		time.Sleep(time.Duration(items[later].Retry) * time.Second)
	}
	t.Fatalf("too busy: %+v", items)
	return nil, false
}

func TestE17ABatchIsAnsweredItemByItem(t *testing.T) {
	t.Parallel()
	for name, form := range map[string]struct {
		join    func(...string) string
		headers []string
		pack    bool
	}{
		"an array":        {array, nil, false},
		"an array, gzip":  {array, []string{"Content-Encoding", "gzip"}, true},
		"lines":           {func(s ...string) string { return strings.Join(s, "\n") }, []string{"Content-Type", ndjson}, false},
		"blank lines too": {func(s ...string) string { return "\r\n" + strings.Join(s, "\r\n \n\t\r\n") + "\r\n\n" }, []string{"Content-Type", ndjson + "; charset=utf-8"}, false},
		"lines, gzip":     {func(s ...string) string { return strings.Join(s, "\n") + "\n" }, []string{"Content-Type", ndjson, "Content-Encoding", "gzip"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, a, b := newTenant(t), newID(), newID()
			bodies := []struct {
				body, id string
				want     int // 0: accepted
				faults   []string
			}{
				{payment(a), a, 0, nil},
				{`{"id":"CANARY-id","type":"CANARY-type","amount":-1,"currency":"BRL","created_at":"CANARY-time","payer":{}}`, "CANARY-id", 422,
					[]string{"/amount range", "/created_at format", "/payer required", "/type format"}},
				{payment(b), b, 0, nil},
				{`7`, "", 400, nil},
				{with(payment("x"), `"id":"y"`), "", 400, nil},
				{with(payment("x"), `"description":"`+strings.Repeat("x", 64<<10)+`"`), "", 413, nil},
				{payment(a), a, 0, nil},
				{strings.Replace(payment(a), "13725", "13726", 1), a, 409, nil},
				{strings.Replace(payment("x"), `"x"`, `"CANARY id"`, 1), "", 422, []string{"/id format"}},
			}
			var texts []string
			for _, b := range bodies {
				texts = append(texts, b.body)
			}
			body := []byte(form.join(texts...))
			if form.pack {
				body = packed(t, string(body))
			}
			items, again := c.patientBatch(t, body, form.headers...)
			if len(items) != len(bodies) {
				t.Fatalf("%d answers for %d items: %+v", len(items), len(bodies), items)
			}
			for i, got := range items {
				want := bodies[i]
				if got.Index != i || got.ID != want.id || want.want != 0 && got.Status != want.want || want.want == 0 && !got.taken() || !slices.Equal(got.faults(), want.faults) {
					t.Errorf("%d: %+v, want %+v", i, got, want)
				}
				if got.Status == http.StatusAccepted && got.Location != "/v1/transactions/"+want.id {
					t.Errorf("%d: location %q", i, got.Location)
				}
				if (got.Detail == "" || !strings.HasPrefix(got.Type, "urn:crivo:")) != got.taken() || strings.Contains(fmt.Sprint(got.Detail, got.Errors), "CANARY") {
					t.Errorf("%d: %+v", i, got)
				}
			}
			if !again && (items[0].Replayed || !items[6].Replayed) {
				t.Errorf("of two with one id the second is the repeat: %+v, %+v", items[0], items[6])
			}
			decision := c.get(t, "/v1/transactions/"+a, "Prefer", "wait=10").want(t, http.StatusOK)
			c.get(t, "/v1/transactions/"+b, "Prefer", "wait=10").want(t, http.StatusOK)
			repeat, _ := c.patientBatch(t, []byte(array(payment(a))))
			if len(repeat) != 1 || repeat[0].Status != http.StatusOK || !repeat[0].Replayed || !bytes.Equal(repeat[0].Body, decision.body) {
				t.Errorf("once decided %+v\n%s", repeat, decision.body)
			}
			c.announced(t, 2)
		})
	}
}

func TestE17ManyAtOnceAreDecidedOnce(t *testing.T) {
	t.Parallel()
	c := newTenant(t)
	var left []int // not taken yet: what was refused for now is sent again, alone
	for i := range 100 {
		left = append(left, i)
	}
	for tries := 0; len(left) > 0; tries++ {
		if tries > 60 {
			t.Fatalf("%d are never taken", len(left))
		}
		var bodies []string
		for _, i := range left {
			bodies = append(bodies, payment(fmt.Sprintf("many-%d", i)))
		}
		var refused []int
		for k, o := range c.batch(t, []byte(strings.Join(bodies, "\n")), "Content-Type", ndjson) {
			switch {
			case o.Index != k || o.ID != fmt.Sprintf("many-%d", left[k]):
				t.Errorf("%d: %+v", left[k], o)
			case o.Status == http.StatusServiceUnavailable:
				refused = append(refused, left[k])
			case !o.taken():
				t.Errorf("%d: %+v", left[k], o)
			}
		}
		if left = refused; len(left) > 0 {
			time.Sleep(time.Second)
		}
	}
	c.announced(t, 100)
}

func TestE17ABatchThatIsNoneIsRefusedWhole(t *testing.T) {
	t.Parallel()
	c, good := newTenant(t), payment("good")
	line := good + "\n"
	large := strings.Repeat(line+strings.Repeat(" ", 8<<10)+"\n", 520)
	for name, f := range map[string]struct {
		body    string
		headers []string
		status  int
		slug    string
	}{
		"broken":                {"[" + good, nil, 400, "malformed"},
		"broken in an item":     {"[" + good + `,{"id":]`, nil, 400, "malformed"},
		"no array":              {good, nil, 400, "malformed"},
		"nothing":               {" ", nil, 400, "malformed"},
		"trailing data":         {array(good) + "x", nil, 400, "malformed"},
		"two arrays":            {array(good) + array(), nil, 400, "malformed"},
		"a comma too many":      {"[" + good + ",]", nil, 400, "malformed"},
		"no comma":              {"[" + good + good + "]", nil, 400, "malformed"},
		"too many items":        {"[" + strings.Repeat(good+",", 1000) + good + "]", nil, 413, "too-large"},
		"too many lines":        {strings.Repeat(line, 1001), []string{"Content-Type", ndjson}, 413, "too-large"},
		"too large":             {large, []string{"Content-Type", ndjson}, 413, "too-large"},
		"too large, unpacked":   {string(packed(t, large)), []string{"Content-Type", ndjson, "Content-Encoding", "gzip"}, 413, "too-large"},
		"another media type":    {array(good), []string{"Content-Type", "text/csv"}, 415, "media-type"},
		"no media type":         {array(good), []string{"Content-Type", ""}, 415, "media-type"},
		"an unknown coding":     {array(good), []string{"Content-Encoding", "br"}, 415, "media-type"},
		"gzip that breaks off":  {string(packed(t, array(good)))[:60], []string{"Content-Encoding", "gzip"}, 400, "malformed"},
		"gzip that is no gzip ": {array(good), []string{"Content-Encoding", "gzip"}, 400, "malformed"},
	} {
		t.Run(name, func(t *testing.T) {
			c.send(t, http.MethodPost, batchPath, strings.NewReader(f.body), "", f.headers...).problem(t, f.status, f.slug)
		})
	}
	if n := submitted(t, c.tenant); n != 0 {
		t.Errorf("%d messages", n)
	}
	for kind, body := range map[string]string{"application/json": " [ ] ", ndjson: "\n"} {
		if items := c.batch(t, []byte(body), "Content-Type", kind); items == nil || len(items) != 0 {
			t.Errorf("of an empty batch: %v", items)
		}
	}
}

func TestE17TheRateOfAKeyCountsItems(t *testing.T) {
	t.Parallel()
	c := newTenant(t)
	c = c.as(operator().newKey(t, c.tenant, `,"rate":3`, "submit"))
	var bodies []string
	for range 60 {
		bodies = append(bodies, payment(newID()))
	}
	items := c.batch(t, []byte(array(bodies...)))
	limited := 0
	for i, o := range items {
		switch {
		case o.Status == http.StatusTooManyRequests && i < 3:
			t.Errorf("%d is within the rate: %+v", i, o)
		case o.Status == http.StatusTooManyRequests && (o.Type != "urn:crivo:rate" || o.Retry != 1 || o.ID != ""):
			t.Errorf("%d: %+v", i, o)
		case o.Status == http.StatusTooManyRequests:
			limited++
		case !o.taken() && o.Status != http.StatusServiceUnavailable:
			t.Errorf("%d: %+v", i, o)
		}
	}
	if limited == 0 {
		t.Error("sixty at once at three a second")
	}
}
