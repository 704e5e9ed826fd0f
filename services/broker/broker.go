// Package broker runs a NATS server with JetStream inside the process, on disk: the embedded part that a cluster replaces.
package broker

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"
)

// Options say where the server keeps its files and who can reach it.
type Options struct {
	Dir  string // JetStream's folder
	Host string // listen address; empty: in-process only
	Port int    // -1 picks a free one
	// Sync makes the server fsync each write before it acknowledges; otherwise every two minutes.
	Sync bool
	// Keys is the file of the installation's identities, made at first start, mode 0600; empty: anybody may do anything.
	Keys string
	// Log gets the server's warnings and errors; the zero value drops them.
	Log *zerolog.Logger
}

const (
	maxPayload  = 1 << 20 // an event is its transaction (64 KiB at most) and what was found out about it
	maxSubs     = 10_000
	readyWithin = 30 * time.Second // a large store is read back before the server is ready
)

// Server is a running broker.
type Server struct {
	ns   *server.Server
	ids  *identities // nil without authentication
	sync bool
}

// Start returns a broker that is ready for connections.
func Start(o Options) (*Server, error) {
	opts := &server.Options{
		ServerName: "crivo", JetStream: true, StoreDir: o.Dir, SyncAlways: o.Sync,
		DontListen: o.Host == "", Host: o.Host, Port: o.Port, NoSigs: true, NoLog: true, DisableJetStreamBanner: true,
		MaxPayload: maxPayload, MaxSubs: maxSubs, MaxControlLine: 4096, WriteDeadline: 10 * time.Second,
		// The streams' own byte budgets are the limit; what they promise may be more than the disk has free today.
		JetStreamMaxStore: math.MaxInt64 / 4,
	}
	s := &Server{sync: o.Sync}
	if o.Keys != "" {
		ids, err := openIdentities(o.Keys, o.Dir)
		if err != nil {
			return nil, fmt.Errorf("broker: %w", err)
		}
		if err := ids.trust(opts); err != nil {
			return nil, fmt.Errorf("broker: %w", err)
		}
		s.ids = ids
	}
	ns, err := server.NewServer(opts)
	if err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	if o.Log != nil {
		ns.SetLoggerV2(logger{o.Log.With().Str("part", "nats").Logger()}, false, false, false)
	}
	ns.Start()
	if !ns.ReadyForConnections(readyWithin) || !ns.JetStreamEnabled() {
		ns.Shutdown()
		return nil, errors.New("broker: not ready: see its log lines above")
	}
	s.ns = ns
	return s, nil
}

// batchFrom is where one atomic batch gets cheaper than single synced writes: a batch takes about 5 ms whatever its size, a
// synced write 0.4 ms (BenchmarkPublish in test/load).
const batchFrom = 12

// BatchFrom is for [stage.Publisher]: without a sync at every write, single publishes always win.
func (s *Server) BatchFrom() int {
	if s.sync {
		return batchFrom
	}
	return 0
}

// URL is where clients outside the process connect; empty when there is no listener.
func (s *Server) URL() string {
	if s.ns.Addr() == nil {
		return ""
	}
	return s.ns.ClientURL()
}

// InProcess is the option that connects without a socket.
func (s *Server) InProcess() nats.Option { return nats.InProcessServer(s.ns) }

// Connect returns an in-process connection.
func (s *Server) Connect(opts ...nats.Option) (*nats.Conn, error) {
	return nats.Connect("", append(opts, s.InProcess())...)
}

// Close stops the server and waits for it.
func (s *Server) Close() {
	s.ns.Shutdown()
	s.ns.WaitForShutdown()
}

// logger passes the server's warnings and errors on.
type logger struct{ log zerolog.Logger }

func (logger) Noticef(string, ...any) {}
func (logger) Debugf(string, ...any)  {}
func (logger) Tracef(string, ...any)  {}

func (l logger) Warnf(format string, v ...any)  { l.log.Warn().Msgf(format, v...) }
func (l logger) Errorf(format string, v ...any) { l.log.Error().Msgf(format, v...) }
func (l logger) Fatalf(format string, v ...any) { l.log.Error().Msgf(format, v...) }
