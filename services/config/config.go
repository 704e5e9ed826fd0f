// Package config reads what a command was told: flags first, then the environment (CRIVO_ and the flag's name; with _FILE
// behind it, the name of a file that holds the value), then the file that --config names. It tells every mistake at once, by
// name, and where each value came from.
package config

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"crivo/pkg/yaml"
)

// Fault is one setting that is wrong.
type Fault struct {
	Name string // of the setting, as in --name
	Why  string
}

// Faults are all settings that are wrong. As an error it names each one.
type Faults []Fault

// Add notes one more fault.
func (f *Faults) Add(name, format string, args ...any) {
	*f = append(*f, Fault{name, fmt.Sprintf(format, args...)})
}

// Error is one line per fault.
func (f Faults) Error() string {
	if len(f) == 1 {
		return f[0].Name + ": " + f[0].Why
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d settings are wrong:", len(f))
	for _, fault := range f {
		fmt.Fprintf(&b, "\n  %s: %s", fault.Name, fault.Why)
	}
	return b.String()
}

// ExitCode is that of a wrong command.
func (f Faults) ExitCode() int { return 2 }

// Checker is a command that finds the faults which types cannot.
type Checker interface{ Check() Faults }

// Part is a group of settings, embedded in a command, that finds its own faults.
type Part interface{ Faults(f *Faults) }

// Setting is one effective value and where it comes from: the flag, an environment name, a file, or "default".
type Setting struct {
	Name   string `json:"name"`
	Value  string `json:"value"`
	Source string `json:"source"`
}

// Command is a command line that was read.
type Command struct {
	*kong.Context
	sources map[string]string
}

// Prefix begins every environment name.
const Prefix = "CRIVO_"

// Env is the environment name of a flag.
func Env(flag string) string {
	return Prefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// Read parses args into grammar, a pointer to a struct of kong commands with a flag "config". The error is what a person
// should read; its exit code is 2. Help is printed and ends the process.
func Read(grammar any, args []string, lookup func(string) (string, bool), options ...kong.Option) (*Command, error) {
	l := &layers{lookup: lookup, sources: map[string]string{}}
	parser, err := kong.New(grammar, append(options, kong.Resolvers(l), kong.ValueFormatter(help))...)
	if err != nil {
		return nil, fmt.Errorf("command line: %w", err)
	}
	flags := flagsOf(parser.Model.Node)
	for _, f := range flags {
		f.Mapper = collecting{f.Mapper, f.Name, l}
	}
	l.file(configFile(args, lookup), flags)
	ctx, err := parser.Parse(args)
	if err != nil && len(l.faults) == 0 {
		return nil, usageError{err}
	}
	if err != nil {
		l.faults.Add("command line", "%v", err)
		return nil, l.all(reflect.Value{})
	}
	command := reflect.ValueOf(grammar).Elem()
	if selected := ctx.Selected(); selected != nil {
		command = selected.Target
	}
	for _, p := range ctx.Path {
		if p.Flag != nil && !p.Resolved {
			l.sources[p.Flag.Name] = "--" + p.Flag.Name
		}
	}
	if faults := l.all(command); len(faults) > 0 {
		return nil, faults
	}
	return &Command{ctx, l.sources}, nil
}

// Settings lists the flags of the chosen command, secrets masked.
func (c *Command) Settings() []Setting {
	var out []Setting
	for _, group := range c.Flags() {
		if group.Name == "help" {
			continue
		}
		source := c.sources[group.Name]
		if source == "" {
			source = "default"
		}
		out = append(out, Setting{group.Name, text(group.Target), source})
	}
	slices.SortFunc(out, func(a, b Setting) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// text shows a value the way that its flag takes it.
func text(v reflect.Value) string {
	if v.Kind() == reflect.Slice {
		parts := make([]string, v.Len())
		for i := range parts {
			parts[i] = text(v.Index(i))
		}
		return strings.Join(parts, ",")
	}
	if pairs, ok := v.Interface().(map[string]string); ok {
		parts := make([]string, 0, len(pairs))
		for _, key := range slices.Sorted(maps.Keys(pairs)) {
			parts = append(parts, key+"="+pairs[key])
		}
		return strings.Join(parts, ",")
	}
	if d, ok := v.Interface().(time.Duration); ok {
		return duration(d)
	}
	return fmt.Sprint(v.Interface())
}

// duration leaves out what is zero: 5m, not 5m0s.
func duration(d time.Duration) string {
	s := d.String()
	if short, ok := strings.CutSuffix(s, "m0s"); ok {
		s = short + "m"
	}
	if short, ok := strings.CutSuffix(s, "h0m"); ok {
		s = short + "h"
	}
	return s
}

// usageError is a command line that could not be understood.
type usageError struct{ error }

func (usageError) ExitCode() int   { return 2 }
func (e usageError) Unwrap() error { return e.error }

func help(v *kong.Value) string {
	if v.Flag == nil || v.Flag.Name == "help" || typed(v.Flag) {
		return kong.DefaultHelpValueFormatter(v)
	}
	suffix := "$" + Env(v.Flag.Name)
	if v.HasDefault {
		suffix = v.Default + "; " + suffix
	}
	return strings.TrimSuffix(v.Help, ".") + " (" + suffix + ")."
}

func flagsOf(n *kong.Node) []*kong.Flag {
	out := slices.Clone(n.Flags)
	for _, child := range n.Children {
		out = append(out, flagsOf(child)...)
	}
	return out
}

// configFile finds --config before anything else is parsed, since what it holds is needed for that.
func configFile(args []string, lookup func(string) (string, bool)) string {
	for i, arg := range args {
		if arg == "--" {
			break
		}
		if path, ok := strings.CutPrefix(arg, "--config="); ok {
			return path
		}
		if arg == "--config" && i+1 < len(args) {
			return args[i+1]
		}
	}
	path, _ := lookup(Env("config"))
	return path
}

// layers finds the value of a flag that the command line does not give.
type layers struct {
	lookup  func(string) (string, bool)
	path    string
	values  map[string]any // of the file, by flag name
	sources map[string]string
	faults  Faults
}

// file reads the configuration file; a name in it that is no flag of any command is a fault.
func (l *layers) file(path string, flags []*kong.Flag) {
	if path == "" {
		return
	}
	data, err := os.ReadFile(path)
	if err != nil {
		l.faults.Add("config", "%v", err)
		return
	}
	var raw map[string]any
	if err := yaml.Read(data, &raw); errors.Is(err, yaml.ErrDocuments) {
		l.faults.Add("config", "%s: %v", path, err)
		return
	} else if err != nil {
		l.faults.Add("config", "%s: not a YAML mapping of settings", path)
		return
	}
	l.path, l.values = path, map[string]any{}
	for _, key := range slices.Sorted(maps.Keys(raw)) {
		name := strings.ReplaceAll(key, "_", "-")
		if !slices.ContainsFunc(flags, func(f *kong.Flag) bool { return f.Name == name }) || name == "config" || name == "help" {
			l.faults.Add(key, "no such setting (in %s)", path)
			continue
		}
		l.values[name] = raw[key]
	}
}

// typed tells whether a flag is a part of one command, and its name in the environment another command's setting.
func typed(flag *kong.Flag) bool { return flag.Tag.Has("typed") }

// Validate is part of kong.Resolver.
func (l *layers) Validate(*kong.Application) error { return nil }

// Resolve is part of kong.Resolver.
func (l *layers) Resolve(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	if flag.Name == "help" || typed(flag) {
		return nil, nil
	}
	env := Env(flag.Name)
	if v, ok := l.lookup(env); ok {
		l.sources[flag.Name] = env
		return v, nil
	}
	if path, ok := l.lookup(env + "_FILE"); ok && path != "" {
		l.sources[flag.Name] = env + "_FILE"
		data, err := os.ReadFile(path)
		if err != nil {
			l.faults.Add(flag.Name, "%v (from %s_FILE)", err, env)
			return nil, nil
		}
		return strings.TrimRight(string(data), "\r\n"), nil
	}
	v, ok := l.values[flag.Name]
	if !ok || v == nil {
		return nil, nil
	}
	l.sources[flag.Name] = l.path
	return l.plain(flag, v), nil
}

// plain gives a YAML value the form that its flag takes: text as on a command line, or pairs for a flag of pairs.
func (l *layers) plain(flag *kong.Flag, v any) any {
	if pairs, ok := v.(map[string]any); ok && flag.IsMap() {
		return l.pairs(flag, pairs)
	}
	switch v := v.(type) {
	case []any:
		if flag.IsMap() {
			l.faults.Add(flag.Name, "a list is no value of it, a mapping is (in %s)", l.path)
			return nil
		}
		parts := make([]string, len(v))
		for i, p := range v {
			parts[i] = fmt.Sprint(p)
		}
		return kong.JoinEscaped(parts, flag.Tag.Sep)
	case map[string]any:
		l.faults.Add(flag.Name, "a mapping is no value of it (in %s)", l.path)
		return nil
	}
	return fmt.Sprint(v)
}

func (l *layers) pairs(flag *kong.Flag, from map[string]any) any {
	out := make(map[string]any, len(from))
	for key, v := range from {
		switch v.(type) {
		case []any, map[string]any, nil:
			l.faults.Add(flag.Name, "%s: not a plain value (in %s)", key, l.path)
			return nil
		}
		out[key] = fmt.Sprint(v)
	}
	return out
}

// collecting notes what a value's own mapper finds wrong and goes on, so that all faults are told together.
type collecting struct {
	kong.Mapper
	name string
	into *layers
}

// Decode never fails.
func (c collecting) Decode(ctx *kong.DecodeContext, target reflect.Value) error {
	if err := c.Mapper.Decode(ctx, target); err != nil {
		c.into.faults.Add(c.name, "%v", err)
	}
	return nil
}

// all returns every fault once, with the source of the value, and the command's own check of what could be read.
func (l *layers) all(command reflect.Value) Faults {
	var out Faults
	seen := map[string]bool{}
	add := func(f Fault) {
		if seen[f.Name] {
			return
		}
		seen[f.Name] = true
		if from := l.sources[f.Name]; from != "" && from != "--"+f.Name && !strings.Contains(f.Why, from) {
			f.Why += " (from " + from + ")"
		}
		out = append(out, f)
	}
	for _, f := range l.faults {
		add(f)
	}
	for _, f := range check(command) {
		add(f)
	}
	return out
}

// check asks a command and the groups of settings embedded in it.
func check(command reflect.Value) Faults {
	var out Faults
	if !command.IsValid() {
		return nil
	}
	if command.Addr().CanInterface() { // not what is embedded by a private name; its own command asks that
		if c, ok := command.Addr().Interface().(Checker); ok {
			out = c.Check()
		}
		if p, ok := command.Addr().Interface().(Part); ok {
			p.Faults(&out)
		}
	}
	for i := range command.NumField() {
		if f := command.Type().Field(i); f.Anonymous && f.Type.Kind() == reflect.Struct {
			out = append(out, check(command.Field(i))...)
		}
	}
	return out
}
