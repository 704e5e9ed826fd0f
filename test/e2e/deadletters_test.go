package e2e_test

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"crivo/streams"

	"crivo/test/system"
)

// poison publishes bytes that no step can read under the identity of a transaction; an empty id is none.
func poison(t *testing.T, event, tenant, id string) {
	t.Helper()
	js, err := jetstream.New(connect(t))
	if err != nil {
		t.Fatal(err)
	}
	m := &nats.Msg{Subject: streams.Subject(event, tenant), Data: []byte("CANARY-poison"), Header: nats.Header{}}
	if id != "" {
		m.Header = streams.Ident{Tenant: tenant, ID: id, Run: 1, AcceptedAt: now, Deadline: now.Add(2 * time.Second), Digest: "k1:d"}.Header()
	}
	m.Header.Set(nats.MsgIdHdr, "poison/"+rand.Text())
	if _, err := js.PublishMsg(t.Context(), m); err != nil {
		t.Fatal(err)
	}
}

type letter struct {
	ID            string `json:"id"`
	Step          string `json:"step"`
	Cause         string `json:"cause"`
	Tenant        string `json:"tenant"`
	TransactionID string `json:"transaction_id"`
	Attempts      int    `json:"attempts"`
	Subject       string `json:"subject"`
	MessageID     string `json:"message_id"`
}

// letters lists what a query finds once there are n of them.
func (c client) letters(t *testing.T, query string, n int) []letter {
	t.Helper()
	var page struct {
		Items []letter `json:"items"`
	}
	await(t, fmt.Sprintf("%d letters of %s", n, query), func() bool {
		page.Items = nil
		c.get(t, "/v1/dead-letters?limit=500&"+query).want(t, http.StatusOK).decode(t, &page)
		return len(page.Items) == n
	})
	return page.Items
}

func TestADeadLettersLife(t *testing.T) {
	t.Parallel()
	c, other := newTenant(t), newTenant(t)
	ids := []string{newID(), newID(), newID()}
	for _, id := range ids {
		poison(t, streams.EventSubmitted, c.tenant, id)
		await(t, "its decision", func() bool { return c.get(t, "/v1/transactions/"+id).status == http.StatusOK })
		decision := c.get(t, "/v1/transactions/"+id, "Prefer", "wait=10").want(t, http.StatusOK)
		if decision.text("decision") != "review" || !strings.Contains(string(decision.body), `"code":"PROCESSING_FAULT"`) {
			t.Errorf("decided %s", decision.body)
		}
	}
	listed := c.letters(t, "step=enrich&cause=decode", 3)
	for i, l := range listed {
		if l.Step != "enrich" || l.Cause != "decode" || l.Tenant != c.tenant || l.TransactionID != ids[i] || l.Attempts != 1 ||
			l.Subject != "tx.submitted."+c.tenant || !strings.HasPrefix(l.MessageID, "poison/") {
			t.Errorf("listed as %+v", l)
		}
	}
	c.letters(t, "step=score", 0)
	c.letters(t, "cause=panic", 0)
	c.letters(t, "to="+now.Add(-time.Hour).Format(time.RFC3339), 0)
	c.letters(t, "from="+now.Add(-time.Hour).Format(time.RFC3339), 3)
	other.letters(t, "", 0)
	path := "/v1/dead-letters/" + listed[0].ID
	if shown := c.get(t, path).want(t, http.StatusOK); shown.text("transaction_id") != ids[0] || strings.Contains(string(shown.body), "CANARY") {
		t.Errorf("shown as %s", shown.body)
	}
	for _, who := range []client{other, operator()} {
		who.get(t, path).problem(t, http.StatusNotFound, "not-found")
		who.send(t, http.MethodDelete, path, nil, "").problem(t, http.StatusNotFound, "not-found")
		who.post(t, path+"/redrive", "").problem(t, http.StatusNotFound, "not-found")
	}

	if got := c.post(t, path+"/redrive", "").want(t, http.StatusOK); got.text("outcome") != "already_decided" || got.text("transaction_id") != ids[0] {
		t.Errorf("redriven: %s", got.body)
	}
	c.get(t, path).problem(t, http.StatusNotFound, "not-found")
	c.send(t, http.MethodDelete, "/v1/dead-letters/"+listed[1].ID, nil, "").want(t, http.StatusNoContent)
	c.letters(t, "", 1)
	wish := `{"where":{"step":"enrich","cause":"decode"},"dry_run":true}`
	if got := other.post(t, "/v1/dead-letters/redrive", wish).want(t, http.StatusOK); got.text("matched") != "0" {
		t.Errorf("another tenant counts %s", got.body)
	}
	if got := c.post(t, "/v1/dead-letters/redrive", wish).want(t, http.StatusOK); got.text("matched") != "1" || got.text("redriven") != "0" {
		t.Errorf("counted %s", got.body)
	}
	if got := c.post(t, "/v1/dead-letters/redrive", `{"where":{"step":"enrich"}}`).want(t, http.StatusOK); got.text("matched") != "1" || got.text("redriven") != "1" {
		t.Errorf("redriven %s", got.body)
	}
	c.letters(t, "", 0)
}

// TestARedrivenAnnouncementReachesNotify sees that notify hears of the decision again, within the time in which the broker
// drops a repeat of its id.
func TestARedrivenAnnouncementReachesNotify(t *testing.T) {
	t.Parallel()
	c, id := newTenant(t), newID()
	c.decided(t, payment(id))
	c.announced(t, 1)
	poison(t, streams.EventDecided, c.tenant, id)
	l := c.letters(t, "step=notify", 1)[0]
	r := c.receive(t, "") // made after the announcement: only a new one reaches it
	c.signedBy(t, r, 1)   // and by now notify knows it: it would not look for one that is younger than the decision
	if got := c.post(t, "/v1/dead-letters/"+l.ID+"/redrive", "").want(t, http.StatusOK); got.text("outcome") != "announced" {
		t.Errorf("redriven: %s", got.body)
	}
	if got := messages(t, streams.Decided, streams.EventDecided, c.tenant); got != 3 { // the decision, the poison, the decision again
		t.Errorf("%d announcements", got)
	}
	await(t, "the decision", func() bool {
		return slices.ContainsFunc(r.webhooks(), func(w webhook) bool { return strings.Contains(string(w.body), id) })
	})
	c.letters(t, "", 0)
}

func TestALetterOfNobodyIsTheOperators(t *testing.T) {
	t.Parallel()
	c := newTenant(t)
	poison(t, streams.EventSubmitted, c.tenant, "") // no identity at all
	subject := "tx.submitted." + c.tenant
	var l letter
	await(t, "the letter", func() bool {
		for _, l = range operator().letterPage(t) {
			if l.Subject == subject {
				return true
			}
		}
		return false
	})
	if l.Tenant != "" || l.TransactionID != "" || l.Step != "enrich" || l.Cause != "decode" {
		t.Errorf("listed as %+v", l)
	}
	path := "/v1/dead-letters/" + l.ID
	c.letters(t, "", 0)
	c.get(t, path).problem(t, http.StatusNotFound, "not-found")
	if got := operator().post(t, path+"/redrive", "").problem(t, http.StatusConflict, "conflict"); !strings.Contains(got.text("detail"), "only be discarded") {
		t.Errorf("refused with %s", got.body)
	}
	operator().send(t, http.MethodDelete, path, nil, "").want(t, http.StatusNoContent)
	operator().get(t, path).problem(t, http.StatusNotFound, "not-found")
}

func (c client) letterPage(t *testing.T) []letter {
	t.Helper()
	var page struct {
		Items []letter `json:"items"`
	}
	c.get(t, "/v1/dead-letters?limit=500").want(t, http.StatusOK).decode(t, &page)
	return page.Items
}

func TestDeadLettersByCommand(t *testing.T) {
	t.Parallel()
	c := newTenant(t)
	ids := []string{newID(), newID(), newID(), newID()}
	for _, id := range ids {
		poison(t, streams.EventSubmitted, c.tenant, id)
	}
	found := c.letters(t, "", 4)
	for _, id := range ids {
		await(t, "its decision", func() bool { return c.get(t, "/v1/transactions/"+id).text("status") == "decided" })
	}
	run := func(status int, want string, args ...string) {
		t.Helper()
		cmd, err := system.Command(t.Context(), append([]string{"dlq"}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		cmd.Env = append(cmd.Env, "CRIVO_API_KEY="+c.key, "CRIVO_URL="+c.url)
		out, _ := cmd.CombinedOutput()
		if got := cmd.ProcessState.ExitCode(); got != status || !strings.Contains(string(out), want) {
			t.Errorf("%v: status %d, want %d, and %q in\n%s", args, got, status, want, out)
		}
	}
	run(0, found[3].ID+"  enrich  decode", "list", "--where", "step=enrich,cause=decode")
	run(0, "more with --cursor "+strings.TrimPrefix(found[2].ID, "dl_"), "list", "--limit", "2")
	run(0, `"next_cursor":null`, "list", "--json", "--where", "cause=panic")
	run(0, ids[0], "show", found[0].ID)
	run(0, `"transaction_id":"`+ids[0]+`"`, "show", found[0].ID, "--json")
	run(1, "not found", "show", "dl_x")
	run(0, "matched 4", "redrive", "--where", "step=enrich", "--dry-run")
	run(0, `{"matched":0,"redriven":0,"outcomes":{}}`, "redrive", "--where", "step=score,cause=panic", "--dry-run", "--json")
	run(0, found[0].ID+" "+ids[0]+" already_decided", "redrive", found[0].ID)
	run(1, found[0].ID+": ", "redrive", found[0].ID, found[1].ID)
	run(0, "matched 2, discarded 0", "discard", "--all", "--dry-run")
	run(0, "matched 1, discarded 1", "discard", found[2].ID)
	run(0, "matched 1, redriven 1: 0 run again, 0 announced, 1 had their decision", "redrive", "--all")
	run(0, `{"discarded":0,"matched":0}`, "discard", "--where", "step=enrich", "--json")
	run(2, "which letters", "redrive")
	run(2, "give ids", "discard", found[0].ID, "--all")
	run(2, "only step and cause", "list", "--where", "tenant=x")
	run(2, "is no time", "list", "--from", "yesterday")
	run(2, "1 to 500", "list", "--limit", "501")
	c.letters(t, "", 0)
}
