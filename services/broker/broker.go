// Package broker runs a NATS server with JetStream inside the process, on disk: the embedded part that a cluster replaces.
package broker

import (
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// Options say where the server keeps its files and who can reach it.
type Options struct {
	Dir  string // JetStream's folder
	Host string // listen address; empty: in-process only
	Port int    // -1 picks a free one
	// Sync makes the server fsync each write before it acknowledges; otherwise every two minutes.
	Sync bool
}

// Server is a running broker.
type Server struct{ ns *server.Server }

// Start returns a broker that is ready for connections.
func Start(o Options) (*Server, error) {
	opts := &server.Options{
		ServerName: "crivo", JetStream: true, StoreDir: o.Dir, SyncAlways: o.Sync,
		DontListen: o.Host == "", Host: o.Host, Port: o.Port, NoSigs: true, NoLog: true,
	}
	ns, err := server.NewServer(opts)
	if err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	ns.Start()
	if !ns.ReadyForConnections(30 * time.Second) {
		ns.Shutdown()
		return nil, errors.New("broker: not ready after 30 s")
	}
	return &Server{ns}, nil
}

// URL is where clients outside the process connect; empty when there is no listener.
func (s *Server) URL() string { return s.ns.ClientURL() }

// Connect returns an in-process connection.
func (s *Server) Connect(opts ...nats.Option) (*nats.Conn, error) {
	return nats.Connect("", append(opts, nats.InProcessServer(s.ns))...)
}

// Close stops the server and waits for it.
func (s *Server) Close() {
	s.ns.Shutdown()
	s.ns.WaitForShutdown()
}
