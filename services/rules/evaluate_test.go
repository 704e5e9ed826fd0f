package rules_test

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"

	"crivo/pkg/txn"
	"crivo/services/rules"
	"crivo/streams/event"
)

// The rules that verdicts below are made of: always fires, never fires, needs what was not sent, hangs on an unknown check.
const (
	always  = `when: tx.amount > 0`
	never   = `when: tx.amount < 0`
	unsent  = `when: 'attributes.x == "y"'`
	hangs   = `when: 'checks["c"] == "hit"'`
	unusual = `when: 'attributes.n > 5.0'` // n is a text
)

func rule(id, when, then string) string {
	return fmt.Sprintf(`{id: %s, %s, %s, code: %s, text: t}`, id, when, then, id)
}

func TestVerdicts(t *testing.T) {
	v := minimal()
	v.Checks = []txn.Check{{Name: "c", Status: txn.Unknown}}
	v.Tx.Attributes = map[string]any{"n": "a text"}
	for name, tc := range map[string]struct {
		rules    []string
		decision string
		score    int
		reasons  []string
	}{
		"nothing fires":                           {[]string{rule("A", never, "points: 50")}, txn.Approve, 0, nil},
		"points below review":                     {[]string{rule("A", always, "points: 29")}, txn.Approve, 29, []string{"A 29"}},
		"points reach review":                     {[]string{rule("A", always, "points: 10"), rule("B", always, "points: 20")}, txn.Review, 30, []string{"B 20", "A 10"}},
		"points reach decline":                    {[]string{rule("A", always, "points: 30"), rule("B", always, "points: 40")}, txn.Decline, 70, []string{"B 40", "A 30"}},
		"points are capped":                       {[]string{rule("A", always, "points: 80"), rule("B", always, "points: 90")}, txn.Decline, 100, []string{"B 90", "A 80"}},
		"equal points stay in order":              {[]string{rule("B", always, "points: 5"), rule("A", always, "points: 5"), rule("C", always, "points: 6")}, txn.Approve, 16, []string{"C 6", "B 5", "A 5"}},
		"a hard decline beats all":                {[]string{rule("A", always, "decide: decline"), rule("B", always, "decide: review"), rule("C", always, "decide: approve")}, txn.Decline, 70, []string{"A 0", "B 0", "C 0"}},
		"a hard review beats an approval":         {[]string{rule("A", always, "decide: approve"), rule("B", always, "decide: review")}, txn.Review, 30, []string{"A 0", "B 0"}},
		"a hard review does not soften points":    {[]string{rule("A", always, "points: 90"), rule("B", always, "decide: review")}, txn.Decline, 90, []string{"A 90", "B 0"}},
		"an allow beats points":                   {[]string{rule("A", always, "points: 90"), rule("B", always, "decide: approve")}, txn.Approve, 29, []string{"A 90", "B 0"}},
		"an allow and a review beat points":       {[]string{rule("A", always, "points: 90"), rule("B", always, "decide: approve"), rule("C", always, "decide: review")}, txn.Review, 69, []string{"A 90", "B 0", "C 0"}},
		"what was not sent is skipped":            {[]string{rule("A", unsent, "points: 50")}, txn.Approve, 0, nil},
		"what was not sent counts as points":      {[]string{rule("A", unsent, "points: 50, on_missing: points")}, txn.Review, 50, []string{"A 50"}},
		"what was not sent declines when told so": {[]string{rule("A", unsent, "decide: decline, on_missing: points")}, txn.Decline, 70, []string{"A 0"}},
		"what was not sent demands a review":      {[]string{rule("A", unsent, "points: 5, on_missing: review")}, txn.Review, 30, []string{"INPUT_MISSING 0"}},
		"an allow cannot lift that review":        {[]string{rule("A", unsent, "points: 5, on_missing: review"), rule("B", always, "decide: approve")}, txn.Review, 30, []string{"INPUT_MISSING 0", "B 0"}},
		"an unknown that cannot reach review":     {[]string{rule("A", hangs, "points: 29")}, txn.Approve, 0, nil},
		"an unknown that could":                   {[]string{rule("A", hangs, "points: 20"), rule("B", always, "points: 10")}, txn.Review, 30, []string{"B 10", "INPUT_UNKNOWN 0"}},
		"two unknowns that could together":        {[]string{rule("A", hangs, "points: 20"), rule("B", hangs, "points: 10")}, txn.Review, 30, []string{"INPUT_UNKNOWN 0", "INPUT_UNKNOWN 0"}},
		"an unknown hard decline":                 {[]string{rule("A", hangs, "decide: decline")}, txn.Review, 30, []string{"INPUT_UNKNOWN 0"}},
		"an unknown hard review":                  {[]string{rule("A", hangs, "decide: review")}, txn.Review, 30, []string{"INPUT_UNKNOWN 0"}},
		"an unknown block under an allow":         {[]string{rule("A", hangs, "decide: decline"), rule("B", always, "decide: approve")}, txn.Review, 30, []string{"B 0", "INPUT_UNKNOWN 0"}},
		"unknown points under an allow":           {[]string{rule("A", hangs, "points: 90"), rule("B", always, "decide: approve")}, txn.Approve, 0, []string{"B 0"}},
		"an unknown allow allows nothing":         {[]string{rule("A", `when: 'checks["c"] != "hit"'`, "decide: approve"), rule("B", always, "points: 30")}, txn.Review, 30, []string{"B 30"}},
		"unknown, then not sent: may be a review": {[]string{rule("A", `when: 'checks["c"] == "hit" && attributes.x == "y"'`, "points: 5, on_missing: review")}, txn.Review, 30, []string{"INPUT_UNKNOWN 0"}},
		"so may an allow be":                      {[]string{rule("A", `when: 'checks["c"] == "hit" && attributes.x == "y"'`, "decide: approve, on_missing: review")}, txn.Review, 30, []string{"INPUT_UNKNOWN 0"}},
		"an unknown that changes nothing: fires":  {[]string{rule("A", `when: 'checks["c"] == "hit" || tx.amount > 0'`, "points: 10")}, txn.Approve, 10, []string{"A 10"}},
		"an unknown that changes nothing: quiet":  {[]string{rule("A", `when: 'checks["c"] == "hit" && tx.amount < 0'`, "decide: decline")}, txn.Approve, 0, nil},
		"a text where a number is wanted":         {[]string{rule("A", unusual, "points: 50")}, txn.Review, 30, []string{"INPUT_UNKNOWN 0"}},
		"and it blocks":                           {[]string{rule("A", unusual, "decide: decline")}, txn.Review, 30, []string{"INPUT_UNKNOWN 0"}},
		"nor does what was not sent clear it":     {[]string{rule("A", `when: 'has(merchant.mcc) && merchant.mcc == "7995" || attributes.n > 5.0'`, "points: 50")}, txn.Review, 30, []string{"INPUT_UNKNOWN 0"}},
		"nor before one":                          {[]string{rule("A", `when: 'attributes.n > 5.0 || merchant.mcc == "7995"'`, "points: 50")}, txn.Review, 30, []string{"INPUT_UNKNOWN 0"}},
		"nor after one":                           {[]string{rule("A", `when: 'merchant.mcc == "7995" || attributes.n > 5.0'`, "points: 50")}, txn.Review, 30, []string{"INPUT_UNKNOWN 0"}},
		"nor beside an unknown":                   {[]string{rule("A", `when: 'checks["c"] == "hit" && tx.amount < 0 || attributes.x == "y" || attributes.n > 5.0'`, "points: 50")}, txn.Review, 30, []string{"INPUT_UNKNOWN 0"}},
		"nor is it milder than that":              {[]string{rule("A", `when: 'attributes.n > 5.0 || merchant.mcc == "7995"'`, "decide: decline, on_missing: points")}, txn.Decline, 70, []string{"A 0"}},
		"nor does it stand for it":                {[]string{rule("A", `when: 'attributes.n > 5.0 || has(merchant.mcc) && merchant.mcc == "7995"'`, "decide: decline, on_missing: points")}, txn.Review, 30, []string{"INPUT_UNKNOWN 0"}},
		"one that is not read is not missed":      {[]string{rule("A", `when: 'has(attributes.n) && tx.amount > 0 || attributes.x == "y"'`, "points: 10")}, txn.Approve, 10, []string{"A 10"}},
		"what is not read has no type":            {[]string{rule("A", `when: 'has(merchant.mcc) && attributes.n > 5.0 || attributes.x == "y"'`, "points: 50")}, txn.Approve, 0, nil},
		"a check that was not made is skipped":    {[]string{rule("A", `when: 'checks["d"] == "hit" || attributes["x"] == "y"'`, "points: 50")}, txn.Approve, 0, nil},
		"beside an unknown too":                   {[]string{rule("A", `when: 'checks["c"] == "hit" && tx.amount < 0 || attributes.x == "y"'`, "points: 50")}, txn.Approve, 0, nil},
		"a decision lists no open rules it has":   {[]string{rule("A", hangs, "points: 90"), rule("B", always, "points: 40")}, txn.Review, 40, []string{"B 40"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := set(t, tc.rules...).Evaluate(rules.FactsOf(v, time.UTC))
			var reasons []string
			for _, r := range got.Reasons {
				reasons = append(reasons, fmt.Sprint(r.Code, " ", r.Points))
			}
			if got.Decision != tc.decision || got.Score != tc.score {
				t.Errorf("got %s at %d, want %s at %d", got.Decision, got.Score, tc.decision, tc.score)
			}
			if diff := cmp.Diff(tc.reasons, reasons); diff != "" {
				t.Error(diff)
			}
			agrees(t, got, 30, 70)
		})
	}
}

// agrees checks that score, band and decision of a verdict say the same.
func agrees(t *testing.T, v txn.Verdict, reviewAt, declineAt int) {
	t.Helper()
	decision, band := txn.Approve, "low"
	if v.Score >= reviewAt {
		decision, band = txn.Review, "medium"
	}
	if v.Score >= declineAt {
		decision, band = txn.Decline, "high"
	}
	if v.Decision != decision || v.RiskBand != band || v.Score < 0 || v.Score > 100 {
		t.Errorf("decision %s, score %d and band %s contradict each other", v.Decision, v.Score, v.RiskBand)
	}
}

func TestAReasonExplainsItself(t *testing.T) {
	s := set(t, `{id: r-1, when: 'payer.count_5m > 5.0 && checks["blocklist"] == "clear" && hour > 20 && has(merchant.mcc)', points: 25, code: C, text: "{payer.count_5m} in 5 minutes"}`,
		`{id: r-2, when: 'attributes.x == "y"', points: 25, on_missing: review, code: D, text: "x is {attributes.x}"}`)
	got := s.Evaluate(rules.FactsOf(full(), time.UTC))
	want := txn.Verdict{Decision: txn.Review, Score: 30, RiskBand: "medium", RuleSet: s.Ref(), Reasons: []txn.Reason{
		{Code: "C", Rule: "r-1", Points: 25, Text: "7 in 5 minutes", Inputs: map[string]any{"payer.count_5m": 7.0, "checks.blocklist": "clear", "hour": int64(23), "merchant.mcc": "5411"}},
		{Code: "INPUT_MISSING", Rule: "r-2", Text: "D needs something that was not sent", Inputs: map[string]any{}}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestEqualFactsGiveEqualBytes(t *testing.T) {
	s := byDefault(t)
	v := full()
	v.Features = map[string]event.Value{}
	for i, w := range []string{"5m", "1h", "24h", "30d"} {
		v.Features["payer.count_"+w] = event.Value{Known: true, Number: float64(20 + i)}
		v.Features["payer.sum_"+w] = event.Value{Known: true, Number: 1000}
		v.Features["terminal.count_"+w] = event.Value{Known: i > 0, Number: 3}
	}
	var first []byte
	for range 100 {
		got, err := json.Marshal(s.Evaluate(rules.FactsOf(v, time.UTC)), json.Deterministic(true))
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = got
		}
		if !bytes.Equal(first, got) {
			t.Fatalf("%s\n%s", first, got)
		}
	}
	if bytes.Count(first, []byte(`"code"`)) < 3 {
		t.Errorf("too few reasons to tell: %s", first)
	}
}

// Every rule of the default set, by facts that a whole transaction gives: fired and just not.
func TestTheDefaultSet(t *testing.T) {
	known := func(pairs ...any) map[string]event.Value {
		out := map[string]event.Value{}
		for i := 0; i < len(pairs); i += 2 {
			out[pairs[i].(string)] = event.Value{Known: true, Number: pairs[i+1].(float64)}
		}
		return out
	}
	features := func(pairs ...any) func(*event.Validated) {
		return func(v *event.Validated) { v.Features = known(pairs...) }
	}
	check := func(name, status string) func(*event.Validated) {
		return func(v *event.Validated) { v.Checks = []txn.Check{{Name: name, Status: status}} }
	}
	paying := func(amount int64, at string, kind string, pairs ...any) func(*event.Validated) {
		return func(v *event.Validated) {
			created, err := time.Parse(time.TimeOnly, at)
			if err != nil {
				t.Fatal(err)
			}
			v.Tx.Amount, v.Tx.Type, v.Features = amount, kind, known(pairs...)
			v.Tx.CreatedAt = txn.At(time.Date(2026, 11, 22, created.Hour(), created.Minute(), created.Second(), 0, time.UTC))
		}
	}
	device := func(rooted, emulator bool) func(*event.Validated) {
		return func(v *event.Validated) { v.Tx.Device = &txn.SealedDevice{IsRooted: &rooted, IsEmulator: &emulator} }
	}
	mules := func(n int64) func(*event.Validated) {
		return func(v *event.Validated) {
			v.Tx.Payee = &txn.SealedParty{Statistics: &txn.Statistics{MuleAccounts: map[string]int64{"d90": n}}}
		}
	}
	s := byDefault(t)
	for code, tc := range map[string]struct {
		fires    []func(*event.Validated)
		quiet    []func(*event.Validated)
		decision string
	}{
		"LIST_HIT_INTERNAL": {[]func(*event.Validated){check("blocklist", "hit")}, []func(*event.Validated){check("blocklist", "clear")}, txn.Decline},
		"DOCUMENT_INVALID":  {[]func(*event.Validated){check("document", "hit")}, []func(*event.Validated){check("document", "clear")}, txn.Review},
		"VELOCITY_PAYER_5M": {[]func(*event.Validated){features("payer.count_5m", 6.0)}, []func(*event.Validated){features("payer.count_5m", 5.0)}, txn.Approve},
		"VELOCITY_PAYER_1H": {[]func(*event.Validated){features("payer.count_1h", 16.0)}, []func(*event.Validated){features("payer.count_1h", 15.0)}, txn.Approve},
		"AMOUNT_UNUSUAL": {[]func(*event.Validated){paying(20001, "12:00:00", "card", "payer.count_30d", 10.0, "payer.sum_30d", 40000.0)},
			[]func(*event.Validated){paying(20000, "12:00:00", "card", "payer.count_30d", 10.0, "payer.sum_30d", 39000.0),
				paying(20001, "12:00:00", "card", "payer.count_30d", 9.0, "payer.sum_30d", 9000.0),
				paying(20001, "12:00:00", "card", "payer.count_30d", 10.0, "payer.sum_30d", 40002.0)}, txn.Review},
		"NEW_PAYEE_LARGE": {[]func(*event.Validated){paying(500000, "12:00:00", "pix", "payee.first_seen_s", 0.0)},
			[]func(*event.Validated){paying(499999, "12:00:00", "pix", "payee.first_seen_s", 0.0), paying(500000, "12:00:00", "ted", "payee.first_seen_s", 0.0),
				paying(500000, "12:00:00", "pix", "payee.first_seen_s", 1.0), paying(500000, "12:00:00", "pix")}, txn.Review},
		"NIGHT_LARGE": {[]func(*event.Validated){paying(100001, "20:00:00", "pix"), paying(100001, "05:59:59", "pix")},
			[]func(*event.Validated){paying(100001, "19:59:59", "pix"), paying(100001, "06:00:00", "pix"), paying(100000, "22:00:00", "pix"),
				paying(100001, "22:00:00", "card")}, txn.Approve},
		"VELOCITY_TERMINAL_5M": {[]func(*event.Validated){features("terminal.count_5m", 11.0)}, []func(*event.Validated){features("terminal.count_5m", 10.0)}, txn.Approve},
		"PAYEE_MULE_MARKER":    {[]func(*event.Validated){mules(1)}, []func(*event.Validated){mules(0)}, txn.Review},
		"DEVICE_TAMPERED": {[]func(*event.Validated){device(true, false), device(false, true)},
			[]func(*event.Validated){device(false, false), func(*event.Validated) {}}, txn.Approve},
	} {
		t.Run(code, func(t *testing.T) {
			has := func(r txn.Reason) bool { return r.Code == code }
			for i, change := range tc.fires {
				v := minimal()
				change(&v)
				got := s.Evaluate(rules.FactsOf(v, time.UTC))
				if !slices.ContainsFunc(got.Reasons, has) || got.Decision != tc.decision {
					t.Errorf("case %d does not fire: %+v", i, got)
				}
				agrees(t, got, 30, 70)
			}
			for i, change := range tc.quiet {
				v := minimal()
				change(&v)
				if got := s.Evaluate(rules.FactsOf(v, time.UTC)); slices.ContainsFunc(got.Reasons, has) || got.Decision != txn.Approve {
					t.Errorf("case %d fires: %+v", i, got)
				}
			}
		})
	}
}

func TestTheDefaultSetLooksAtEveryUnknownCheck(t *testing.T) {
	for _, name := range []string{"blocklist", "document"} {
		v := minimal()
		v.Checks = []txn.Check{{Name: name, Status: txn.Unknown}}
		if got := byDefault(t).Evaluate(rules.FactsOf(v, time.UTC)); got.Decision != txn.Review {
			t.Errorf("%s unknown gives %s", name, got.Decision)
		}
	}
}

func BenchmarkEvaluate(b *testing.B) {
	s := byDefault(b)
	known := full()
	known.Checks = known.Checks[:2]
	known.Features = map[string]event.Value{}
	for _, role := range []string{"payer", "payee", "device", "terminal"} {
		for _, w := range []string{"5m", "1h", "24h", "30d"} {
			known.Features[role+".count_"+w] = event.Value{Known: true, Number: 3}
			known.Features[role+".sum_"+w] = event.Value{Known: true, Number: 90000}
		}
		known.Features[role+".first_seen_s"] = event.Value{Known: true, Number: 90000}
	}
	unknown := known
	unknown.Features = map[string]event.Value{}
	for name := range known.Features {
		unknown.Features[name] = event.Value{}
	}
	for name, v := range map[string]event.Validated{"known": known, "unknown": unknown, "absent": minimal()} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				s.Evaluate(rules.FactsOf(v, time.UTC))
			}
		})
	}
}
