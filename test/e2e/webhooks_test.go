package e2e_test

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	signing "crivo/pkg/webhook"
)

var zone = time.FixedZone("", -3*3600)

func TestW01ThePublishedVectorHasTheKnownSignature(t *testing.T) {
	t.Parallel()
	const secret, id, want = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
	at, body := time.Unix(1614265330, 0), []byte(`{"test": 2432232314}`)
	own, err := signing.ParseSecret(secret)
	if err != nil {
		t.Fatal(err)
	}
	official, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := official.Sign(id, at, body)
	if err != nil || theirs != want {
		t.Errorf("the library: %s, %v", theirs, err)
	}
	if got := signing.Sign([]signing.Secret{own}, id, at, body); got != want {
		t.Errorf("got %s", got)
	}
}

func TestW02TheOfficialLibraryVerifiesADelivery(t *testing.T) {
	t.Parallel()
	c := newTenant(t)
	thin, full := c.receive(t, ""), c.receive(t, `,"payload":"full","headers":{"X-Mine":"yes"}`)
	decision := c.decided(t, payment(newID()))
	for name, r := range map[string]*receiver{"thin": thin, "full": full} {
		got := r.first(t)
		verifier, err := standardwebhooks.NewWebhook(r.secret)
		if err != nil {
			t.Fatal(err)
		}
		if err := verifier.Verify(got.body, got.header); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for i := range got.body {
			flipped := bytes.Clone(got.body)
			flipped[i] ^= 1
			if verifier.Verify(flipped, got.header) == nil {
				t.Fatalf("%s: byte %d may be flipped", name, i)
			}
		}
		for _, part := range []string{"Webhook-Id", "Webhook-Timestamp", "Webhook-Signature"} {
			header := got.header.Clone()
			text := []byte(header.Get(part))
			text[len(text)-3] ^= 1
			header.Set(part, string(text))
			if verifier.Verify(got.body, header) == nil {
				t.Errorf("%s: %s may be changed", name, part)
			}
		}
		other, err := standardwebhooks.NewWebhook(map[string]string{"thin": full.secret, "full": thin.secret}[name])
		if err != nil {
			t.Fatal(err)
		}
		if other.Verify(got.body, got.header) == nil {
			t.Errorf("%s: another endpoint's secret verifies", name)
		}
		if err := document.checkWebhook(map[string]string{"thin": "DecidedThin", "full": "DecidedFull"}[name], got.body); err != nil {
			t.Errorf("%s: %s: %v", name, got.body, err)
		}
	}
	var body struct {
		Data jsontext.Value `json:"data"`
	}
	if err := json.Unmarshal(full.first(t).body, &body); err != nil || !bytes.Equal(body.Data, decision.body) {
		t.Errorf("the full payload is not the public answer: %v\n%s\n%s", err, body.Data, decision.body)
	}
	if full.first(t).header.Get("X-Mine") != "yes" {
		t.Error("the endpoint's own header is missing")
	}
}

func TestAnEndpointsLife(t *testing.T) {
	t.Parallel()
	c := newTenant(t)
	r := c.receive(t, `,"events":["transaction.*"],"description":"mine"`)
	path := "/v1/webhook-endpoints/" + r.id
	shown := c.get(t, path).want(t, http.StatusOK)
	if shown.text("description") != "mine" || shown.text("status") != "active" || shown.text("secret") != "" || strings.Contains(string(shown.body), r.secret) {
		t.Errorf("shown as %s", shown.body)
	}
	patch := func(body string) answer {
		t.Helper()
		return c.send(t, http.MethodPatch, path, strings.NewReader(body), body)
	}
	if a := patch(`{"paused":true,"description":"theirs"}`).want(t, http.StatusOK); a.text("status") != "paused" || a.text("description") != "theirs" || a.text("url") != shown.text("url") {
		t.Errorf("patched to %s", a.body)
	}
	if a := patch(`{"paused":false}`).want(t, http.StatusOK); a.text("status") != "active" {
		t.Errorf("patched to %s", a.body)
	}
	if got := patch(`{"url":"http://10.0.0.1/","payload":"fat","secret":"x"}`).problem(t, http.StatusUnprocessableEntity, "invalid").faults(t); fmt.Sprint(got) != "[/secret unknown_field]" {
		t.Errorf("faults %v", got)
	}
	if got := patch(`{"url":"http://10.0.0.1/","payload":"fat"}`).problem(t, http.StatusUnprocessableEntity, "invalid").faults(t); fmt.Sprint(got) != "[/payload format /url format]" {
		t.Errorf("faults %v", got)
	}
	if rotated := c.post(t, path+"/rotate-secret", `{"grace_s":60}`).want(t, http.StatusOK); rotated.text("secret") == r.secret || rotated.text("secret") == "" {
		t.Errorf("rotated to %s", rotated.body)
	}
	if list := c.get(t, "/v1/webhook-endpoints").want(t, http.StatusOK); !strings.Contains(string(list.body), r.id) || strings.Contains(string(list.body), "whsec_") {
		t.Errorf("listed as %s", list.body)
	}
	c.send(t, http.MethodDelete, path, nil, "").want(t, http.StatusNoContent)
	c.get(t, path).problem(t, http.StatusNotFound, "not-found")
	c.send(t, http.MethodDelete, path, nil, "").problem(t, http.StatusNotFound, "not-found")
}

func TestW14AnURLThatIsNoneIsRefused(t *testing.T) {
	t.Parallel()
	c := newTenant(t)
	for _, url := range []string{"https://user:pass@example.com/", "ftp://example.com/", "https://example.com:22/", "http://example.com/", "https://"} {
		a := c.post(t, "/v1/webhook-endpoints", fmt.Sprintf(`{"url":%q}`, url)).problem(t, http.StatusUnprocessableEntity, "invalid")
		if got := a.faults(t); fmt.Sprint(got) != "[/url format]" {
			t.Errorf("%s: %v", url, got)
		}
	}
}

func TestDeliveriesComeInPages(t *testing.T) {
	t.Parallel()
	c := newTenant(t)
	r := c.receive(t, "")
	for range 5 {
		c.decided(t, payment(newID()))
	}
	await(t, "five webhooks", func() bool { return len(r.webhooks()) == 5 })
	seen := map[string]bool{}
	cursor := ""
	for pages := 1; ; pages++ {
		var page struct {
			Items []struct {
				ID string `json:"id"`
			} `json:"items"`
			Next string `json:"next_cursor"`
		}
		c.get(t, "/v1/deliveries?limit=2&cursor="+cursor).want(t, http.StatusOK).decode(t, &page)
		for _, d := range page.Items {
			seen[d.ID] = true
		}
		if cursor = page.Next; cursor == "" {
			if pages != 3 {
				t.Errorf("%d pages", pages)
			}
			break
		}
	}
	if len(seen) != 5 {
		t.Errorf("%d deliveries seen", len(seen))
	}
	c.get(t, "/v1/deliveries?cursor=nonsense!").problem(t, http.StatusBadRequest, "cursor")
	for query, want := range map[string]string{"limit=0": "/limit range", "limit=501": "/limit range", "limit=x": "/limit range", "limit=": "/limit range", "status=lost": "/status format"} {
		if got := c.get(t, "/v1/deliveries?"+query).problem(t, http.StatusUnprocessableEntity, "invalid").faults(t); fmt.Sprint(got) != "["+want+"]" {
			t.Errorf("%s: %v", query, got)
		}
	}
}
