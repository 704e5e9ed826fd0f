package e2e_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// delivery is what the tests look at of one.
type delivery struct {
	ID        string `json:"id"`
	Status    string `json:"status"`
	WebhookID string `json:"webhook_id"`
	Type      string `json:"type"`
	Attempts  []struct {
		Number  int    `json:"number"`
		Trigger string `json:"trigger"`
		Status  int    `json:"status"`
	} `json:"attempts"`
}

func (d delivery) triggers() string {
	var out []string
	for _, a := range d.Attempts {
		out = append(out, a.Trigger)
	}
	return strings.Join(out, " ")
}

// deliveries are those of an endpoint, newest first.
func (c client) deliveries(t *testing.T, endpoint string) []delivery {
	t.Helper()
	var page struct {
		Items []delivery `json:"items"`
	}
	c.get(t, "/v1/deliveries?limit=500&endpoint_id="+endpoint).want(t, http.StatusOK).decode(t, &page)
	return page.Items
}

// attempted waits for a delivery's nth attempt.
func (c client) attempted(t *testing.T, id string, n int) delivery {
	t.Helper()
	var d delivery
	await(t, fmt.Sprintf("attempt %d", n), func() bool {
		c.get(t, "/v1/deliveries/"+id).want(t, http.StatusOK).decode(t, &d)
		return len(d.Attempts) >= n
	})
	return d
}

// signedBy has tests sent to a receiver until one carries n signatures, and returns that: the sender knows of a change a moment
// after the API does.
func (c client) signedBy(t *testing.T, r *receiver, n int) (got webhook) {
	t.Helper()
	await(t, fmt.Sprintf("a webhook with %d signatures", n), func() bool {
		before := len(r.webhooks())
		c.post(t, "/v1/webhook-endpoints/"+r.id+"/test", "").want(t, http.StatusAccepted)
		await(t, "the test", func() bool { return len(r.webhooks()) > before })
		got = r.webhooks()[before]
		return len(strings.Split(got.header.Get("Webhook-Signature"), " ")) == n
	})
	return got
}

func (w webhook) verifies(t *testing.T, secret string) bool {
	t.Helper()
	verifier, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		t.Fatal(err)
	}
	return verifier.Verify(w.body, w.header) == nil
}

func TestW03RotatedTwiceAllSecretsVerifyUntilTheGraceEndsThenOnlyTheNewOne(t *testing.T) {
	t.Parallel()
	c := newTenant(t)
	r := c.receive(t, "")
	rotate := func(grace int) string {
		t.Helper()
		return c.post(t, "/v1/webhook-endpoints/"+r.id+"/rotate-secret", fmt.Sprintf(`{"grace_s":%d}`, grace)).want(t, http.StatusOK).text("secret")
	}
	second := rotate(3600)
	two := c.signedBy(t, r, 2)
	third := rotate(3600)
	three := c.signedBy(t, r, 3)
	fourth := rotate(0)
	one := c.signedBy(t, r, 1)
	for name, c := range map[string]struct {
		hook     webhook
		verifies map[string]bool
	}{
		"after the first rotation":            {two, map[string]bool{r.secret: true, second: true, third: false}},
		"after the second":                    {three, map[string]bool{r.secret: true, second: true, third: true, fourth: false}},
		"after one that ends those before it": {one, map[string]bool{r.secret: false, second: false, third: false, fourth: true}},
	} {
		header := c.hook.header.Get("Webhook-Signature")
		for entry := range strings.SplitSeq(header, " ") {
			if version, signature, ok := strings.Cut(entry, ","); !ok || version != "v1" || signature == "" {
				t.Errorf("%s: %q", name, header)
			}
		}
		for secret, want := range c.verifies {
			if got := c.hook.verifies(t, secret); got != want {
				t.Errorf("%s: a secret verifies: %v", name, got)
			}
		}
	}
	short := rotate(1)
	if last := c.signedBy(t, r, 1); !last.verifies(t, short) || last.verifies(t, fourth) { // once the second is over
		t.Error("after the grace not only the new secret verifies")
	}
}

func TestTwoOperatorsAtOnceLoseNothing(t *testing.T) {
	t.Parallel()
	c := newTenant(t)
	await(t, "changes that are answered in time", func() bool { return c.changedAtOnce(t) })
}

// changedAtOnce is false where a rotation was refused: it may be done all the same, and its repeat is one more.
func (c client) changedAtOnce(t *testing.T) bool {
	t.Helper()
	r := c.receive(t, "")
	path := "/v1/webhook-endpoints/" + r.id
	rotate := func() answer { return c.post(t, path+"/rotate-secret", `{"grace_s":3600}`) }
	done := make(chan answer, 8)
	for i := range 4 {
		go func() { done <- rotate() }()
		body := []string{`{"description":"mine"}`, `{"payload":"full"}`, `{"events":["transaction.*"]}`, `{"headers":{"X-Mine":"yes"}}`}[i]
		go func() { done <- c.send(t, http.MethodPatch, path, strings.NewReader(body), body) }()
	}
	secrets, repeats := []string{r.secret}, 0
	for range 8 {
		a := <-done
		repeats += a.repeats
		if s := a.text("secret"); s != "" {
			secrets = append(secrets, s)
		}
	}
	if repeats > 0 {
		return false
	}
	shown := c.get(t, path).want(t, http.StatusOK)
	if fmt.Sprint(shown.text("description"), shown.text("payload"), shown.text("events"), shown.text("headers")) != "minefull[transaction.*]map[X-Mine:yes]" {
		t.Errorf("of four changes stands %s", shown.body)
	}
	hook := c.signedBy(t, r, 5)
	for i, s := range secrets {
		if !hook.verifies(t, s) {
			t.Errorf("secret %d of 5 does not verify", i)
		}
	}
	for range 5 {
		a := rotate()
		if a.repeats > 0 {
			return false
		}
		a.want(t, http.StatusOK)
	}
	rotate().problem(t, http.StatusConflict, "conflict")
	c.post(t, path+"/rotate-secret", `{"grace_s":0}`).want(t, http.StatusOK)
	return true
}

func TestHeadersAreTheOperatorsOwnAndTheirSecretsAreMasked(t *testing.T) {
	t.Parallel()
	c := newTenant(t)
	for _, name := range []string{"Host", "content-length", "Content-Encoding", "Transfer-Encoding", "Connection", "Webhook-Id", "webhook-signature", "Webhook-Anything",
		"Te", "Trailer", "Upgrade", "Expect", "Proxy-Authorization", "X-Forwarded-For", "Keep-Alive", "X HTTP", "A:b", "A_b", ""} {
		a := c.post(t, "/v1/webhook-endpoints", fmt.Sprintf(`{"url":"https://example.com/","headers":{%q:"x"}}`, name)).problem(t, http.StatusUnprocessableEntity, "invalid")
		if got := a.faults(t); fmt.Sprint(got) != "[/headers/"+name+" format]" {
			t.Errorf("%q: %v", name, got)
		}
	}
	for _, headers := range []string{`{"X-A":"b\r\nHost: x"}`, `{"X-A":" b"}`, `{"X-A":"é"}`, `{"X-A":"1","x-a":"2"}`, `{"X-Key":"********"}`} {
		c.post(t, "/v1/webhook-endpoints", `{"url":"https://example.com/","headers":`+headers+`}`).problem(t, http.StatusUnprocessableEntity, "invalid")
	}
	const canary = "CANARY-header-credential"
	r := c.receive(t, `,"headers":{"Authorization":"Bearer `+canary+`","X-Plain":"mine"}`)
	path := "/v1/webhook-endpoints/" + r.id
	patch := `{"headers":{"authorization":"********","X-Other":"` + canary + `"}}`
	for _, a := range []answer{c.get(t, path), c.get(t, "/v1/webhook-endpoints"), c.send(t, http.MethodPatch, path, strings.NewReader(patch), patch), c.get(t, path)} {
		if strings.Contains(string(a.want(t, http.StatusOK).body), canary) {
			t.Errorf("shown: %s", a.body)
		}
	}
	await(t, "both headers", func() bool {
		before := len(r.webhooks())
		c.post(t, path+"/test", "").want(t, http.StatusAccepted)
		await(t, "the test", func() bool { return len(r.webhooks()) > before })
		h := r.webhooks()[before].header
		return h.Get("Authorization") == "Bearer "+canary && h.Get("X-Other") == canary && h.Get("X-Plain") == ""
	})
	if strings.Contains(said.String(), canary) {
		t.Error("a credential is in the log")
	}
}

func TestATestEventIsSignedLikeAnyOtherAndTriedOnce(t *testing.T) {
	t.Parallel()
	c := newTenant(t)
	r := c.receive(t, `,"events":["transaction.decided"]`)
	a := c.post(t, "/v1/webhook-endpoints/"+r.id+"/test", "").want(t, http.StatusAccepted)
	if a.header.Get("Location") != "/v1/deliveries/"+a.text("id") || a.text("type") != "endpoint.test" {
		t.Errorf("%v %s", a.header, a.body)
	}
	if got := r.first(t); !got.verifies(t, r.secret) || !strings.Contains(string(got.body), `"type":"endpoint.test"`) || got.header.Get("Webhook-Id") != a.text("webhook_id") {
		t.Errorf("%v %s", got.header, got.body)
	}
	if d := c.attempted(t, a.text("id"), 1); d.Status != "delivered" || d.triggers() != "test" {
		t.Errorf("%+v", d)
	}
	path := "/v1/webhook-endpoints/" + r.id
	c.send(t, http.MethodPatch, path, strings.NewReader(`{"paused":true}`), `{"paused":true}`).want(t, http.StatusOK)
	for _, what := range []string{"/test", "/replay"} {
		body := map[string]string{"/test": "", "/replay": `{"from":"2026-01-01T00:00:00Z"}`}[what]
		c.post(t, path+what, body).problem(t, http.StatusConflict, "conflict")
	}
	c.post(t, "/v1/deliveries/"+a.text("id")+"/resend", "").problem(t, http.StatusConflict, "conflict")
}

func TestW23AResendAfterSuccessIsANewAttemptMarkedManual(t *testing.T) {
	t.Parallel()
	c := newTenant(t)
	r := c.receive(t, "")
	c.decided(t, payment(newID()))
	first := r.first(t)
	var d delivery
	await(t, "delivered", func() bool {
		all := c.deliveries(t, r.id)
		d = all[0]
		return d.Status == "delivered"
	})
	c.post(t, "/v1/deliveries/"+d.ID+"/resend", "").want(t, http.StatusAccepted)
	d = c.attempted(t, d.ID, 2)
	if d.Status != "delivered" || d.triggers() != "auto manual" || d.Attempts[1].Number != 2 {
		t.Errorf("%+v", d)
	}
	got := r.webhooks()
	if len(got) != 2 || got[1].header.Get("Webhook-Id") != first.header.Get("Webhook-Id") || string(got[1].body) != string(first.body) || !got[1].verifies(t, r.secret) {
		t.Errorf("%d webhooks: %+v", len(got), got)
	}
	c.post(t, "/v1/deliveries/dlv_none/resend", "").problem(t, http.StatusNotFound, "not-found")
}

// While an attempt is under way nobody starts a second one; one that was asked for leaves the schedule as it was.
func TestW23NoSecondAttemptWhileOneIsUnderWay(t *testing.T) {
	t.Parallel()
	c := newTenant(t)
	arrived, let := make(chan bool, 8), make(chan int)
	url := serve(t, func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(io.Discard, req.Body)
		arrived <- true
		w.WriteHeader(<-let)
	})
	id := c.post(t, "/v1/webhook-endpoints", fmt.Sprintf(`{"url":%q}`, url)).want(t, http.StatusCreated).text("id")
	c.decided(t, payment(newID()))
	<-arrived
	d := c.deliveries(t, id)[0]
	c.post(t, "/v1/deliveries/"+d.ID+"/resend", "").problem(t, http.StatusConflict, "conflict")
	let <- http.StatusNoContent
	d = c.attempted(t, d.ID, 1)
	if d.Status != "delivered" || len(arrived) != 0 {
		t.Errorf("%+v, %d more arrived", d, len(arrived))
	}
	c.post(t, "/v1/deliveries/"+d.ID+"/resend", "").want(t, http.StatusAccepted)
	<-arrived
	c.post(t, "/v1/deliveries/"+d.ID+"/resend", "").problem(t, http.StatusConflict, "conflict")
	let <- http.StatusInternalServerError
	if d = c.attempted(t, d.ID, 2); d.Status != "delivered" || d.triggers() != "auto manual" {
		t.Errorf("after an attempt by hand that failed: %+v", d)
	}
}

func TestW24AReplayByTimeIsATaskWithCounts(t *testing.T) {
	t.Parallel()
	c := newTenant(t)
	r := c.receive(t, "")
	path := "/v1/webhook-endpoints/" + r.id + "/replay"
	c.get(t, path).problem(t, http.StatusNotFound, "not-found")
	for body, want := range map[string]string{`{}`: "[/from required]", `{"from":"2026-01-02T00:00:00Z","to":"2026-01-02T00:00:00Z","only":"lost"}`: "[/only format /to range]", `{"from":7}`: "[/from type]"} {
		if got := c.post(t, path, body).problem(t, http.StatusUnprocessableEntity, "invalid").faults(t); fmt.Sprint(got) != want {
			t.Errorf("%s: %v", body, got)
		}
	}
	ids := map[string]int{}
	for range 5 {
		c.decided(t, payment(newID()))
	}
	await(t, "five webhooks", func() bool { return len(r.webhooks()) == 5 })
	await(t, "five delivered", func() bool {
		n := 0
		for _, d := range c.deliveries(t, r.id) {
			if d.Status == "delivered" {
				n++
			}
		}
		return n == 5
	})
	made := c.post(t, path, fmt.Sprintf(`{"from":%q}`, now.Add(-time.Hour).Format(time.RFC3339))).want(t, http.StatusAccepted)
	if made.text("status") != "running" || made.header.Get("Location") != path {
		t.Errorf("%v %s", made.header, made.body)
	}
	await(t, "the replay is done", func() bool { return c.get(t, path).want(t, http.StatusOK).text("status") == "done" })
	if a := c.get(t, path); a.text("id") != made.text("id") || a.text("matched") != "5" || a.text("enqueued") != "5" {
		t.Errorf("%s", a.body)
	}
	await(t, "each once more", func() bool { return len(r.webhooks()) >= 10 })
	for _, w := range r.webhooks() {
		ids[w.header.Get("Webhook-Id")]++
	}
	for id, n := range ids {
		if n != 2 {
			t.Errorf("%s came %d times", id, n)
		}
	}
	await(t, "ten attempts are recorded", func() bool {
		n := 0
		for _, d := range c.deliveries(t, r.id) {
			if d.triggers() == "auto replay" && d.Status == "delivered" {
				n++
			}
		}
		return n == 5
	})
	c.send(t, http.MethodDelete, path, nil, "").problem(t, http.StatusConflict, "conflict")
}

func TestW24AReplayIsOneAtATimeAndCancellable(t *testing.T) {
	t.Parallel()
	c := newTenant(t)
	r := c.receive(t, "")
	path := "/v1/webhook-endpoints/" + r.id + "/replay"
	const wish, other = `{"from":"2026-01-01T00:00:00Z","to":"2026-01-02T00:00:00Z"}`, `{"from":"2026-01-01T00:00:00Z","to":"2026-01-03T00:00:00Z"}`
	// A task that has nothing to do may end at any moment; until one was caught in the midst, another is made.
	cancelled := false
	await(t, "a replay is cancelled", func() bool {
		made := c.post(t, path, wish).want(t, http.StatusAccepted)
		if again := c.post(t, path, wish).want(t, http.StatusAccepted); again.text("id") != made.text("id") && c.get(t, path).text("id") != again.text("id") {
			t.Errorf("the same wish became %s beside %s", again.body, made.body)
		}
		if a := c.post(t, path, other); a.status != http.StatusAccepted {
			a.problem(t, http.StatusConflict, "conflict")
		}
		if a := c.send(t, http.MethodDelete, path, nil, ""); a.status == http.StatusOK {
			cancelled = a.text("status") == "cancelled"
		} else {
			a.problem(t, http.StatusConflict, "conflict")
		}
		return cancelled
	})
	if a := c.get(t, path).want(t, http.StatusOK); a.text("status") != "cancelled" || a.text("ended_at") == "" {
		t.Errorf("%s", a.body)
	}
}

func TestW26TypesThatNobodyWantsMakeNoDelivery(t *testing.T) {
	t.Parallel()
	c := newTenant(t)
	wants := map[string]bool{``: true, `,"events":[]`: true, `,"events":["transaction.decided"]`: true, `,"events":["transaction.*"]`: true,
		`,"events":["transaction.disposed"]`: false, `,"events":["endpoint.*"]`: false}
	receivers := map[string]*receiver{}
	for filter := range wants {
		receivers[filter] = c.receive(t, filter)
	}
	c.decided(t, payment(newID()))
	for filter, r := range receivers {
		if wants[filter] {
			r.first(t)
		}
	}
	for filter, r := range receivers {
		if n := len(c.deliveries(t, r.id)); (n == 1) != wants[filter] || n > 1 {
			t.Errorf("%q: %d deliveries", filter, n)
		}
	}
}
