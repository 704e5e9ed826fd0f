// Package rules is the language of rule sets: one YAML file of thresholds and CEL rules, checked and compiled once, evaluated
// over one fact document. Evaluation is pure: equal facts give equal verdicts.
package rules

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"

	"cel.dev/cel-go/cel"
	"github.com/goccy/go-yaml"

	"crivo/pkg/txn"
)

//go:embed default.yaml
var defaultYAML []byte

// Default returns the rule set that comes with the program.
func Default() (*Set, error) { return Parse(defaultYAML) }

// Set is one immutable version of a rule set, ready to evaluate.
type Set struct {
	ref       txn.RuleSet
	reviewAt  int
	declineAt int
	rules     []rule
}

// Ref names the set: its digest is of the file's bytes.
func (s *Set) Ref() txn.RuleSet { return s.ref }

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

// Parse checks and compiles a rule set and runs its own tests; the error names every mistake.
func Parse(data []byte) (*Set, error) {
	var f file
	if err := yaml.UnmarshalWithOptions(data, &f, yaml.Strict()); err != nil {
		return nil, fmt.Errorf("rule set: %w", err)
	}
	sum := sha256.Sum256(data)
	s := &Set{ref: txn.RuleSet{Name: f.Name, Version: f.Version, Digest: "sha256:" + hex.EncodeToString(sum[:])},
		reviewAt: f.ReviewAt, declineAt: f.DeclineAt}
	errs := f.check()
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
	ast, issues := env.Compile(r.When)
	if issues.Err() != nil {
		return out, fmt.Errorf("when: %w", issues.Err())
	}
	if !ast.OutputType().IsEquivalentType(cel.BoolType) {
		return out, errors.New("when: must be true or false")
	}
	var err error
	if out.inputs, err = paths(ast); err != nil {
		return out, err
	}
	if out.text, err = parseTemplate(r.Text); err != nil {
		return out, err
	}
	if out.plain, err = env.Program(ast, cel.CostLimit(costLimit), cel.EvalOptions(cel.OptOptimize)); err != nil {
		return out, fmt.Errorf("when: %w", err)
	}
	out.partial, err = env.Program(ast, cel.CostLimit(costLimit), cel.EvalOptions(cel.OptPartialEval))
	return out, err
}

// test runs a rule's own examples.
func (r rule) test(tests []fileTest) error {
	var errs []error
	for i, t := range tests {
		facts := Facts{Vars: numbers(t.Facts)}
		if got := r.run(facts, nil) == fired; got != t.Want {
			errs = append(errs, fmt.Errorf("test %d: fires = %v, want %v", i+1, got, t.Want))
		}
	}
	return errors.Join(errs...)
}
