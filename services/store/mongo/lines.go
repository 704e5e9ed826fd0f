package mongo

import (
	"context"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.mongodb.org/mongo-driver/v2/event"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

// lines are the open connections. Where the other end went without a word, as a machine does that lost its power or a firewall
// that forgot, the driver finds out by a heartbeat but keeps the pool, and each connection in it would cost one call its whole
// deadline. So what was not heard since that heartbeat was sent is closed.
type lines struct {
	dialer options.ContextDialer
	mu     sync.Mutex
	open   map[*line]struct{}
}

type line struct {
	net.Conn
	all     *lines
	address string
	heard   atomic.Int64 // when something last came, Unix ns
}

func newLines() *lines { return &lines{dialer: &net.Dialer{}, open: map[*line]struct{}{}} }

// DialContext opens a line.
func (l *lines) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := l.dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	out := &line{Conn: c, all: l, address: address}
	out.heard.Store(time.Now().UnixNano())
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open[out] = struct{}{}
	return out, nil
}

// missed closes the silent lines to a server whose heartbeat failed. Calls on them fail at once, and are repeated by the driver.
func (l *lines) missed(e *event.ServerHeartbeatFailedEvent) {
	address, _, _ := strings.Cut(e.ConnectionID, "[")
	sent := time.Now().Add(-e.Duration).UnixNano()
	var silent []*line
	l.mu.Lock()
	for x := range l.open {
		if x.address == address && x.heard.Load() < sent {
			silent = append(silent, x)
		}
	}
	l.mu.Unlock()
	for _, x := range silent {
		_ = x.Close()
	}
}

// Read notes that something came.
func (x *line) Read(b []byte) (int, error) {
	n, err := x.Conn.Read(b)
	if n > 0 {
		x.heard.Store(time.Now().UnixNano())
	}
	return n, err
}

// Close ends the line.
func (x *line) Close() error {
	x.all.mu.Lock()
	delete(x.all.open, x)
	x.all.mu.Unlock()
	return x.Conn.Close()
}
