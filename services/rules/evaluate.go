package rules

import (
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"

	"crivo/pkg/txn"
)

// Codes of reasons that are no rule's own: what the rule that Reason names needs is unknown, or was not sent.
const (
	InputUnknown = "INPUT_UNKNOWN"
	InputMissing = "INPUT_MISSING"
)

// outcome is what a rule says of one fact document.
type outcome int

const (
	quiet   outcome = iota // the condition is false
	fired                  // it is true
	open                   // it depends on something unknown, or cannot be computed
	missing                // it needs something that the client did not send
)

// Evaluate decides. Points add up and are capped once, at the end; a hard decline beats a hard review beats the thresholds,
// and an allow beats only the thresholds. Whatever an unknown input could still do counts: approve comes out only if every
// possible value of what is unknown gives it.
func (s *Set) Evaluate(f Facts) txn.Verdict {
	t := tally{set: s, facts: f}
	in := f.input()
	for i := range s.rules {
		r := &s.rules[i]
		t.add(r, r.run(in))
	}
	return t.verdict()
}

// input is a fact document as conditions are run on it.
type input struct {
	facts Facts
	holes cel.PartialActivation // nil when nothing is unknown
}

func (f Facts) input() input {
	if len(f.Unknown) == 0 {
		return input{facts: f}
	}
	patterns := make([]*cel.AttributePatternType, len(f.Unknown))
	for i, path := range f.Unknown {
		entity, field, _ := strings.Cut(path, ".")
		patterns[i] = cel.AttributePattern(entity).QualString(field)
	}
	holes, _ := cel.PartialVars(f.Vars, patterns...) // fails only for what is no map
	return input{f, holes}
}

func (r *rule) run(in input) outcome {
	program, vars := r.plain, any(in.facts.Vars)
	if in.holes != nil {
		program, vars = r.partial, in.holes
	}
	value, _, err := program.Eval(vars)
	switch {
	case err == nil && value == types.True:
		return fired
	case err == nil && value == types.False:
		return quiet
	case err != nil && r.lacks(in, vars):
		return missing
	}
	return open // unknown; or of another type than the rule takes it for, which must not clear it
}

// lacks tells whether what was not sent keeps a rule that failed from an answer. The error that came out does not tell: of two
// operands that fail it is the first one's. So the rule is run once more, and every error in it looked at. Where something else
// failed as well, the rule is not skipped.
func (r *rule) lacks(in input, vars any) bool {
	var absent []string
	for _, path := range r.inputs {
		if in.facts.lack(path) {
			absent = append(absent, absence(path))
		}
	}
	if len(absent) == 0 {
		return false
	}
	_, details, _ := r.traced.Eval(vars)
	lacks, wrong := false, false
	for _, id := range details.State().IDs() {
		value, _ := details.State().Value(id)
		if err, failed := value.(*types.Err); failed {
			lacking := slices.Contains(absent, err.Error())
			lacks, wrong = lacks || lacking, wrong || !lacking
		}
	}
	return lacks && (!wrong || r.onMissing != skip)
}

// absence is what CEL says where a fact is read that is not there.
func absence(path string) string {
	if _, field, dotted := strings.Cut(path, "."); dotted {
		return "no such key: " + field
	}
	return "no such attribute(s): " + path
}

// tally collects what rules said.
type tally struct {
	set     *Set
	facts   Facts
	sum     int
	maybe   int // points of rules that unknown inputs keep open
	hard    string
	allowed bool
	doubt   bool // an open rule could demand more than the thresholds do
	reasons []txn.Reason
	open    []txn.Reason
}

func (t *tally) add(r *rule, o outcome) {
	switch {
	case o == fired || o == missing && r.onMissing == points:
		t.fire(r)
	case o == missing && r.onMissing == review:
		t.hard = severer(t.hard, txn.Review)
		t.reasons = append(t.reasons, t.lacking(r, InputMissing, "needs something that was not sent"))
	case o == open && (r.decide != txn.Approve || r.onMissing == review):
		t.maybe += r.points
		t.doubt = t.doubt || r.decide != "" || r.onMissing == review
		t.open = append(t.open, t.lacking(r, InputUnknown, "could not be evaluated: an input is unknown or unusable"))
	}
}

func (t *tally) fire(r *rule) {
	t.sum += r.points
	if r.decide == txn.Approve {
		t.allowed = true
	} else if r.decide != "" {
		t.hard = severer(t.hard, r.decide)
	}
	t.reasons = append(t.reasons, t.reason(r, r.text.fill(t.facts), r.points))
}

func (t *tally) reason(r *rule, text string, points int) txn.Reason {
	inputs := make(map[string]any, len(r.inputs))
	for _, path := range r.inputs {
		if v := t.facts.get(path); v != nil {
			inputs[path] = v
		}
	}
	return txn.Reason{Code: r.code, Text: text, Rule: r.id, Points: points, Inputs: inputs}
}

// lacking is the reason of a rule that could not look: its own code would say that it had seen something.
func (t *tally) lacking(r *rule, code, text string) txn.Reason {
	out := t.reason(r, r.code+" "+text, 0)
	out.Code = code
	return out
}

func (t *tally) verdict() txn.Verdict {
	v := txn.Verdict{Score: min(t.sum, 100), RuleSet: t.set.ref}
	v.Decision = t.set.byScore(v.Score)
	if t.allowed {
		v.Decision = txn.Approve
	}
	v.Decision = severer(v.Decision, t.hard)
	if v.Decision == txn.Approve && (t.doubt || !t.allowed && min(t.sum+t.maybe, 100) >= t.set.reviewAt) {
		v.Decision = txn.Review
		t.reasons = append(t.reasons, t.open...)
	}
	// A hard decision and an allow move the score into their band, so that score, band and decision never contradict each other.
	switch v.Decision {
	case txn.Approve:
		v.Score = min(v.Score, t.set.reviewAt-1)
	case txn.Review:
		v.Score = min(max(v.Score, t.set.reviewAt), t.set.declineAt-1)
	case txn.Decline:
		v.Score = max(v.Score, t.set.declineAt)
	}
	v.RiskBand = t.set.band(v.Score)
	slices.SortStableFunc(t.reasons, func(a, b txn.Reason) int { return b.Points - a.Points })
	v.Reasons = t.reasons
	if v.Reasons == nil {
		v.Reasons = []txn.Reason{}
	}
	return v
}

func (s *Set) byScore(score int) string {
	switch {
	case score >= s.declineAt:
		return txn.Decline
	case score >= s.reviewAt:
		return txn.Review
	}
	return txn.Approve
}

func (s *Set) band(score int) string {
	return map[string]string{txn.Approve: "low", txn.Review: "medium", txn.Decline: "high"}[s.byScore(score)]
}

// severer returns the severer of two decisions; "" is milder than any.
func severer(a, b string) string {
	rank := []string{"", txn.Approve, txn.Review, txn.Decline}
	if slices.Index(rank, a) >= slices.Index(rank, b) {
		return a
	}
	return b
}
