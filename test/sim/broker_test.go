package sim_test

import (
	"bytes"
	"container/heap"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"

	"crivo/streams"
)

// broker is a simulated NATS server with JetStream: what the client library of the real processes says to it is the protocol,
// and it answers, or does not, as the seed has it.
type broker struct {
	dice  *dice
	trace func(format string, args ...any)
	crash func(process string) // kills the incarnation of that name

	mu      sync.Mutex
	odds    odds
	links   []*link
	severed map[string]bool // incarnations that are dead
	streams map[string]*stream
	back    time.Time       // away until then
	strange []string        // what was asked of it that it does not simulate
	lost    map[string]bool // transactions whose decision it may have kept from being told
	wiped   bool
	// unreached is how often a record of attempts may have stayed that was to be forgotten.
	unreached int
	silent    bool        // broken on purpose: what edges submit is acknowledged, and not stored
	counts    bool        // broken on purpose: whatever is delivered again was tried often enough
	eager     bool        // broken on purpose: a delivery counts as acknowledged
	agenda    agenda      // what is to happen, in the order of its times
	next      *time.Timer // when the first of it is due
	asked     uint64      // how many things ever were on the agenda
	ended     chan struct{}
}

// odds are how likely each fault is, wherever it can happen.
type odds struct {
	slow         float64 // a frame takes up to 60 ms
	lost         float64 // a publish does not arrive
	unheard      float64 // a message is stored, and its acknowledgement is not heard
	refused      float64 // a publish is refused for the moment
	ackLost      float64 // what a consumer says of a message does not arrive
	twice        float64 // a message is delivered again long before its time
	shuffled     float64 // a message is delivered after those behind it
	crash        float64 // whoever publishes dies of it, before or after the message is stored
	mortal       string  // the one service that dies so; empty: any
	storeFails   float64 // the store does not do it and says so
	storeHangs   float64 // the store does not answer; some of it is written, now, later or never
	storeCrash   float64 // whoever wrote dies before it hears
	featureFails float64
}

func newBroker(d *dice) *broker {
	b := &broker{dice: d, trace: func(string, ...any) {}, severed: map[string]bool{}, streams: map[string]*stream{}, lost: map[string]bool{},
		next: time.NewTimer(forever), ended: make(chan struct{})}
	go b.live()
	return b
}

// live does what is on the agenda until the broker ends. One goroutine does it all: one for each frame takes twice as long.
func (b *broker) live() {
	for {
		select {
		case <-b.next.C:
		case <-b.ended:
			return
		}
		b.mu.Lock()
		for len(b.agenda) > 0 && !b.agenda[0].at.After(time.Now()) {
			heap.Pop(&b.agenda).(entry).do()
		}
		b.wait()
		b.mu.Unlock()
	}
}

// at has something done at a time, under the lock.
func (b *broker) at(t time.Time, do func()) {
	b.asked++
	heap.Push(&b.agenda, entry{t, b.asked, do})
	if b.agenda[0].number == b.asked {
		b.wait()
	}
}

func (b *broker) wait() {
	if len(b.agenda) > 0 {
		b.next.Reset(time.Until(b.agenda[0].at))
	}
}

// end is the end of everything.
func (b *broker) end() { close(b.ended) }

// agenda is a heap of what is to happen, the next first. What was said first is first at the same time.
type agenda []entry

type entry struct {
	at     time.Time
	number uint64
	do     func()
}

func (a agenda) Len() int { return len(a) }
func (a agenda) Less(i, j int) bool {
	return a[i].at.Before(a[j].at) || a[i].at.Equal(a[j].at) && a[i].number < a[j].number
}
func (a agenda) Swap(i, j int) { a[i], a[j] = a[j], a[i] }
func (a *agenda) Push(x any)   { *a = append(*a, x.(entry)) }
func (a *agenda) Pop() any {
	last := len(*a) - 1
	e := (*a)[last]
	(*a)[last] = entry{}
	*a = (*a)[:last]
	return e
}

const forever = 1000 * time.Hour

func (b *broker) away() bool { return time.Now().Before(b.back) }

func (b *broker) latency(thing string) time.Duration {
	if b.dice.hits(b.odds.slow, "slow "+thing) {
		return b.dice.between(time.Millisecond, 60*time.Millisecond, "latency "+thing)
	}
	return b.dice.between(30*time.Microsecond, 400*time.Microsecond, "latency "+thing)
}

// about names what a frame is about without the names that clients make up at random.
func about(subject string, header []byte) string {
	if id := headerOf(header, "Nats-Msg-Id"); id != "" {
		return id
	}
	words := strings.Split(subject, ".")
	switch {
	case strings.HasPrefix(subject, "_INBOX"):
		return "inbox"
	case strings.HasPrefix(subject, "$JS.ACK."):
		return strings.Join(slices.Delete(words, 4, 5)[:5], ".")
	case strings.HasPrefix(subject, "$JS.API.CONSUMER."):
		return strings.Join(words[:min(len(words), 5)], ".")
	}
	return subject
}

func headerOf(header []byte, name string) string {
	_, rest, ok := bytes.Cut(header, []byte("\r\n"+name+": "))
	if !ok {
		return ""
	}
	value, _, _ := bytes.Cut(rest, []byte("\r\n"))
	return string(value)
}

// hear is one frame of a client, under the lock.
func (b *broker) hear(l *link, f frame) {
	switch f.verb {
	case "PING":
		l.send("PONG", []byte("PONG\r\n"))
	case "SUB":
		l.subs = append(l.subs, &subscription{l, f.number, f.subject, f.queue})
	case "UNSUB":
		l.subs = slices.DeleteFunc(l.subs, func(s *subscription) bool { return s.number == f.number })
	default:
		b.published(l, f)
	}
}

func (b *broker) published(l *link, f frame) {
	switch {
	case strings.HasPrefix(f.subject, "$JS.API."):
		b.api(f)
		return
	case strings.HasPrefix(f.subject, "$JS.ACK."):
		b.settle(f)
		return
	}
	s := b.streamOf(f.subject)
	if s != nil {
		b.take(l, s, f)
	}
	if b.route(f.subject, f.subject, f.reply, f.header, f.data) == 0 && s == nil && f.reply != "" {
		b.status(f.reply, "503", "", "")
	}
}

// route delivers to whoever listens, to one of each queue group, and tells how many did.
func (b *broker) route(to, subject, reply string, header, data []byte) int {
	n := 0
	hears := func(s *subscription) {
		s.link.send(about(subject, header), s.message(subject, reply, header, data))
		n++
	}
	var groups map[string][]*subscription
	for _, l := range b.links {
		for _, s := range l.subs {
			switch {
			case !covers(s.subject, to):
			case s.queue == "":
				hears(s)
			case groups == nil:
				groups = map[string][]*subscription{s.queue: {s}}
			default:
				groups[s.queue] = append(groups[s.queue], s)
			}
		}
	}
	for name, members := range groups {
		slices.SortFunc(members, func(a, b *subscription) int { return strings.Compare(a.link.name, b.link.name) })
		hears(members[b.dice.about("queue "+name).IntN(len(members))])
	}
	return n
}

// status is a message that has only a code.
func (b *broker) status(to, code, description, more string) {
	if description != "" {
		description = " " + description
	}
	b.route(to, to, "", fmt.Appendf(nil, "NATS/1.0 %s%s\r\n%s\r\n", code, description, more), nil)
}

// covers tells whether a subject with wildcards covers one without. It is asked for every listener of every frame.
func covers(pattern, subject string) bool {
	for {
		want, more, wants := strings.Cut(pattern, ".")
		have, rest, has := strings.Cut(subject, ".")
		switch {
		case want == ">":
			return true
		case want != "*" && want != have, wants != has:
			return false
		case !wants:
			return true
		}
		pattern, subject = more, rest
	}
}

func (b *broker) streamOf(subject string) *stream {
	for _, s := range b.streams {
		for _, pattern := range s.config.Subjects {
			if covers(pattern, subject) {
				return s
			}
		}
	}
	return nil
}

// missed notes what a stream did not take, if it is of a record of attempts.
func (b *broker) missed(s *stream) {
	if s.config.Name == attempts {
		b.unreached++
	}
}

// take stores what was published to a stream and acknowledges it, unless a fault comes between.
func (b *broker) take(l *link, s *stream, f frame) {
	id := about(f.subject, f.header)
	if batch := headerOf(f.header, jetstreamext.BatchIDHeader); batch != "" {
		b.gather(l, s, f, batch)
		return
	}
	switch {
	case s.leaderless() && s.refuses && f.reply != "":
		b.status(f.reply, "503", "", "")
		b.missed(s)
		return
	case s.leaderless(), b.dice.hits(b.odds.lost, "lost "+id):
		b.trace("%s: publish of %s is lost", l.name, id)
		b.missed(s)
		return
	case f.reply != "" && b.dice.hits(b.odds.refused, "refused "+id):
		b.trace("%s: publish of %s is refused", l.name, id)
		b.missed(s)
		b.answer(f.reply, failure(409, 10158, "message id in process"))
		return
	}
	if last, ok := s.expected(f); !ok {
		b.trace("%s: publish of %s came too late", l.name, id)
		b.answer(f.reply, failure(400, jetstream.JSErrCodeStreamWrongLastSequence, fmt.Sprint("wrong last sequence: ", last)))
		return
	}
	dies := f.reply != "" && b.mortal(l) && b.dice.hits(b.odds.crash, "crash "+id)
	if dies && b.dice.hits(0.5, "crash before "+id) {
		b.crash(l.name)
		return
	}
	if b.silent && s.config.Name == streams.Submitted {
		b.answer(f.reply, jetstream.PubAck{Stream: s.config.Name, Sequence: s.last + 1})
		return
	}
	seq, duplicate := s.store(f)
	b.trace("%s: published %s to %s as %d, duplicate %v", l.name, id, s.config.Name, seq, duplicate)
	switch {
	case dies:
		b.crash(l.name)
	case f.reply == "":
	case b.dice.hits(b.odds.unheard, "unheard "+id):
		b.trace("%s: acknowledgement of %s is lost", l.name, id)
	default:
		b.answer(f.reply, jetstream.PubAck{Stream: s.config.Name, Sequence: seq, Duplicate: duplicate})
	}
}

// mortal tells whether who is behind a link may die of a publish.
func (b *broker) mortal(l *link) bool { return b.odds.mortal == "" || service(l.name) == b.odds.mortal }

// gather keeps a message of an atomic batch until the last one commits it: all are stored then, or none.
func (b *broker) gather(l *link, s *stream, f frame, batch string) {
	id := about(f.subject, f.header)
	if s.leaderless() || b.dice.hits(b.odds.lost, "lost in batch "+id) {
		b.trace("%s: publish of %s in a batch is lost", l.name, id)
		return
	}
	s.batches[batch] = append(s.batches[batch], f)
	if f.reply == "" {
		return
	}
	whole := s.batches[batch]
	delete(s.batches, batch)
	switch {
	case headerOf(f.header, jetstreamext.BatchSeqHeader) != strconv.Itoa(len(whole)):
		b.answer(f.reply, failure(400, 10176, "batch publish is incomplete and was abandoned"))
		return
	case slices.ContainsFunc(whole, s.knows):
		b.answer(f.reply, failure(400, 10201, "batch publish contains duplicate message id"))
		return
	}
	dies := b.mortal(l) && b.dice.hits(b.odds.crash, "crash of batch "+id)
	if dies && b.dice.hits(0.5, "crash before batch "+id) {
		b.crash(l.name)
		return
	}
	for _, one := range whole {
		_, _ = s.store(one)
	}
	b.trace("%s: published a batch of %d to %s up to %d, %s the last", l.name, len(whole), s.config.Name, s.last, id)
	switch {
	case dies:
		b.crash(l.name)
	case b.dice.hits(b.odds.unheard, "unheard batch "+id):
		b.trace("%s: acknowledgement of a batch is lost", l.name)
	default:
		b.answer(f.reply, jetstreamext.BatchAck{Stream: s.config.Name, Sequence: s.last, BatchID: batch, BatchSize: uint64(len(whole))})
	}
}

// sever ends what an incarnation has to do with the broker, for good.
func (b *broker) sever(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.severLocked(name)
}

func (b *broker) severLocked(name string) {
	b.severed[name] = true
	b.cutLocked(name)
}

// drop cuts a process's link; its client comes back by itself.
func (b *broker) drop(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.unreached++
	b.cutLocked(name)
}

func (b *broker) cutLocked(name string) {
	for _, l := range slices.Clone(b.links) {
		if l.name == name {
			l.cut()
		}
	}
}

// freeze holds back everything on a process's link for a while, as a network does that is cut in the middle.
func (b *broker) freeze(name string, d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.unreached++
	for _, l := range b.links {
		if l.name == name {
			l.frozen = time.Now().Add(d)
		}
	}
}

// restart ends every link and, after a while, lets clients in again. Each stream may lack the last of what it said it had,
// when the machine failed and not only the process; a consumer may have forgotten acknowledgements.
func (b *broker) restart(away time.Duration, forgets bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.unreached++
	for _, l := range slices.Clone(b.links) {
		l.cut()
	}
	b.back = time.Now().Add(away)
	for _, s := range b.sorted() {
		if forgets {
			s.forget(b.dice.between(0, 2*time.Second, "forgets "+s.config.Name))
		}
		s.resume()
	}
}

// wipe is a broker that comes back with an empty disk. Tells is whether the decision of an id will be announced again.
func (b *broker) wipe(away time.Duration, tells func(id string) bool) {
	b.restart(away, false)
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.streams {
		for _, m := range s.messages {
			s.lose(m)
		}
	}
	maps.DeleteFunc(b.lost, func(id string, _ bool) bool { return tells(id) })
	b.streams, b.wiped = map[string]*stream{}, true
}

// lead takes a stream's leader away for a while.
func (b *broker) lead(name string, away time.Duration, refuses bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.streams[name]
	if s == nil {
		return
	}
	s.led, s.refuses = time.Now().Add(away), refuses
	b.at(s.led, s.resume)
}

// unmake deletes a consumer, as an operator may. Who pulls from it is told.
func (b *broker) unmake(name, durable string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.streams[name]
	if s == nil || s.consumers[durable] == nil {
		return
	}
	for _, p := range s.consumers[durable].waiting {
		b.status(p.inbox, "409", "Consumer Deleted", "")
	}
	s.consumers[durable].waiting = nil
	delete(s.consumers, durable)
}

// heal ends all faults.
func (b *broker) heal() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.odds, b.back = odds{}, time.Time{}
	for _, s := range b.sorted() {
		s.led = time.Time{}
		s.resume()
	}
	for _, l := range b.links {
		l.frozen = time.Time{}
	}
}

func (b *broker) sorted() []*stream {
	var out []*stream
	for _, s := range b.streams {
		out = append(out, s)
	}
	slices.SortFunc(out, func(x, y *stream) int { return strings.Compare(x.config.Name, y.config.Name) })
	return out
}

// brew makes faults possible.
func (b *broker) brew(o odds) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.odds = o
}
