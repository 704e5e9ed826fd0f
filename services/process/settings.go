package process

import (
	"crypto/tls"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"crivo/pkg/app"
	"crivo/services/config"
	"crivo/streams"
)

// The groups of settings below are embedded by whatever process needs them, crivo up among them: a flag is spelled, explained
// and checked in one place.

// Common are the settings of every service.
type Common struct {
	Broker
	Ops      string `help:"Where /livez, /readyz, /metrics and pprof are." default:"127.0.0.1:8081" placeholder:"ADDRESS"`
	LogLevel string `help:"debug, info, warn or error." default:"info" placeholder:"LEVEL"`
	Config   string `help:"YAML file of settings, named like the flags; flags and environment win over it." placeholder:"FILE"`
}

func (c *Common) common() *Common { return c }

// Faults finds what is wrong.
func (c *Common) Faults(f *config.Faults) {
	c.Broker.Faults(f)
	Address(f, "ops", c.Ops)
	LogLevel(f, c.LogLevel)
}

// Broker is where NATS is.
type Broker struct {
	NATSURL   config.Secret `help:"NATS servers, a comma between them." name:"nats-url" default:"nats://127.0.0.1:4222" placeholder:"URL"`
	NATSCreds string        `help:"File of this process's credential." name:"nats-creds" placeholder:"FILE"`
	NATSCA    string        `help:"Certificates that sign the servers', PEM; without it the system's." name:"nats-ca" placeholder:"FILE"`
}

// Faults finds what is wrong.
func (b *Broker) Faults(f *config.Faults) {
	readable(f, "nats-creds", b.NATSCreds)
	readable(f, "nats-ca", b.NATSCA)
}

// NATS are the connection's own options.
func (b *Broker) NATS() []nats.Option {
	if b.NATSCA == "" {
		return nil
	}
	return []nats.Option{nats.RootCAs(b.NATSCA)}
}

// Mongo is where the transaction store, the deliveries and the registry with its lists are.
type Mongo struct {
	MongoURI      config.Secret `help:"MongoDB; options in it tune the pool." name:"mongo-uri" default:"mongodb://127.0.0.1:27017" placeholder:"URI"`
	MongoDatabase string        `help:"Database in it." name:"mongo-database" default:"crivo" placeholder:"NAME"`
}

// Redis is where the features are.
type Redis struct {
	RedisURL config.Secret `help:"Redis; a cluster is written with its nodes as redis://a:6379?addr=b:6379&addr=c:6379." name:"redis-url" default:"redis://127.0.0.1:6379" placeholder:"URL"`
}

// Keyset is the file of the sealing keys.
type Keyset struct {
	KeysetFile string `help:"Sealing keys of all tenants, mode 0600; the same for edge, validate and notify." name:"keyset-file" placeholder:"FILE"`
}

// Faults finds what is wrong.
func (k *Keyset) Faults(f *config.Faults) { required(f, "keyset-file", k.KeysetFile) }

// Streams are the streams' sizes and copies.
type Streams struct {
	Replicas    int         `help:"Copies of each stream: 1 on one node, 3 on a cluster." default:"1" placeholder:"N"`
	StreamBytes config.Size `help:"Room for submitted transactions; all streams together take up to eleven times as much." default:"2GiB" placeholder:"SIZE"`
}

// The other streams get a multiple of it (streams.Layout): what fits a machine fits far below this.
const maxStreamBytes = 1 << 50

// Faults finds what no broker would take.
func (s *Streams) Faults(f *config.Faults) {
	if s.Replicas != 1 && s.Replicas != 3 && s.Replicas != 5 {
		f.Add("replicas", "%d: 1, 3 or 5", s.Replicas)
	}
	if s.StreamBytes < 1<<20 || s.StreamBytes > maxStreamBytes {
		f.Add("stream-bytes", "%s: 1MiB to 1024TiB", s.StreamBytes)
	}
}

// Layout is what they come to.
func (s *Streams) Layout() streams.Layout {
	return streams.Layout{Replicas: s.Replicas, SubmittedBytes: int64(s.StreamBytes)}
}

// Door is how the edge is reached.
type Door struct {
	HTTP         string        `help:"Where the API listens; port 0 picks a free one." name:"http" default:"127.0.0.1:8080" placeholder:"ADDRESS"`
	TLSCert      string        `help:"Certificate of the API, PEM." name:"tls-cert" placeholder:"FILE"`
	TLSKey       string        `help:"Its key, PEM." name:"tls-key" placeholder:"FILE"`
	InsecureHTTP bool          `help:"Let the API listen beyond this machine without TLS." name:"insecure-http"`
	MaxInFlight  int           `help:"Accepted and undecided transactions at most; more are refused." default:"2000" placeholder:"N"`
	APIKey       config.Secret `help:"The first key of tenant default, all roles." name:"api-key" hidden:""`
}

// minKey is the shortest API key that is taken from the environment.
const minKey = 16

var goodKey = regexp.MustCompile(`^[\x21-\x7e]{16,256}$`)

// Faults finds what is wrong.
func (d *Door) Faults(f *config.Faults) {
	Address(f, "http", d.HTTP)
	if d.MaxInFlight < 1 {
		f.Add("max-in-flight", "%d: at least 1", d.MaxInFlight)
	}
	if key := d.APIKey.Reveal(); key != "" && !goodKey.MatchString(key) {
		f.Add("api-key", "%d to 256 printable characters without blanks", minKey)
	}
	if (d.TLSCert == "") != (d.TLSKey == "") {
		f.Add("tls-cert", "goes together with tls-key")
	} else if _, err := d.TLS(); err != nil {
		f.Add("tls-cert", "%v", err)
	}
	if d.TLSCert == "" && !d.InsecureHTTP && !Loopback(d.HTTP) {
		f.Add("http", "%s is reachable from other machines: give --tls-cert and --tls-key, or --insecure-http where something in front speaks TLS", d.HTTP)
	}
}

// TLS returns the API's certificate, nil without one.
func (d *Door) TLS() (*tls.Config, error) {
	if d.TLSCert == "" || d.TLSKey == "" {
		return nil, nil
	}
	pair, err := tls.LoadX509KeyPair(d.TLSCert, d.TLSKey)
	if err != nil {
		return nil, err
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}, nil
}

// Allowed are the addresses that webhooks may reach beside the public ones.
type Allowed struct {
	WebhookAllow []netip.Prefix `help:"Addresses of your own that webhooks may reach, on any port and by plain http (repeatable)." placeholder:"CIDR"`
}

// Webhooks is how they are delivered.
type Webhooks struct {
	WebhookSchedule []time.Duration `help:"When each try of a webhook follows the one before." default:"0s,5s,5m,30m,2h,5h,10h,14h,20h,24h" placeholder:"TIMES"`
	WebhookTimeout  time.Duration   `help:"How long one try may take in all." default:"15s" placeholder:"TIME"`
}

// Faults finds what is wrong.
func (w *Webhooks) Faults(f *config.Faults) {
	if len(w.WebhookSchedule) == 0 || slices.Min(w.WebhookSchedule) < 0 || w.WebhookSchedule[0] != 0 {
		f.Add("webhook-schedule", "begins with 0s, the first try at once; none is below zero")
	}
	if w.WebhookTimeout <= 0 || w.WebhookTimeout > time.Minute {
		f.Add("webhook-timeout", "%s: above zero, one minute at most", w.WebhookTimeout)
	}
}

// Lists are what transactions are checked against.
type Lists struct {
	Blocklist string `help:"YAML file of blocked documents, accounts, devices and the like; read again when it changes." placeholder:"FILE"`
}

// Faults finds what is wrong.
func (l *Lists) Faults(f *config.Faults) { readable(f, "blocklist", l.Blocklist) }

// Address notes a listen address that is none.
func Address(f *config.Faults, name, value string) {
	if _, err := net.ResolveTCPAddr("tcp", value); err != nil || !strings.Contains(value, ":") {
		f.Add(name, "%q is no address such as 127.0.0.1:8080", value)
	}
}

// LogLevel notes a level that is none.
func LogLevel(f *config.Faults, value string) {
	if !slices.Contains(app.Levels[:], value) {
		f.Add("log-level", "%q: one of %s", value, strings.Join(app.Levels[:], ", "))
	}
}

func required(f *config.Faults, name, value string) {
	if value == "" {
		f.Add(name, "must be given")
		return
	}
	readable(f, name, value)
}

// readable notes a file that was named and cannot be read; an empty name is none.
func readable(f *config.Faults, name, path string) {
	if path == "" {
		return
	}
	if _, err := os.Stat(path); err != nil {
		f.Add(name, "%v", err)
	}
}

// Loopback tells whether only this machine reaches address. A name that does not resolve is left to the listener.
func Loopback(address string) bool {
	a, err := net.ResolveTCPAddr("tcp", address)
	return err != nil || a.IP.IsLoopback()
}
