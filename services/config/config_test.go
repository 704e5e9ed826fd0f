package config_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"crivo/services/config"
)

// grammar is a program of two commands.
type grammar struct {
	Config string   `help:"File of settings."`
	Serve  serveCmd `cmd:""`
	Send   sendCmd  `cmd:""`
}

type serveCmd struct {
	Name   string            `default:"plain"`
	Room   config.Size       `default:"1GiB"`
	Pause  time.Duration     `default:"5m"`
	Times  []time.Duration   `default:"0s,5s"`
	Nets   []netip.Prefix    ``
	Count  int               `default:"1"`
	Fast   bool              ``
	Pairs  map[string]string `mapsep:"none"`
	Unit   string            `enum:"minor,major" default:"minor"`
	APIKey config.Secret     `name:"api-key"`
}

func (c *serveCmd) Check() config.Faults {
	var f config.Faults
	if c.Count > 9 {
		f.Add("count", "%d: at most 9", c.Count)
	}
	return f
}

type sendCmd struct {
	To   string
	Room bool `typed:""` // another command's setting has this name
}

func (*serveCmd) Run() error { return nil }
func (*sendCmd) Run() error  { return nil }

// read reads a command line in an environment and with a configuration file, "" for none.
func read(t *testing.T, args []string, env map[string]string, file string) (serveCmd, *config.Command, error) {
	t.Helper()
	if file != "" {
		path := filepath.Join(t.TempDir(), "crivo.yaml")
		write(t, path, file)
		args = append(args, "--config", path)
	}
	var g grammar
	command, err := config.Read(&g, args, func(name string) (string, bool) { v, ok := env[name]; return v, ok }, kong.Name("crivo"))
	return g.Serve, command, err
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestTheNearestSourceWins(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "name")
	write(t, secret, "of-the-secret\n")
	const file = "name: of-the-file\n"
	for name, tc := range map[string]struct {
		args   []string
		env    map[string]string
		file   string
		want   string
		source string
	}{
		"nothing said":                       {nil, nil, "", "plain", "default"},
		"the file":                           {nil, nil, file, "of-the-file", "crivo.yaml"},
		"a file that the environment names":  {nil, map[string]string{"CRIVO_NAME_FILE": secret}, file, "of-the-secret", "CRIVO_NAME_FILE"},
		"the environment":                    {nil, map[string]string{"CRIVO_NAME": "of-the-env", "CRIVO_NAME_FILE": secret}, file, "of-the-env", "CRIVO_NAME"},
		"the flag":                           {[]string{"--name", "of-the-flag"}, map[string]string{"CRIVO_NAME": "x", "CRIVO_NAME_FILE": secret}, file, "of-the-flag", "--name"},
		"an empty value in the environment":  {nil, map[string]string{"CRIVO_NAME": ""}, file, "", "CRIVO_NAME"},
		"a file name that is empty":          {nil, map[string]string{"CRIVO_NAME_FILE": ""}, file, "of-the-file", "crivo.yaml"},
		"a null in the file":                 {nil, nil, "name:\n", "plain", "default"},
		"an empty file":                      {nil, nil, "\n", "plain", "default"},
		"a setting of another command in it": {nil, nil, "to: elsewhere\n", "plain", "default"},
	} {
		t.Run(name, func(t *testing.T) {
			got, command, err := read(t, append([]string{"serve"}, tc.args...), tc.env, tc.file)
			if err != nil {
				t.Fatal(err)
			}
			if got.Name != tc.want {
				t.Errorf("got %q, want %q", got.Name, tc.want)
			}
			if source := setting(command, "name").Source; filepath.Base(source) != tc.source {
				t.Errorf("source %q, want %q", source, tc.source)
			}
		})
	}
}

func setting(c *config.Command, name string) config.Setting {
	for _, s := range c.Settings() {
		if s.Name == name {
			return s
		}
	}
	return config.Setting{}
}

func TestTheFileCanBeNamedInSeveralWays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "crivo.yaml")
	write(t, path, "name: of-the-file\n")
	for name, tc := range map[string]struct {
		args []string
		env  map[string]string
		want string
	}{
		"a flag and its value":         {[]string{"serve", "--config", path}, nil, "of-the-file"},
		"one word":                     {[]string{"serve", "--config=" + path}, nil, "of-the-file"},
		"in front of the command":      {[]string{"--config", path, "serve"}, nil, "of-the-file"},
		"the environment":              {[]string{"serve"}, map[string]string{"CRIVO_CONFIG": path}, "of-the-file"},
		"a flag beats the environment": {[]string{"serve", "--config", path}, map[string]string{"CRIVO_CONFIG": "/nowhere"}, "of-the-file"},
	} {
		t.Run(name, func(t *testing.T) {
			got, _, err := read(t, tc.args, tc.env, "")
			if err != nil || got.Name != tc.want {
				t.Errorf("got %q, %v", got.Name, err)
			}
		})
	}
}

func TestValuesOfEveryKindComeFromEverySource(t *testing.T) {
	want := serveCmd{Name: "n", Room: 3 << 20, Pause: 90 * time.Second, Times: []time.Duration{0, time.Minute, 2 * time.Hour},
		Nets: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32"), netip.MustParsePrefix("::1/128")}, Count: 7, Fast: true,
		Pairs: map[string]string{"type": "card", "attributes.s": "a,b;c=d"}, Unit: "major", APIKey: "hush"}
	for name, tc := range map[string]struct {
		args []string
		env  map[string]string
		file string
		want func(serveCmd) serveCmd
	}{
		"flags": {[]string{"--name=n", "--room", "3MiB", "--pause", "90s", "--times", "0s,1m", "--times", "2h", "--nets", "127.0.0.1/32,::1/128", "--count", "7",
			"--fast", "--pairs", "type=card", "--pairs", "attributes.s=a,b;c=d", "--unit", "major", "--api-key", "hush"}, nil, "", nil},
		"the environment": {nil, map[string]string{"CRIVO_NAME": "n", "CRIVO_ROOM": "3 MiB", "CRIVO_PAUSE": "1m30s", "CRIVO_TIMES": "0s,1m,2h",
			"CRIVO_NETS": "127.0.0.1/32,::1/128", "CRIVO_COUNT": "7", "CRIVO_FAST": "true", "CRIVO_PAIRS": "type=card", "CRIVO_UNIT": "major",
			"CRIVO_API_KEY": "hush"}, "", func(c serveCmd) serveCmd { c.Pairs = map[string]string{"type": "card"}; return c }},
		"a file": {nil, nil, `{name: n, room: 3145728, pause: 1m30s, times: [0s, 1m, 2h], nets: ["127.0.0.1/32", "::1/128"], count: 7, fast: true,
			pairs: {type: card, attributes.s: "a,b;c=d"}, unit: major, api_key: hush}`, nil},
	} {
		t.Run(name, func(t *testing.T) {
			got, _, err := read(t, append([]string{"serve"}, tc.args...), tc.env, tc.file)
			if err != nil {
				t.Fatal(err)
			}
			want := want
			if tc.want != nil {
				want = tc.want(want)
			}
			if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestEveryFaultIsToldAtOnceByName(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		env  map[string]string
		file string
		want []string
	}{
		"from everywhere": {[]string{"--pause", "soon"}, map[string]string{"CRIVO_ROOM": "much", "CRIVO_NETS": "here", "CRIVO_NAME_FILE": "/nowhere/at/all"}, "count: 12\n",
			[]string{"5 settings are wrong", "count: 12: at most 9", "pause: ", "room: ", "(from CRIVO_ROOM)", "nets: ", "(from CRIVO_NETS)", "name: ", "/nowhere/at/all", "CRIVO_NAME_FILE"}},
		"what the command checks, with its source": {nil, nil, "count: 12\n", []string{"count: 12: at most 9 (from /", "crivo.yaml)"}},
		"a value and the command's check":          {[]string{"--count", "12", "--room", "x"}, nil, "", []string{"2 settings", "count: 12: at most 9", "room: "}},
		"a value and a flag that is none":          {[]string{"--room", "x", "--nonsense"}, nil, "", []string{"room: ", "command line: unknown flag --nonsense"}},
		"a value out of a list":                    {[]string{"--unit", "cents"}, nil, "", []string{`must be one of "minor","major"`}},
		"names in the file that are no setting":    {nil, nil, "rom: x\nroom: y\nhelp: z\nconfig: w\n", []string{"rom: no such setting (in /", "help: no such setting", "config: no such setting", "room: "}},
		"a mapping where text belongs":             {nil, nil, "name: {a: b}\n", []string{"name: a mapping is no value of it"}},
		"a list where pairs belong":                {nil, nil, "pairs: [a=b, c=d]\n", []string{"pairs: a list is no value of it"}},
		"pairs of more than text":                  {nil, nil, "pairs: {payer: {name: x}}\n", []string{"pairs: payer: not a plain value"}},
		"a pair without its sign":                  {[]string{"--pairs", "type"}, nil, "", []string{`pairs: expected "<key>=<value>`}},
		"a second document":                        {nil, nil, "http: a\n---\nops: b\n", []string{"config: ", "one document"}},
		"no mapping at all":                        {nil, nil, "- a\n- b\n", []string{"config: ", "not a YAML mapping"}},
		"no such file":                             {[]string{"--config", "/nowhere.yaml", "--room", "x"}, nil, "", []string{"config: ", "/nowhere.yaml", "room: "}},
		"no such command":                          {[]string{"--", "stand"}, nil, "", []string{"unexpected argument stand"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := read(t, append([]string{"serve"}, tc.args...), tc.env, tc.file)
			if err == nil {
				t.Fatal("no fault")
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q lacks %q", err, want)
				}
			}
			var coded interface{ ExitCode() int }
			if !errors.As(err, &coded) || coded.ExitCode() != 2 {
				t.Error("exit status is not 2")
			}
		})
	}
}

func TestOneFaultIsOneLineAndOneName(t *testing.T) {
	_, _, err := read(t, []string{"serve", "--count", "x"}, nil, "")
	var faults config.Faults
	if !errors.As(err, &faults) || len(faults) != 1 || strings.Contains(err.Error(), "\n") || !strings.HasPrefix(err.Error(), "count: ") {
		t.Errorf("got %v", err)
	}
}

func TestSettingsShowWhatIsInForceAndMaskSecrets(t *testing.T) {
	const secret = "crivo_do-not-show-me"
	_, command, err := read(t, []string{"serve", "--times", "90m,0s", "--pairs", "b=2", "--pairs", "a=1"},
		map[string]string{"CRIVO_API_KEY": secret, "CRIVO_ROOM": "1536MiB"}, "")
	if err != nil {
		t.Fatal(err)
	}
	want := []config.Setting{{"api-key", "********", "CRIVO_API_KEY"}, {"config", "", "default"}, {"count", "1", "default"}, {"fast", "false", "default"},
		{"name", "plain", "default"}, {"nets", "", "default"}, {"pairs", "a=1,b=2", "--pairs"}, {"pause", "5m", "default"}, {"room", "1536MiB", "CRIVO_ROOM"},
		{"times", "1h30m,0s", "--times"}, {"unit", "minor", "default"}}
	if diff := cmp.Diff(want, command.Settings()); diff != "" {
		t.Error(diff)
	}
}

func TestASecretMasksItselfEverywhere(t *testing.T) {
	s := config.Secret("crivo_do-not-show-me")
	holder := struct{ Key config.Secret }{s}
	text, err := json.Marshal(holder)
	if err != nil {
		t.Fatal(err)
	}
	for _, shown := range []string{s.String(), fmt.Sprintf("%s %v %q %x %#v %d", s, s, s, s, s, s), fmt.Sprintf("%v %+v %#v", holder, holder, holder), string(text),
		fmt.Errorf("key %v", s).Error()} {
		if strings.Contains(shown, "show") || !strings.Contains(shown, "********") {
			t.Errorf("shown as %s", shown)
		}
	}
	if s.Reveal() != "crivo_do-not-show-me" || config.Secret("").String() != "" {
		t.Error("the secret itself is lost, or nothing looks like something")
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]struct {
		bytes config.Size
		shown string
	}{
		"0": {0, "0"}, "512": {512, "512"}, "512B": {512, "512"}, "1KiB": {1 << 10, "1KiB"}, "500MB": {500e6, "500000000"}, "2GiB": {2 << 30, "2GiB"},
		"1.5GiB": {3 << 29, "1536MiB"}, " 3 TiB ": {3 << 40, "3TiB"}, "1e9": {1e9, "1000000000"}, "1TB": {1e12, "976562500KiB"},
	} {
		var got config.Size
		if err := got.UnmarshalText([]byte(text)); err != nil || got != want.bytes || got.String() != want.shown {
			t.Errorf("%q: got %d, shown as %s, %v", text, got, got, err)
		}
		var again config.Size
		if err := again.UnmarshalText([]byte(got.String())); err != nil || again != got {
			t.Errorf("%s reads back as %d, %v", got, again, err)
		}
	}
	for _, text := range []string{"", "GiB", "-1", "1.2.3", "NaN", "Inf", "5EiB", "4611686018427387904", "1 000"} {
		var got config.Size
		if err := got.UnmarshalText([]byte(text)); err == nil || got != 0 {
			t.Errorf("%q: got %d, %v", text, got, err)
		}
	}
}

func FuzzSize(f *testing.F) {
	for _, seed := range []string{"2GiB", "0.1KB", "1e300", "-5", "0x10", "", "9223372036854775807"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var size, again config.Size
		if size.UnmarshalText([]byte(text)) != nil {
			return
		}
		if size < 0 {
			t.Fatalf("%q is %d bytes", text, size)
		}
		if err := again.UnmarshalText([]byte(size.String())); err != nil || again != size {
			t.Fatalf("%q is %d, shown as %s, which is %d (%v)", text, size, size, again, err)
		}
	})
}

func TestHelpNamesTheEnvironment(t *testing.T) {
	var out strings.Builder
	var g grammar
	done := errors.New("help ends the process")
	defer func() {
		if r := recover(); r != any(done) {
			t.Fatalf("got %v", r)
		}
		for _, want := range []string{"(plain; $CRIVO_NAME)", "($CRIVO_API_KEY)"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("no %s in\n%s", want, out.String())
			}
		}
	}()
	_, _ = config.Read(&g, []string{"serve", "--help"}, func(string) (string, bool) { return "", false }, kong.Name("crivo"),
		kong.Writers(&out, &out), kong.Exit(func(int) { panic(done) }))
}

func TestASettingOfAnotherCommandIsNotRead(t *testing.T) {
	var g grammar
	env := map[string]string{"CRIVO_ROOM": "2GiB"}
	if _, err := config.Read(&g, []string{"send"}, func(name string) (string, bool) { v, ok := env[name]; return v, ok }, kong.Name("x")); err != nil || g.Send.Room {
		t.Errorf("%v, %v", g.Send.Room, err)
	}
	if _, err := config.Read(&g, []string{"send", "--room"}, func(string) (string, bool) { return "", false }, kong.Name("x")); err != nil || !g.Send.Room {
		t.Errorf("typed: %v, %v", g.Send.Room, err)
	}
}
