package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"crivo/pkg/retry"
	"crivo/pkg/stage"
	"crivo/pkg/txn"
)

// sender posts transactions and reads decisions back, over connections that it keeps.
type sender struct {
	url     string
	key     string
	http    *http.Client
	trouble func(error) // told of every submission that got no answer; nil is allowed
}

func newSender(base, key string, connections int) *sender {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConns, transport.MaxIdleConnsPerHost, transport.MaxConnsPerHost = connections, connections, connections
	client := &http.Client{Transport: transport, Timeout: 30 * time.Second, CheckRedirect: stay}
	return &sender{url: strings.TrimRight(base, "/"), key: key, http: client}
}

// answer is what the edge said to one request.
type answer struct {
	status   int
	replayed bool
	decision string // approve, review, decline; empty while undecided
	latency  int64  // ms, of a decision
	after    time.Duration
	problem  problem
}

// problem is the part of an RFC 9457 document that people need.
type problem struct {
	Title  string      `json:"title"`
	Status int         `json:"status"`
	Detail string      `json:"detail"`
	Errors []txn.Fault `json:"errors"`
}

func (p problem) String() string {
	var parts []string
	for _, f := range p.Errors {
		parts = append(parts, strings.TrimSpace(f.Pointer+" "+f.Detail))
	}
	switch {
	case len(parts) > 0:
		return strings.Join(parts, "; ")
	case p.Detail == "":
		return p.Title
	case strings.EqualFold(p.Title, p.Detail):
		return p.Detail
	}
	return p.Title + ": " + p.Detail
}

// submit posts one transaction; wait asks the edge to hold its answer for the decision that long, in whole seconds.
func (s *sender) submit(ctx context.Context, body []byte, wait int) (answer, error) {
	return s.ask(ctx, http.MethodPost, "/v1/transactions", body, wait)
}

// get reads one transaction.
func (s *sender) get(ctx context.Context, id string, wait int) (answer, error) {
	return s.ask(ctx, http.MethodGet, "/v1/transactions/"+url.PathEscape(id), nil, wait)
}

func (s *sender) ask(ctx context.Context, method, path string, body []byte, wait int) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, s.url+path, bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Authorization", "Bearer "+s.key)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if wait > 0 {
		req.Header.Set("Prefer", "wait="+strconv.Itoa(wait))
	}
	res, err := s.http.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return answer{}, err
	}
	return readAnswer(res, data)
}

func readAnswer(res *http.Response, data []byte) (answer, error) {
	a := answer{status: res.StatusCode, replayed: res.Header.Get("Idempotent-Replayed") == "true"}
	if res.StatusCode >= 300 {
		_ = json.Unmarshal(data, &a.problem)
		if a.problem.Title == "" {
			a.problem.Title = res.Status
		}
		a.after = min(retry.After(res.Header.Get("Retry-After"), time.Now()), time.Minute)
		return a, nil
	}
	var d txn.Decision
	if err := json.Unmarshal(data, &d); err != nil {
		return a, fmt.Errorf("answer %d is not JSON: %w", res.StatusCode, err)
	}
	a.decision, a.latency = d.Verdict.Decision, d.LatencyMS
	return a, nil
}

// final tells whether asking again would give the same.
func (a answer) final() bool {
	return a.status < 500 && a.status != http.StatusTooManyRequests && a.status != http.StatusRequestTimeout
}

// elsewhere tells whether the answer is about the key or the address, so that no other transaction would fare better.
func (a answer) elsewhere() bool {
	switch a.status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed:
		return true
	}
	return a.status >= 300 && a.status < 400
}

var errGaveUp = errors.New("no acceptance in time")

// persistently submits until the answer is final or patience ends. Repeats are safe: the id makes them one transaction.
func (s *sender) persistently(ctx context.Context, body []byte, wait int, patience time.Duration) (answer, error) {
	give := time.Now().Add(patience)
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		a, err := s.submit(ctx, body, wait)
		if err == nil && a.final() {
			return a, nil
		}
		if ctx.Err() != nil {
			return a, ctx.Err()
		}
		if err != nil && s.trouble != nil {
			s.trouble(err)
		}
		rest := max(a.after, pause/2+rand.N(pause))
		if time.Now().Add(rest).After(give) {
			if err == nil {
				err = errors.New(a.problem.String())
			}
			return a, errors.Join(errGaveUp, err)
		}
		if err := stage.Sleep(ctx, rest); err != nil {
			return a, err
		}
	}
}
