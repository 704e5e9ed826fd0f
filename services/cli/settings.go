package cli

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"crivo/pkg/app"
	"crivo/services/config"
)

// system are the settings of a whole system in one process.
type system struct {
	Data            string          `help:"Folder of everything that is kept." default:"./crivo-data" placeholder:"DIR"`
	HTTP            string          `help:"Where the API listens; port 0 picks a free one." name:"http" default:"127.0.0.1:8080" placeholder:"ADDRESS"`
	Ops             string          `help:"Where /livez, /readyz, /metrics and pprof are." default:"127.0.0.1:8081" placeholder:"ADDRESS"`
	NATS            string          `help:"Where NATS listens; none is in this process only." name:"nats" default:"127.0.0.1:4222" placeholder:"ADDRESS"`
	Durability      string          `help:"fsync: what is acknowledged survives a power cut; interval: it survives the process." default:"fsync" placeholder:"fsync|interval"`
	StreamBytes     config.Size     `help:"Room for submitted transactions; all streams together take up to eleven times as much." default:"2GiB" placeholder:"SIZE"`
	MaxInFlight     int             `help:"Accepted and undecided transactions at most; more are refused." default:"2000" placeholder:"N"`
	WebhookAllow    []netip.Prefix  `help:"Addresses of your own that webhooks may reach, on any port and by plain http (repeatable)." placeholder:"CIDR"`
	WebhookSchedule []time.Duration `help:"When each try of a webhook follows the one before." default:"0s,5s,5m,30m,2h,5h,10h,14h,20h,24h" placeholder:"TIMES"`
	WebhookTimeout  time.Duration   `help:"How long one try may take in all." default:"15s" placeholder:"TIME"`
	Blocklist       string          `help:"YAML file of blocked documents, accounts, devices and the like; read again when it changes." placeholder:"FILE"`
	TLSCert         string          `help:"Certificate of the API, PEM." name:"tls-cert" placeholder:"FILE"`
	TLSKey          string          `help:"Its key, PEM." name:"tls-key" placeholder:"FILE"`
	InsecureHTTP    bool            `help:"Let the API listen beyond this machine without TLS." name:"insecure-http"`
	LogLevel        string          `help:"debug, info, warn or error." default:"info" placeholder:"LEVEL"`
	Grace           time.Duration   `help:"How long to finish what was accepted after SIGTERM." default:"15s" placeholder:"TIME"`
	APIKey          config.Secret   `help:"The first key of tenant default, all roles." name:"api-key" hidden:""`
}

// minKey is the shortest API key that is taken from the environment.
const minKey = 16

var goodKey = regexp.MustCompile(`^[\x21-\x7e]{16,256}$`)

// Check finds everything that is wrong, so that nothing starts on half a configuration.
func (s *system) Check() config.Faults {
	var f config.Faults
	for _, a := range []struct{ name, value string }{{"http", s.HTTP}, {"ops", s.Ops}, {"nats", s.NATS}} {
		if a.name == "nats" && a.value == "none" {
			continue
		}
		if _, err := net.ResolveTCPAddr("tcp", a.value); err != nil || !strings.Contains(a.value, ":") {
			f.Add(a.name, "%q is no address such as 127.0.0.1:8080", a.value)
		}
	}
	if s.Durability != "fsync" && s.Durability != "interval" {
		f.Add("durability", "%q: fsync or interval", s.Durability)
	}
	if !slices.Contains(app.Levels[:], s.LogLevel) {
		f.Add("log-level", "%q: one of %s", s.LogLevel, strings.Join(app.Levels[:], ", "))
	}
	checkStreamBytes(&f, s.StreamBytes)
	if s.MaxInFlight < 1 {
		f.Add("max-in-flight", "%d: at least 1", s.MaxInFlight)
	}
	if len(s.WebhookSchedule) == 0 || slices.Min(s.WebhookSchedule) < 0 {
		f.Add("webhook-schedule", "at least one time, none below zero")
	}
	if s.WebhookTimeout <= 0 || s.WebhookTimeout > time.Minute {
		f.Add("webhook-timeout", "%s: above zero, one minute at most", s.WebhookTimeout)
	}
	if s.Grace < 0 {
		f.Add("grace", "%s: zero or more", s.Grace)
	}
	if s.Data == "" {
		f.Add("data", "no folder")
	}
	if key := s.APIKey.Reveal(); key != "" && !goodKey.MatchString(key) {
		f.Add("api-key", "%d to 256 printable characters without blanks", minKey)
	}
	s.checkFiles(&f)
	return f
}

// The other streams get a multiple of it (streams.Layout): what fits a machine fits far below this.
const maxStreamBytes = 1 << 50

func checkStreamBytes(f *config.Faults, n config.Size) {
	if n < 1<<20 || n > maxStreamBytes {
		f.Add("stream-bytes", "%s: 1MiB to 1024TiB", n)
	}
}

func (s *system) checkFiles(f *config.Faults) {
	if s.Blocklist != "" {
		if _, err := os.Stat(s.Blocklist); err != nil {
			f.Add("blocklist", "%v", err)
		}
	}
	if (s.TLSCert == "") != (s.TLSKey == "") {
		f.Add("tls-cert", "goes together with tls-key")
	} else if _, err := s.tls(); err != nil {
		f.Add("tls-cert", "%v", err)
	}
	if s.TLSCert == "" && !s.InsecureHTTP && !loopback(s.HTTP) {
		f.Add("http", "%s is reachable from other machines: give --tls-cert and --tls-key, or --insecure-http where something in front speaks TLS", s.HTTP)
	}
}

// tls returns the API's certificate, nil without one.
func (s *system) tls() (*tls.Config, error) {
	if s.TLSCert == "" || s.TLSKey == "" {
		return nil, nil
	}
	pair, err := tls.LoadX509KeyPair(s.TLSCert, s.TLSKey)
	if err != nil {
		return nil, err
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}, nil
}

// loopback tells whether only this machine reaches address. A name that does not resolve is left to the listener.
func loopback(address string) bool {
	a, err := net.ResolveTCPAddr("tcp", address)
	return err != nil || a.IP.IsLoopback()
}

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

// Run prints each setting with the place that it comes from.
func (c *ConfigCmd) Run(command *config.Command) error {
	settings := slices.DeleteFunc(command.Settings(), func(s config.Setting) bool { return s.Name == "json" || s.Name == "config" })
	if c.JSON {
		text, err := json.Marshal(map[string]any{"settings": settings}, jsontext.WithIndent("  "))
		if err == nil {
			fmt.Printf("%s\n", text)
		}
		return err
	}
	table := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	for _, s := range settings {
		fmt.Fprintf(table, "%s\t%s\t%s\n", s.Name, s.Value, s.Source)
	}
	return table.Flush()
}
