package notify

import (
	"context"

	"crivo/pkg/txn"
	"crivo/services/owed"
	"crivo/services/store"
)

// aboutEndpoint is what an endpoint.* event says.
type aboutEndpoint struct {
	EndpointID string `json:"endpoint_id"`
	Cause      string `json:"cause,omitempty"` // of disabled
}

// Why an endpoint is disabled.
const (
	causeGone    = "gone"    // it answered 410
	causeFailing = "failing" // nothing succeeded for too long
)

// aboutDelivery is what delivery.exhausted says.
type aboutDelivery struct {
	EndpointID    string `json:"endpoint_id"`
	DeliveryID    string `json:"delivery_id"`
	TransactionID string `json:"transaction_id"`
	Attempts      int    `json:"attempts"`
}

// tell lets the tenant's other endpoints that ask for it know of something that befell one of them. The same key is the same
// event, told once; what is not told must not come to pass, so that it is tried again. Nothing is told of a telling, or two endpoints that fail would go on for ever about each other.
func (n *notifier) tell(ctx context.Context, about store.Endpoint, kind, key string, data any) error {
	now := n.Clock.Now()
	body, err := owed.Envelope(kind, txn.At(now), data)
	if err == nil {
		var rows []store.Delivery
		rows, err = n.owing(owed.Occasion{Tenant: about.Tenant, Kind: kind, Key: key, Except: about.ID,
			Body: func(string) ([]byte, error) { return body, nil }}, now)
		if err == nil {
			err = n.owe(ctx, rows)
		}
	}
	if err != nil {
		n.Log.Warn().Err(err).Str("endpoint", about.ID).Str("event", kind).Msg("other endpoints cannot be told")
	}
	return err
}
