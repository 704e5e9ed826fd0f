package notify

import (
	"context"
	"slices"
	"sync"
	"time"

	"crivo/pkg/stage"
	"crivo/services/store"
)

const (
	laneQueue   = 2048 // rows that wait in memory per endpoint; more wait in the store
	laneWorkers = 32   // attempts under way per endpoint
)

// lane delivers to one endpoint. Its queue and its workers are its own, so one that hangs costs the others nothing.
type lane struct {
	queue   chan *store.Delivery
	mu      sync.Mutex
	workers int
}

func (n *notifier) lane(endpoint string) *lane {
	n.mu.Lock()
	defer n.mu.Unlock()
	l, ok := n.lanes[endpoint]
	if !ok {
		l = &lane{queue: make(chan *store.Delivery, laneQueue)}
		n.lanes[endpoint] = l
	}
	return l
}

// offer queues rows; what finds no room, or may not go out now, is given back to the store, due at once.
func (n *notifier) offer(ctx context.Context, rows []store.Delivery) {
	var back []store.Delivery
	for _, r := range rows {
		if e, ok := (*n.endpoints.Load())[r.EndpointID]; !ok || e.Status != "active" {
			back = append(back, r)
			continue
		}
		l := n.lane(r.EndpointID)
		select {
		case l.queue <- &r:
			n.staff(l)
		default:
			back = append(back, r)
		}
	}
	n.giveBack(ctx, back)
}

// giveBack makes rows due again at once. Those that another may hold by now are left alone.
func (n *notifier) giveBack(ctx context.Context, rows []store.Delivery) {
	now := n.Clock.Now()
	rows = slices.DeleteFunc(rows, func(r store.Delivery) bool { return !held(r, now) })
	if len(rows) == 0 {
		return
	}
	for i := range rows {
		rows[i].LeasedUntil = time.UnixMilli(0)
	}
	_ = n.Deliveries.Update(ctx, rows) // unheard, the lease runs out by itself
}

// held tells whether a row's lease holds at a time, with what it takes to write the row back.
func held(row store.Delivery, at time.Time) bool { return at.Before(row.LeasedUntil.Add(-writeTime)) }

// staff starts one more worker while rows wait; workers end by themselves when none do.
func (n *notifier) staff(l *lane) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.workers >= laneWorkers || len(l.queue) == 0 {
		return
	}
	l.workers++
	n.work.Go(func() { n.serve(l) })
}

func (n *notifier) serve(l *lane) {
	for {
		select {
		case row := <-l.queue:
			if n.hard.Err() == nil {
				n.deliver(*row)
			}
		default:
			l.mu.Lock()
			if len(l.queue) > 0 {
				l.mu.Unlock()
				continue
			}
			l.workers--
			l.mu.Unlock()
			return
		}
	}
}

// poll finds what is due: later tries, rows given back, and rows whose process died.
func (n *notifier) poll(ctx context.Context) {
	for stage.Sleep(ctx, 250*time.Millisecond) == nil {
		due, err := n.Deliveries.DueEndpoints(ctx, n.Clock.Now())
		if err != nil {
			n.Health.Set("deliveries", "the delivery store does not answer")
			continue
		}
		n.Health.Set("deliveries", "")
		for _, id := range due {
			n.fetch(ctx, id)
		}
	}
}

// fetch leases an endpoint's due rows for its lane, as many as it has room for.
func (n *notifier) fetch(ctx context.Context, id string) {
	e, ok := (*n.endpoints.Load())[id]
	switch {
	case !ok:
		n.orphans(ctx, id)
		return
	case e.Status == "disabled":
		_, _ = n.Deliveries.Cancel(ctx, e.Tenant, id, store.Skipped)
		return
	case e.Status != "active":
		return // paused: rows wait
	}
	room := laneQueue - len(n.lane(id).queue)
	if room < laneQueue/4 {
		return
	}
	now := n.Clock.Now()
	rows, err := n.Deliveries.Lease(ctx, id, now, now.Add(n.Timeout+leaseBeyond), min(room, 512))
	if err == nil {
		n.offer(ctx, rows)
	}
}

// orphans cancels the rows of an endpoint that was deleted, once that is certain.
func (n *notifier) orphans(ctx context.Context, id string) {
	if n.reload(ctx) != nil {
		return
	}
	if _, ok := (*n.endpoints.Load())[id]; ok {
		return
	}
	now := n.Clock.Now()
	rows, err := n.Deliveries.Lease(ctx, id, now, now.Add(time.Minute), 512)
	if err != nil {
		return
	}
	for i := range rows {
		rows[i].Status = store.Cancelled
	}
	_ = n.Deliveries.Update(ctx, rows)
}

// close waits for attempts under way and gives back what still waits.
func (n *notifier) close() {
	n.mu.Lock()
	var rest []store.Delivery
	for _, l := range n.lanes {
		for len(l.queue) > 0 {
			select {
			case r := <-l.queue:
				rest = append(rest, *r)
			default:
			}
		}
	}
	n.mu.Unlock()
	n.work.Wait()
	n.updates.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	n.giveBack(ctx, rest)
}
