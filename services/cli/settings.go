package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"crivo/services/config"
	"crivo/services/process"
)

// system are the settings of a whole system in one process.
type system struct {
	Data string `help:"Folder of everything that is kept." default:"./crivo-data" placeholder:"DIR"`
	process.Door
	Ops        string `help:"Where /livez, /readyz, /metrics and pprof are." default:"127.0.0.1:8081" placeholder:"ADDRESS"`
	NATS       string `help:"Where the embedded NATS listens; none is in this process only." name:"nats" default:"127.0.0.1:4222" placeholder:"ADDRESS"`
	Durability string `help:"Of the embedded parts. fsync: what is acknowledged survives a power cut; interval: it survives the process." default:"fsync" placeholder:"fsync|interval"`
	process.Streams
	process.Allowed
	process.Webhooks
	process.Lists
	external
	LogLevel string        `help:"debug, info, warn or error." default:"info" placeholder:"LEVEL"`
	Grace    time.Duration `help:"How long to finish what was accepted after SIGTERM." default:"15s" placeholder:"TIME"`
}

// external are real parts in the place of embedded ones.
type external struct {
	NATSURL       config.Secret `help:"NATS servers in the place of the embedded one, a comma between them." name:"nats-url" placeholder:"URL"`
	NATSCreds     string        `help:"Credential file for them; it must allow everything." name:"nats-creds" placeholder:"FILE"`
	NATSCA        string        `help:"Certificates that sign theirs, PEM; without it the system's." name:"nats-ca" placeholder:"FILE"`
	MongoURI      config.Secret `help:"MongoDB in the place of SQLite." name:"mongo-uri" placeholder:"URI"`
	MongoDatabase string        `help:"Database in it." name:"mongo-database" default:"crivo" placeholder:"NAME"`
	RedisURL      config.Secret `help:"Redis in the place of windows in memory." name:"redis-url" placeholder:"URL"`
	KeysetFile    string        `help:"Sealing keys shared with other processes; without it those of the data folder." name:"keyset-file" placeholder:"FILE"`
}

// broker is where the real NATS is.
func (e *external) broker() process.Broker {
	return process.Broker{NATSURL: e.NATSURL, NATSCreds: e.NATSCreds, NATSCA: e.NATSCA}
}

// Faults finds what is wrong.
func (e *external) Faults(f *config.Faults) {
	b := e.broker()
	b.Faults(f)
	if e.NATSURL == "" && (e.NATSCreds != "" || e.NATSCA != "") {
		f.Add("nats-url", "must be given with nats-creds and nats-ca")
	}
}

// Check finds everything that is wrong, so that nothing starts on half a configuration.
func (s *system) Check() config.Faults {
	var f config.Faults
	process.Address(&f, "ops", s.Ops)
	if s.NATS != "none" {
		process.Address(&f, "nats", s.NATS)
	}
	if s.Durability != "fsync" && s.Durability != "interval" {
		f.Add("durability", "%q: fsync or interval", s.Durability)
	}
	process.LogLevel(&f, s.LogLevel)
	if s.Grace < 0 {
		f.Add("grace", "%s: zero or more", s.Grace)
	}
	if s.Data == "" {
		f.Add("data", "no folder")
	}
	s.external.Faults(&f)
	if s.Replicas > 1 && s.NATSURL == "" {
		f.Add("replicas", "%d: the embedded broker is one node", s.Replicas)
	}
	return f
}

// uses says what the system stands on, for a person.
func (s *system) uses() []use {
	at := func(name string) string { return filepath.Join(s.Data, name) }
	out := []use{
		{"broker", "embedded NATS, files in " + at("nats")},
		{"transactions", "embedded SQLite, " + at("transactions.db")},
		{"registry", "embedded SQLite, " + at("registry.db")},
		{"deliveries", "embedded SQLite, " + at("deliveries.db")},
		{"features", "memory, snapshot and tail in " + at("features")},
		{"sealing keys", at("keyset.json")},
	}
	if s.NATSURL != "" {
		out[0].by = "NATS at " + withoutPassword(s.NATSURL.Reveal())
	}
	if s.MongoURI != "" {
		for i := 1; i <= 3; i++ {
			out[i].by = "MongoDB at " + withoutPassword(s.MongoURI.Reveal()) + ", database " + s.MongoDatabase
		}
	}
	if s.RedisURL != "" {
		out[4].by = "Redis at " + withoutPassword(s.RedisURL.Reveal())
	}
	if s.KeysetFile != "" {
		out[5].by = s.KeysetFile
	}
	return out
}

type use struct{ what, by string }

// ConfigCmd prints what up would run with.
type ConfigCmd struct {
	system
	JSON bool `help:"Print as JSON." name:"json"`
}

// Help shows an example.
func (ConfigCmd) Help() string {
	return `Flags win over the environment, which wins over the file. Example:

  CRIVO_DURABILITY=interval crivo config --config crivo.yaml`
}

// Run prints each setting with the place that it comes from, then what the system stands on with these.
func (c *ConfigCmd) Run(command *config.Command) error {
	settings := slices.DeleteFunc(command.Settings(), func(s config.Setting) bool { return s.Name == "json" || s.Name == "config" })
	if c.JSON {
		uses := map[string]string{}
		for _, u := range c.uses() {
			uses[u.what] = u.by
		}
		text, err := json.Marshal(map[string]any{"settings": settings, "uses": uses}, json.Deterministic(true), jsontext.WithIndent("  "))
		if err == nil {
			fmt.Printf("%s\n", text)
		}
		return err
	}
	table := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	for _, s := range settings {
		fmt.Fprintf(table, "%s\t%s\t%s\n", s.Name, s.Value, s.Source)
	}
	fmt.Fprintln(table)
	for _, u := range c.uses() {
		fmt.Fprintf(table, "%s\t%s\n", u.what, u.by)
	}
	return table.Flush()
}
