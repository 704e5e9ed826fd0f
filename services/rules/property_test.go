package rules_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"crivo/pkg/txn"
	"crivo/services/rules"
	"crivo/streams/event"
)

// The promises that hold for every rule set and every transaction: unknown is never clear, more risk never gives a milder
// decision, and with inputs missing approve is given only if every possible value of them would approve. Sets and facts are
// made from a seed; numbers are 0 to 4, so that all values of a few unknown inputs can be tried.

const domain = 5

var (
	features = []string{"payer.count_5m", "payer.sum_1h", "payee.first_seen_s", "device.count_24h"}
	checks   = []string{"a", "b"}
)

// writer makes conditions and rules.
type writer struct{ *rand.Rand }

func (w writer) pick(words ...string) string { return words[w.IntN(len(words))] }

func (w writer) atom() string {
	number := fmt.Sprint(w.IntN(domain), ".0")
	switch w.IntN(9) {
	case 0, 1:
		return w.pick(features...) + w.pick(" > ", " < ", " == ", " >= ") + number
	case 2, 3:
		return `checks["` + w.pick(checks...) + `"]` + w.pick(" == ", " != ") + w.pick(`"hit"`, `"clear"`)
	case 4:
		return fmt.Sprint("tx.amount", w.pick(" > ", " <= "), w.IntN(domain))
	case 5:
		return `tx.type == "pix"`
	case 6:
		return w.pick("attributes.x == 1.0", "device.is_rooted == true", "attributes.text > 2.0")
	case 7:
		return w.pick(features...) + " + " + w.pick(features...) + " > " + number
	}
	return w.pick(`has(`+w.pick(features...)+`)`, `"`+w.pick(checks...)+`" in checks`, `checks.exists(k, checks[k] == "hit")`, `size(checks) > 1`)
}

func (w writer) condition(depth int) string {
	if depth == 0 || w.IntN(4) == 0 {
		return w.atom()
	}
	switch w.IntN(5) {
	case 0, 1:
		return "(" + w.condition(depth-1) + " && " + w.condition(depth-1) + ")"
	case 2:
		return "(" + w.condition(depth-1) + " || " + w.condition(depth-1) + ")"
	case 3:
		return "!(" + w.condition(depth-1) + ")"
	}
	return "(" + w.condition(depth-1) + " ? " + w.condition(depth-1) + " : " + w.condition(depth-1) + ")"
}

func (w writer) rule(i int) string {
	then, missing := fmt.Sprint("points: ", 5+w.IntN(60)), w.pick("skip", "points", "review")
	if w.IntN(3) == 0 {
		decide := w.pick(txn.Approve, txn.Review, txn.Decline)
		then = "decide: " + decide
		if decide == txn.Approve {
			missing = w.pick("skip", "review")
		}
	}
	return fmt.Sprintf(`{id: r%d, when: '%s', %s, on_missing: %s, code: R%d, text: t}`, i, w.condition(2), then, missing, i)
}

func (w writer) rules() []string {
	out := make([]string, 1+w.IntN(5))
	for i := range out {
		out[i] = w.rule(i)
	}
	return out
}

// transaction has some inputs, lacks some, and a few are unknown.
func (w writer) transaction() event.Validated {
	v := minimal()
	v.Tx.Amount, v.Tx.Type = int64(w.IntN(domain)), w.pick("pix", "card")
	v.Tx.Attributes = map[string]any{"text": "two"}
	if w.IntN(2) == 0 {
		v.Tx.Attributes["x"] = float64(w.IntN(2))
	}
	if rooted := w.IntN(2) == 0; w.IntN(2) == 0 {
		v.Tx.Device = &txn.SealedDevice{IsRooted: &rooted}
	}
	v.Features = map[string]event.Value{}
	for _, name := range features {
		switch w.IntN(4) {
		case 0: // absent
		case 1:
			v.Features[name] = event.Value{}
		default:
			v.Features[name] = event.Value{Known: true, Number: float64(w.IntN(domain))}
		}
	}
	for _, name := range checks {
		if status := w.pick("", txn.Clear, txn.Hit, txn.Unknown, txn.Unknown); status != "" {
			v.Checks = append(v.Checks, txn.Check{Name: name, Status: status})
		}
	}
	return v
}

// completions calls do with v for every value of what is unknown in it.
func completions(v event.Validated, do func(event.Validated)) {
	for _, name := range slices.Sorted(maps.Keys(v.Features)) {
		if v.Features[name].Known {
			continue
		}
		for n := range domain {
			next := v
			next.Features = maps.Clone(v.Features)
			next.Features[name] = event.Value{Known: true, Number: float64(n)}
			completions(next, do)
		}
		return
	}
	for i, c := range v.Checks {
		if c.Status != txn.Unknown {
			continue
		}
		for _, status := range []string{txn.Clear, txn.Hit} {
			next := v
			next.Checks = slices.Clone(v.Checks)
			next.Checks[i].Status = status
			completions(next, do)
		}
		return
	}
	do(v)
}

func severity(decision string) int {
	return slices.Index([]string{txn.Approve, txn.Review, txn.Decline}, decision)
}

// every runs check on many random sets and transactions.
func every(t *testing.T, seed uint64, sets int, check func(t *testing.T, w writer, lines []string, s *rules.Set, v event.Validated)) {
	w := writer{rand.New(rand.NewPCG(seed, 4))}
	for range sets {
		lines := w.rules()
		s := set(t, lines...)
		for range 20 {
			check(t, w, lines, s, w.transaction())
		}
		if t.Failed() {
			t.Fatalf("seed %d, rules:\n%s", seed, strings.Join(lines, "\n"))
		}
	}
}

func TestApproveWithUnknownInputsHoldsForEveryValueOfThem(t *testing.T) {
	approved := 0
	every(t, 1, 80, func(t *testing.T, _ writer, _ []string, s *rules.Set, v event.Validated) {
		facts := rules.FactsOf(v, time.UTC)
		if len(facts.Unknown) == 0 || s.Evaluate(facts).Decision != txn.Approve {
			return
		}
		approved++
		completions(v, func(known event.Validated) {
			if got := s.Evaluate(rules.FactsOf(known, time.UTC)); got.Decision != txn.Approve {
				t.Errorf("approved with %v unknown, but %v and %v give %s: %v", facts.Unknown, known.Features, known.Checks, got.Decision, got.Reasons)
			}
		})
	})
	if approved < 60 {
		t.Errorf("only %d approvals with something unknown: the sets prove little", approved)
	}
}

func TestAFiringRuleNeverMakesADecisionMilder(t *testing.T) {
	harder := 0
	every(t, 2, 80, func(t *testing.T, w writer, lines []string, s *rules.Set, v event.Validated) {
		if w.IntN(5) > 0 {
			return // a new set each time is dear
		}
		facts := rules.FactsOf(v, time.UTC)
		before := s.Evaluate(facts).Decision
		then := w.pick("points: 1", "points: 20", "points: 50", "points: 100", "decide: review", "decide: decline")
		more := slices.Insert(slices.Clone(lines), w.IntN(len(lines)+1), rule("more", "when: tx.amount >= 0", then))
		after := set(t, more...).Evaluate(facts).Decision
		if severity(after) < severity(before) {
			t.Errorf("%s became %s with %s", before, after, then)
		}
		if severity(after) > severity(before) {
			harder++
		}
	})
	if harder < 30 {
		t.Errorf("only %d decisions changed: the sets prove little", harder)
	}
}

// A rule that fires for clear and one that fires for anything but a hit stay silent on an unknown check, and what a hit would
// not get approved is not approved.
func TestAnUnknownCheckNeverCountsAsClear(t *testing.T) {
	every(t, 3, 60, func(t *testing.T, _ writer, lines []string, s *rules.Set, v event.Validated) {
		for i, c := range v.Checks {
			hit := v
			v.Checks, hit.Checks = slices.Clone(v.Checks), slices.Clone(v.Checks)
			v.Checks[i].Status, hit.Checks[i].Status = txn.Unknown, txn.Hit
			unknown := rules.FactsOf(v, time.UTC)
			if got, known := unknown.Vars["checks"].(map[string]string)[c.Name]; known {
				t.Errorf("rules see %s as %q", c.Name, got)
			}
			if s.Evaluate(unknown).Decision == txn.Approve && s.Evaluate(rules.FactsOf(hit, time.UTC)).Decision != txn.Approve {
				t.Errorf("approved with %s unknown, not with a hit", c.Name)
			}
		}
	})
	v := minimal()
	v.Checks = []txn.Check{{Name: "c", Status: txn.Unknown}}
	for _, when := range []string{`checks["c"] == "clear"`, `checks["c"] != "hit"`, `!(checks["c"] == "hit")`, `!("c" in checks)`, `checks.all(k, checks[k] == "clear")`, `size(checks) == 0`} {
		s := set(t, rule("A", `when: '`+when+`'`, "decide: approve"), rule("B", always, "points: 50"))
		if got := s.Evaluate(rules.FactsOf(v, time.UTC)); got.Decision != txn.Review {
			t.Errorf("%s lets an unknown check pass: %+v", when, got)
		}
	}
}

func TestScoreBandAndDecisionAgreeInEverySet(t *testing.T) {
	every(t, 5, 60, func(t *testing.T, _ writer, _ []string, s *rules.Set, v event.Validated) {
		got := s.Evaluate(rules.FactsOf(v, time.UTC))
		agrees(t, got, 30, 70)
		if !slices.IsSortedFunc(got.Reasons, func(a, b txn.Reason) int { return b.Points - a.Points }) {
			t.Errorf("reasons out of order: %+v", got.Reasons)
		}
		if got.Decision != txn.Approve && len(got.Reasons) == 0 {
			t.Errorf("%s without a reason", got.Decision)
		}
	})
}

// The default set's own thresholds, and values on either side of each.
func TestTheDefaultSetKeepsThePromises(t *testing.T) {
	s := byDefault(t)
	w := writer{rand.New(rand.NewPCG(6, 4))}
	values := map[string][]float64{"payer.count_5m": {0, 5, 6}, "payer.count_1h": {0, 15, 16}, "payer.count_30d": {0, 9, 10}, "payer.sum_30d": {0, 40000, 1e9},
		"payee.first_seen_s": {0, 1}, "terminal.count_5m": {10, 11}}
	approved := 0
	for range 600 {
		v, unknown := w.payment(values)
		verdict := s.Evaluate(rules.FactsOf(v, time.UTC))
		agrees(t, verdict, 30, 70)
		if len(unknown) == 0 || verdict.Decision != txn.Approve {
			continue
		}
		approved++
		for range 30 {
			known := v
			known.Features, known.Checks = maps.Clone(v.Features), slices.Clone(v.Checks)
			w.complete(&known, values)
			if got := s.Evaluate(rules.FactsOf(known, time.UTC)); got.Decision != txn.Approve {
				t.Fatalf("approved with %v unknown, but %v and %v give %s", unknown, known.Features, known.Checks, got.Decision)
			}
		}
	}
	if approved < 30 {
		t.Errorf("only %d approvals with something unknown", approved)
	}
}

// payment has values around the default thresholds, one in six unknown.
func (w writer) payment(values map[string][]float64) (event.Validated, []string) {
	v := minimal()
	v.Tx.Amount = []int64{0, 20000, 20001, 100001, 500000}[w.IntN(5)]
	v.Tx.CreatedAt = txn.At(accepted.Truncate(24 * time.Hour).Add(time.Duration(w.IntN(24)) * time.Hour))
	v.Features = map[string]event.Value{}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		v.Features[name] = event.Value{}
		if w.IntN(6) > 0 {
			v.Features[name] = event.Value{Known: true, Number: values[name][w.IntN(len(values[name]))]}
		}
	}
	v.Checks = []txn.Check{{Name: "blocklist", Status: txn.Clear}, {Name: "document", Status: w.pick(txn.Clear, txn.Clear, txn.Unknown)}}
	return v, rules.FactsOf(v, time.UTC).Unknown
}

func (w writer) complete(v *event.Validated, values map[string][]float64) {
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if !v.Features[name].Known {
			v.Features[name] = event.Value{Known: true, Number: values[name][w.IntN(len(values[name]))]}
		}
	}
	for i, c := range v.Checks {
		if c.Status == txn.Unknown {
			v.Checks[i].Status = w.pick(txn.Clear, txn.Hit)
		}
	}
}
