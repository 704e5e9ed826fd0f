package sim_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"crivo/pkg/stage"
	"crivo/streams"
)

// stream keeps messages and knows the ids of the last ones.
type stream struct {
	b         *broker
	config    jetstream.StreamConfig
	written   json.RawMessage // the configuration, as it is answered time and again
	created   time.Time
	first     uint64 // the lowest sequence that may still be there
	last      uint64
	messages  map[uint64]*stored
	ids       map[string]known
	consumers map[string]*consumer
	batches   map[string][]frame // not committed yet
	led       time.Time          // without a leader until then
	refuses   bool               // and says so
}

// known is an id that was seen.
type known struct {
	seq uint64
	at  time.Time
}

type stored struct {
	subject      string
	header, data []byte
	at           time.Time
	id           string
}

func newStream(b *broker, c jetstream.StreamConfig) *stream {
	return &stream{b: b, config: c, written: written(c), created: time.Now().UTC(), first: 1, messages: map[uint64]*stored{}, ids: map[string]known{}, consumers: map[string]*consumer{}, batches: map[string][]frame{}}
}

// attempts is the stream behind the bucket of attempts.
const attempts = "KV_" + streams.AttemptsBucket

func (s *stream) leaderless() bool { return s.b.away() || time.Now().Before(s.led) }

// store keeps a message unless its id is known within the window.
func (s *stream) store(f frame) (seq uint64, duplicate bool) {
	id := headerOf(f.header, jetstream.MsgIDHeader)
	if s.knows(f) {
		return s.ids[id].seq, true
	}
	if s.config.MaxMsgsPerSubject == 1 {
		for seq, m := range s.messages {
			if m.subject == f.subject {
				delete(s.messages, seq)
			}
		}
	}
	s.last++
	s.messages[s.last] = &stored{f.subject, f.header, f.data, time.Now(), id}
	if id != "" {
		s.ids[id] = known{s.last, time.Now()}
	}
	s.pump()
	return s.last, false
}

// expected tells whether a message's subject is as its publisher knows it, and its last message.
func (s *stream) expected(f frame) (last uint64, ok bool) {
	text := headerOf(f.header, jetstream.ExpectedLastSubjSeqHeader)
	if text == "" {
		return 0, true
	}
	last = s.newest(f.subject)
	return last, strconv.FormatUint(last, 10) == text
}

// newest is a subject's last message that is not too old, 0 for none.
func (s *stream) newest(subject string) (seq uint64) {
	for n, m := range s.messages {
		if m.subject == subject && (s.config.MaxAge == 0 || time.Since(m.at) < s.config.MaxAge) {
			seq = max(seq, n)
		}
	}
	return seq
}

// knows tells whether a message's id was seen within the window.
func (s *stream) knows(f frame) bool {
	k, ok := s.ids[headerOf(f.header, jetstream.MsgIDHeader)]
	return ok && time.Since(k.at) < s.config.Duplicates
}

// forget loses what was stored within the last moments. Consumers that were further on go on from there, and may deliver again
// what was acknowledged.
func (s *stream) forget(moments time.Duration) {
	clear(s.batches)
	since := time.Now().Add(-moments)
	for s.last > 0 && s.messages[s.last] != nil && s.messages[s.last].at.After(since) {
		s.lose(s.messages[s.last])
		delete(s.ids, s.messages[s.last].id)
		delete(s.messages, s.last)
		s.last--
	}
	for _, c := range s.consumers {
		back := uint64(s.b.dice.about("back " + c.name()).IntN(4))
		at := min(c.next, s.last+1)
		c.next = max(s.first, at-min(back, at))
		for seq := range c.pending {
			if seq >= c.next {
				delete(c.pending, seq)
			}
		}
	}
	s.b.trace("%s ends at %d", s.config.Name, s.last)
}

// lose notes whose decision nobody may hear of any more. The message that told of it is gone, or the one that it was made from: where
// persist wrote it and could not tell yet, no redelivery has it tell again, and the sweep announces only what is marked.
func (s *stream) lose(m *stored) {
	if s.config.Name == streams.Decided || s.config.Name == streams.Scored {
		s.b.lost[headerOf(m.header, streams.HeaderID)] = true
	}
}

func (s *stream) pump() {
	for _, c := range s.ordered() {
		c.pump()
	}
}

// resume goes on after a leader is there again: whoever waited must ask anew.
func (s *stream) resume() {
	if s.leaderless() {
		s.b.at(s.b.back.Add(1), func() {
			if !s.leaderless() {
				s.pump()
			}
		})
		return
	}
	for _, c := range s.ordered() {
		for _, p := range c.waiting {
			s.b.status(p.inbox, "409", "Leadership Change", "")
		}
		c.waiting = nil
		c.arm()
	}
}

func (s *stream) ordered() []*consumer {
	var out []*consumer
	for _, c := range s.consumers {
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b *consumer) int { return strings.Compare(a.config.Name, b.config.Name) })
	return out
}

func written(c jetstream.StreamConfig) json.RawMessage {
	data, err := json.Marshal(c)
	if err != nil {
		panic(err)
	}
	return data
}

// streamInfo is a jetstream.StreamInfo as the server writes it.
type streamInfo struct {
	Config  json.RawMessage `json:"config"`
	Created time.Time       `json:"created"`
	State   struct {
		Messages  int       `json:"messages"`
		Bytes     int       `json:"bytes"`
		FirstSeq  uint64    `json:"first_seq"`
		FirstTime time.Time `json:"first_ts"`
		LastSeq   uint64    `json:"last_seq"`
		LastTime  time.Time `json:"last_ts"`
		Consumers int       `json:"consumer_count"`
	} `json:"state"`
	Now time.Time `json:"ts"`
}

func (s *stream) info() streamInfo {
	i := streamInfo{Config: s.written, Created: s.created, Now: time.Now().UTC()}
	i.State.Messages, i.State.FirstSeq, i.State.LastSeq, i.State.Consumers = len(s.messages), s.first, s.last, len(s.consumers)
	for _, m := range s.messages {
		i.State.Bytes += len(m.header) + len(m.data)
		if i.State.FirstTime.IsZero() || m.at.Before(i.State.FirstTime) {
			i.State.FirstTime = m.at.UTC()
		}
		if m.at.After(i.State.LastTime) {
			i.State.LastTime = m.at.UTC()
		}
	}
	return i
}

// apiError is the answer to a request that failed.
type apiError struct {
	Error *jetstream.APIError `json:"error"`
}

func failure(code int, number jetstream.ErrorCode, text string) apiError {
	return apiError{&jetstream.APIError{Code: code, ErrorCode: number, Description: text}}
}

var (
	noStream   = failure(404, jetstream.JSErrCodeStreamNotFound, "stream not found")
	noConsumer = failure(404, jetstream.JSErrCodeConsumerNotFound, "consumer not found")
)

// answer replies to a request.
func (b *broker) answer(reply string, body any) {
	data, err := json.Marshal(body)
	if err != nil {
		b.strange = append(b.strange, err.Error())
	}
	b.route(reply, reply, "", nil, data)
}

// api serves the requests that the processes make. A stream without a leader does not answer.
func (b *broker) api(f frame) {
	words := strings.Split(strings.TrimPrefix(f.subject, "$JS.API."), ".")
	if words[0] == "INFO" {
		b.answer(f.reply, jetstream.AccountInfo{})
		return
	}
	at := 2
	if words[1] == "MSG" {
		at = 3 // CONSUMER.MSG.NEXT
	}
	verb, name, rest := strings.Join(words[:at], "."), words[at], words[at+1:]
	s := b.streams[name]
	switch {
	case s != nil && s.leaderless():
	case verb == "STREAM.CREATE" || verb == "STREAM.UPDATE":
		b.provision(f, verb, name)
	case s == nil && verb != "CONSUMER.MSG.NEXT" && verb != "DIRECT.GET":
		b.answer(f.reply, noStream)
	case s == nil:
		b.status(f.reply, "503", "", "")
	case verb == "STREAM.INFO":
		b.answer(f.reply, s.info())
	case verb == "STREAM.PURGE":
		s.purge(f)
	case verb == "DIRECT.GET":
		s.get(f, rest)
	case verb == "CONSUMER.LIST":
		s.list(f)
	case strings.HasPrefix(verb, "CONSUMER."):
		s.consume(f, verb, rest[0])
	default:
		b.strange = append(b.strange, "asked for "+f.subject)
	}
}

func (b *broker) provision(f frame, verb, name string) {
	var c jetstream.StreamConfig
	if err := json.Unmarshal(f.data, &c); err != nil {
		b.strange = append(b.strange, err.Error())
	}
	s := b.streams[name]
	switch {
	case s == nil && verb == "STREAM.UPDATE":
		b.answer(f.reply, noStream)
		return
	case s == nil:
		b.trace("stream %s is made", name)
		s = newStream(b, c)
		b.streams[name] = s
	default:
		s.config, s.written = c, written(c)
	}
	b.answer(f.reply, s.info())
}

func (s *stream) purge(f frame) {
	var req jetstream.StreamPurgeRequest
	_ = json.Unmarshal(f.data, &req)
	n := uint64(0)
	for seq := range s.messages {
		if seq < req.Sequence {
			delete(s.messages, seq)
			n++
		}
	}
	s.first = max(s.first, req.Sequence)
	s.b.answer(f.reply, map[string]any{"success": true, "purged": n})
}

// get answers with one message: the last one of a subject, that of a sequence, or the next one there is.
func (s *stream) get(f frame, subject []string) {
	var req struct {
		Seq  uint64 `json:"seq"`
		Next string `json:"next_by_subj"`
	}
	if len(subject) > 0 {
		req.Seq = s.newest(strings.Join(subject, "."))
	} else if err := json.Unmarshal(f.data, &req); err != nil || req.Seq == 0 {
		s.b.strange = append(s.b.strange, "get "+string(f.data))
	}
	for req.Next != "" && s.messages[req.Seq] == nil && req.Seq < s.last {
		req.Seq++
	}
	m := s.messages[req.Seq]
	if s.b.counts && s.config.Name == attempts {
		m = &stored{subject: strings.Join(subject, "."), data: fmt.Append(nil, stage.MaxAttempts, " crash"), at: time.Now()}
	}
	if m == nil {
		s.b.status(f.reply, "404", "Message Not Found", "")
		return
	}
	header := strings.TrimSuffix(string(m.header), "\r\n")
	if header == "" {
		header = "NATS/1.0\r\n"
	}
	header += fmt.Sprintf("%s: %s\r\n%s: %s\r\n%s: %d\r\n%s: %s\r\n\r\n", jetstream.StreamHeader, s.config.Name, jetstream.SubjectHeader, m.subject,
		jetstream.SequenceHeader, req.Seq, jetstream.TimeStampHeaer, m.at.UTC().Format(time.RFC3339Nano))
	s.b.route(f.reply, f.reply, "", []byte(header), m.data)
}

func (s *stream) list(f frame) {
	var out struct {
		Total     int                       `json:"total"`
		Offset    int                       `json:"offset"`
		Limit     int                       `json:"limit"`
		Consumers []*jetstream.ConsumerInfo `json:"consumers"`
	}
	for _, c := range s.ordered() {
		out.Consumers = append(out.Consumers, c.info())
	}
	out.Total, out.Limit = len(out.Consumers), 256
	s.b.answer(f.reply, out)
}

// consume serves what is asked of one consumer.
func (s *stream) consume(f frame, verb, name string) {
	c := s.consumers[name]
	switch {
	case verb == "CONSUMER.CREATE":
		var req struct {
			Config jetstream.ConsumerConfig `json:"config"`
		}
		if err := json.Unmarshal(f.data, &req); err != nil {
			s.b.strange = append(s.b.strange, err.Error())
		}
		if c == nil {
			c = newConsumer(s, req.Config)
			s.consumers[name] = c
		}
		c.config = req.Config
		s.b.answer(f.reply, c.info())
	case c == nil && verb == "CONSUMER.MSG.NEXT":
		s.b.status(f.reply, "503", "", "")
	case c == nil:
		s.b.answer(f.reply, noConsumer)
	case verb == "CONSUMER.INFO":
		s.b.answer(f.reply, c.info())
	case verb == "CONSUMER.DELETE":
		delete(s.consumers, name)
		s.b.answer(f.reply, map[string]any{"success": true})
	case verb == "CONSUMER.MSG.NEXT":
		c.ask(f)
	default:
		s.b.strange = append(s.b.strange, "asked for "+verb)
	}
}

// number is a sequence in a subject.
func number(text string) uint64 {
	n, _ := strconv.ParseUint(text, 10, 64)
	return n
}
