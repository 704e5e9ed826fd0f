package app

import (
	"errors"
	"fmt"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
)

// Connection says how a process reaches the broker, and as whom.
type Connection struct {
	URL    string // empty with an in-process option
	Creds  string // path of a .creds file; empty where Options bring the identity
	Name   string // shown by the broker
	Inbox  string // prefix of the private inbox
	Log    zerolog.Logger
	Health *Health       // told "broker" while the connection is away; nil is allowed
	Extra  []nats.Option // identity or way of the embedded broker
}

// Connect returns a connection that never gives up and keeps nothing back for later: a publish during an outage fails at
// once instead of arriving stale. It returns without waiting for a broker that is not there yet.
func Connect(c Connection) (*nats.Conn, error) {
	opts := []nats.Option{
		nats.Name(c.Name), nats.CustomInboxPrefix(c.Inbox),
		nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(100 * time.Millisecond),
		nats.ReconnectJitter(50*time.Millisecond, 50*time.Millisecond), nats.ReconnectBufSize(-1),
		nats.PingInterval(2 * time.Second), nats.MaxPingsOutstanding(2), nats.Timeout(2 * time.Second),
		nats.IgnoreAuthErrorAbort(), // a broker that comes back without our account may get it back too
	}
	if c.Creds != "" {
		opts = append(opts, nats.UserCredentials(c.Creds))
	}
	w := &watcher{log: c.Log.With().Str("connection", c.Name).Logger(), health: c.Health, part: "broker: " + c.Name}
	opts = append(append(opts, w.handlers()...), c.Extra...)
	nc, err := nats.Connect(c.URL, opts...)
	if errors.As(err, new(*url.Error)) {
		return nil, errURL
	}
	if err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	if !nc.IsConnected() {
		w.away(nc, nc.LastError())
		if nc.IsConnected() { // meanwhile, and was told before it was lost
			w.back(nc)
		}
	}
	return nc, nil
}

// errURL is all that is said of a URL that cannot be used: the cause quotes it, password and all.
var errURL = errors.New("broker: the URL is none of NATS servers, a comma between them")

// unheard is how long an acknowledgement is waited for by whoever still waits; every caller gives up long before.
const unheard = 5 * time.Second

// JetStream returns a client of JetStream that forgets what the broker never acknowledged: a stream that lost its leader answers
// nothing, and after 4,000 such publishes the client would take no more, for as long as its own connection stands.
func JetStream(nc *nats.Conn) (jetstream.JetStream, error) {
	return jetstream.New(nc, jetstream.WithPublishAsyncTimeout(unheard))
}

// watcher says a lost connection once and its return once, whatever happens in between.
type watcher struct {
	log    zerolog.Logger
	health *Health
	part   string
	lost   atomic.Bool
	denied atomic.Bool
}

func (w *watcher) handlers() []nats.Option {
	return []nats.Option{
		nats.ConnectHandler(w.back), nats.ReconnectHandler(w.back),
		nats.DisconnectErrHandler(w.away),
		nats.ReconnectErrHandler(w.away),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) { w.failed(sub, err) }),
	}
}

func (w *watcher) away(nc *nats.Conn, err error) {
	if nc.IsClosed() || nc.IsDraining() || w.lost.Swap(true) {
		return
	}
	w.say("connection lost")
	w.log.Warn().Err(err).Msg("broker is away, trying again")
}

func (w *watcher) back(*nats.Conn) {
	w.say("")
	w.denied.Store(false)
	if w.lost.Swap(false) {
		w.log.Info().Msg("broker is back")
	}
}

func (w *watcher) say(reason string) {
	if w.health != nil {
		w.health.Set(w.part, reason)
	}
}

// failed logs what the broker refuses. A refused subject is a fault of the installation: the first one of a connection is
// said as an error, repeats are not.
func (w *watcher) failed(sub *nats.Subscription, err error) {
	line := w.log.Warn()
	if errors.Is(err, nats.ErrPermissionViolation) {
		if w.denied.Swap(true) {
			return
		}
		line = w.log.Error()
	}
	if sub != nil {
		line = line.Str("subject", sub.Subject)
	}
	line.Err(err).Msg("broker reports an error")
}
