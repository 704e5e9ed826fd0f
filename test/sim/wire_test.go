package sim_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// link is one client's connection to the broker: the protocol of NATS, without a socket between. Frames wait in both directions for as
// long as the network takes. A write never waits, since a client writes under its locks.
type link struct {
	b    *broker
	name string // of the incarnation behind it

	// under the broker's lock
	said    []byte // by the client, and not a whole frame yet
	greeted bool
	subs    []*subscription
	in      time.Time // when the last frame from the client is due
	out     time.Time // when the last frame to the client is due
	frozen  time.Time // nothing passes before
	gone    bool

	mu    sync.Mutex
	ready []byte // due, to be read
	wake  chan struct{}
	ended chan struct{}
}

// subscription is what a link listens to.
type subscription struct {
	link    *link
	number  string
	subject string
	queue   string
}

// frame is one thing that a client says.
type frame struct {
	verb           string
	subject, reply string
	queue, number  string
	header, data   []byte
}

// door is where one incarnation of a process reaches the broker.
type door struct {
	b    *broker
	name string
}

var errAway = errors.New("the broker is away")

const hello = `INFO {"server_id":"SIM","server_name":"sim","version":"2.15.2","proto":1,"headers":true,"max_payload":1048576,"jetstream":true,"client_id":1}` + "\r\n"

// InProcessConn opens a link.
func (d door) InProcessConn() (net.Conn, error) {
	d.b.mu.Lock()
	defer d.b.mu.Unlock()
	if d.b.away() || d.b.severed[d.name] {
		return nil, errAway
	}
	l := &link{b: d.b, name: d.name, ready: []byte(hello), wake: make(chan struct{}, 1), ended: make(chan struct{})}
	d.b.links = append(d.b.links, l)
	return l, nil
}

// Read waits for bytes that are due.
func (l *link) Read(p []byte) (int, error) {
	for {
		l.mu.Lock()
		n := copy(p, l.ready)
		l.ready = l.ready[n:]
		l.mu.Unlock()
		if n > 0 {
			return n, nil
		}
		select {
		case <-l.wake:
		case <-l.ended:
			return 0, io.EOF
		}
	}
}

// Write takes what the client says. The greeting is answered without delay, as the client holds its lock meanwhile.
func (l *link) Write(p []byte) (int, error) {
	l.b.mu.Lock()
	defer l.b.mu.Unlock()
	if l.gone {
		return 0, io.ErrClosedPipe
	}
	l.said = append(l.said, p...)
	for {
		f, n, err := parse(l.said)
		switch {
		case err != nil:
			l.b.strange = append(l.b.strange, err.Error())
			l.cut()
			return 0, err
		case n == 0:
			return len(p), nil
		}
		if l.said = l.said[n:]; len(l.said) == 0 {
			l.said = nil // the frames keep what they were cut from
		}
		switch {
		case l.greeted:
			l.arrive(f)
		case f.verb == "PING":
			l.greeted = true
			l.hears([]byte("PONG\r\n"))
		}
	}
}

// Close ends the link for both sides; what was under way is lost.
func (l *link) Close() error {
	l.b.mu.Lock()
	defer l.b.mu.Unlock()
	l.cut()
	return nil
}

func (*link) LocalAddr() net.Addr              { return &net.UnixAddr{} }
func (*link) RemoteAddr() net.Addr             { return &net.UnixAddr{} }
func (*link) SetDeadline(time.Time) error      { return nil }
func (*link) SetReadDeadline(time.Time) error  { return nil }
func (*link) SetWriteDeadline(time.Time) error { return nil }

// cut is Close under the broker's lock.
func (l *link) cut() {
	if l.gone {
		return
	}
	l.gone = true
	l.b.links = slices.DeleteFunc(l.b.links, func(x *link) bool { return x == l })
	close(l.ended)
}

// arrive has the broker hear a frame once it is due.
func (l *link) arrive(f frame) {
	if f.verb == "PONG" {
		return
	}
	l.in = l.due(l.in, "to broker "+l.name+" "+f.verb+" "+about(f.subject, f.header))
	l.b.at(l.in, func() {
		if !l.gone {
			l.b.hear(l, f)
		}
	})
}

// send has the client hear bytes once they are due.
func (l *link) send(thing string, bytes []byte) {
	l.out = l.due(l.out, "from broker "+l.name+" "+thing)
	l.b.at(l.out, func() { l.hears(bytes) })
}

func (l *link) hears(bytes []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ready = append(l.ready, bytes...)
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// due is when the next frame of a direction arrives, never before the last one.
func (l *link) due(last time.Time, thing string) time.Time {
	at := time.Now().Add(l.b.latency(thing))
	if at.Before(l.frozen) {
		at = l.frozen
	}
	if !at.After(last) {
		at = last.Add(1)
	}
	return at
}

// message is a MSG or HMSG for a subscription.
func (s *subscription) message(subject, reply string, header, data []byte) []byte {
	if reply != "" {
		reply += " "
	}
	if len(header) == 0 {
		return append(fmt.Appendf(nil, "MSG %s %s %s%d\r\n%s", subject, s.number, reply, len(data), data), '\r', '\n')
	}
	return append(fmt.Appendf(nil, "HMSG %s %s %s%d %d\r\n%s%s", subject, s.number, reply, len(header), len(header)+len(data), header, data), '\r', '\n')
}

var newline = []byte("\r\n")

// parse takes one frame from the beginning of what was said, of n bytes; 0 where it is not whole yet.
func parse(said []byte) (f frame, n int, err error) {
	line, rest, whole := bytes.Cut(said, newline)
	if !whole {
		return f, 0, nil
	}
	n = len(line) + len(newline)
	words := strings.Fields(string(line))
	if len(words) == 0 {
		return f, n, fmt.Errorf("not simulated: an empty line")
	}
	f.verb = words[0]
	headed, sized := 0, 0
	switch args := words[1:]; f.verb {
	case "CONNECT", "PING", "PONG":
		return f, n, nil
	case "SUB":
		f.subject, f.number = args[0], args[len(args)-1]
		if len(args) == 3 {
			f.queue = args[1]
		}
		return f, n, nil
	case "UNSUB":
		f.number = args[0]
		if len(args) > 1 {
			return f, n, fmt.Errorf("not simulated: %s", line)
		}
		return f, n, nil
	case "PUB":
		f.subject = args[0]
		if len(args) == 3 {
			f.reply = args[1]
		}
		sized, err = strconv.Atoi(args[len(args)-1])
	case "HPUB":
		f.subject = args[0]
		if len(args) == 4 {
			f.reply = args[1]
		}
		if headed, err = strconv.Atoi(args[len(args)-2]); err == nil {
			sized, err = strconv.Atoi(args[len(args)-1])
		}
	default:
		err = fmt.Errorf("not simulated: %s", line)
	}
	if err != nil || len(rest) < sized+len(newline) {
		return f, 0, err
	}
	f.header, f.data = rest[:headed:headed], rest[headed:sized:sized]
	return f, n + sized + len(newline), nil
}
