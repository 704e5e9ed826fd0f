package keeper_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"crivo/pkg/txn"
	"crivo/services/store"
	"crivo/services/store/memory"
)

// outbox counts who is asked for, and stands in for notify: what is asked for is delivered at once.
type outbox struct {
	*memory.Deliveries
	mu    sync.Mutex
	asked map[string]int
	stuck bool      // nothing is delivered
	held  chan bool // what is asked for after the first hundred waits for it; nil: nothing waits
}

func (o *outbox) Resend(ctx context.Context, r store.Resend) error {
	if n, _ := o.counts(); o.held != nil && n >= 100 {
		select {
		case <-o.held:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := o.Deliveries.Resend(ctx, r); err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.asked[r.ID]++; o.stuck {
		return nil
	}
	row, err := o.Get(ctx, r.Tenant, r.ID)
	if err != nil {
		return err
	}
	row.Status, row.Trigger, row.Was = store.Delivered, "", ""
	return o.Update(ctx, []store.Delivery{row})
}

// counts are how many were asked for, and how often the one that was most.
func (o *outbox) counts() (n, most int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, times := range o.asked {
		n, most = n+1, max(most, times)
	}
	return n, most
}

// replaying is a world with an endpoint and n deliveries to it, one a second from start on, of which each seventh is skipped.
func replaying(t *testing.T, n int) (*world, *outbox) {
	w, o := newWorld(t), &outbox{Deliveries: memory.NewDeliveries(), asked: map[string]int{}}
	w.outbox = o
	w.must(w.sets.PutEndpoint(t.Context(), store.Endpoint{ID: "e", Tenant: "t", Status: "active"}))
	for i := range n {
		r := store.Delivery{ID: fmt.Sprintf("dlv_%03d", i), Tenant: "t", EndpointID: "e", WebhookID: fmt.Sprint(i), TransactionID: fmt.Sprint(i), Type: "transaction.decided",
			Status: store.Delivered, CreatedAt: start.Add(time.Duration(i) * time.Second)}
		if i%7 == 0 {
			r.Status = store.Skipped
		}
		_, err := o.Insert(t.Context(), []store.Delivery{r})
		w.must(err)
	}
	w.ahead.Store(int64(time.Hour))
	return w, o
}

func (w *world) replay(change func(*store.Replay)) {
	w.Helper()
	r := store.Replay{ID: "rpl_1", Tenant: "t", EndpointID: "e", Status: store.ReplayRunning, From: txn.At(start), To: txn.At(start.Add(2 * time.Hour)),
		CreatedAt: txn.At(start.Add(time.Hour)), LastAt: txn.At(start)}
	if change != nil {
		change(&r)
	}
	w.must(w.sets.PutReplay(w.Context(), r))
}

func (w *world) replayed() store.Replay {
	w.Helper()
	all, err := w.sets.Replays(w.Context())
	w.must(err)
	return all[0]
}

func (w *world) ends(status string, matched, enqueued int) {
	w.Helper()
	w.until("the replay is "+status, func() bool { return w.replayed().Status == status })
	if r := w.replayed(); r.Matched != matched || r.Enqueued != enqueued || r.EndedAt == nil {
		w.Errorf("%+v", r)
	}
}

func TestW24AReplaySendsWhatWasMadeInItsTimeOnceMore(t *testing.T) {
	w, o := replaying(t, 160)
	test, foreign := store.Delivery{ID: "dlv_test", Tenant: "t", EndpointID: "e", WebhookID: "x", Type: store.TestEvent, CreatedAt: start.Add(70 * time.Second)},
		store.Delivery{ID: "dlv_u", Tenant: "u", EndpointID: "e", WebhookID: "y", CreatedAt: start.Add(70 * time.Second)}
	_, err := o.Insert(t.Context(), []store.Delivery{test, foreign})
	w.must(err)
	w.must(o.Deliveries.Resend(t.Context(), store.Resend{Tenant: "t", ID: "dlv_011", Trigger: store.Manual, At: start})) // under way
	w.replay(func(r *store.Replay) {
		r.From, r.LastAt, r.To = txn.At(start.Add(10*time.Second)), txn.At(start.Add(10*time.Second)), txn.At(start.Add(150*time.Second))
	})
	w.run()
	w.ends(store.ReplayDone, 140, 139)
	if n, most := o.counts(); n != 139 || most != 1 {
		t.Errorf("%d asked for, one of them %d times", n, most)
	}
}

func TestW24AReplayOfOneStatus(t *testing.T) {
	w, _ := replaying(t, 70)
	w.replay(func(r *store.Replay) { r.Only = store.Skipped })
	w.run()
	w.ends(store.ReplayDone, 10, 10)
}

// forgetful is a registry whose keeper dies between what it did and the note of it, again and again.
type forgetful struct {
	*memory.Registry
	mu   sync.Mutex
	left int
}

var errForgot = errors.New("died before it was written")

func (f *forgetful) PutReplay(ctx context.Context, r store.Replay) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.left--; f.left >= 0 && f.left%2 == 0 {
		return errForgot
	}
	return f.Registry.PutReplay(ctx, r)
}

func TestW24AReplayWhoseKeeperDiesIsGoneOnWith(t *testing.T) {
	w, o := replaying(t, 160)
	w.replay(nil)
	w.replays = &forgetful{Registry: w.sets, left: 5}
	for range 3 {
		w.shell.Metrics = prometheus.NewRegistry()
		stop := w.run()
		before, _ := o.counts()
		w.until("more are asked for", func() bool { n, _ := o.counts(); return n > before || n == 160 })
		stop()
	}
	w.shell.Metrics = prometheus.NewRegistry()
	w.run()
	w.ends(store.ReplayDone, 160, 160)
	if n, most := o.counts(); n != 160 || most != 1 {
		t.Errorf("%d asked for, one of them %d times", n, most)
	}
}

func TestW24AReplayIsCancelled(t *testing.T) {
	w, o := replaying(t, 2000)
	o.held = make(chan bool)
	w.replay(nil)
	w.run()
	w.until("some are asked for", func() bool { n, _ := o.counts(); return n > 0 })
	for {
		r := w.replayed()
		r.Status, r.EndedAt = store.ReplayCancelled, &r.CreatedAt
		if err := w.sets.PutReplay(t.Context(), r); err == nil {
			break
		}
	}
	close(o.held)
	w.rounds(1)
	w.until("the counts are of what was asked for", func() bool { n, _ := o.counts(); return w.replayed().Enqueued == n })
	if r := w.replayed(); r.Status != store.ReplayCancelled || r.Enqueued > 150 { // the part that was under way is the third of fifty
		t.Errorf("%+v", r)
	}
}

func TestAReplayToWhatIsDisabledOrGoneEnds(t *testing.T) {
	for name, change := range map[string]func(*world){
		"disabled": func(w *world) {
			w.must(w.sets.PutEndpoint(w.Context(), store.Endpoint{ID: "e", Tenant: "t", Status: "disabled"}))
		},
		"gone": func(w *world) { w.must(w.sets.DeleteEndpoint(w.Context(), "t", "e")) },
	} {
		t.Run(name, func(t *testing.T) {
			w, o := replaying(t, 10)
			change(w)
			w.replay(nil)
			w.run()
			w.ends(store.ReplayCancelled, 0, 0)
			if n, _ := o.counts(); n != 0 {
				t.Errorf("%d asked for", n)
			}
		})
	}
}

// What is made after a replay was asked for is news, whatever its end.
func TestW24AReplayLeavesAloneWhatIsMadeAfterIt(t *testing.T) {
	w, _ := replaying(t, 160)
	w.replay(func(r *store.Replay) { r.CreatedAt = txn.At(start.Add(100 * time.Second)) })
	w.run()
	w.ends(store.ReplayDone, 100, 100)
}
