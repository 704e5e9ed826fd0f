package edge

import (
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"crivo/pkg/txn"
	"crivo/services/store"
)

// deliveryAnswer is a delivery as clients see it.
type deliveryAnswer struct {
	ID            string          `json:"id"`
	EndpointID    string          `json:"endpoint_id"`
	TransactionID string          `json:"transaction_id"`
	WebhookID     string          `json:"webhook_id"`
	Type          string          `json:"type"`
	Status        string          `json:"status"`
	CreatedAt     txn.Time        `json:"created_at"`
	NextAttemptAt *txn.Time       `json:"next_attempt_at,omitempty"`
	Attempts      []store.Attempt `json:"attempts"`
}

func shownDelivery(d store.Delivery) deliveryAnswer {
	out := deliveryAnswer{d.ID, d.EndpointID, d.TransactionID, d.WebhookID, d.Type, d.Status, txn.At(d.CreatedAt), nil, d.Attempts}
	if d.Status == store.Pending {
		next := txn.At(d.NextAttemptAt)
		out.NextAttemptAt = &next
	}
	if out.Attempts == nil {
		out.Attempts = []store.Attempt{}
	}
	return out
}

func (e *edge) getDeliveries(w http.ResponseWriter, r *http.Request, m *member) error {
	query, err := deliveryQuery(m.Tenant, r.URL.Query())
	if err != nil {
		return err
	}
	rows, cursor, err := e.Deliveries.List(r.Context(), query)
	if errors.Is(err, store.ErrCursor) {
		return err
	}
	if err != nil {
		return missing(err)
	}
	out := struct {
		Items []deliveryAnswer `json:"items"`
		Next  *string          `json:"next_cursor"`
	}{Items: []deliveryAnswer{}}
	for _, d := range rows {
		out.Items = append(out.Items, shownDelivery(d))
	}
	if cursor != "" {
		out.Next = &cursor
	}
	return answer(w, http.StatusOK, &out)
}

var deliveryStates = []string{store.Pending, store.Delivered, store.Exhausted, store.Skipped, store.Cancelled}

const (
	pageDefault = 50
	pageMost    = 500
)

func deliveryQuery(tenant string, q url.Values) (store.DeliveryQuery, error) {
	out := store.DeliveryQuery{Tenant: tenant, EndpointID: q.Get("endpoint_id"), TransactionID: q.Get("transaction_id"),
		Status: q.Get("status"), Limit: pageDefault, Cursor: q.Get("cursor")}
	var faults txn.Faults
	if q.Has("limit") {
		n, err := strconv.Atoi(q.Get("limit"))
		if err != nil || n < 1 || n > pageMost {
			faults = append(faults, txn.Fault{Pointer: "/limit", Code: txn.OutOfRange, Detail: "must be between 1 and 500"})
		}
		out.Limit = n
	}
	if out.Status != "" && !slices.Contains(deliveryStates, out.Status) {
		faults = append(faults, txn.Fault{Pointer: "/status", Code: txn.WrongFormat, Detail: "one of pending, delivered, exhausted, skipped, cancelled"})
	}
	return out, orNil(faults)
}

func (e *edge) getDelivery(w http.ResponseWriter, r *http.Request, m *member) error {
	d, err := e.Deliveries.Get(r.Context(), m.Tenant, pathID(r))
	if err != nil {
		return missing(err)
	}
	out := shownDelivery(d)
	return answer(w, http.StatusOK, &out)
}
