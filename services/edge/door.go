package edge

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"crivo/pkg/app"
)

// Doorway is where an edge is reached.
type Doorway struct {
	Listener     net.Listener
	TLS          *tls.Config // nil: plain http
	InsecureHTTP bool        // allow plain http beyond loopback
	Health       *app.Health
	Log          zerolog.Logger
}

// Door is the API's address. It answers from the moment that it is opened, since an edge may have to wait for its broker or its
// stores: what comes before one serves is told to come again.
type Door struct {
	health *app.Health
	server *http.Server
	edge   atomic.Pointer[http.Handler] // nil: none serves yet
	ended  chan error                   // the server's error
}

// OpenDoor listens until the edge that it is given to ends, or until Close.
func OpenDoor(w Doorway) (*Door, error) {
	address, ok := w.Listener.Addr().(*net.TCPAddr)
	if ok && !address.IP.IsLoopback() && w.TLS == nil && !w.InsecureHTTP {
		return nil, fmt.Errorf("edge: %s: %w", w.Listener.Addr(), errPlain)
	}
	d := &Door{health: w.Health, ended: make(chan error, 1)}
	d.server = server(d, w.TLS, w.Log)
	d.health.Set(healthPart, "starting")
	listener := w.Listener
	if w.TLS != nil {
		listener = tls.NewListener(listener, w.TLS)
	}
	go func() { d.ended <- d.server.Serve(listener) }()
	return d, nil
}

// Close ends what an edge that never served left open.
func (d *Door) Close() { _ = d.server.Close() }

// healthPart is the edge's own part of the health.
const healthPart = "edge"

var (
	errPlain = errors.New("plain http beyond loopback: give --tls-cert and --tls-key, or say --insecure-http where something in front speaks TLS")
	// errStarting is told before there are keys to tell who asks.
	errStarting = errors.New("starting: /readyz tells what is waited for")
)

const headerTime = 5 * time.Second

// server has a deadline for everything, also for bodies that no handler reads. The last one is longer than the slowest body
// and the longest wait.
func server(h http.Handler, config *tls.Config, logs zerolog.Logger) *http.Server {
	return &http.Server{Handler: h, ReadHeaderTimeout: headerTime, ReadTimeout: headerTime + bodyTime, WriteTimeout: 30 * time.Second,
		IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10, TLSConfig: config, ErrorLog: log.New(logs, "", 0)}
}

// serve hands all that comes from now on to an edge.
func (d *Door) serve(h http.Handler) {
	d.edge.Store(&h)
	d.health.Set(healthPart, "")
}

// ServeHTTP is the edge's answer, or that there is none yet.
func (d *Door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h := d.edge.Load(); h != nil {
		(*h).ServeHTTP(w, r)
		return
	}
	id := newRequestID(r.Header.Get("X-Request-Id"))
	w.Header().Set("X-Request-Id", id)
	switch r.URL.Path {
	case pathLive:
		live(w, r)
	case pathReady:
		_ = ready(w, d.health)
	default:
		refuse(&recorder{ResponseWriter: w}, r, problemOf(errStarting, id), "")
	}
}

const (
	pathLive  = "/livez"
	pathReady = "/readyz"
)

// live says that there is a process.
func live(w http.ResponseWriter, _ *http.Request) {
	write(w, http.StatusOK, []byte(`{"status":"live"}`))
}

// ready says what is not ready or missed, part by part.
func ready(w http.ResponseWriter, health *app.Health) error {
	status := http.StatusOK
	ok, out := health.Report()
	if !ok {
		status = http.StatusServiceUnavailable
	}
	return answer(w, status, out)
}
