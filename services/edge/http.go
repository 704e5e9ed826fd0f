package edge

import (
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	"net/http"
	"net/url"
	"regexp"
	"runtime/debug"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
)

//go:embed openapi.json
var openapi []byte

type contextKey int

const keyRequestID contextKey = iota

func requestID(ctx context.Context) string {
	id, _ := ctx.Value(keyRequestID).(string)
	return id
}

// routes is the whole HTTP surface; openapi.json describes it.
func (e *edge) routes() chi.Router {
	r := chi.NewRouter()
	r.Use(e.observe, middleware.GetHead)
	r.NotFound(func(w http.ResponseWriter, r *http.Request) { e.fail(w, r, errNoRoute) })
	r.MethodNotAllowed(e.methodNotAllowed(r))
	r.Get(pathLive, live)
	r.Get(pathReady, e.readyz)
	r.Get("/openapi.json", func(w http.ResponseWriter, _ *http.Request) { write(w, http.StatusOK, openapi) })
	e.route(r, http.MethodPost, "/v1/transactions", roleSubmit, e.postTransaction)
	e.route(r, http.MethodGet, "/v1/transactions/{id}", roleRead, e.getTransaction)
	e.route(r, http.MethodPost, "/v1/transactions/batch", roleSubmit, e.postBatch)
	e.route(r, http.MethodPost, "/v1/transactions/dry-run", roleSubmit+" "+roleRead, bounded(e.postDryRun))
	e.route(r, http.MethodPost, "/v1/transactions/search", roleRead, e.postSearch)
	e.route(r, http.MethodPost, "/v1/transactions/{id}/disposition", roleAdmin, bounded(e.postDisposition))
	e.route(r, http.MethodGet, "/v1/events", roleRead, e.getEvents)
	e.route(r, http.MethodPost, "/v1/webhook-endpoints", roleAdmin, bounded(e.postEndpoint))
	e.route(r, http.MethodGet, "/v1/webhook-endpoints", roleAdmin, bounded(e.getEndpoints))
	e.route(r, http.MethodGet, "/v1/webhook-endpoints/{id}", roleAdmin, bounded(e.getEndpoint))
	e.route(r, http.MethodPatch, "/v1/webhook-endpoints/{id}", roleAdmin, bounded(e.patchEndpoint))
	e.route(r, http.MethodDelete, "/v1/webhook-endpoints/{id}", roleAdmin, bounded(e.deleteEndpoint))
	e.route(r, http.MethodPost, "/v1/webhook-endpoints/{id}/rotate-secret", roleAdmin, bounded(e.rotateSecret))
	e.route(r, http.MethodPost, "/v1/webhook-endpoints/{id}/test", roleAdmin, bounded(e.testEndpoint))
	e.route(r, http.MethodPost, "/v1/webhook-endpoints/{id}/replay", roleAdmin, bounded(e.postReplay))
	e.route(r, http.MethodGet, "/v1/webhook-endpoints/{id}/replay", roleAdmin, bounded(e.getReplay))
	e.route(r, http.MethodDelete, "/v1/webhook-endpoints/{id}/replay", roleAdmin, bounded(e.cancelReplay))
	e.route(r, http.MethodGet, "/v1/deliveries", roleRead, bounded(e.getDeliveries))
	e.route(r, http.MethodGet, "/v1/deliveries/{id}", roleRead, bounded(e.getDelivery))
	e.route(r, http.MethodPost, "/v1/deliveries/{id}/resend", roleAdmin, bounded(e.resendDelivery))
	e.route(r, http.MethodPost, "/v1/lists/{list}/entries", roleAdmin, bounded(e.postEntry))
	e.route(r, http.MethodGet, "/v1/lists/{list}/entries", roleAdmin, bounded(e.getEntries))
	e.route(r, http.MethodDelete, "/v1/lists/{list}/entries/{id}", roleAdmin, bounded(e.deleteEntry))
	e.route(r, http.MethodGet, "/v1/rule-sets", roleRead, bounded(e.getRuleSets))
	e.route(r, http.MethodGet, "/v1/rule-sets/{name}/{version}", roleRead, bounded(e.getRuleSet))
	e.routeDeadLetters(r)
	e.route(r, http.MethodPost, "/v1/tenants", roleOperator, bounded(e.postTenant))
	e.route(r, http.MethodGet, "/v1/tenants", roleOperator, bounded(e.getTenants))
	e.route(r, http.MethodPost, "/v1/keys", roleOperator, bounded(e.postKey))
	e.route(r, http.MethodGet, "/v1/keys", roleOperator, bounded(e.getKeys))
	e.route(r, http.MethodDelete, "/v1/keys/{id}", roleOperator, bounded(e.deleteKey))
	return r
}

// handler answers a request, or writes nothing and returns what is wrong with it.
type handler func(w http.ResponseWriter, r *http.Request, m *member) error

// storeTime is how long a handler may wait for its stores, the slowest body included.
const storeTime = bodyTime + 5*time.Second

// bounded ends what a handler asks of its stores, so that one that hangs is said.
func bounded(h handler) handler {
	return func(w http.ResponseWriter, r *http.Request, m *member) error {
		ctx, cancel := context.WithTimeout(r.Context(), storeTime)
		defer cancel()
		return h(w, r.WithContext(ctx), m)
	}
}

// route adds a route that a key with role, or one of several, may call.
func (e *edge) route(r chi.Router, method, pattern, role string, h handler) {
	r.MethodFunc(method, pattern, func(w http.ResponseWriter, r *http.Request) {
		m, err := e.authenticate(r, role)
		if m != nil {
			m.limits(w.Header())
		}
		if err == nil {
			err = h(w, r, m)
		}
		if err != nil {
			e.fail(w, r, err)
		}
	})
}

// authenticate returns who asks, if it may do what role allows and has not used up its rate.
func (e *edge) authenticate(r *http.Request, role string) (*member, error) {
	key, ok := bearer(r.Header.Get("Authorization"))
	if !ok {
		return nil, errNoKey
	}
	m, err := e.directory.member(key, e.Clock.Now())
	if err != nil {
		return nil, err
	}
	if !m.may(role) {
		return nil, errRole
	}
	return m, m.allow()
}

// bearer returns the key of an Authorization header.
func bearer(header string) (string, bool) {
	scheme, key, ok := strings.Cut(header, " ")
	key = strings.TrimSpace(key)
	return key, ok && strings.EqualFold(scheme, "Bearer") && key != "" && len(key) <= 256
}

// pathID returns the id in a request's path, whichever of its characters the client escaped.
func pathID(r *http.Request) string {
	id := chi.URLParam(r, "id")
	if r.URL.RawPath == "" {
		return id
	}
	if plain, err := url.PathUnescape(id); err == nil {
		return plain
	}
	return id
}

// observe gives every request an id, counts its answer, and turns a panic into one.
func (e *edge) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		id := newRequestID(r.Header.Get("X-Request-Id"))
		w.Header().Set("X-Request-Id", id)
		if e.draining.Load() {
			w.Header().Set("Connection", "close")
		}
		r = r.WithContext(context.WithValue(r.Context(), keyRequestID, id))
		rec := &recorder{ResponseWriter: w}
		defer func() {
			p := recover()
			begun := rec.status != 0
			if err, _ := p.(error); p != nil && !errors.Is(err, http.ErrAbortHandler) {
				e.panicked(id)
			}
			if p != nil && !begun {
				e.fail(rec, r, errPanic)
			}
			e.metrics.answered(pattern(r), rec.status, time.Since(start))
			if p != nil && begun {
				panic(http.ErrAbortHandler) // what was said so far must not pass for the whole
			}
		}()
		next.ServeHTTP(rec, r)
	})
}

// panicked logs where, and not what: a panic's own text may hold a value.
func (e *edge) panicked(requestID string) {
	e.Log.Error().Str("request_id", requestID).Str("stack", string(debug.Stack())).Msg("request panicked")
}

var errPanic = errors.New("panic")

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

// recorder remembers the status of an answer, and whether the request's body was looked at.
type recorder struct {
	http.ResponseWriter
	status int
	read   bool
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

// methodNotAllowed names in Allow what the path does take.
func (e *edge) methodNotAllowed(router chi.Router) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		path := r.URL.Path
		if r.URL.RawPath != "" {
			path = r.URL.RawPath
		}
		var allowed []string
		for _, m := range []string{http.MethodGet, http.MethodPost, http.MethodPatch, http.MethodPut, http.MethodDelete} {
			if router.Match(chi.NewRouteContext(), m, path) {
				allowed = append(allowed, m)
			}
		}
		if len(allowed) > 0 && allowed[0] == http.MethodGet {
			allowed = append(allowed, http.MethodHead)
		}
		w.Header().Set("Allow", strings.Join(allowed, ", "))
		e.fail(w, r, errMethod)
	}
}

func (e *edge) readyz(w http.ResponseWriter, r *http.Request) {
	if err := ready(w, e.Health); err != nil {
		e.fail(w, r, err)
	}
}
