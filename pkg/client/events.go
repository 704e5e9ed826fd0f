package client

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"crivo/pkg/retry"
	"crivo/pkg/txn"
	"crivo/pkg/webhook"
)

// Event is something that happened, told by webhook or by Events.
type Event struct {
	ID   string         // of a webhook: the same for every try, to drop what was seen; of Events: where to go on
	Type string         // transaction.decided, transaction.disposed, …
	At   txn.Time       // when it happened; zero in Events
	Data jsontext.Value // an object that depends on the type
}

// Decision reads the data of transaction.decided. A thin webhook tells ID, Decision, Score, RiskBand and the reasons' codes,
// everything else is then zero.
func (e Event) Decision() (d txn.Decision, err error) {
	if e.Type != "transaction.decided" {
		return d, fmt.Errorf("event %s holds no decision", e.Type)
	}
	return d, json.Unmarshal(e.Data, &d, codes)
}

// codes reads a reason that is a code alone.
var codes = json.WithUnmarshalers(json.UnmarshalFromFunc(func(in *jsontext.Decoder, r *txn.Reason) error {
	if in.PeekKind() != '"' {
		return errors.ErrUnsupported
	}
	code, err := in.ReadToken()
	*r = txn.Reason{Code: code.String()}
	return err
}))

// VerifyWebhook returns the event that a webhook brings, if it was signed with secret (whsec_…) for a time at most
// [webhook.Tolerance] off now; body must be the bytes as they came. The error is one of [webhook.ErrHeaders],
// [webhook.ErrTimestamp], [webhook.ErrSignature], [webhook.ErrSecret], or that a body rightly signed is no event.
func VerifyWebhook(secret string, header http.Header, body []byte, now time.Time) (Event, error) {
	key, err := webhook.ParseSecret(secret)
	if err == nil {
		err = webhook.Verify(key, header, body, now)
	}
	if err != nil {
		return Event{}, err
	}
	var in struct {
		Type string         `json:"type"`
		At   txn.Time       `json:"timestamp"`
		Data jsontext.Value `json:"data"`
	}
	if err := json.Unmarshal(body, &in); err != nil {
		return Event{}, fmt.Errorf("webhook body: %w", err)
	}
	return Event{header.Get(webhook.HeaderID), in.Type, in.At, in.Data}, nil
}

// silence is how long a connection of events may say nothing: the edge comments every 15 s.
const silence = 45 * time.Second

// Events yields what is decided from now on, or after the event of an ID that was told before. A connection that breaks is made
// again, and goes on after the last event. It ends with an error, that of ctx included: ErrGone where what came after the ID is
// not kept any more, and a Search from the time of the last decision on finds what was missed.
func (c *Client) Events(ctx context.Context, after string) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		for p := new(pace); ; {
			asked, err := c.listen(ctx, &after, func(e Event) bool {
				*p = pace{}
				return yield(e, nil)
			})
			if errors.Is(err, errEnough) {
				return
			}
			if mayRepeat(err) {
				err = p.rest(ctx, asked)
			}
			if err != nil {
				yield(Event{}, err)
				return
			}
		}
	}
}

var errEnough = errors.New("nobody listens any more")

// listen tells the events of one connection; the error is never nil. asked is how long to stay away before the next. last is where
// it begins and then follows what is heard: the edge names a place before the first event, and where there are none.
func (c *Client) listen(ctx context.Context, last *string, tell func(Event) bool) (asked time.Duration, err error) {
	try, cancel := context.WithCancel(ctx)
	defer cancel()
	alarm := time.AfterFunc(silence, cancel)
	defer alarm.Stop()
	res, err := c.send(try, request{method: http.MethodGet, path: "/v1/events", accept: "text/event-stream", last: *last})
	if err != nil {
		return 0, trouble(ctx, err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(res.Body, maxAnswer)) // without it the status has to do
		err = refusal(res, body, time.Now())
		return retry.After(res.Header.Get("Retry-After"), time.Now()), err
	}
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(nil, maxEvent)
	s := stream{id: *last}
	for lines.Scan() {
		alarm.Reset(silence)
		if len(lines.Bytes()) == 0 {
			*last = s.id
		}
		if e, whole := s.line(lines.Bytes()); whole && !tell(e) {
			return 0, errEnough
		}
	}
	if err = lines.Err(); err == nil {
		err = io.EOF
	}
	return s.retry, trouble(ctx, err)
}

const maxEvent = 1 << 20

// stream reads server-sent events (HTML §9.2) line by line.
type stream struct {
	id, event string
	data      []byte
	some      bool          // data came, if only an empty line of it
	retry     time.Duration // before the next connection
}

// line reads one line without its end; whole tells that it completed e.
func (s *stream) line(line []byte) (e Event, whole bool) {
	if len(line) == 0 {
		e, whole = Event{ID: s.id, Type: s.event, Data: bytes.TrimSuffix(s.data, []byte("\n"))}, s.some
		s.event, s.data, s.some = "", nil, false
		return e, whole
	}
	name, value, _ := strings.Cut(string(line), ":")
	value = strings.TrimPrefix(value, " ")
	switch name {
	case "id":
		if !strings.ContainsRune(value, 0) {
			s.id = value
		}
	case "event":
		s.event = value
	case "data":
		s.data, s.some = append(append(s.data, value...), '\n'), true
	case "retry":
		if ms, err := strconv.ParseUint(value, 10, 32); err == nil {
			s.retry = min(time.Duration(ms)*time.Millisecond, time.Minute)
		}
	}
	return e, false
}
