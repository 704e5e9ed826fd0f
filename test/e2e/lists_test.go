package e2e_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

const entries = "/v1/lists/block/entries"

// sees decides transactions of body, which takes an id, until the block list says status of one: it is in force everywhere soon,
// not at once. (So many at once are also suspect, so that what is clear is not always approved.)
func (c client) sees(t *testing.T, status, body string) {
	t.Helper()
	var last answer
	await(t, status, func() bool {
		last = c.decided(t, fmt.Sprintf(body, newID()))
		return bytes.Contains(last.body, []byte(`{"name":"blocklist","status":"`+status+`"`))
	})
	if declined := last.text("decision") == "decline"; declined != (status == "hit") || declined != bytes.Contains(last.body, []byte(`"code":"LIST_HIT_INTERNAL"`)) {
		t.Errorf("%s: %s", status, last.body)
	}
}

// payer is the body of a transaction of a payer.
func payer(members string) string {
	return `{"id":%q,"type":"pix","amount":1,"currency":"BRL","created_at":"` + now.Format(time.RFC3339) + `","payer":{` + members + `}}`
}

func TestWhoIsPutOnTheBlockListIsDeclinedUntilTakenOff(t *testing.T) {
	t.Parallel()
	c, other := newTenant(t), newTenant(t)
	body := payer(`"document":"529.982.247-25"`)
	if before := c.decided(t, fmt.Sprintf(body, newID())); before.text("decision") != "approve" {
		t.Fatalf("before: %s", before.body)
	}
	made := c.post(t, entries, `{"kind":"document","value":"52998224725","reason":"chargebacks"}`).want(t, http.StatusCreated)
	c.sees(t, "hit", body)
	if foreign := other.decided(t, fmt.Sprintf(body, newID())); foreign.text("decision") != "approve" {
		t.Errorf("another tenant's: %s", foreign.body)
	}
	if again := c.post(t, entries, `{"kind":"document","value":"529.982.247-25"}`).want(t, http.StatusCreated); again.text("id") != made.text("id") {
		t.Errorf("the same value is another entry: %s", again.body)
	}
	c.send(t, http.MethodDelete, entries+"/"+made.text("id"), nil, "").want(t, http.StatusNoContent)
	c.sees(t, "clear", body)
	c.send(t, http.MethodDelete, entries+"/"+made.text("id"), nil, "").problem(t, http.StatusNotFound, "not-found")
}

func TestAnEntryEndsWhenItSays(t *testing.T) {
	t.Parallel()
	c := newTenant(t)
	body := payer(`"customer_id":"c-ending"`)
	c.post(t, entries, `{"kind":"customer_id","value":"c-ending"}`).want(t, http.StatusCreated)
	c.sees(t, "hit", body)
	patient(t, func() answer { // each repeat is as long before the end
		ends := time.Now().Add(5 * time.Second).UTC().Format(time.RFC3339Nano)
		body := fmt.Sprintf(`{"kind":"customer_id","value":"c-ending","expires_at":%q}`, ends)
		return c.sendOnce(t, http.MethodPost, entries, strings.NewReader(body), body)
	}).want(t, http.StatusCreated)
	c.sees(t, "clear", body)
}

func TestEntriesComeInPagesAndNeverTellTheirValues(t *testing.T) {
	t.Parallel()
	c, other := newTenant(t), newTenant(t)
	const canary = "CANARY-listed-customer"
	var want []string
	for n := range 3 {
		a := c.post(t, entries, fmt.Sprintf(`{"kind":"customer_id","value":"%s-%d","reason":"r%d"}`, canary, n, n)).want(t, http.StatusCreated)
		want = append(want, a.text("id"))
	}
	slices.Reverse(want)
	var seen []string
	for cursor := ""; ; {
		var page struct {
			Items []struct {
				ID      string `json:"id"`
				AddedBy string `json:"added_by"`
			} `json:"items"`
			Next string `json:"next_cursor"`
		}
		a := c.get(t, entries+"?limit=2&cursor="+cursor).want(t, http.StatusOK)
		a.decode(t, &page)
		for _, x := range page.Items {
			seen = append(seen, x.ID)
		}
		if cursor = page.Next; cursor == "" {
			break
		}
	}
	if !slices.Equal(want, seen) {
		t.Errorf("listed %v, want %v", seen, want)
	}
	if a := other.get(t, entries).want(t, http.StatusOK); string(a.body) != `{"items":[],"next_cursor":null}` {
		t.Errorf("another tenant lists %s", a.body)
	}
	other.send(t, http.MethodDelete, entries+"/"+want[0], nil, "").problem(t, http.StatusNotFound, "not-found")
	c.get(t, "/v1/lists/allow/entries").problem(t, http.StatusNotFound, "not-found")
	c.get(t, entries+"?cursor=nonsense").problem(t, http.StatusBadRequest, "cursor")
	c.sees(t, "hit", payer(`"customer_id":"`+canary+`-0"`))
	noWhere(t, canary)
}

func TestAnEntryThatIsWrongIsToldFieldByField(t *testing.T) {
	t.Parallel()
	c := newTenant(t)
	for body, want := range map[string][]string{
		`{}`:                                       {"/kind required", "/value required"},
		`{"kind":"iban","value":"x"}`:              {"/kind format"},
		`{"kind":"document","value":"12345"}`:      {"/value format"},
		`{"kind":"ip","value":"203.0.113.0/25"}`:   {"/value format"},
		`{"kind":"account","value":"1044266"}`:     {"/value format"},
		`{"kind":"device_id","value":1,"more":""}`: {"/more unknown_field", "/value type"},
		`{"kind":"device_id","value":"` + strings.Repeat("x", 129) + `","expires_at":"2020-01-01T00:00:00Z"}`: {"/expires_at range", "/value too_long"},
	} {
		a := c.post(t, entries, body).problem(t, http.StatusUnprocessableEntity, "invalid")
		if got := a.faults(t); !slices.Equal(got, want) || bytes.Contains(a.body, []byte("12345")) || bytes.Contains(a.body, []byte("1044266")) {
			t.Errorf("%s: %s", body, a.body)
		}
	}
}

func TestEveryDecisionsRuleSetCanBeRead(t *testing.T) {
	t.Parallel()
	c := newTenant(t)
	var made struct {
		RuleSet struct {
			Name    string `json:"name"`
			Version int    `json:"version"`
			Digest  string `json:"digest"`
		} `json:"rule_set"`
	}
	c.decided(t, payment(newID())).decode(t, &made)
	path := fmt.Sprintf("/v1/rule-sets/%s/%d", made.RuleSet.Name, made.RuleSet.Version)
	var listed struct {
		Items []struct {
			Digest string `json:"digest"`
		} `json:"items"`
	}
	c.get(t, "/v1/rule-sets").want(t, http.StatusOK).decode(t, &listed)
	set := c.get(t, path).want(t, http.StatusOK)
	sum := sha256.Sum256([]byte(set.text("source")))
	digest := "sha256:" + hex.EncodeToString(sum[:])
	if made.RuleSet.Digest != digest || set.text("digest") != digest || len(listed.Items) != 1 || listed.Items[0].Digest != digest {
		t.Errorf("decided by %+v, shown %s, listed %+v", made.RuleSet, set.body, listed)
	}
	c.get(t, "/v1/rule-sets/default/0").problem(t, http.StatusNotFound, "not-found")
	c.get(t, "/v1/rule-sets/default/latest").problem(t, http.StatusNotFound, "not-found")
}
