package rules_test

import (
	"strings"
	"testing"

	"crivo/pkg/txn"
	"crivo/services/rules"
)

// head opens a rule set whose thresholds are 30 and 70.
const head = "name: s\nversion: 1\nreview_at: 30\ndecline_at: 70\nrules:\n"

// set parses rules, one YAML flow mapping each.
func set(t testing.TB, lines ...string) *rules.Set {
	t.Helper()
	s, err := rules.Parse([]byte(head + "  - " + strings.Join(lines, "\n  - ")))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func byDefault(t testing.TB) *rules.Set {
	t.Helper()
	s, err := rules.Default()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestParseNamesTheMistake(t *testing.T) {
	for name, tc := range map[string]struct{ rule, want string }{
		"both points and decide":   {`{id: a, when: hour > 1, points: 5, decide: review, code: A, text: t}`, `rule "a": either points or decide`},
		"neither":                  {`{id: a, when: hour > 1, code: A, text: t}`, `rule "a": either points or decide`},
		"too many points":          {`{id: a, when: hour > 1, points: 101, code: A, text: t}`, `rule "a": points must be 0 to 100`},
		"points below zero":        {`{id: a, when: hour > 1, points: -1, decide: review, code: A, text: t}`, `rule "a": points must be 0 to 100`},
		"a decision that is none":  {`{id: a, when: hour > 1, decide: refuse, code: A, text: t}`, `rule "a": decide must be approve, review or decline`},
		"on_missing that is none":  {`{id: a, when: hour > 1, points: 5, on_missing: fire, code: A, text: t}`, `rule "a": on_missing must be skip, points or review`},
		"approval of what is not":  {`{id: a, when: device.is_rooted == false, decide: approve, on_missing: points, code: A, text: t}`, `rule "a": what was not sent cannot approve`},
		"no id":                    {`{when: hour > 1, points: 5, code: A, text: t}`, `rule 1: id is missing`},
		"no code":                  {`{id: a, when: hour > 1, points: 5, text: t}`, `rule "a": code and text are needed`},
		"no text":                  {`{id: a, when: hour > 1, points: 5, code: A}`, `rule "a": code and text are needed`},
		"a reserved code":          {`{id: a, when: hour > 1, points: 5, code: PROCESSING_FAULT, text: t}`, `rule "a": code PROCESSING_FAULT is reserved`},
		"no condition":             {`{id: a, points: 5, code: A, text: t}`, `rule "a": when: `},
		"broken CEL":               {`{id: a, when: tx.amount > , points: 5, code: A, text: t}`, `<input>:1:12: Syntax error`},
		"an unknown entity":        {`{id: a, when: payor.count_5m > 1.0, points: 5, code: A, text: t}`, `undeclared reference to 'payor'`},
		"types that never match":   {`{id: a, when: hour > "x", points: 5, code: A, text: t}`, `<input>:1:6`},
		"no true or false":         {`{id: a, when: hour + 1, points: 5, code: A, text: t}`, `rule "a": when: must be true or false`},
		"an unknown field":         {`{id: a, when: payer.count_2m > 1.0, points: 5, code: A, text: t}`, `rule "a": when: no such fact: payer.count_2m`},
		"a feature of no window":   {`{id: a, when: payer.avg_5m > 1.0, points: 5, code: A, text: t}`, `no such fact: payer.avg_5m`},
		"a feature of no entity":   {`{id: a, when: merchant.count_5m > 1.0, points: 5, code: A, text: t}`, `no such fact: merchant.count_5m`},
		"a counter of no party":    {`{id: a, when: payer.mule_accounts_d90 > 0.0, points: 5, code: A, text: t}`, `no such fact: payer.mule_accounts_d90`},
		"an unknown index":         {`{id: a, when: 'tx["amonut"] > 1', points: 5, code: A, text: t}`, `no such fact: tx.amonut`},
		"has() of nothing":         {`{id: a, when: has(device.vendor), points: 5, code: A, text: t}`, `no such fact: device.vendor`},
		"a text's unknown place":   {`{id: a, when: hour > 1, points: 5, code: A, text: "{payer.name}"}`, `rule "a": text: {payer.name} is no fact`},
		"a text's open place":      {`{id: a, when: hour > 1, points: 5, code: A, text: "{tx.amount"}`, `rule "a": text: { is not closed`},
		"a text's whole entity":    {`{id: a, when: hour > 1, points: 5, code: A, text: "{tx}"}`, `rule "a": text: {tx} is no fact`},
		"a test that fails":        {`{id: a, when: hour > 1, points: 5, code: A, text: t, tests: [{facts: {hour: 2}, want: true}, {facts: {hour: 2}, want: false}]}`, `rule "a": test 2: fires = true, want false`},
		"a test of what is not":    {`{id: a, when: payer.count_5m > 1.0, points: 5, code: A, text: t, tests: [{facts: {payer: {count5m: 2}}, want: false}]}`, `rule "a": test 1: no such fact: payer.count5m`},
		"a test of an entity":      {`{id: a, when: payer.count_5m > 1.0, points: 5, code: A, text: t, tests: [{facts: {payer: 5}, want: false}]}`, `rule "a": test 1: no such fact: payer`},
		"a test of no check state": {`{id: a, when: 'checks["x"] != "hit"', points: 5, code: A, text: t, tests: [{facts: {checks: {x: unknown}}, want: true}]}`, `rule "a": test 1: fires = false, want true`},
		"a cost without bound":     {`{id: a, when: 'attributes.all(a, attributes.all(b, attributes.all(c, a + b + c != "")))', points: 5, code: A, text: t}`, `rule "a": when: may cost`},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := rules.Parse([]byte(head + "  - " + tc.rule))
			if err == nil || s != nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func TestParseNamesAllMistakesAtOnce(t *testing.T) {
	_, err := rules.Parse([]byte(`
version: 0
review_at: 70
decline_at: 30
colour: red
rules:
  - {id: a, when: tx.amount >, points: 5, code: A, text: "{tx.colour}"}
  - {id: a, when: hour + 1, points: 5, decide: review, code: B, text: t}
  - {when: hour > 1, decide: never, on_missing: never, text: t, tests: [{facts: {hour: 2}, want: false}, {facts: {hour: 1}, want: true}]}
`))
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{`unknown field "colour"`, "name is missing", "version must be 1 or more", "thresholds must be", `rule "a": id is used twice`,
		"Syntax error", "{tx.colour} is no fact", "either points or decide", "must be true or false", "rule 3: id is missing", "code and text are needed",
		"decide must be", "on_missing must be", "test 1: fires = true", "test 2: fires = false"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not named in\n%v", want, err)
		}
	}
}

func TestThresholdsAreInOrder(t *testing.T) {
	rule := "\nrules: [{id: a, when: hour > 1, points: 5, code: A, text: t}]"
	for thresholds, ok := range map[string]bool{
		"review_at: 1\ndecline_at: 2": true, "review_at: 30\ndecline_at: 100": true,
		"review_at: 0\ndecline_at: 50": false, "review_at: 50\ndecline_at: 50": false, "review_at: 50\ndecline_at: 101": false, "review_at: 50": false,
	} {
		if _, err := rules.Parse([]byte("name: s\nversion: 1\n" + thresholds + rule)); (err == nil) != ok {
			t.Errorf("%q: %v", thresholds, err)
		}
	}
}

func TestWhatIsNoRuleSetIsRefused(t *testing.T) {
	for name, text := range map[string]string{
		"nothing": "", "a list": "- a\n- b", "no YAML": "\t{", "what panics the library": head + "  ! {0}", "no rules": "name: s\nversion: 1\nreview_at: 30\ndecline_at: 70",
		"a key twice": head + "  - {id: a, id: b, when: hour > 1, points: 5, code: A, text: t}",
	} {
		if _, err := rules.Parse([]byte(text)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestADigestIsOfTheBytes(t *testing.T) {
	rule := `{id: a, when: hour > 1, points: 5, code: A, text: t}`
	one, same, other := set(t, rule).Ref(), set(t, rule).Ref(), set(t, rule+" # changed").Ref()
	if one != same || one.Digest == other.Digest || !strings.HasPrefix(one.Digest, "sha256:") {
		t.Errorf("%v %v %v", one, same, other)
	}
	if one.Name != "s" || one.Version != 1 {
		t.Errorf("got %+v", one)
	}
}

func TestLiveKeepsEveryVersionThatWasPinned(t *testing.T) {
	first := set(t, `{id: a, when: hour > 1, points: 5, code: A, text: t}`)
	second := set(t, `{id: b, when: hour > 1, points: 5, code: A, text: t}`)
	live := rules.NewLive(first)
	live.Publish(second)
	if live.Current() != second {
		t.Error("the new set is not pinned")
	}
	for _, s := range []*rules.Set{first, second} {
		if got, ok := live.Version(s.Ref()); !ok || got != s {
			t.Errorf("%v is gone", s.Ref())
		}
	}
	if _, ok := live.Version(txn.RuleSet{Name: "s", Version: 1, Digest: "sha256:other"}); ok {
		t.Error("found a set by name and version alone")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(head + "  - {id: a, when: hour > 1, points: 5, code: A, text: \"{hour}\", tests: [{facts: {hour: 2}, want: true}]}"))
	f.Add([]byte(head + "  - {id: a, when: 'checks[\"x\"] == \"hit\"', decide: decline, on_missing: review, code: A, text: t}"))
	f.Add([]byte(head + "  ! {0}")) // the YAML library panics
	f.Fuzz(func(t *testing.T, data []byte) {
		if s, err := rules.Parse(data); (s == nil) != (err != nil) {
			t.Errorf("set %v, error %v", s, err)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	for b.Loop() {
		byDefault(b)
	}
}
