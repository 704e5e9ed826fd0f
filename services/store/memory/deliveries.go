package memory

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"sync"
	"time"

	"crivo/services/store"
)

// Deliveries holds the webhooks that are owed in memory, in the order of their making.
type Deliveries struct {
	mu   sync.Mutex
	rows []store.Delivery
}

// NewDeliveries returns an empty store.
func NewDeliveries() *Deliveries { return &Deliveries{} }

// Insert adds rows that are absent.
func (d *Deliveries) Insert(_ context.Context, rows []store.Delivery) ([]bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make([]bool, len(rows))
	for i, r := range rows {
		out[i] = !slices.ContainsFunc(d.rows, func(x store.Delivery) bool {
			return x.Tenant == r.Tenant && x.EndpointID == r.EndpointID && x.WebhookID == r.WebhookID
		})
		if out[i] {
			d.rows = append(d.rows, kept(r))
		}
	}
	return out, nil
}

// kept is a row as a store keeps it: with times of its precision and attempts that nobody else appends to.
func kept(r store.Delivery) store.Delivery {
	r.NextAttemptAt, r.LeasedUntil, r.CreatedAt, r.Held = millis(r.NextAttemptAt), millis(r.LeasedUntil), millis(r.CreatedAt), time.Time{}
	r.Attempts = slices.Clip(slices.Clone(r.Attempts))
	return r
}

func due(r store.Delivery, now time.Time) bool {
	return r.Status == store.Pending && !r.NextAttemptAt.After(now) && !r.LeasedUntil.After(now)
}

// Lease takes pending rows that are due and free.
func (d *Deliveries) Lease(_ context.Context, endpoint string, now, until time.Time, limit int) ([]store.Delivery, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var at []int
	for i, r := range d.rows {
		if due(r, now) && (endpoint == "" || r.EndpointID == endpoint) {
			at = append(at, i)
		}
	}
	slices.SortStableFunc(at, func(a, b int) int {
		return cmp.Compare(d.rows[a].NextAttemptAt.UnixNano(), d.rows[b].NextAttemptAt.UnixNano())
	})
	var out []store.Delivery
	for _, i := range at[:min(len(at), limit)] {
		d.rows[i].LeasedUntil = millis(until)
		out = append(out, kept(d.rows[i]))
	}
	return out, nil
}

// DueEndpoints names endpoints that have rows to lease.
func (d *Deliveries) DueEndpoints(_ context.Context, now time.Time) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []string
	for _, r := range d.rows {
		if due(r, now) && !slices.Contains(out, r.EndpointID) {
			out = append(out, r.EndpointID)
		}
	}
	return out, nil
}

// Update writes rows back.
func (d *Deliveries) Update(_ context.Context, rows []store.Delivery) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range rows {
		for i := range d.rows {
			if x := &d.rows[i]; x.ID == r.ID && (r.Held.IsZero() || x.LeasedUntil.Equal(millis(r.Held))) {
				r = kept(r)
				x.Status, x.Attempts, x.NextAttemptAt, x.LeasedUntil, x.Trigger, x.Was = r.Status, r.Attempts, r.NextAttemptAt, r.LeasedUntil, r.Trigger, r.Was
			}
		}
	}
	return nil
}

// Cancel ends every pending row of an endpoint.
func (d *Deliveries) Cancel(_ context.Context, tenant, endpoint, status string) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for i := range d.rows {
		if x := &d.rows[i]; x.Tenant == tenant && x.EndpointID == endpoint && x.Status == store.Pending {
			x.Status, x.Trigger, x.Was = status, "", ""
			n++
		}
	}
	return n, nil
}

// Get returns one row of a tenant.
func (d *Deliveries) Get(_ context.Context, tenant, id string) (store.Delivery, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range d.rows {
		if r.Tenant == tenant && r.ID == id {
			return kept(r), nil
		}
	}
	return store.Delivery{}, store.ErrNotFound
}

// Resend makes a row due for one more attempt.
func (d *Deliveries) Resend(_ context.Context, r store.Resend) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	i := slices.IndexFunc(d.rows, func(x store.Delivery) bool { return x.Tenant == r.Tenant && x.ID == r.ID })
	if i < 0 {
		return store.ErrNotFound
	}
	x := &d.rows[i]
	if x.Trigger != "" || x.LeasedUntil.After(millis(r.At)) || r.Replay != "" && x.Replay == r.Replay {
		return store.ErrChanged
	}
	x.Trigger, x.Was, x.Status, x.NextAttemptAt, x.LeasedUntil = r.Trigger, x.Status, store.Pending, millis(r.At), time.UnixMilli(0)
	if r.Replay != "" {
		x.Replay = r.Replay
	}
	return nil
}

// Between returns rows by when they were made.
func (d *Deliveries) Between(_ context.Context, q store.Span) ([]store.Delivery, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []store.Delivery
	for _, r := range d.rows {
		if r.Tenant == q.Tenant && r.EndpointID == q.EndpointID && r.CreatedAt.Before(q.To) &&
			(r.CreatedAt.After(q.From) || r.CreatedAt.Equal(q.From) && r.ID > q.After) {
			out = append(out, kept(r))
		}
	}
	slices.SortFunc(out, func(a, b store.Delivery) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	return out[:min(len(out), q.Limit)], nil
}

// List returns one page, newest first; the cursor is a place in the order of making.
func (d *Deliveries) List(_ context.Context, q store.DeliveryQuery) ([]store.Delivery, string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	from := len(d.rows)
	if q.Cursor != "" {
		n, err := strconv.Atoi(q.Cursor)
		if err != nil || n < 0 || n > len(d.rows) {
			return nil, "", store.ErrCursor
		}
		from = n
	}
	out := []store.Delivery{}
	for i := from - 1; i >= 0; i-- {
		r := d.rows[i]
		if r.Tenant != q.Tenant || q.EndpointID != "" && r.EndpointID != q.EndpointID || q.TransactionID != "" && r.TransactionID != q.TransactionID ||
			q.Status != "" && r.Status != q.Status {
			continue
		}
		if len(out) == q.Limit {
			return out, strconv.Itoa(i + 1), nil
		}
		out = append(out, kept(r))
	}
	return out, "", nil
}
