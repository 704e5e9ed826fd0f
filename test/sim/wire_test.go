package sim_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"
)

// link is one client's connection to the broker: the protocol of NATS over a pipe. Frames wait in both directions for as long
// as the network takes; the pipe itself is always read at once, since a client writes under its locks.
type link struct {
	b    *broker
	name string // of the incarnation behind it
	conn net.Conn

	// under the broker's lock
	subs   map[string]*subscription // by the client's number
	in     time.Time                // when the last frame from the client is due
	out    time.Time                // when the last frame to the client is due
	frozen time.Time                // nothing passes before
	gone   bool

	mu    sync.Mutex
	ready []byte // due, to be written
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

// InProcessConn opens a link.
func (d door) InProcessConn() (net.Conn, error) {
	d.b.mu.Lock()
	defer d.b.mu.Unlock()
	if d.b.away() || d.b.severed[d.name] {
		return nil, errAway
	}
	here, there := net.Pipe()
	l := &link{b: d.b, name: d.name, conn: there, subs: map[string]*subscription{}, wake: make(chan struct{}, 1), ended: make(chan struct{})}
	d.b.links[l] = true
	go l.serve()
	return here, nil
}

const hello = `INFO {"server_id":"SIM","server_name":"sim","version":"2.15.2","proto":1,"headers":true,"max_payload":1048576,"jetstream":true,"client_id":1}` + "\r\n"

// serve greets without delay, as the client holds its lock meanwhile, and then reads until the link ends.
func (l *link) serve() {
	defer l.close()
	from := bufio.NewReader(l.conn)
	if _, err := io.WriteString(l.conn, hello); err != nil {
		return
	}
	for greeted := false; !greeted; {
		line, err := from.ReadString('\n')
		if err != nil {
			return
		}
		greeted = strings.HasPrefix(line, "PING")
	}
	if _, err := io.WriteString(l.conn, "PONG\r\n"); err != nil {
		return
	}
	go l.write()
	for {
		f, err := readFrame(from)
		if err != nil {
			return
		}
		l.arrive(f)
	}
}

// close ends the link for both sides; what was under way is lost.
func (l *link) close() {
	l.b.mu.Lock()
	defer l.b.mu.Unlock()
	l.cut()
}

// cut is close under the broker's lock.
func (l *link) cut() {
	if l.gone {
		return
	}
	l.gone = true
	delete(l.b.links, l)
	close(l.ended)
	_ = l.conn.Close()
}

// arrive has the broker hear a frame once it is due.
func (l *link) arrive(f frame) {
	b := l.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if f.verb == "PONG" {
		return
	}
	l.in = l.due(l.in, "to broker "+l.name+" "+f.verb+" "+about(f.subject, f.header))
	time.AfterFunc(time.Until(l.in), func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if !l.gone {
			b.hear(l, f)
		}
	})
}

// send has the client hear bytes once they are due.
func (l *link) send(thing string, bytes []byte) {
	l.out = l.due(l.out, "from broker "+l.name+" "+thing)
	time.AfterFunc(time.Until(l.out), func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.ready = append(l.ready, bytes...)
		select {
		case l.wake <- struct{}{}:
		default:
		}
	})
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

func (l *link) write() {
	for {
		select {
		case <-l.wake:
		case <-l.ended:
			return
		}
		l.mu.Lock()
		bytes := l.ready
		l.ready = nil
		l.mu.Unlock()
		if _, err := l.conn.Write(bytes); err != nil {
			l.close()
			return
		}
	}
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

func readFrame(from *bufio.Reader) (frame, error) {
	line, err := from.ReadString('\n')
	if err != nil {
		return frame{}, err
	}
	words := strings.Fields(line)
	if len(words) == 0 {
		return frame{verb: "PONG"}, nil
	}
	f := frame{verb: words[0]}
	switch args := words[1:]; f.verb {
	case "PING", "PONG":
	case "SUB":
		f.subject, f.number = args[0], args[len(args)-1]
		if len(args) == 3 {
			f.queue = args[1]
		}
	case "UNSUB":
		f.number = args[0]
		if len(args) > 1 {
			return f, fmt.Errorf("not simulated: %s", line)
		}
	case "PUB":
		f.subject = args[0]
		if len(args) == 3 {
			f.reply = args[1]
		}
		_, f.data, err = payload(from, "0", args[len(args)-1])
	case "HPUB":
		f.subject = args[0]
		if len(args) == 4 {
			f.reply = args[1]
		}
		f.header, f.data, err = payload(from, args[len(args)-2], args[len(args)-1])
	default:
		return f, fmt.Errorf("not simulated: %s", line)
	}
	return f, err
}

func payload(from io.Reader, headed, whole string) (header, data []byte, err error) {
	h, err := strconv.Atoi(headed)
	if err != nil {
		return nil, nil, err
	}
	n, err := strconv.Atoi(whole)
	if err != nil {
		return nil, nil, err
	}
	all := make([]byte, n+2)
	if _, err := io.ReadFull(from, all); err != nil {
		return nil, nil, err
	}
	return all[:h:h], all[h:n:n], nil
}
