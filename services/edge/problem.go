package edge

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"crivo/pkg/txn"
	"crivo/services/store"
)

// What can be wrong with a request. Each stands once in problems.
var (
	errMediaType    = errors.New("content type must be application/json")
	errNoKey        = errors.New("a key is needed: Authorization: Bearer <key>")
	errBatchType    = errors.New("content type must be application/json or application/x-ndjson")
	errTooLarge     = errors.New("body over 64 KiB")
	errBatchLarge   = errors.New("a batch holds at most 1000 items in 4 MiB")
	errSlowBody     = errors.New("body did not arrive in time")
	errUnknownKey   = errors.New("no such key")
	errRole         = errors.New("the key lacks the role for this")
	errConflict     = errors.New("this id was used with another body")
	errOverload     = errors.New("more is under way than can be decided in time")
	errNoRoom       = errors.New("the broker has no room left")
	errBroker       = errors.New("the broker does not answer")
	errStore        = errors.New("the transaction store does not answer")
	errRate         = errors.New("the key's rate is used up")
	errDraining     = errors.New("shutting down")
	errNoRoute      = errors.New("no such route")
	errMethod       = errors.New("method not allowed")
	errEncoding     = errors.New("content encoding must be identity or gzip")
	errBadBody      = errors.New("body cannot be read in its content encoding")
	errTenantExists = errors.New("the tenant exists")
	errEventID      = errors.New("Last-Event-ID is no id of these events")
	errGone         = errors.New("what came after Last-Event-ID is no longer kept whole: begin without it, and ask for what came meanwhile")
	errListeners    = fmt.Errorf("the key has %d event streams open", listenersKey)
	errLetterNobody = errors.New("the letter does not tell whose transaction it is about: it can only be discarded")
	errNotActive    = errors.New("the endpoint is paused or disabled: nothing is sent to it")
	errEndpointGone = errors.New("the delivery's endpoint was deleted")
	errUnderWay     = errors.New("an attempt is under way, or asked for already")
	errReplaying    = errors.New("another replay to this endpoint is under way: wait for its end or cancel it")
	errReplayEnded  = errors.New("the replay has ended")
	errNoNATSKey    = errors.New("credentials of this NATS are not made here: crivo keys create --nats --dir, where its keys are")
	errGivenKey     = errors.New("the key is the one that this process was given, which would make it again: give it another (CRIVO_API_KEY, or the file that holds it) and restart")
	errSecrets      = errors.New("ten secrets are in force: end some by a shorter grace")
	errLetterLost   = errors.New("the letter's transaction is not in the store: it can only be discarded")
)

// problems is the one table that turns errors into answers. What stands nowhere is a 500 and its text stays inside.
var problems = []struct {
	err    error
	status int
	slug   string
	retry  int // seconds for Retry-After
}{
	{txn.ErrMalformed, http.StatusBadRequest, "malformed", 0},
	{errBadBody, http.StatusBadRequest, "malformed", 0},
	{store.ErrCursor, http.StatusBadRequest, "cursor", 0},
	{errEventID, http.StatusBadRequest, "event-id", 0},
	{errNoKey, http.StatusUnauthorized, "unauthorized", 0},
	{errUnknownKey, http.StatusUnauthorized, "unauthorized", 0},
	{errRole, http.StatusForbidden, "forbidden", 0},
	{store.ErrNotFound, http.StatusNotFound, "not-found", 0},
	{errNoRoute, http.StatusNotFound, "not-found", 0},
	{errMethod, http.StatusMethodNotAllowed, "method", 0},
	{errSlowBody, http.StatusRequestTimeout, "timeout", 0},
	{errConflict, http.StatusConflict, "conflict", 0},
	{errTenantExists, http.StatusConflict, "conflict", 0},
	{errLetterNobody, http.StatusConflict, "conflict", 0},
	{errLetterLost, http.StatusConflict, "conflict", 0},
	{errUndecided, http.StatusConflict, "conflict", 0},
	{errNoReview, http.StatusConflict, "conflict", 0},
	{errDisposed, http.StatusConflict, "conflict", 0},
	{errNotActive, http.StatusConflict, "conflict", 0},
	{errEndpointGone, http.StatusConflict, "conflict", 0},
	{errUnderWay, http.StatusConflict, "conflict", 0},
	{errReplaying, http.StatusConflict, "conflict", 0},
	{errReplayEnded, http.StatusConflict, "conflict", 0},
	{errSecrets, http.StatusConflict, "conflict", 0},
	{errNoNATSKey, http.StatusConflict, "conflict", 0},
	{errGivenKey, http.StatusConflict, "conflict", 0},
	{errGone, http.StatusGone, "gone", 0},
	{errTooLarge, http.StatusRequestEntityTooLarge, "too-large", 0},
	{errBatchLarge, http.StatusRequestEntityTooLarge, "too-large", 0},
	{errMediaType, http.StatusUnsupportedMediaType, "media-type", 0},
	{errBatchType, http.StatusUnsupportedMediaType, "media-type", 0},
	{errEncoding, http.StatusUnsupportedMediaType, "media-type", 0},
	{errRate, http.StatusTooManyRequests, "rate", 1},
	{errListeners, http.StatusTooManyRequests, "listeners", 5},
	{errOverload, http.StatusServiceUnavailable, "overload", 1},
	{errExports, http.StatusServiceUnavailable, "overload", 1},
	{errNoRoom, http.StatusServiceUnavailable, "no-room", 5},
	{errBroker, http.StatusServiceUnavailable, "broker", 1},
	{errStore, http.StatusServiceUnavailable, "store", 1},
	{errStarting, http.StatusServiceUnavailable, "starting", 1},
	{errDraining, http.StatusServiceUnavailable, "draining", 1},
	{context.DeadlineExceeded, http.StatusServiceUnavailable, "timeout", 1},
}

// problem is an RFC 9457 document.
type problem struct {
	Type      string     `json:"type"`
	Title     string     `json:"title"`
	Status    int        `json:"status"`
	Detail    string     `json:"detail"`
	RequestID string     `json:"request_id"`
	Errors    txn.Faults `json:"errors,omitempty"`
	retry     int
	known     bool
}

// later is an error that says how long to stay away, where the table cannot know.
type later struct {
	error
	after time.Duration
}

// Unwrap is the table's error.
func (l later) Unwrap() error { return l.error }

// problemOf describes err to a client.
func problemOf(err error, requestID string) problem {
	var faults txn.Faults
	if errors.As(err, &faults) {
		return problem{"urn:crivo:invalid", "Unprocessable Entity", http.StatusUnprocessableEntity, "fields are at fault", requestID, faults, 0, true}
	}
	for _, p := range problems {
		if !errors.Is(err, p.err) {
			continue
		}
		detail, retry := p.err.Error(), p.retry
		if errors.Is(p.err, txn.ErrMalformed) {
			detail = strings.ReplaceAll(err.Error(), "\n", ": ") // it says where, and quotes nothing
		}
		var l later
		if errors.As(err, &l) {
			retry = int(math.Ceil(l.after.Seconds()))
		}
		return problem{"urn:crivo:" + p.slug, http.StatusText(p.status), p.status, detail, requestID, nil, max(retry, p.retry), true}
	}
	return problem{"urn:crivo:internal", "Internal Server Error", http.StatusInternalServerError, "something failed inside; the request id finds it in the log",
		requestID, nil, 0, false}
}

// challenge is what RFC 6750 wants said to a key that is missing, wrong or lacks a role.
func challenge(err error) string {
	switch {
	case errors.Is(err, errNoKey):
		return `Bearer realm="crivo"`
	case errors.Is(err, errUnknownKey):
		return `Bearer realm="crivo", error="invalid_token"`
	case errors.Is(err, errRole):
		return `Bearer realm="crivo", error="insufficient_scope"`
	}
	return ""
}

// told is what a client hears of err; one of no known kind is logged, since its text goes no further.
func (e *edge) told(err error, requestID string) problem {
	p := problemOf(err, requestID)
	if !p.known {
		e.Log.Error().Err(err).Str("request_id", p.RequestID).Msg("request failed")
	}
	return p
}

// fail answers with a problem document.
func (e *edge) fail(w http.ResponseWriter, r *http.Request, err error) {
	refuse(w, r, e.told(err, requestID(r.Context())), challenge(err))
}

// refuse answers with p; wanted is what a key should be like, if it is about that.
func refuse(w http.ResponseWriter, r *http.Request, p problem, wanted string) {
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("Cache-Control", "no-store")
	if p.retry > 0 {
		h.Set("Retry-After", strconv.Itoa(p.retry))
	}
	if wanted != "" {
		h.Set("WWW-Authenticate", wanted)
	}
	if p.Status == http.StatusRequestEntityTooLarge || p.Status == http.StatusRequestTimeout {
		h.Set("Connection", "close") // what is left of the body is not waited for
	}
	leaveUnread(w, r)
	body, err := json.Marshal(&p)
	if err != nil {
		body = []byte("{}")
	}
	w.WriteHeader(p.Status)
	_, _ = w.Write(body)
}

// answer writes v as JSON; on an error nothing is written yet.
func answer(w http.ResponseWriter, status int, v any) error {
	body, err := json.Marshal(v, json.Deterministic(true))
	if err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	write(w, status, body)
	return nil
}

func write(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(body)
}
