package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
)

const (
	// patience is how long a call without a deadline is tried.
	patience = time.Minute
	// answerTime is how long an answer may take beyond the time that it is asked to be held back; the edge has its own within that.
	answerTime = 15 * time.Second
	maxAnswer  = 64 << 20
	firstPause = 100 * time.Millisecond
	lastPause  = 5 * time.Second
)

var errURL = errors.New("URL is no address such as https://crivo.example")

// request is one that may be sent twice.
type request struct {
	method, path string
	body         []byte
	wait         int // seconds that the answer may be held back for a decision
	accept       string
	last         string // the last event that was heard
}

// ask sends a request until it has an answer that another try would not better, and reads that into out.
func (c *Client) ask(ctx context.Context, r request, out any) (http.Header, error) {
	ctx, cancel := patient(ctx)
	defer cancel()
	for p := new(pace); ; {
		header, err := c.once(ctx, r, out)
		if err == nil || !mayRepeat(err) {
			return header, err
		}
		if end := p.rest(ctx, after(err)); end != nil {
			return header, fmt.Errorf("%w, after %w", end, err)
		}
	}
}

// patient gives a call a deadline.
func patient(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, patience)
}

// once sends a request one time.
func (c *Client) once(ctx context.Context, r request, out any) (http.Header, error) {
	try, cancel := context.WithTimeout(ctx, answerTime+time.Duration(r.wait)*time.Second)
	defer cancel()
	res, err := c.send(try, r)
	if err != nil {
		return nil, trouble(ctx, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return nil, trouble(ctx, err)
	}
	if res.StatusCode/100 != 2 {
		return res.Header, refusal(res, body, time.Now())
	}
	if err := json.Unmarshal(body, out); err != nil {
		return res.Header, fmt.Errorf("answer %d is not what was expected: %w", res.StatusCode, err)
	}
	return res.Header, nil
}

func (c *Client) send(ctx context.Context, r request) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, r.method, strings.TrimRight(c.URL, "/")+r.path, bytes.NewReader(r.body))
	if err != nil || req.URL.Scheme != "http" && req.URL.Scheme != "https" || req.URL.Host == "" {
		return nil, errURL
	}
	for name, value := range map[string]string{"Authorization": "Bearer " + strings.TrimSpace(c.Key), "Accept": r.accept, "Last-Event-ID": r.last} {
		if value != "" {
			req.Header.Set(name, value)
		}
	}
	if r.body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if r.wait > 0 {
		req.Header.Set("Prefer", "wait="+strconv.Itoa(r.wait))
	}
	return c.http().Do(req)
}

// transport keeps more connections to one host than the standard one, for callers with many goroutines.
var transport = func() *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConnsPerHost = t.MaxIdleConns
	return t
}()

// http is the client's own client. A redirected POST would arrive as a GET: the address is wrong, and that is an answer.
func (c *Client) http() *http.Client {
	own := http.Client{Transport: transport}
	if c.HTTP != nil {
		own = *c.HTTP
	}
	if own.CheckRedirect == nil {
		own.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	}
	return &own
}

// pace spaces tries out: each pause up to twice the one before, at random, so that clients of one outage do not come back at once.
type pace struct{ pause time.Duration }

// rest pauses, for as long as an answer asked for too. The error is that the context ended, or would end meanwhile: then there is
// no pause, since nothing could come after it.
func (p *pace) rest(ctx context.Context, asked time.Duration) error {
	p.pause = min(max(2*p.pause, firstPause), lastPause)
	rest := asked + p.pause/2 + rand.N(p.pause/2)
	if end, ok := ctx.Deadline(); ok && time.Until(end) < rest {
		return context.DeadlineExceeded
	}
	timer := time.NewTimer(rest)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
