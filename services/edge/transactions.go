package edge

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"crivo/pkg/txn"
	"crivo/services/store"
)

// underWay is the answer for a transaction that is not decided yet.
type underWay struct {
	ID         string    `json:"id"`
	Status     string    `json:"status"` // processing
	AcceptedAt *txn.Time `json:"accepted_at,omitempty"`
}

// postTransaction accepts one transaction, and waits for its decision when asked.
func (e *edge) postTransaction(w http.ResponseWriter, r *http.Request, m *member) error {
	if err := e.admit(); err != nil {
		return err
	}
	body, err := readBody(w, r)
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
		a.event = e.await(r.Context(), a, time.Duration(wait)*time.Second)
	}
	if a.event != nil {
		return decided(w, a.event, wait)
	}
	w.Header().Set("Location", location(a.key))
	return answer(w, http.StatusAccepted, &underWay{ID: a.key.ID, Status: "processing"})
}

func location(key store.Key) string { return "/v1/transactions/" + key.ID }

// getTransaction answers processing or the decision.
func (e *edge) getTransaction(w http.ResponseWriter, r *http.Request, m *member) error {
	key := store.Key{Tenant: m.Tenant, ID: pathID(r)}
	ctx, cancel := context.WithTimeout(r.Context(), time.Second)
	entry, err := e.Transactions.Get(ctx, key)
	cancel()
	if err != nil {
		return missing(err)
	}
	wait := preferWait(r.Header.Values("Prefer"))
	if !entry.Decided() && wait > 0 {
		entry.Event = e.await(r.Context(), acceptance{key: key, flight: e.flights.get(key)}, time.Duration(wait)*time.Second)
	}
	if entry.Decided() {
		return e.answerDecision(w, entry, wait)
	}
	accepted := txn.At(entry.AcceptedAt)
	return answer(w, http.StatusOK, &underWay{key.ID, "processing", &accepted})
}

// missing keeps the absence of what was asked for and a cursor that is none, and calls anything else a store that does not answer.
func missing(err error) error {
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrCursor) {
		return err
	}
	return fmt.Errorf("%w: %w", errStore, err)
}

func decided(w http.ResponseWriter, event []byte, wait int) error {
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

const maxWait = 10 // seconds

// preferWait reads the seconds of Prefer: wait=N (RFC 7240), at most ten; 0 when not asked or not understood. The first wait
// counts, as the RFC has it.
func preferWait(headers []string) int {
	for preference := range splitQuoted(strings.Join(headers, ","), ',') {
		for part := range splitQuoted(preference, ';') {
			name, value, _ := strings.Cut(part, "=")
			if strings.EqualFold(strings.TrimSpace(name), "wait") {
				return seconds(strings.TrimSpace(value))
			}
			break // what follows are parameters of this preference
		}
	}
	return 0
}

// seconds reads one or more digits, quoted or not, cut to maxWait.
func seconds(value string) int {
	if len(value) >= 2 && value[0] == '"' && value[len(value)-1] == '"' {
		value = value[1 : len(value)-1]
	}
	n, err := strconv.ParseUint(value, 10, 64)
	if err != nil && !errors.Is(err, strconv.ErrRange) {
		return 0
	}
	return int(min(n, maxWait))
}

// splitQuoted yields the parts of s between separators that stand outside quoted strings.
func splitQuoted(s string, separator byte) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		start, quoted := 0, false
		for i := 0; i < len(s); i++ {
			switch c := s[i]; {
			case quoted && c == '\\':
				i++
			case c == '"':
				quoted = !quoted
			case c == separator && !quoted:
				if !yield(s[start:i]) {
					return
				}
				start = i + 1
			}
		}
		yield(s[start:])
	}
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
