package notify

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/failsafe-go/failsafe-go/circuitbreaker"

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
	judge   circuitbreaker.CircuitBreaker[any]
	workers int
}

func (n *notifier) lane(endpoint string) *lane {
	n.mu.Lock()
	defer n.mu.Unlock()
	l, ok := n.lanes[endpoint]
	if !ok {
		l = &lane{queue: make(chan *store.Delivery, laneQueue), judge: newJudge()}
		n.lanes[endpoint] = l
	}
	return l
}

// offer queues rows; what finds no room, or may not go out now, is given back to the store, due at once.
func (n *notifier) offer(ctx context.Context, rows []store.Delivery) {
	var back []store.Delivery
	for _, r := range rows {
		if _, ok := n.sending(r.EndpointID); !ok {
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

// sending returns an endpoint that may be sent to now.
func (n *notifier) sending(id string) (store.Endpoint, bool) {
	e, ok := (*n.endpoints.Load())[id]
	_, broken := n.breaker(id)
	return e, ok && e.Status == "active" && !broken
}

// free is the lease of a row that nobody holds.
var free = time.UnixMilli(0)

// letGo is a row that is written back and held no longer, if it is held by this lease still.
func letGo(row store.Delivery) store.Delivery {
	row.Held, row.LeasedUntil = row.LeasedUntil, free
	return row
}

// giveBack makes rows due again at once. Those that another may hold by now are left alone.
func (n *notifier) giveBack(ctx context.Context, rows []store.Delivery) {
	now := n.Clock.Now()
	rows = slices.DeleteFunc(rows, func(r store.Delivery) bool { return !held(r, now) })
	if len(rows) == 0 {
		return
	}
	for i, r := range rows {
		rows[i] = letGo(r)
	}
	_ = n.Deliveries.Update(ctx, rows) // unheard, the lease runs out by itself
}

// held tells whether a row's lease holds at a time, with what it takes to write the row back.
func held(row store.Delivery, at time.Time) bool { return at.Before(row.LeasedUntil.Add(-writeTime)) }

// inTime tells whether an attempt of a row would end within its lease.
func (n *notifier) inTime(row store.Delivery) bool { return held(row, n.Clock.Now().Add(n.Timeout)) }

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
			n.turn(l, *row)
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

// turn makes the attempt of a row, or gives back all that waits with it: where nothing may go out, or where it waited too long
// to be tried within its lease, which else would have to run out before anybody tries it.
func (n *notifier) turn(l *lane, row store.Delivery) {
	switch e, ok := n.sending(row.EndpointID); {
	case n.hard.Err() != nil:
	case ok && n.inTime(row):
		n.deliver(e, row, store.Breaker{})
	default:
		n.giveBack(n.hard, append(l.rest(), row))
	}
}

// rest takes all that waits out of the queue.
func (l *lane) rest() []store.Delivery {
	var out []store.Delivery
	for {
		select {
		case r := <-l.queue:
			out = append(out, *r)
		default:
			return out
		}
	}
}

// mostDoubtful bounds what is remembered of inserts that failed; the leases of more run out by themselves.
const mostDoubtful = 10_000

// doubt remembers rows whose insert failed: those that are there all the same need not wait until their lease runs out.
func (n *notifier) doubt(rows []store.Delivery) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range rows[:min(len(rows), mostDoubtful-len(n.doubtful))] {
		r.Body = nil // never written again
		n.doubtful = append(n.doubtful, r)
	}
}

// freeDoubtful makes them due.
func (n *notifier) freeDoubtful(ctx context.Context) {
	n.mu.Lock()
	rows := n.doubtful
	n.doubtful = nil
	n.mu.Unlock()
	n.giveBack(ctx, rows)
}

// pollEvery is how often [notifier.poll] looks.
var pollEvery = 250 * time.Millisecond

// poll finds what is due: later tries, rows given back, and rows whose process died.
func (n *notifier) poll(ctx context.Context) {
	for stage.Sleep(ctx, pollEvery) == nil {
		due, err := n.Deliveries.DueEndpoints(ctx, n.Clock.Now())
		if err != nil {
			n.Health.Set("deliveries", "the delivery store does not answer")
			continue
		}
		n.Health.Set("deliveries", "")
		n.freeDoubtful(ctx)
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
	if b, broken := n.breaker(id); broken {
		n.probe(ctx, e, b)
		return
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
	for i, r := range rows {
		rows[i] = letGo(r)
		rows[i].Status = store.Cancelled
	}
	_ = n.Deliveries.Update(ctx, rows)
}

// close waits for attempts under way and gives back what still waits.
func (n *notifier) close() {
	n.mu.Lock()
	n.closing = true
	var rest []store.Delivery
	for _, l := range n.lanes {
		rest = append(rest, l.rest()...)
	}
	n.mu.Unlock()
	n.work.Wait()
	n.updates.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	n.giveBack(ctx, rest)
}
