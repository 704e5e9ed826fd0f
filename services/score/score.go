// Package score gives each validated transaction its verdict, by the rule set that was pinned to it.
package score

import (
	"context"
	"slices"
	"sync"
	"time"

	"crivo/pkg/app"
	"crivo/services/rules"
	"crivo/streams"
	"crivo/streams/event"
)

// Config is what the service needs.
type Config struct {
	app.Shell
	Rules  *rules.Live
	Engine string // this program's version, told in every decision
}

// zone is where night hours are counted for events that name none: the embedded rule set is for Brazil.
const zone = "America/Sao_Paulo"

// Stage adds up what the pinned rule set says.
type Stage struct {
	Rules  *rules.Live
	Zone   *time.Location
	Engine string
}

// New returns the step's core.
func New(rules *rules.Live, engine string) (Stage, error) {
	where, err := time.LoadLocation(zone)
	return Stage{rules, where, engine}, err
}

// Run scores until ctx ends.
func Run(ctx context.Context, cfg Config) error {
	s, err := New(cfg.Rules, cfg.Engine)
	if err != nil {
		return err
	}
	return streams.Runner(cfg.Shell, streams.Score, streams.Step(streams.EventScored, 1, s.Handle), nil).Run(ctx)
}

// Handle scores one transaction. A set that is not here any more (a restart with another program) is replaced by the current
// one, and the decision says so. It is pure but for the sets, and safe to call twice.
func (s Stage) Handle(_ context.Context, in event.Validated) (event.Scored, error) {
	set, ok := s.Rules.Version(in.RuleSet)
	if !ok {
		set = s.Rules.Current()
		in.Degraded = append(slices.Clone(in.Degraded), "rule_set: replaced")
	}
	return event.Scored{Validated: in, Verdict: set.Evaluate(rules.FactsOf(in, s.zone(in.TimeZone))), Engine: s.Engine}, nil
}

// zones are those of tenants, read once.
var zones sync.Map // IANA name → *time.Location

func (s Stage) zone(name string) *time.Location {
	if name == "" {
		return s.Zone
	}
	if z, ok := zones.Load(name); ok {
		return z.(*time.Location)
	}
	z, err := time.LoadLocation(name)
	if err != nil {
		z = s.Zone // the edge takes only names that it knows
	}
	zones.Store(name, z)
	return z
}
