package sim_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// consumer delivers a stream's messages to whoever pulls, and again what was not acknowledged in time.
type consumer struct {
	s         *stream
	config    jetstream.ConsumerConfig
	created   time.Time
	next      uint64 // what was not delivered yet begins here
	delivered uint64 // how often anything was
	pending   map[uint64]*delivery
	handed    map[uint64]*delivery // acknowledged when they were delivered, by a runner that is broken on purpose
	waiting   []*pull
	armed     time.Time // when something is due again
}

// delivery is a message that is not settled.
type delivery struct {
	times uint64
	due   time.Time // when it is delivered again
}

// pull is a client's request for messages.
type pull struct {
	inbox   string
	left    int
	expires time.Time
	beat    time.Duration
	heard   time.Time
}

func newConsumer(s *stream, c jetstream.ConsumerConfig) *consumer {
	next := max(s.first, c.OptStartSeq)
	for t := c.OptStartTime; t != nil && next <= s.last && (s.messages[next] == nil || s.messages[next].at.Before(*t)); {
		next++
	}
	return &consumer{s: s, config: c, created: time.Now().UTC(), next: next, pending: map[uint64]*delivery{}, handed: map[uint64]*delivery{}}
}

func (c *consumer) name() string { return c.s.config.Name + "/" + c.config.Name }

// floor is the sequence up to which everything is settled.
func (c *consumer) floor() uint64 {
	low := c.next
	for seq := range c.pending {
		low = min(low, seq)
	}
	return low - 1
}

func (c *consumer) info() *jetstream.ConsumerInfo {
	left := uint64(0)
	for seq := range c.s.messages {
		if seq >= c.next {
			left++
		}
	}
	return &jetstream.ConsumerInfo{Stream: c.s.config.Name, Name: c.config.Name, Created: c.created, Config: c.config,
		Delivered: jetstream.SequenceInfo{Consumer: c.delivered, Stream: c.next - 1}, AckFloor: jetstream.SequenceInfo{Stream: c.floor()},
		NumAckPending: len(c.pending), NumWaiting: len(c.waiting), NumPending: left, TimeStamp: time.Now().UTC()}
}

// ask is one pull.
func (c *consumer) ask(f frame) {
	var req struct {
		Batch   int           `json:"batch"`
		Expires time.Duration `json:"expires"`
		NoWait  bool          `json:"no_wait"`
		Beat    time.Duration `json:"idle_heartbeat"`
	}
	if err := json.Unmarshal(f.data, &req); err != nil || req.NoWait || req.Expires == 0 {
		c.s.b.strange = append(c.s.b.strange, "pull "+string(f.data))
	}
	now := time.Now()
	p := &pull{inbox: f.reply, left: req.Batch, expires: now.Add(req.Expires), beat: req.Beat, heard: now}
	c.waiting = append(c.waiting, p)
	c.beat(p)
	c.pump()
}

// beat tells an idle client that its pull still stands, and at last that it does not.
func (c *consumer) beat(p *pull) {
	next := p.expires
	if beat := time.Now().Add(p.beat); p.beat > 0 && beat.Before(next) {
		next = beat
	}
	b := c.s.b
	b.at(next, func() {
		switch {
		case !slices.Contains(c.waiting, p):
			return
		case c.s.leaderless() || !b.listens(p.inbox):
			c.leave(p)
			return
		case !time.Now().Before(p.expires):
			c.leave(p)
			b.status(p.inbox, "408", "Request Timeout", fmt.Sprintf("Nats-Pending-Messages: %d\r\nNats-Pending-Bytes: 0\r\n", p.left))
			return
		case time.Since(p.heard) >= p.beat:
			b.status(p.inbox, "100", "Idle Heartbeat", "")
		}
		c.beat(p)
	})
}

func (c *consumer) leave(p *pull) {
	c.waiting = slices.DeleteFunc(c.waiting, func(x *pull) bool { return x == p })
}

// listens tells whether anybody has an inbox.
func (b *broker) listens(inbox string) bool {
	for _, l := range b.links {
		for _, s := range l.subs {
			if covers(s.subject, inbox) {
				return true
			}
		}
	}
	return false
}

// pump delivers as long as somebody waits and something is there.
func (c *consumer) pump() {
	defer c.arm()
	for len(c.waiting) > 0 && !c.s.leaderless() {
		p := c.waiting[0]
		if !c.s.b.listens(p.inbox) {
			c.leave(p)
			continue
		}
		seq, ok := c.choose()
		if !ok {
			return
		}
		c.deliver(p, seq)
		if p.left--; p.left == 0 {
			c.leave(p)
		}
	}
}

// choose returns what to deliver next: what is due again, else the next of the stream.
func (c *consumer) choose() (uint64, bool) {
	var due uint64
	for seq, d := range c.pending {
		if c.s.messages[seq] == nil {
			delete(c.pending, seq)
		} else if !d.due.After(time.Now()) && (due == 0 || seq < due) {
			due = seq
		}
	}
	if due > 0 {
		return due, true
	}
	b := c.s.b
	for ; c.next <= c.s.last && (c.config.MaxAckPending <= 0 || len(c.pending) < c.config.MaxAckPending); c.next++ {
		m := c.s.messages[c.next]
		if m == nil {
			continue
		}
		thing := c.name() + " " + about(m.subject, m.header)
		if c.config.AckPolicy == jetstream.AckExplicitPolicy && b.dice.hits(b.odds.shuffled, "shuffled "+thing) {
			b.trace("%s comes later", thing)
			c.pending[c.next] = &delivery{due: time.Now().Add(b.dice.between(0, 300*time.Millisecond, "later "+thing))}
			continue
		}
		c.next++
		return c.next - 1, true
	}
	return 0, false
}

func (c *consumer) deliver(p *pull, seq uint64) {
	b, m := c.s.b, c.s.messages[seq]
	now := time.Now()
	p.heard = now
	c.delivered++
	times := uint64(1)
	if c.config.AckPolicy == jetstream.AckExplicitPolicy {
		d := c.pending[seq]
		if d == nil {
			d = &delivery{}
			c.pending[seq] = d
		}
		d.times++
		d.due = now.Add(c.config.AckWait)
		if thing := c.name() + " " + about(m.subject, m.header); b.dice.hits(b.odds.twice, "twice "+thing) {
			d.due = now.Add(b.dice.between(0, c.config.AckWait, "again "+thing))
		}
		times = d.times
		if times > 1 {
			b.trace("%s: %d is delivered for time %d", c.name(), seq, times)
		}
		if b.eager {
			c.handed[seq] = d
			delete(c.pending, seq)
		}
	}
	info := c.info()
	reply := fmt.Sprintf("$JS.ACK.%s.%s.%d.%d.%d.%d.%d", c.s.config.Name, c.config.Name, times, seq, c.delivered, m.at.UnixNano(), info.NumPending)
	header, data := m.header, m.data
	if c.config.HeadersOnly {
		header = append([]byte(strings.TrimSuffix(string(header), "\r\n")), fmt.Sprintf("Nats-Msg-Size: %d\r\n\r\n", len(data))...)
		data = nil
	}
	b.route(p.inbox, m.subject, reply, header, data)
}

// arm delivers again at the time of whatever is due first.
func (c *consumer) arm() {
	if len(c.pending) == 0 || c.s.leaderless() {
		return
	}
	var first time.Time
	for _, d := range c.pending {
		if first.IsZero() || d.due.Before(first) {
			first = d.due
		}
	}
	if !first.After(time.Now()) || first.Equal(c.armed) {
		return // whoever pulls next gets it
	}
	c.armed = first
	c.s.b.at(first, func() {
		if first.Equal(c.armed) {
			c.pump()
		}
	})
}

// settle is what a client says of a delivery: $JS.ACK.<stream>.<consumer>.<times>.<sequence>.…
func (b *broker) settle(f frame) {
	words := strings.Split(f.subject, ".")
	s := b.streams[words[2]]
	if s == nil || s.leaderless() || s.consumers[words[3]] == nil {
		return
	}
	c, seq := s.consumers[words[3]], number(words[5])
	word, rest, _ := strings.Cut(string(f.data), " ")
	if b.eager && word == "-NAK" && c.handed[seq] != nil {
		c.pending[seq] = c.handed[seq]
	}
	d := c.pending[seq]
	if d == nil {
		return
	}
	thing := c.name() + " " + words[5] + " " + word
	if b.dice.hits(b.odds.ackLost, "ack lost "+thing) {
		b.trace("%s is lost", thing)
		return
	}
	switch word {
	case "+ACK", "+TERM":
		delete(c.pending, seq)
	case "+WPI":
		d.due = time.Now().Add(c.config.AckWait)
	case "-NAK":
		var req struct {
			Delay time.Duration `json:"delay"`
		}
		_ = json.Unmarshal([]byte(rest), &req)
		d.due = time.Now().Add(req.Delay)
	default:
		b.strange = append(b.strange, "said "+word)
	}
	c.pump()
}
