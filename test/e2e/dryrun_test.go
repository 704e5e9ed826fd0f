package e2e_test

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
)

const dryRunPath = "/v1/transactions/dry-run"

// judged is what must be alike in a dry run and in what it foretells.
type judged struct {
	Decision string         `json:"decision"`
	Score    int            `json:"score"`
	RiskBand string         `json:"risk_band"`
	Reasons  jsontext.Value `json:"reasons"`
	RuleSet  jsontext.Value `json:"rule_set"`
	Engine   string         `json:"engine"`
	Degraded []string       `json:"degraded"`
	Checks   []struct {
		Name   string `json:"name"`
		Status string `json:"status"`
	} `json:"checks"`
}

func (a answer) judged(t *testing.T) (out judged) {
	t.Helper()
	a.want(t, http.StatusOK).decode(t, &out)
	return out
}

func TestE29ADryRunTellsTheDecisionAndLeavesNoTrace(t *testing.T) {
	t.Parallel()
	c := newTenant(t)
	r := c.receive(t, "")
	reader := c.as(operator().newKey(t, c.tenant, "", "read"))
	var ids []string
	// Of one payer the sixth within five minutes is one too many: what a dry run counted would show.
	for n := range 7 {
		id := newID()
		for range 3 {
			dry := reader.post(t, dryRunPath, payment(id)).want(t, http.StatusOK)
			if dry.text("dry_run") != "true" || dry.text("status") != "decided" || dry.text("id") != id || dry.text("late") != "false" || strings.Contains(string(dry.body), "guard") {
				t.Fatalf("got %s", dry.body)
			}
			c.get(t, "/v1/transactions/"+id).problem(t, http.StatusNotFound, "not-found")
		}
		foretold := c.post(t, dryRunPath, payment(id)).judged(t)
		real := c.decided(t, payment(id))
		if real.replayed() || real.text("dry_run") != "" {
			t.Errorf("the submission found a trace: %v %s", real.header, real.body)
		}
		again := c.post(t, dryRunPath, payment(id)).judged(t) // by now it is counted, once
		for when, got := range map[string]judged{"before": foretold, "after": again} {
			// What was missing on a slow machine is told, and may have cost points.
			if want := real.judged(t); len(want.Degraded)+len(got.Degraded) == 0 {
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("the %d. was decided (-) otherwise than told %s (+):\n%s", n+1, when, diff)
				}
			}
		}
		if n < 5 && bytes.Contains(real.body, []byte("VELOCITY_PAYER_5M")) {
			t.Errorf("the %d. is too many: %s", n+1, real.body)
		}
		ids = append(ids, id)
	}
	await(t, "what was paid before to be seen", func() bool {
		return strings.Contains(string(c.post(t, dryRunPath, payment(newID())).judged(t).Reasons), "VELOCITY_PAYER_5M")
	})
	c.announced(t, len(ids))
	var told []string
	await(t, "the webhooks of what was sent", func() bool {
		told = nil
		for _, w := range r.webhooks() {
			var body struct {
				Data struct {
					ID string `json:"id"`
				} `json:"data"`
			}
			answer{body: w.body}.decode(t, &body)
			if !slices.Contains(told, body.Data.ID) {
				told = append(told, body.Data.ID)
			}
		}
		return len(told) >= len(ids)
	})
	slices.Sort(told)
	slices.Sort(ids)
	if diff := cmp.Diff(ids, told); diff != "" {
		t.Errorf("webhooks: %s", diff)
	}
}

func TestE29ADryRunIsRefusedAsASubmissionWouldBe(t *testing.T) {
	t.Parallel()
	c := newTenant(t)
	dry := func(body string, headers ...string) answer { return c.post(t, dryRunPath, body, headers...) }
	if got := dry(strings.Replace(payment("x"), "13725", `"CANARY-dry"`, 1)).problem(t, http.StatusUnprocessableEntity, "invalid").faults(t); !slices.Equal(got, []string{"/amount type"}) {
		t.Errorf("faults %v", got)
	}
	dry(`{`).problem(t, http.StatusBadRequest, "malformed")
	dry(payment("x"), "Content-Type", "text/plain").problem(t, http.StatusUnsupportedMediaType, "media-type")
	dry(payment("x")+strings.Repeat(" ", 64<<10)).problem(t, http.StatusRequestEntityTooLarge, "too-large")
	if strings.Contains(said.String(), "CANARY") {
		t.Error("a value was told")
	}
	// What a blocked payer would get, and nobody else.
	c.post(t, "/v1/lists/block/entries", fmt.Sprintf(`{"kind":"document","value":%q}`, "529.982.247-25")).want(t, http.StatusCreated)
	await(t, "the list to be in force", func() bool { return dry(payment("x")).text("decision") == "decline" })
	if a := dry(strings.Replace(payment("x"), "529.982.247-25", "111.444.777-35", 1)); a.text("decision") == "decline" {
		t.Errorf("another payer: %s", a.body)
	}
}
