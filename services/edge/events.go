package edge

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"crivo/pkg/seal"
	"crivo/streams"
)

const (
	beatEvery = 15 * time.Second
	eventTime = 10 * time.Second // for one event to be taken: who is slower is cut, and resumes
	endTime   = time.Second      // for the last one
	retryTime = time.Second      // until a client comes back
	// checkEvery is how often a listener's key is looked at: withdrawn, it hears nothing more within a second.
	checkEvery = time.Second / 2
)

// getEvents sends a tenant's decisions as they are made: server-sent events, at least once each, from Last-Event-ID on or from now.
func (e *edge) getEvents(w http.ResponseWriter, r *http.Request, m *member) error {
	if e.draining.Load() {
		return errDraining
	}
	box, err := e.Keys.Box(m.Tenant)
	if err != nil {
		return fmt.Errorf("keys of %s: %w", m.Tenant, err)
	}
	x, err := e.broadcasts.source.Extent(r.Context())
	if err != nil {
		return fmt.Errorf("%w: %w", errBroker, err)
	}
	at, err := resume(box, r.Header.Get("Last-Event-ID"), x)
	if err != nil {
		return err
	}
	b, leave, err := e.broadcasts.join(e.listening, m.APIKey, box, x)
	if err != nil {
		return err
	}
	defer leave()
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // a proxy must not wait for more
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return nil
	}
	e.metrics.listeners.Inc()
	defer e.metrics.listeners.Dec()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	l := listener{broadcast: b, w: w, rc: http.NewResponseController(w), ctx: ctx, at: at}
	defer context.AfterFunc(e.listening, func() { cancel(); l.allow() })()
	defer l.allow() // what ends the answer
	l.tell(func() bool { return e.hears(r) })
	return nil
}

// resume is the place that an id names, or where the stream ends now.
func resume(box *seal.Box, id string, x streams.Extent) (place, error) {
	if id == "" {
		return place{x.Created.UnixNano(), x.Last}, nil
	}
	at, err := readPlace(box, id)
	if err != nil {
		return at, err
	}
	return at, at.within(x)
}

// hears tells whether the key that a listener came with still may listen.
func (e *edge) hears(r *http.Request) bool {
	key, _ := bearer(r.Header.Get("Authorization"))
	m, err := e.directory.member(key, e.Clock.Now())
	return err == nil && m.may(roleRead)
}

// listener is one open stream of events.
type listener struct {
	*broadcast
	w   http.ResponseWriter
	rc  *http.ResponseController
	ctx context.Context // ends with the request, or when the edge drains
	at  place
}

// tell sends until the context ends, the client is too slow or gone, or its key may not listen any more. An end says nothing: the
// client comes back with the last id and hears what is wrong.
func (l *listener) tell(may func() bool) {
	if l.say(": decisions as they are made\nretry: %d\n", retryTime.Milliseconds()) != nil {
		return
	}
	beat, check := time.NewTicker(beatEvery), time.NewTicker(checkEvery)
	defer beat.Stop()
	defer check.Stop()
	for l.ctx.Err() == nil && may() {
		frames, head, news, err := l.after(l.at.sequence)
		behind := errors.Is(err, errBehind)
		if behind {
			frames, head, err = l.catchUp(l.ctx, l.at.sequence)
		}
		if err != nil || l.send(frames) != nil {
			return
		}
		l.at.sequence = head
		if behind || len(frames) > 0 {
			continue
		}
		select {
		case <-news:
		case <-check.C:
		case <-beat.C:
			if l.say(": still here\n") != nil {
				return
			}
		case <-l.ctx.Done():
		}
	}
}

// send writes frames; each has its own time, as long as the client takes any.
func (l *listener) send(frames []frame) error {
	if len(frames) == 0 {
		return nil
	}
	for _, f := range frames {
		if err := l.ctx.Err(); err != nil {
			return err
		}
		l.allow()
		if _, err := l.w.Write(f.text); err != nil {
			return err
		}
	}
	return l.flush()
}

// say writes lines that are no event, and the place: a client keeps it although nothing was decided.
func (l *listener) say(format string, args ...any) error {
	id, err := l.at.id(l.box)
	if err != nil {
		return err
	}
	l.allow()
	if _, err := fmt.Fprintf(l.w, format+"id: %s\n\n", append(args, id)...); err != nil {
		return err
	}
	return l.flush()
}

// allow gives the next write its time, in the place of the server's for a whole answer.
func (l *listener) allow() {
	most := eventTime
	if l.ctx.Err() != nil {
		most = endTime
	}
	_ = l.rc.SetWriteDeadline(time.Now().Add(most))
}

// flush sends what is written. Between writes there is no deadline: by HTTP/2 it would end the stream.
func (l *listener) flush() error {
	err := l.rc.Flush()
	_ = l.rc.SetWriteDeadline(time.Time{})
	return err
}
