package e2e_test

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"crivo/streams"
	"crivo/streams/event"
	"crivo/test/system"
)

func TestE01AValidBodyIsAccepted(t *testing.T) {
	t.Parallel()
	c := newTenant(t)
	var id string
	var a answer
	await(t, "an answer in time", func() bool { // what was refused may be decided by now
		id = newID()
		a = c.submit(t, payment(id))
		return a.repeats == 0
	})
	a.want(t, http.StatusAccepted)
	if a.header.Get("Location") != "/v1/transactions/"+id || string(a.body) != fmt.Sprintf(`{"id":%q,"status":"processing"}`, id) || a.replayed() {
		t.Errorf("got %v %s", a.header, a.body)
	}
	c.get(t, a.header.Get("Location")).want(t, http.StatusOK)
	js, err := jetstream.New(connect(t))
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(t.Context(), streams.Submitted)
	if err != nil {
		t.Fatal(err)
	}
	m, err := stream.GetLastMsgForSubject(t.Context(), streams.Subject(streams.EventSubmitted, c.tenant))
	if err != nil {
		t.Fatalf("the message: %v", err)
	}
	s, err := event.Decode[event.Submitted](m.Data)
	if err != nil || s.ID != id || s.Tenant != c.tenant || bytes.Contains(m.Data, []byte("52998224725")) || bytes.Contains(m.Data, []byte("529.982")) {
		t.Errorf("message %s, %v", m.Data, err)
	}
}

func TestEveryFieldOfTheContractIsAccepted(t *testing.T) {
	t.Parallel()
	c := newTenant(t)
	for name, body := range map[string]string{"the document's own example": strings.Replace(exampleOf(t, "pix"), "ord-10024", newID(), 1),
		"everything null that may be": with(payment(newID()), `"payee":null,"metadata":null,"geo":null,"channel":null`)} {
		a := c.submitUnchecked(t, body, "Prefer", "wait=10")
		if a.status != http.StatusOK || a.text("status") != "decided" {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
}

func TestE03AnIDThatIsMissingOrMalformed(t *testing.T) {
	t.Parallel()
	c := newTenant(t)
	for name, id := range map[string]string{"missing": ``, "null": `"id":null,`, "empty": `"id":"",`, "a slash": `"id":"a/b",`, "a space": `"id":"a b",`,
		"not ASCII": `"id":"ação",`, "65 characters": `"id":"` + strings.Repeat("x", 65) + `",`, "a number": `"id":7,`} {
		_, rest, _ := strings.Cut(payment("x"), ",")
		a := c.submit(t, "{"+id+rest).problem(t, http.StatusUnprocessableEntity, "invalid")
		if got := a.faults(t); len(got) != 1 || !strings.HasPrefix(got[0], "/id ") {
			t.Errorf("%s: %v", name, got)
		}
	}
	if n := submitted(t, c.tenant); n != 0 {
		t.Errorf("%d messages", n)
	}
	c.get(t, "/v1/transactions/a%20b").problem(t, http.StatusNotFound, "not-found")
}

func TestAnIDMayBeEscapedInItsPath(t *testing.T) {
	t.Parallel()
	c, id := newTenant(t), newID()+":a.b_c-d"
	c.submit(t, payment(id)).accepted(t)
	for _, path := range []string{id, strings.ReplaceAll(id, ":", "%3A"), strings.ReplaceAll(id, "-", "%2D")} {
		if a := c.get(t, "/v1/transactions/"+path).want(t, http.StatusOK); a.text("id") != id {
			t.Errorf("%s: %s", path, a.body)
		}
	}
}

func TestE04TheSameAgainIsTheSameTransaction(t *testing.T) {
	t.Parallel()
	c, id := newTenant(t), newID()
	c.submit(t, payment(id)).accepted(t)
	if again := c.submit(t, payment(id)); again.status != http.StatusAccepted && again.status != http.StatusOK || again.header.Get("Idempotent-Replayed") != "true" {
		t.Errorf("at once: %d %v", again.status, again.header)
	}
	decision := c.get(t, "/v1/transactions/"+id, "Prefer", "wait=10").want(t, http.StatusOK)
	if decision.text("decision") != "approve" {
		t.Fatalf("decision %s", decision.body)
	}
	for range 3 {
		a := c.submit(t, payment(id)).want(t, http.StatusOK)
		if a.header.Get("Idempotent-Replayed") != "true" || !bytes.Equal(a.body, decision.body) {
			t.Errorf("%v\n%s\n%s", a.header, a.body, decision.body)
		}
	}
	c.announced(t, 1)
}

func TestE05TheSameInOtherWordsIsTheSame(t *testing.T) {
	t.Parallel()
	c, id := newTenant(t), newID()
	first := c.decided(t, payment(id))
	at := now.Format("2006-01-02T15:04:05.000Z")
	for name, body := range map[string]string{
		"key order":            fmt.Sprintf(`{"payer":{"document":"529.982.247-25"},"created_at":%q,"currency":"BRL","amount":13725,"type":"pix","id":%q}`, at, id),
		"white space":          fmt.Sprintf("{ \"id\" : %q ,\n\t\"type\":\"pix\", \"amount\":13725,\"currency\":\"BRL\",\"created_at\":%q,\"payer\":{ \"document\":\"529.982.247-25\"} }\n", id, at),
		"escapes":              strings.Replace(payment(id), `"BRL"`, `"\u0042RL"`, 1),
		"document punctuation": strings.Replace(payment(id), "529.982.247-25", "52998224725", 1),
		"another zone":         strings.Replace(payment(id), at, now.In(zone).Format("2006-01-02T15:04:05.000Z07:00"), 1),
		"null for what is not": with(payment(id), `"channel":null`),
		"an empty attribute":   with(payment(id), `"attributes":{}`),
	} {
		a := c.submitUnchecked(t, body)
		if a.status != http.StatusOK || a.header.Get("Idempotent-Replayed") != "true" || !bytes.Equal(a.body, first.body) {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
}

func TestE06AnotherBodyUnderTheSameIDIsAConflict(t *testing.T) {
	t.Parallel()
	c, id := newTenant(t), newID()
	full := with(payment(id), `"channel":"app","attributes":{"segment":"retail"},"metadata":{"order":1}`)
	c.submit(t, full).accepted(t)
	others := map[string]string{
		"amount":      strings.Replace(full, "13725", "13726", 1),
		"type":        strings.Replace(full, `"pix"`, `"ted"`, 1),
		"currency":    strings.Replace(full, "BRL", "USD", 1),
		"document":    strings.Replace(full, "529.982.247-25", "111.444.777-35", 1),
		"channel":     strings.Replace(full, `"app"`, `"web"`, 1),
		"attribute":   strings.Replace(full, "retail", "Retail", 1),
		"metadata":    strings.Replace(full, `"order":1`, `"order":2`, 1),
		"one less":    strings.Replace(full, `"channel":"app",`, "", 1),
		"one more":    with(full, `"description":"x"`),
		"millisecond": strings.Replace(full, now.Format("05.000Z"), now.Add(1e6).Format("05.000Z"), 1),
	}
	for name, body := range others {
		if a := c.submit(t, body); a.status != http.StatusConflict {
			t.Errorf("%s, at once: %d %s", name, a.status, a.body)
		}
	}
	decision := c.get(t, "/v1/transactions/"+id, "Prefer", "wait=10").want(t, http.StatusOK)
	for name, body := range others {
		if body == full {
			t.Errorf("%s changes nothing", name)
		}
		c.submit(t, body).problem(t, http.StatusConflict, "conflict")
	}
	if after := c.get(t, "/v1/transactions/"+id); !bytes.Equal(after.body, decision.body) {
		t.Errorf("touched: %s\n%s", decision.body, after.body)
	}
	c.announced(t, 1)
}

func TestE06AfterARestartToo(t *testing.T) {
	t.Parallel()
	s := system.New(t, system.Options{})
	c, id := client{url: s.URL, key: s.Key, tenant: "default"}, newID()
	before := c.decided(t, payment(id))
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.submit(t, strings.Replace(payment(id), "13725", "13726", 1)).problem(t, http.StatusConflict, "conflict")
	if again := c.submit(t, payment(id)).want(t, http.StatusOK); !bytes.Equal(again.body, before.body) {
		t.Errorf("%s\n%s", before.body, again.body)
	}
}

func TestE07AHundredAtOnceAreOne(t *testing.T) {
	t.Parallel()
	c, id := newTenant(t), newID()
	r := c.receive(t, "")
	answers := make([]answer, 100)
	var posts sync.WaitGroup
	for i := range answers {
		posts.Go(func() { answers[i] = c.submit(t, payment(id)) })
	}
	posts.Wait()
	first := 0
	for _, a := range answers {
		if a.status != http.StatusAccepted && a.status != http.StatusOK {
			t.Errorf("got %d %s", a.status, a.body)
		}
		if a.status/100 == 2 && a.header.Get("Idempotent-Replayed") == "" {
			first++
		}
	}
	if first > 1 {
		t.Errorf("%d of them came first", first)
	}
	r.first(t)
	var page struct {
		Items []struct {
			Status   string `json:"status"`
			Attempts []any  `json:"attempts"`
		} `json:"items"`
	}
	await(t, "the delivery to be written", func() bool {
		c.get(t, "/v1/deliveries?transaction_id="+id).want(t, http.StatusOK).decode(t, &page)
		return len(page.Items) > 0 && page.Items[0].Status == "delivered"
	})
	if len(page.Items) != 1 || len(page.Items[0].Attempts) != 1 || len(r.webhooks()) != 1 {
		t.Errorf("%d deliveries, %d webhooks: %v", len(page.Items), len(r.webhooks()), page)
	}
	c.announced(t, 1)
}

func TestE09TwoTenantsNeverMeet(t *testing.T) {
	t.Parallel()
	a, b, id := newTenant(t), newTenant(t), newID()
	large := strings.Replace(payment(id), "13725", "99999999", 1)
	first, second := a.decided(t, payment(id)), b.decided(t, large)
	if first.replayed() || second.replayed() {
		t.Error("one was a repeat of the other")
	}
	b.submit(t, payment(id)).problem(t, http.StatusConflict, "conflict")
	a.submit(t, large).problem(t, http.StatusConflict, "conflict")
	if got := a.get(t, "/v1/transactions/"+id); !bytes.Equal(got.body, first.body) {
		t.Errorf("the first tenant's became %s", got.body)
	}
	newTenant(t).get(t, "/v1/transactions/"+id).problem(t, http.StatusNotFound, "not-found")
}

func TestE10ARefusedBodyCorrectedIsAccepted(t *testing.T) {
	t.Parallel()
	c, id := newTenant(t), newID()
	c.submit(t, strings.Replace(payment(id), "13725", "-1", 1)).problem(t, http.StatusUnprocessableEntity, "invalid")
	if a := c.submit(t, payment(id)).accepted(t); a.replayed() {
		t.Error("taken for a repeat")
	}
}

func TestE11EveryFaultIsToldAndNoValue(t *testing.T) {
	t.Parallel()
	c := newTenant(t)
	body := `{"id":"CANARY e11","type":"CANARY-type","amount":"CANARY-amount","currency":"CANARY","created_at":"CANARY-time","payer":{"document":"CANARY-document"}}`
	a := c.submit(t, body).problem(t, http.StatusUnprocessableEntity, "invalid")
	want := []string{"/amount type", "/created_at format", "/currency too_long", "/id format", "/payer/document format", "/type format"}
	if got := a.faults(t); !slices.Equal(got, want) {
		t.Errorf("faults %v, want %v", got, want)
	}
	if bytes.Contains(a.body, []byte("CANARY")) || strings.Contains(said.String(), "CANARY") {
		t.Error("a value was told")
	}
}

func TestE12WhatIsNoTransaction(t *testing.T) {
	t.Parallel()
	c := newTenant(t)
	for name, body := range map[string]string{
		"broken":               `{"id":`,
		"nothing":              ` `,
		"no object":            `[]`,
		"a duplicate key":      with(payment("x"), `"id":"y"`),
		"a duplicate within":   with(payment("x"), `"payee":{"name":"a","name":"b"}`),
		"a duplicate escaped":  with(payment("x"), `"\u0069d":"y"`),
		"a duplicate metadata": with(payment("x"), `"metadata":{"a":1,"a":2}`),
		"trailing data":        payment("x") + `{}`,
		"a trailing word":      payment("x") + ` x`,
		"nine levels":          with(payment("x"), `"metadata":{"a":[[[[[[[1]]]]]]]}`),
		"bad UTF-8":            with(payment("x"), "\"description\":\"\xff\""),
		"a number like NaN":    strings.Replace(payment("x"), "13725", "NaN", 1),
	} {
		t.Run("400 "+name, func(t *testing.T) { c.submit(t, body).problem(t, http.StatusBadRequest, "malformed") })
	}
	for name, f := range map[string]struct{ body, want string }{
		"an unknown field":    {with(payment("x"), `"extra":1`), "/extra unknown_field"},
		"an unknown field in": {with(payment("x"), `"card":{"number":"4111"}`), "/card/number unknown_field"},
		"a float amount":      {strings.Replace(payment("x"), "13725", "137.25", 1), "/amount type"},
		"an exponent":         {strings.Replace(payment("x"), "13725", "1e3", 1), "/amount type"},
		"beyond int64":        {strings.Replace(payment("x"), "13725", "9223372036854775808", 1), "/amount range"},
		"below zero":          {strings.Replace(payment("x"), "13725", "-1", 1), "/amount range"},
		"too much metadata":   {with(payment("x"), `"metadata":{"a":"`+strings.Repeat("x", 4096)+`"}`), "/metadata too_long"},
	} {
		t.Run("422 "+name, func(t *testing.T) {
			if got := c.submit(t, f.body).problem(t, http.StatusUnprocessableEntity, "invalid").faults(t); !slices.Equal(got, []string{f.want}) {
				t.Errorf("faults %v, want %s", got, f.want)
			}
		})
	}
	if n := submitted(t, c.tenant); n != 0 {
		t.Errorf("%d messages", n)
	}
}

func TestE16AskedToWaitItAnswersWithTheDecision(t *testing.T) {
	t.Parallel()
	c := newTenant(t)
	var id string
	var a answer
	await(t, "a decision within two seconds", func() bool {
		id = newID()
		a = c.submit(t, payment(id), "Prefer", "wait=2")
		return a.status != http.StatusAccepted
	})
	a.want(t, http.StatusOK)
	if a.text("status") != "decided" || a.header.Get("Preference-Applied") != "wait=2" {
		t.Errorf("got %v %s", a.header, a.body)
	}
	if b := c.get(t, "/v1/transactions/"+id, "Prefer", "respond-async, wait=60").want(t, http.StatusOK); b.header.Get("Preference-Applied") != "wait=10" {
		t.Errorf("got %v", b.header)
	}
}
