// Package owed makes the rows of webhooks: who is told of an occasion, in which form and under which id.
package owed

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"crivo/pkg/seal"
	"crivo/pkg/txn"
	"crivo/services/store"
)

// Types of events: about transactions, and about webhooks themselves, which the other endpoints of a tenant hear of.
const (
	TypeDecided       = "transaction.decided"
	TypeDisposed      = "transaction.disposed"
	TypeDisabled      = "endpoint.disabled"
	TypeBreakerOpened = "endpoint.breaker_opened"
	TypeBreakerClosed = "endpoint.breaker_closed"
	TypeExhausted     = "delivery.exhausted"
)

// Types are all that an endpoint can ask for.
var Types = []string{TypeDecided, TypeDisposed, TypeDisabled, TypeBreakerOpened, TypeBreakerClosed, TypeExhausted}

// ErrBody marks a body that cannot be written, now or ever.
var ErrBody = errors.New("webhook body")

// Occasion is what endpoints are told of. Its webhook id hashes tenant, key and kind.
type Occasion struct {
	Tenant, Kind, Key string
	Transaction       string                            // empty where it is about none
	At                time.Time                         // when it happened: who was made later is not told; zero: everybody is
	Except            string                            // an endpoint that is not told
	Body              func(form string) ([]byte, error) // by the endpoint's payload: thin, full
}

// leeway is how much later than an occasion an endpoint may have been made by its edge's clock and still be told.
const leeway = time.Minute

// missed tells whether an occasion had passed when an endpoint was made.
func (o Occasion) missed(e store.Endpoint) bool {
	return !o.At.IsZero() && e.CreatedAt.After(o.At.Add(leeway))
}

// Rows returns a row, nobody's and due now, for every endpoint that wants to hear of an occasion. Made again they have the same
// webhook id, and so are the same to a store.
func Rows(keys *seal.Keyring, endpoints iter.Seq[store.Endpoint], o Occasion, now time.Time) ([]store.Delivery, error) {
	var out []store.Delivery
	for e := range endpoints {
		if e.Tenant != o.Tenant || e.ID == o.Except || e.Status == "disabled" || o.missed(e) || !wants(e.Events, o.Kind) {
			continue
		}
		body, err := o.Body(e.Payload)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrBody, err)
		}
		id, err := webhookID(keys, o)
		if err != nil {
			return nil, err
		}
		out = append(out, store.Delivery{ID: "dlv_" + rand.Text(), Tenant: o.Tenant, EndpointID: e.ID, TransactionID: o.Transaction, WebhookID: id,
			Type: o.Kind, Body: body, Status: store.Pending, NextAttemptAt: now, CreatedAt: now, LeasedUntil: time.UnixMilli(0)})
	}
	return out, nil
}

// Envelope is a webhook's body.
func Envelope(kind string, at txn.Time, data any) ([]byte, error) {
	return json.Marshal(struct {
		Type      string   `json:"type"`
		Timestamp txn.Time `json:"timestamp"`
		Data      any      `json:"data"`
	}{kind, at, data}, json.Deterministic(true))
}

// wants tells whether an endpoint's filter, types or prefixes such as transaction.*, lets a type through. Empty is all about
// transactions: of webhooks only those hear who ask, or one endpoint's trouble would come to all others a hundredfold.
func wants(filter []string, kind string) bool {
	if len(filter) == 0 {
		return strings.HasPrefix(kind, "transaction.")
	}
	return slices.ContainsFunc(filter, func(f string) bool { return matches(f, kind) })
}

// matches tells whether a type, or a prefix such as transaction.*, is kind's.
func matches(filter, kind string) bool {
	prefix, star := strings.CutSuffix(filter, "*")
	return filter == kind || star && strings.HasPrefix(kind, prefix)
}

// Known tells whether an entry of a filter is a type that is sent, or a prefix of one as far as a dot.
func Known(filter string) bool {
	return (strings.HasSuffix(filter, ".*") || !strings.HasSuffix(filter, "*")) &&
		slices.ContainsFunc(Types, func(kind string) bool { return matches(filter, kind) })
}

// webhookID is the same for every try and every repeat of one event, says nothing of the transaction and holds no dots.
func webhookID(keys *seal.Keyring, o Occasion) (string, error) {
	box, err := keys.Box(seal.System)
	if err != nil {
		return "", err
	}
	token, err := box.Token("webhook_id", o.Tenant+"/"+o.Key+"/"+o.Kind+"/1")
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(token)) // already keyed: this only gives it one length and alphabet
	return "msg_" + strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:20])), nil
}
