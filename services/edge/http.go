package edge

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"os"
	"regexp"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"

	"crivo/services/store"
)

//go:embed openapi.json
var openapi []byte

const (
	maxBody  = 64 << 10
	bodyTime = 10 * time.Second
	maxWait  = 10 // seconds
)

type contextKey int

const (
	keyRequestID contextKey = iota
	keyMember
)

func requestID(ctx context.Context) string {
	id, _ := ctx.Value(keyRequestID).(string)
	return id
}

func memberOf(ctx context.Context) *member {
	m, _ := ctx.Value(keyMember).(*member)
	return m
}

// routes is the whole HTTP surface.
func (e *edge) routes() http.Handler {
	r := chi.NewRouter()
	r.Use(e.observe)
	r.NotFound(func(w http.ResponseWriter, r *http.Request) { e.fail(w, r, errNoRoute) })
	r.MethodNotAllowed(e.methodNotAllowed(r))
	r.Get("/livez", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]string{"status": "live"})
	})
	r.Get("/readyz", e.readyz)
	r.Get("/openapi.json", func(w http.ResponseWriter, _ *http.Request) { write(w, http.StatusOK, openapi) })
	e.route(r, http.MethodPost, "/v1/transactions", roleSubmit, e.postTransaction)
	e.route(r, http.MethodGet, "/v1/transactions/{id}", roleRead, e.getTransaction)
	e.route(r, http.MethodPost, "/v1/webhook-endpoints", roleAdmin, e.postEndpoint)
	e.route(r, http.MethodGet, "/v1/webhook-endpoints", roleAdmin, e.getEndpoints)
	e.route(r, http.MethodGet, "/v1/webhook-endpoints/{id}", roleAdmin, e.getEndpoint)
	e.route(r, http.MethodPatch, "/v1/webhook-endpoints/{id}", roleAdmin, e.patchEndpoint)
	e.route(r, http.MethodDelete, "/v1/webhook-endpoints/{id}", roleAdmin, e.deleteEndpoint)
	e.route(r, http.MethodPost, "/v1/webhook-endpoints/{id}/rotate-secret", roleAdmin, e.rotateSecret)
	e.route(r, http.MethodGet, "/v1/deliveries", roleRead, e.getDeliveries)
	e.route(r, http.MethodGet, "/v1/deliveries/{id}", roleRead, e.getDelivery)
	e.route(r, http.MethodPost, "/v1/tenants", roleOperator, e.postTenant)
	e.route(r, http.MethodGet, "/v1/tenants", roleOperator, e.getTenants)
	e.route(r, http.MethodPost, "/v1/keys", roleOperator, e.postKey)
	e.route(r, http.MethodGet, "/v1/keys", roleOperator, e.getKeys)
	e.route(r, http.MethodDelete, "/v1/keys/{id}", roleOperator, e.deleteKey)
	return r
}

// handler answers a request or returns what is wrong with it.
type handler func(w http.ResponseWriter, r *http.Request, m *member) error

// route adds a route that a key with role may call.
func (e *edge) route(r chi.Router, method, pattern, role string, h handler) {
	r.MethodFunc(method, pattern, func(w http.ResponseWriter, r *http.Request) {
		m, err := e.authenticate(r)
		if err == nil && !m.may(role) {
			err = errRole
		}
		if err == nil && m.limiter != nil && !m.limiter.Allow() {
			err = errRate
		}
		if err == nil {
			err = h(w, r, m)
		}
		if err != nil {
			e.fail(w, r, err)
		}
	})
}

func (e *edge) authenticate(r *http.Request) (*member, error) {
	key, ok := bearer(r.Header.Get("Authorization"))
	if !ok {
		return nil, errUnknownKey
	}
	return e.directory.member(key, e.Clock.Now())
}

// bearer returns the key of an Authorization header.
func bearer(header string) (string, bool) {
	scheme, key, ok := strings.Cut(header, " ")
	key = strings.TrimSpace(key)
	return key, ok && strings.EqualFold(scheme, "Bearer") && key != "" && len(key) <= 256
}

// observe gives every request an id, counts its answer, and turns a panic into one.
func (e *edge) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		id := newRequestID(r.Header.Get("X-Request-Id"))
		w.Header().Set("X-Request-Id", id)
		r = r.WithContext(context.WithValue(r.Context(), keyRequestID, id))
		rec := &recorder{ResponseWriter: w}
		defer func() {
			if p := recover(); p != nil {
				e.Log.Error().Str("request_id", id).Str("stack", string(debug.Stack())).Msg("request panicked")
				if rec.status == 0 {
					e.fail(rec, r, errors.New("panic"))
				}
			}
			e.metrics.answered(pattern(r), rec.status, time.Since(start))
		}()
		next.ServeHTTP(rec, r)
	})
}

func pattern(r *http.Request) string {
	if p := chi.RouteContext(r.Context()).RoutePattern(); p != "" {
		return r.Method + " " + p
	}
	return "none"
}

var fineID = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// newRequestID keeps a client's id that cannot break a log line, and makes one otherwise.
func newRequestID(given string) string {
	if fineID.MatchString(given) {
		return given
	}
	return rand.Text()
}

// recorder remembers the status of an answer.
type recorder struct {
	http.ResponseWriter
	status int
}

// WriteHeader keeps the first status.
func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
		r.ResponseWriter.WriteHeader(status)
	}
}

// Write answers 200 when nothing else was said.
func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.WriteHeader(http.StatusOK)
	}
	return r.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController reach the connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

func (e *edge) methodNotAllowed(router chi.Router) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		for _, m := range []string{http.MethodGet, http.MethodPost, http.MethodPatch, http.MethodPut, http.MethodDelete} {
			if router.Match(chi.NewRouteContext(), m, r.URL.Path) {
				w.Header().Add("Allow", m)
			}
		}
		e.fail(w, r, errMethod)
	}
}

func (e *edge) readyz(w http.ResponseWriter, _ *http.Request) {
	reasons := e.Health.Reasons()
	if len(reasons) == 0 {
		answer(w, http.StatusOK, map[string]string{"status": "ready"})
		return
	}
	answer(w, http.StatusServiceUnavailable, map[string]any{"status": "not ready", "reasons": reasons})
}

// postTransaction accepts one transaction, and waits for its decision when asked.
func (e *edge) postTransaction(w http.ResponseWriter, r *http.Request, m *member) error {
	if err := e.admit(); err != nil {
		return err
	}
	body, err := e.readBody(w, r)
	if err != nil {
		return err
	}
	a, err := e.accept(r.Context(), m.tenant, body, traceparent(r.Header.Get("Traceparent")))
	if err != nil {
		return err
	}
	if a.replayed {
		w.Header().Set("Idempotent-Replayed", "true")
	}
	wait := preferWait(r.Header.Values("Prefer"))
	if a.event == nil && wait > 0 {
		if a.event, err = e.await(r.Context(), a, time.Duration(wait)*time.Second); err != nil {
			return err
		}
	}
	if a.event != nil {
		return e.decided(w, a.event, wait)
	}
	w.Header().Set("Location", "/v1/transactions/"+a.key.ID)
	answer(w, http.StatusAccepted, map[string]string{"id": a.key.ID, "status": "processing"})
	return nil
}

func (e *edge) decided(w http.ResponseWriter, event []byte, wait int) error {
	body, err := public(event)
	if err != nil {
		return err
	}
	if wait > 0 {
		w.Header().Set("Preference-Applied", "wait="+strconv.Itoa(wait))
	}
	write(w, http.StatusOK, body)
	return nil
}

// getTransaction answers processing or the decision.
func (e *edge) getTransaction(w http.ResponseWriter, r *http.Request, m *member) error {
	key := store.Key{Tenant: m.Tenant, ID: chi.URLParam(r, "id")}
	ctx, cancel := context.WithTimeout(r.Context(), time.Second)
	entry, err := e.Transactions.Get(ctx, key)
	cancel()
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("%w: %w", errStore, err)
	}
	if err != nil {
		return err
	}
	wait := preferWait(r.Header.Values("Prefer"))
	if !entry.Decided() && wait > 0 {
		a := acceptance{key: key, flight: e.flights.get(key)}
		if entry.Event, err = e.await(r.Context(), a, time.Duration(wait)*time.Second); err != nil {
			return err
		}
	}
	if entry.Event != nil {
		return e.decided(w, entry.Event, wait)
	}
	answer(w, http.StatusOK, map[string]string{"id": key.ID, "status": "processing",
		"accepted_at": entry.AcceptedAt.UTC().Format("2006-01-02T15:04:05.000Z")})
	return nil
}

// readBody returns the whole body within the limits of size, type and time.
func (e *edge) readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "application/json" {
		return nil, errMediaType
	}
	if r.ContentLength > maxBody {
		return nil, errTooLarge
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTime))
	var in io.Reader = http.MaxBytesReader(w, r.Body, maxBody)
	switch r.Header.Get("Content-Encoding") {
	case "", "identity":
	case "gzip":
		unpacked, err := gzip.NewReader(in)
		if err != nil {
			return nil, bodyFault(err, errBadGzip)
		}
		in = io.LimitReader(unpacked, maxBody+1) // the limit counts unpacked bytes
	default:
		return nil, errEncoding
	}
	var out bytes.Buffer
	if r.ContentLength > 0 {
		out.Grow(int(r.ContentLength) + 512)
	}
	if _, err := out.ReadFrom(in); err != nil {
		return nil, bodyFault(err, errBadGzip)
	}
	if out.Len() > maxBody {
		return nil, errTooLarge
	}
	return out.Bytes(), nil
}

// bodyFault tells a body that is too large or too slow from one that is broken.
func bodyFault(err, broken error) error {
	var large *http.MaxBytesError
	var network net.Error
	switch {
	case errors.As(err, &large):
		return errTooLarge
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &network) && network.Timeout():
		return errSlowBody
	}
	return fmt.Errorf("%w: %w", broken, err)
}

// preferWait reads the seconds of Prefer: wait=N (RFC 7240), at most ten; 0 when not asked or not understood.
func preferWait(headers []string) int {
	for _, h := range headers {
		for part := range strings.SplitSeq(h, ",") {
			part, _, _ = strings.Cut(part, ";")
			name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
			if !strings.EqualFold(strings.TrimSpace(name), "wait") {
				continue
			}
			if n, err := strconv.Atoi(strings.Trim(strings.TrimSpace(value), `"`)); err == nil && n > 0 {
				return min(n, maxWait)
			}
		}
	}
	return 0
}

var wellFormedTrace = regexp.MustCompile(`^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)

// traceparent keeps a well-formed W3C trace context and starts a new one otherwise.
func traceparent(given string) string {
	if wellFormedTrace.MatchString(given) && !strings.Contains(given, "-00000000000000000000000000000000-") && !strings.Contains(given, "-0000000000000000-") {
		return given
	}
	var id [24]byte
	_, _ = rand.Read(id[:])
	return "00-" + hex.EncodeToString(id[:16]) + "-" + hex.EncodeToString(id[16:]) + "-01"
}
