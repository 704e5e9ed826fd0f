package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"crivo/pkg/retry"
	"crivo/pkg/stage"
)

// events follows a server's stream of decisions: it connects again whenever the stream ends, from the last id on.
type events struct {
	url, key string
	last     string                  // id of the last that was heard; empty is from now on
	heard    func(data []byte) error // told of every decision, as the API answers it; an error ends it all
	trouble  func(why string)        // told when the stream is lost, and when decisions may have been missed
	retry    time.Duration           // until the next try; the server may say
}

// silence is how long nothing may come: the server says something every 15 s.
const silence = 45 * time.Second

// errStream is an answer that another try would not change.
type errStream struct{ problem }

func (e errStream) Error() string { return e.problem.String() }

// errUnheard is what heard could not do with a decision.
type errUnheard struct{ error }

// follow returns when ctx ends, with nil, when a decision could not be heard, with why, or when the server will not have it, with its
// words. A place that is gone is an error only at the beginning; later on it goes on from now, and says so.
func (e *events) follow(ctx context.Context) error {
	e.retry = time.Second
	for said, opened := false, false; ; {
		began, err := e.listen(ctx)
		var refused errStream
		var unheard errUnheard
		switch {
		case errors.As(err, &unheard):
			return unheard.error
		case ctx.Err() != nil:
			return nil
		case errors.As(err, &refused) && refused.Status == http.StatusGone && opened:
			e.last = ""
			e.trouble("the place in the stream is gone: decisions may be missing here")
			continue
		case errors.As(err, &refused):
			return err
		}
		opened, said = opened || began, said && !began
		if err != nil && !said {
			e.trouble(fmt.Sprintf("%v; trying again", err))
			said = true
		}
		if stage.Sleep(ctx, e.retry) != nil {
			return nil
		}
	}
}

// listen hears one stream to its end and tells whether it was opened.
func (e *events) listen(ctx context.Context) (opened bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.url+"/v1/events", nil)
	if err != nil {
		return false, usage(err)
	}
	req.Header.Set("Authorization", "Bearer "+e.key)
	if e.last != "" {
		req.Header.Set("Last-Event-ID", e.last)
	}
	silent := time.AfterFunc(silence, cancel)
	defer silent.Stop()
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return false, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return false, e.refusal(res)
	}
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(nil, 4<<20)
	for id, data := e.last, ""; lines.Scan(); {
		silent.Reset(silence)
		name, value, _ := strings.Cut(lines.Text(), ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case lines.Text() == "":
			if data != "" {
				if err := e.heard([]byte(data)); err != nil {
					return true, errUnheard{err}
				}
			}
			e.last, data = id, ""
		case name == "id":
			id = value
		case name == "data":
			data = value // one line each
		case name == "retry":
			if ms, err := strconv.Atoi(value); err == nil && ms > 0 {
				e.retry = min(time.Duration(ms)*time.Millisecond, time.Minute)
			}
		}
	}
	return true, lines.Err()
}

// refusal is an errStream unless another try may fare better.
func (e *events) refusal(res *http.Response) error {
	data, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return err
	}
	p := problem{Title: res.Status}
	_ = json.Unmarshal(data, &p)
	p.Status = res.StatusCode
	if (answer{status: res.StatusCode}).final() {
		return errStream{p}
	}
	if asked := retry.After(res.Header.Get("Retry-After"), time.Now()); asked > 0 {
		e.retry = min(asked, time.Minute)
	}
	return errors.New(p.String())
}
