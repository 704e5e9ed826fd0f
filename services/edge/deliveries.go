package edge

import (
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
	TransactionID string          `json:"transaction_id,omitzero"` // none of a test, or of a webhook about webhooks
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
	if err != nil {
		return missing(err)
	}
	items := make([]deliveryAnswer, len(rows))
	for i, d := range rows {
		items[i] = shownDelivery(d)
	}
	return answer(w, http.StatusOK, pageOf(items, cursor))
}

// page is some of many; Next is nil on the last one.
type page[T any] struct {
	Items []T     `json:"items"`
	Next  *string `json:"next_cursor"`
}

func pageOf[T any](items []T, cursor string) *page[T] {
	if cursor == "" {
		return &page[T]{items, nil}
	}
	return &page[T]{items, &cursor}
}

const (
	pageDefault = 50
	pageMost    = 500
)

func deliveryQuery(tenant string, q url.Values) (store.DeliveryQuery, error) {
	limit, faults := limitOf(q)
	out := store.DeliveryQuery{Tenant: tenant, EndpointID: q.Get("endpoint_id"), TransactionID: q.Get("transaction_id"),
		Status: q.Get("status"), Limit: limit, Cursor: q.Get("cursor")}
	if out.Status != "" && !slices.Contains(store.DeliveryStates, out.Status) {
		faults = append(faults, txn.Fault{Pointer: "/status", Code: txn.WrongFormat, Detail: "one of pending, delivered, exhausted, skipped, cancelled"})
	}
	return out, orNil(faults)
}

// limitOf is how many items a page shall have.
func limitOf(q url.Values) (int, txn.Faults) {
	if !q.Has("limit") {
		return pageDefault, nil
	}
	n, err := strconv.Atoi(q.Get("limit"))
	if err != nil || n < 1 || n > pageMost {
		return 0, txn.Faults{{Pointer: "/limit", Code: txn.OutOfRange, Detail: "must be between 1 and 500"}}
	}
	return n, nil
}

func (e *edge) getDelivery(w http.ResponseWriter, r *http.Request, m *member) error {
	d, err := e.Deliveries.Get(r.Context(), m.Tenant, pathID(r))
	if err != nil {
		return missing(err)
	}
	out := shownDelivery(d)
	return answer(w, http.StatusOK, &out)
}
