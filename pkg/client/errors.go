package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"crivo/pkg/retry"
	"crivo/pkg/txn"
)

// What can go wrong, for errors.Is. Of an answer there is more to be had by errors.As: an *[Error], and [txn.Faults] where
// fields are at fault.
var (
	// ErrConflict: the id was used with another body. The first one stands.
	ErrConflict = errors.New("conflict")
	// ErrRefused: the request is at fault, and the same again will be.
	ErrRefused = errors.New("refused")
	// ErrKey: the key is missing, wrong, expired, or lacks the role.
	ErrKey = errors.New("the key does not allow it")
	// ErrNotFound: there is no such thing in the key's tenant.
	ErrNotFound = errors.New("not found")
	// ErrGone: the events since then are not kept any more.
	ErrGone = errors.New("gone")
	// ErrRateLimited: the key's rate was used up to the end.
	ErrRateLimited = errors.New("rate limited")
	// ErrUnavailable: no answer, or one that there is no room or something failed inside, to the end. What was asked for may
	// have happened all the same.
	ErrUnavailable = errors.New("unavailable")
)

// Error is an answer that is no success: a problem document (RFC 9457).
type Error struct {
	Type       string        `json:"type"` // urn:crivo:conflict
	Title      string        `json:"title"`
	Status     int           `json:"status"` // of HTTP
	Detail     string        `json:"detail"`
	RequestID  string        `json:"request_id"` // finds it in the server's log
	Faults     txn.Faults    `json:"errors"`     // every field at fault, where fields are; pointers and codes, no values
	RetryAfter time.Duration `json:"-"`          // what the answer asked for, else 0
}

// Error says it in a line, without any value that was sent.
func (e *Error) Error() string {
	parts := []string{strconv.Itoa(e.Status)}
	if text := e.Detail; text != "" {
		parts[0] += " " + text
	} else if text := e.Title; text != "" {
		parts[0] += " " + text
	}
	if len(e.Faults) > 0 {
		parts = append(parts, e.Faults.Error())
	}
	if e.RequestID != "" {
		parts = append(parts, "request "+e.RequestID)
	}
	return strings.Join(parts, ": ")
}

// Unwrap returns what kind of an error it is, and the faults.
func (e *Error) Unwrap() []error {
	if kind := e.kind(); len(e.Faults) == 0 {
		return []error{kind}
	} else {
		return []error{kind, e.Faults}
	}
}

func (e *Error) kind() error {
	switch s := e.Status; {
	case s == http.StatusConflict:
		return ErrConflict
	case s == http.StatusUnauthorized, s == http.StatusForbidden:
		return ErrKey
	case s == http.StatusNotFound:
		return ErrNotFound
	case s == http.StatusGone:
		return ErrGone
	case s == http.StatusTooManyRequests:
		return ErrRateLimited
	case s == http.StatusRequestTimeout, s >= 500:
		return ErrUnavailable
	}
	return ErrRefused
}

// mayRepeat tells whether another try may fare better.
func mayRepeat(err error) bool {
	return errors.Is(err, ErrUnavailable) || errors.Is(err, ErrRateLimited)
}

// after is how long an error asks to stay away.
func after(err error) time.Duration {
	var e *Error
	if errors.As(err, &e) {
		return e.RetryAfter
	}
	return 0
}

// refusal reads an answer that is no success. One that is no problem document, as of something in between, has its status.
func refusal(res *http.Response, body []byte, now time.Time) error {
	e := &Error{}
	if json.Unmarshal(body, e) != nil || e.Status != res.StatusCode {
		e = &Error{Title: http.StatusText(res.StatusCode), Status: res.StatusCode, RequestID: res.Header.Get("X-Request-Id")}
	}
	e.RetryAfter = retry.After(res.Header.Get("Retry-After"), now)
	return e
}

// trouble is no answer. Another try may get one, unless whoever asked has had enough, or the address or its certificate is wrong.
func trouble(ctx context.Context, err error) error {
	var certificate *tls.CertificateVerificationError
	if errors.Is(ctx.Err(), context.Canceled) || errors.Is(err, errURL) || errors.As(err, &certificate) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}
