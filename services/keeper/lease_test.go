package keeper_test

import (
	"context"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"crivo/services/keeper"
	"crivo/services/store"
	"crivo/streams"
)

// beside runs another keeper of the same installation, with a registry of its own; works tells whether it has the lease.
func (w *world) beside() (works func() bool, stop func()) {
	w.Helper()
	other := &world{TB: w.TB, registry: prometheus.NewRegistry()}
	shell := w.shell
	shell.Metrics = other.registry
	ctx, cancel := context.WithCancel(w.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- keeper.Run(ctx, keeper.Config{Shell: shell, Transactions: w.store, Layout: w.layout, Every: 50 * time.Millisecond,
			Tenants: func(context.Context) ([]store.Tenant, error) { return nil, nil }})
	}()
	return func() bool { return other.gauge("crivo_keeper_works") == 1 }, func() {
		cancel()
		if err := <-ended; err != nil {
			w.Error(err)
		}
	}
}

func (w *world) gauge(name string) float64 {
	families, err := w.registry.Gather()
	w.must(err)
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	return 0
}

func TestOfSeveralKeepersOneWorks(t *testing.T) {
	w := newWorld(t)
	stop := w.run()
	w.until("the first one's turn", func() bool { return w.gauge("crivo_keeper_works") == 1 })
	budget := func() int64 {
		s, err := w.js.Stream(t.Context(), streams.Submitted)
		w.must(err)
		return s.CachedInfo().Config.MaxBytes
	}
	first := w.layout.SubmittedBytes
	w.layout.SubmittedBytes *= 2 // the second was given another size
	works, end := w.beside()
	defer end()
	bucket, err := w.js.KeyValue(t.Context(), streams.LeasesBucket)
	w.must(err)
	last, err := bucket.Get(t.Context(), "keeper")
	w.must(err)
	// The lease runs out twice in this time, were it not renewed.
	for give := time.Now().Add(2 * streams.LeaseTime); time.Now().Before(give); time.Sleep(20 * time.Millisecond) {
		two, got := works(), budget()
		held, err := bucket.Get(t.Context(), "keeper")
		if err != nil {
			continue
		}
		if held.Created().Sub(last.Created()) >= streams.LeaseTime {
			break // whoever is held up for so long loses it, rightly
		}
		if last = held; two {
			t.Fatal("two at once")
		}
		if got != first {
			t.Fatalf("one that does not work made the budget %d", got)
		}
	}
	stop()
	w.until("the second one's turn, at once", works)
	w.until("its budget", func() bool { return budget() == 2*first })
	w.must(w.js.DeleteKeyValue(t.Context(), streams.LeasesBucket))
	w.until("the bucket again", func() bool {
		bucket, err := w.js.KeyValue(t.Context(), streams.LeasesBucket)
		if err != nil {
			return false
		}
		_, err = bucket.Get(t.Context(), "keeper")
		return err == nil
	})
	w.until("still its turn", works)
}

func TestTheLeaseOfADeadKeeperRunsOut(t *testing.T) {
	w := newWorld(t)
	if _, err := streams.Ensure(t.Context(), w.js, w.layout); err != nil {
		t.Fatal(err)
	}
	bucket, err := w.js.KeyValue(t.Context(), streams.LeasesBucket)
	w.must(err)
	_, err = bucket.Create(t.Context(), "keeper", []byte("dead"))
	w.must(err)
	works, end := w.beside()
	defer end()
	w.until("the heir's turn", works)
}
