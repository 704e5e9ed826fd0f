package rules

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	_ "time/tzdata" // night hours need zones on machines that have none

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/cost"

	"crivo/pkg/txn"
	"crivo/streams/event"
)

// Facts is the one document that rules see. What a client did not send is absent from Vars; what a dependency could not
// tell is named in Unknown, dotted: payer.count_5m.
type Facts struct {
	Vars    map[string]any
	Unknown []string
}

// costLimit bounds what one rule may cost at worst; an ordinary one costs under a hundred.
const costLimit = 10_000

// sizes bounds what a condition meets: an entity has under 64 fields, texts have 64 characters, attributes are 32 at most.
type sizes struct{}

// EstimateSize returns the bound, whatever is asked for.
func (sizes) EstimateSize(cost.AstNode) *cost.SizeEstimate { return &cost.SizeEstimate{Max: 64} }

// EstimateCallCost leaves functions to the standard.
func (sizes) EstimateCallCost(string, string, *cost.AstNode, []cost.AstNode) *cost.CallEstimate {
	return nil
}

// entities hold features; the fields beside are what the transaction itself says of them.
var catalogue = map[string][]string{
	"tx":       {"type", "direction", "amount", "currency", "channel", "age_s"},
	"payer":    {"document_type", "account_type", "account_age_s", "age_s"},
	"payee":    {"document_type", "account_type", "account_age_s", "pix_key_type", "pix_key_age_s"},
	"device":   {"os", "app_version", "is_rooted", "is_emulator", "age_s"},
	"terminal": nil,
	"merchant": {"id", "mcc", "country", "terminal_id"},
	"card":     {"bin", "last4", "entry_mode", "three_ds"},
	"network":  {"asn", "is_vpn"},
	"geo":      {"lat", "lon", "accuracy_m"},
	"session":  {"authentication", "age_s"},
}

// scalars are the facts that belong to no entity.
var scalars = []string{"hour", "weekday"}

// featured are the entities that windows are kept for.
var featured = []string{"payer", "payee", "device", "terminal"}

// environment is what conditions are checked against, made once: it is the same for every set.
var environment = sync.OnceValues(func() (*cel.Env, error) {
	opts := []cel.EnvOption{cel.Variable("checks", cel.MapType(cel.StringType, cel.StringType)),
		cel.Variable("attributes", cel.MapType(cel.StringType, cel.DynType)), cel.CrossTypeNumericComparisons(true)}
	for name := range catalogue {
		opts = append(opts, cel.Variable(name, cel.MapType(cel.StringType, cel.DynType)))
	}
	for _, name := range scalars {
		opts = append(opts, cel.Variable(name, cel.IntType))
	}
	env, err := cel.NewEnv(opts...)
	if err != nil {
		return nil, fmt.Errorf("rules: %w", err)
	}
	return env, nil
})

// paths returns the facts that a condition reads and names those that no transaction ever has.
func paths(checked *cel.Ast) ([]string, error) {
	var out, strange []string
	add := func(path string) {
		if !slices.Contains(out, path) {
			out = append(out, path)
		}
		if !isFact(path) {
			strange = append(strange, path)
		}
	}
	ast.PostOrderVisit(checked.NativeRep().Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		switch e.Kind() {
		case ast.IdentKind:
			if slices.Contains(scalars, e.AsIdent()) {
				add(e.AsIdent())
			}
		case ast.SelectKind:
			if of := e.AsSelect().Operand(); of.Kind() == ast.IdentKind {
				add(of.AsIdent() + "." + e.AsSelect().FieldName())
			}
		case ast.CallKind:
			c := e.AsCall()
			if c.FunctionName() == "_[_]" && c.Args()[0].Kind() == ast.IdentKind && c.Args()[1].Kind() == ast.LiteralKind {
				if field, ok := c.Args()[1].AsLiteral().Value().(string); ok {
					add(c.Args()[0].AsIdent() + "." + field)
				}
			}
		}
	}))
	if len(strange) > 0 {
		return nil, fmt.Errorf("when: no such fact: %s", strings.Join(strange, ", "))
	}
	return out, nil
}

func isFact(path string) bool {
	entity, field, dotted := strings.Cut(path, ".")
	fields, ok := catalogue[entity]
	switch {
	case !dotted:
		return slices.Contains(scalars, path)
	case entity == "attributes" || entity == "checks":
		return true
	case !ok:
		return false
	case slices.Contains(fields, field):
		return true
	case entity == "payee" && isCounter(field):
		return true
	}
	return slices.Contains(featured, entity) && isFeature(field)
}

// isCounter tells names such as mule_accounts_d90.
func isCounter(field string) bool {
	cut := strings.LastIndexByte(field, '_')
	return cut > 0 && slices.Contains([]string{"settlements", "mule_accounts", "scammer_accounts", "application_frauds", "other_frauds"}, field[:cut]) &&
		slices.Contains([]string{"d90", "m12", "m60"}, field[cut+1:])
}

func isFeature(field string) bool {
	aggregate, window, _ := strings.Cut(field, "_")
	return field == "first_seen_s" || (aggregate == "count" || aggregate == "sum") && slices.Contains([]string{"5m", "1h", "24h", "30d"}, window)
}

// FactsOf builds the fact document of a validated transaction. Hours are of zone.
func FactsOf(v event.Validated, zone *time.Location) Facts {
	f := facts{vars: map[string]any{}}
	now := v.AcceptedAt.Time
	t := v.Tx
	local := t.CreatedAt.In(zone)
	f.vars["hour"], f.vars["weekday"] = int64(local.Hour()), int64(local.Weekday())
	tx := f.entity("tx")
	text(tx, "type", t.Type)
	text(tx, "direction", t.Direction)
	text(tx, "currency", t.Currency)
	text(tx, "channel", t.Channel)
	tx["amount"], tx["age_s"] = t.Amount, now.Sub(t.CreatedAt.Time).Seconds()
	f.party("payer", &t.Payer, now)
	f.party("payee", t.Payee, now)
	f.around(t, now)
	f.vars["attributes"] = attributes(t.Attributes)
	f.features(v.Features)
	f.checks(v.Checks)
	return Facts{Vars: f.vars, Unknown: f.unknown}
}

type facts struct {
	vars    map[string]any
	unknown []string
}

func (f *facts) entity(name string) map[string]any {
	m, ok := f.vars[name].(map[string]any)
	if !ok {
		m = map[string]any{}
		f.vars[name] = m
	}
	return m
}

func (f *facts) party(name string, p *txn.SealedParty, now time.Time) {
	m := f.entity(name)
	if p == nil {
		return
	}
	age(m, "age_s", p.CreatedAt, now)
	if p.Document != nil {
		text(m, "document_type", p.Document.Type)
	}
	if p.Account != nil {
		text(m, "account_type", p.Account.Type)
		age(m, "account_age_s", p.Account.OpenedAt, now)
	}
	if p.PixKey != nil {
		text(m, "pix_key_type", p.PixKey.Type)
		age(m, "pix_key_age_s", p.PixKey.OwnedSince, now)
	}
	if s := p.Statistics; s != nil {
		for name, windows := range map[string]map[string]int64{"settlements": s.Settlements, "mule_accounts": s.MuleAccounts,
			"scammer_accounts": s.ScammerAccounts, "application_frauds": s.ApplicationFrauds, "other_frauds": s.OtherFrauds} {
			for window, n := range windows {
				m[name+"_"+window] = float64(n)
			}
		}
	}
}

func (f *facts) around(t txn.Sealed, now time.Time) {
	merchant, card, device := f.entity("merchant"), f.entity("card"), f.entity("device")
	network, geo, session := f.entity("network"), f.entity("geo"), f.entity("session")
	if m := t.Merchant; m != nil {
		text(merchant, "id", m.ID)
		text(merchant, "mcc", m.MCC)
		text(merchant, "country", m.Country)
		text(merchant, "terminal_id", m.TerminalID)
	}
	if c := t.Card; c != nil {
		text(card, "bin", c.BIN)
		text(card, "last4", c.Last4)
		text(card, "entry_mode", c.EntryMode)
		text(card, "three_ds", c.ThreeDS)
	}
	if d := t.Device; d != nil {
		text(device, "os", d.OS)
		text(device, "app_version", d.AppVersion)
		optional(device, "is_rooted", d.IsRooted)
		optional(device, "is_emulator", d.IsEmulator)
		age(device, "age_s", d.RegisteredAt, now)
	}
	if n := t.Network; n != nil {
		optional(network, "asn", n.ASN)
		optional(network, "is_vpn", n.IsVPN)
	}
	if g := t.Geo; g != nil {
		geo["lat"], geo["lon"] = g.Lat, g.Lon
		optional(geo, "accuracy_m", g.AccuracyM)
	}
	if s := t.Session; s != nil {
		text(session, "authentication", s.Authentication)
		age(session, "age_s", s.StartedAt, now)
	}
}

func (f *facts) features(values map[string]event.Value) {
	f.entity("terminal")
	for path, v := range values {
		entity, field, _ := strings.Cut(path, ".")
		if v.Known {
			f.entity(entity)[field] = v.Number
		} else {
			f.unknown = append(f.unknown, path)
		}
	}
	slices.Sort(f.unknown)
}

func (f *facts) checks(list []txn.Check) {
	m := map[string]string{}
	for _, c := range list {
		if c.Status == txn.Clear || c.Status == txn.Hit {
			m[c.Name] = c.Status
		} else {
			f.unknown = append(f.unknown, "checks."+c.Name)
		}
	}
	f.vars["checks"] = m
}

func text(m map[string]any, name, v string) {
	if v != "" {
		m[name] = v
	}
}

func optional[T any](m map[string]any, name string, v *T) {
	if v != nil {
		m[name] = *v
	}
}

func age(m map[string]any, name string, since *txn.Time, now time.Time) {
	if since != nil {
		m[name] = now.Sub(since.Time).Seconds()
	}
}

func attributes(m map[string]any) map[string]any {
	if m == nil {
		return map[string]any{}
	}
	return m
}

// example makes facts of a rule's own test, with the types that real ones have: doubles, but for amount, hour and weekday. A
// check is clear, hit or unknown. What no transaction ever has is an error: such a test would prove nothing.
func example(in map[string]any) (Facts, error) {
	f := facts{vars: map[string]any{"attributes": map[string]any{}}}
	for name := range catalogue {
		f.entity(name)
	}
	var strange []string
	var checks []txn.Check
	for _, name := range slices.Sorted(maps.Keys(in)) {
		fields, ok := in[name].(map[string]any)
		if !ok && slices.Contains(scalars, name) {
			f.vars[name] = whole(in[name])
			continue
		}
		for _, field := range slices.Sorted(maps.Keys(fields)) {
			v := fields[field]
			switch {
			case !isFact(name + "." + field):
				strange = append(strange, name+"."+field)
			case name == "checks":
				checks = append(checks, txn.Check{Name: field, Status: fmt.Sprint(v)})
			case name == "tx" && field == "amount":
				f.entity(name)[field] = whole(v)
			default:
				f.entity(name)[field] = number(v)
			}
		}
		if !ok {
			strange = append(strange, name)
		}
	}
	f.checks(checks)
	if len(strange) > 0 {
		return Facts{}, fmt.Errorf("no such fact: %s", strings.Join(strange, ", "))
	}
	return Facts{Vars: f.vars, Unknown: f.unknown}, nil
}

func number(v any) any {
	switch n := v.(type) {
	case uint64:
		return float64(n)
	case int64:
		return float64(n)
	case int:
		return float64(n)
	}
	return v
}

func whole(v any) any {
	switch n := v.(type) {
	case uint64:
		return int64(n)
	case float64:
		return int64(n)
	case int:
		return int64(n)
	}
	return v
}

// template is a reason's text with {payer.count_5m} places.
type template []string // text, path, text, path, …, text

func parseTemplate(s string) (template, error) {
	var out template
	for {
		before, rest, open := strings.Cut(s, "{")
		out = append(out, before)
		if !open {
			return out, nil
		}
		path, after, closed := strings.Cut(rest, "}")
		if !closed {
			return nil, errors.New("text: { is not closed")
		}
		if !isFact(path) {
			return nil, fmt.Errorf("text: {%s} is no fact", path)
		}
		out, s = append(out, path), after
	}
}

func (t template) fill(f Facts) string {
	var b strings.Builder
	for i, part := range t {
		if i%2 == 0 {
			b.WriteString(part)
			continue
		}
		b.WriteString(show(f.get(part)))
	}
	return b.String()
}

func show(v any) string {
	switch v := v.(type) {
	case nil:
		return "unknown"
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64)
	}
	return fmt.Sprint(v)
}

// get returns the fact at a dotted path, nil where there is none.
func (f Facts) get(path string) any {
	entity, field, dotted := strings.Cut(path, ".")
	switch m := f.Vars[entity].(type) {
	case int64:
		if !dotted {
			return m
		}
	case map[string]any:
		return m[field]
	case map[string]string:
		if s, ok := m[field]; ok {
			return s
		}
	}
	return nil
}

// lack tells whether a fact was not sent: neither there nor unknown.
func (f Facts) lack(path string) bool { return f.get(path) == nil && !slices.Contains(f.Unknown, path) }
