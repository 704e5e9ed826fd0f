// Package webhook signs and verifies webhooks by Standard Webhooks 1.0.0, symmetric scheme v1: HMAC-SHA256 over
// id.timestamp.body with a secret shown as whsec_ and base64 (https://www.standardwebhooks.com).
package webhook

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Header names.
const (
	HeaderID        = "Webhook-Id"
	HeaderTimestamp = "Webhook-Timestamp"
	HeaderSignature = "Webhook-Signature"
)

// Tolerance is how far a timestamp may be off, either way.
const Tolerance = 5 * time.Minute

const prefix = "whsec_"

// What Verify finds wrong.
var (
	ErrHeaders   = errors.New("webhook headers missing or malformed")
	ErrTimestamp = errors.New("webhook timestamp too old or too far ahead")
	ErrSignature = errors.New("webhook signature does not match")
	ErrSecret    = errors.New("not a webhook secret: whsec_ and base64 of 24 to 64 bytes")
)

// Secret is a signing key; it masks itself in every formatter.
type Secret struct{ key *[]byte }

// NewSecret makes a secret of 24 random bytes: their base64 needs no padding, which some receivers mishandle.
func NewSecret() Secret {
	key := make([]byte, 24)
	_, _ = rand.Read(key) // never fails, by its documentation
	return Secret{&key}
}

// ParseSecret reads the whsec_ form.
func ParseSecret(text string) (Secret, error) {
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(text, prefix))
	if err != nil || !strings.HasPrefix(text, prefix) || len(key) < 24 || len(key) > 64 {
		return Secret{}, ErrSecret
	}
	return Secret{&key}, nil
}

// Reveal returns the whsec_ form.
func (s Secret) Reveal() string { return prefix + base64.StdEncoding.EncodeToString(*s.key) }

// Format masks in every verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(prefix + "***")) }

// MarshalText masks.
func (s Secret) MarshalText() ([]byte, error) { return []byte(prefix + "***"), nil }

// Sign returns the signature header for one attempt at the time at: an entry per secret, parted by single spaces.
func Sign(secrets []Secret, id string, at time.Time, body []byte) string {
	entries := make([]string, len(secrets))
	for i, s := range secrets {
		entries[i] = "v1," + base64.StdEncoding.EncodeToString(s.mac(id, strconv.FormatInt(at.Unix(), 10), body))
	}
	return strings.Join(entries, " ")
}

func (s Secret) mac(id, timestamp string, body []byte) []byte {
	m := hmac.New(sha256.New, *s.key)
	_, _ = m.Write([]byte(id + "." + timestamp + "."))
	_, _ = m.Write(body)
	return m.Sum(nil)
}

// Verify checks a received webhook: the body must be the bytes as they came.
func Verify(s Secret, h http.Header, body []byte, now time.Time) error {
	id, timestamp, signatures := h.Get(HeaderID), h.Get(HeaderTimestamp), h.Get(HeaderSignature)
	seconds, err := strconv.ParseInt(timestamp, 10, 64)
	if id == "" || signatures == "" || err != nil {
		return ErrHeaders
	}
	if off := now.Sub(time.Unix(seconds, 0)); off > Tolerance || off < -Tolerance {
		return ErrTimestamp
	}
	want := []byte(base64.StdEncoding.EncodeToString(s.mac(id, timestamp, body)))
	for entry := range strings.SplitSeq(signatures, " ") {
		if version, text, _ := strings.Cut(entry, ","); version == "v1" && hmac.Equal([]byte(text), want) {
			return nil
		}
	}
	return ErrSignature
}
