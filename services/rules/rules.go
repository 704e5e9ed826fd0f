// Package rules is the language of rule sets: one YAML file of thresholds and CEL rules, checked and compiled once, evaluated
// over one fact document. Evaluation is pure: equal facts give equal verdicts.
package rules

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"cel.dev/cel-go/cel"

	"crivo/pkg/txn"
	"crivo/pkg/yaml"
	"crivo/streams"
)

//go:embed default.yaml
var defaultYAML []byte

// Default returns the rule set that comes with the program.
func Default() (*Set, error) { return Parse(defaultYAML) }

// Set is one immutable version of a rule set, ready to evaluate.
type Set struct {
	ref       txn.RuleSet
	source    []byte
	reviewAt  int
	declineAt int
	rules     []rule
}

// Ref names the set: its digest is of the file's bytes.
func (s *Set) Ref() txn.RuleSet { return s.ref }

// Source is the file that the set was read from; nobody changes it.
func (s *Set) Source() []byte { return s.source }

// reserved are codes that say more than one rule could.
var reserved = []string{streams.Faulted, InputUnknown, InputMissing}

// What an absent input does to a rule that needs it.
const (
	skip   = "skip"   // the rule does not fire
	points = "points" // it counts as fired
	review = "review" // the decision is at least review
)

type rule struct {
	id, code  string
	text      template
	points    int
	decide    string // "", approve, review, decline
	onMissing string
	inputs    []string // dotted paths that the condition reads
	plain     cel.Program
	partial   cel.Program // evaluates around unknown inputs
	traced    cel.Program // as partial, and tells every value on the way
}

// file is the YAML form.
type file struct {
	Name      string     `yaml:"name"`
	Version   int        `yaml:"version"`
	ReviewAt  int        `yaml:"review_at"`
	DeclineAt int        `yaml:"decline_at"`
	Rules     []fileRule `yaml:"rules"`
}

type fileRule struct {
	ID        string     `yaml:"id"`
	When      string     `yaml:"when"`
	Points    int        `yaml:"points"`
	Decide    string     `yaml:"decide"`
	Code      string     `yaml:"code"`
	Text      string     `yaml:"text"`
	OnMissing string     `yaml:"on_missing"`
	Tests     []fileTest `yaml:"tests"`
}

type fileTest struct {
	Facts map[string]any `yaml:"facts"`
	Want  bool           `yaml:"want"`
}

// Parse checks and compiles a rule set and runs its own tests; the error names every mistake (of unknown keys the first).
func Parse(data []byte) (*Set, error) {
	f, errs := read(data)
	if f == nil {
		return nil, fmt.Errorf("rule set: %w", errors.Join(errs...))
	}
	sum := sha256.Sum256(data)
	s := &Set{ref: txn.RuleSet{Name: f.Name, Version: f.Version, Digest: "sha256:" + hex.EncodeToString(sum[:])},
		source: data, reviewAt: f.ReviewAt, declineAt: f.DeclineAt}
	errs = append(errs, f.check()...)
	env, err := environment()
	if err != nil {
		return nil, err
	}
	for _, r := range f.Rules {
		compiled, err := r.compile(env)
		if err == nil {
			err = compiled.test(r.Tests)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("rule %q: %w", r.ID, err))
			continue
		}
		s.rules = append(s.rules, compiled)
	}
	if len(errs) > 0 {
		return nil, fmt.Errorf("rule set %s: %w", f.Name, errors.Join(errs...))
	}
	return s, nil
}

// read decodes the YAML. An unknown key is a mistake like others, what is no rule set at all gives none.
func read(data []byte) (*file, []error) {
	var f file
	err := yaml.Strict(data, &f)
	var stranger *yaml.Unknown
	if !errors.As(err, &stranger) {
		if err != nil {
			return nil, []error{err}
		}
		return &f, nil
	}
	f = file{}
	if again := yaml.Read(data, &f); again != nil {
		return nil, []error{err, again}
	}
	return &f, []error{err}
}

func (f file) check() []error {
	var errs []error
	fault := func(wrong bool, format string, args ...any) {
		if wrong {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	fault(f.Name == "", "name is missing")
	fault(f.Version < 1, "version must be 1 or more")
	fault(f.ReviewAt < 1 || f.ReviewAt >= f.DeclineAt || f.DeclineAt > 100, "thresholds must be 1 ≤ review_at < decline_at ≤ 100")
	fault(len(f.Rules) == 0, "no rules")
	seen := map[string]bool{}
	for i, r := range f.Rules {
		fault(r.ID == "", "rule %d: id is missing", i+1)
		fault(seen[r.ID] && r.ID != "", "rule %q: id is used twice", r.ID)
		seen[r.ID] = true
		fault(r.Code == "" || r.Text == "", "rule %q: code and text are needed", r.ID)
		fault(r.Points < 0 || r.Points > 100, "rule %q: points must be 0 to 100", r.ID)
		fault((r.Points > 0) == (r.Decide != ""), "rule %q: either points or decide", r.ID)
		fault(r.Decide == txn.Approve && r.OnMissing == points, "rule %q: what was not sent cannot approve, on_missing must be skip or review", r.ID)
		fault(slices.Contains(reserved, r.Code), "rule %q: code %s is reserved", r.ID, r.Code)
		switch r.Decide {
		case "", txn.Approve, txn.Review, txn.Decline:
		default:
			fault(true, "rule %q: decide must be approve, review or decline", r.ID)
		}
		switch r.OnMissing {
		case "", skip, points, review:
		default:
			fault(true, "rule %q: on_missing must be skip, points or review", r.ID)
		}
	}
	return errs
}

func (r fileRule) compile(env *cel.Env) (rule, error) {
	out := rule{id: r.ID, code: r.Code, points: r.Points, decide: r.Decide, onMissing: r.OnMissing}
	if out.onMissing == "" {
		out.onMissing = skip
	}
	var textErr error
	out.text, textErr = parseTemplate(r.Text)
	checked, err := condition(env, r.When)
	if err == nil {
		out.inputs, err = paths(checked)
	}
	if err := errors.Join(err, textErr); err != nil {
		return out, err
	}
	if out.plain, err = env.Program(checked, cel.EvalOptions(cel.OptOptimize)); err != nil {
		return out, fmt.Errorf("when: %w", err)
	}
	if out.partial, err = env.Program(checked, cel.EvalOptions(cel.OptPartialEval)); err != nil {
		return out, fmt.Errorf("when: %w", err)
	}
	if out.traced, err = env.Program(checked, cel.EvalOptions(cel.OptPartialEval, cel.OptTrackState)); err != nil {
		return out, fmt.Errorf("when: %w", err)
	}
	return out, nil
}

// condition compiles one: true or false, and never dearer than the limit, whatever a transaction holds.
func condition(env *cel.Env, when string) (*cel.Ast, error) {
	checked, issues := env.Compile(when)
	if issues.Err() != nil {
		return nil, fmt.Errorf("when: %w", issues.Err())
	}
	if !checked.OutputType().IsEquivalentType(cel.BoolType) {
		return nil, errors.New("when: must be true or false")
	}
	most, err := env.EstimateCost(checked, sizes{})
	if err != nil {
		return nil, fmt.Errorf("when: %w", err)
	}
	if most.Max > costLimit {
		return nil, fmt.Errorf("when: may cost %d, %d at most", most.Max, costLimit)
	}
	return checked, nil
}

// test runs a rule's own examples.
func (r rule) test(tests []fileTest) error {
	var errs []error
	for i, t := range tests {
		facts, err := example(t.Facts)
		if err != nil {
			errs = append(errs, fmt.Errorf("test %d: %w", i+1, err))
			continue
		}
		if got := r.run(facts.input()) == fired; got != t.Want {
			errs = append(errs, fmt.Errorf("test %d: fires = %v, want %v", i+1, got, t.Want))
		}
	}
	return errors.Join(errs...)
}
