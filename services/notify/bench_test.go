package notify_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync/atomic"
	"testing"

	"crivo/pkg/stage"
	"crivo/services/notify"
	"crivo/services/store/sqlite"
)

// durable is a delivery store that syncs every commit.
func (w *world) durable() *sqlite.Deliveries {
	w.Helper()
	db, err := sqlite.OpenDeliveries(filepath.Join(w.dir, "durable.db"), sqlite.Options{Sync: true})
	w.must(err)
	w.Cleanup(func() { _ = db.Close() })
	return db
}

// BenchmarkNotify goes from the stream to a local receiver and back to the row.
func BenchmarkNotify(b *testing.B) {
	const group = 2000
	w := newWorld(b)
	w.config.Deliveries = w.durable()
	var count atomic.Int64
	sink := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		count.Add(1)
		rw.WriteHeader(http.StatusNoContent)
	}))
	b.Cleanup(sink.Close)
	w.endpoint("e", sink.URL)
	w.run()
	n := 0
	for b.Loop() {
		w.decide(ids(fmt.Sprint(n, "-"), group)...)
		n++
		w.until("deliveries", func() bool { return count.Load() >= int64(n*group) })
	}
	b.ReportMetric(float64(n*group)/b.Elapsed().Seconds(), "deliveries/s")
}

// BenchmarkHandle is the step alone: rows for a full batch, in one write.
func BenchmarkHandle(b *testing.B) {
	const group = 128
	w := newWorld(b)
	w.config.Deliveries = w.durable()
	w.endpoint("e", "http://127.0.0.1")
	handle, err := notify.Handler(b.Context(), w.config)
	w.must(err)
	n := 0
	for b.Loop() {
		b.StopTimer()
		batch := make([]stage.Message, group)
		for i := range batch {
			out := w.announcement(fmt.Sprint(n, "-", i))
			batch[i] = stage.Message{Subject: out.Subject, Header: out.Header, Data: out.Data, Deliveries: 1}
		}
		n++
		b.StartTimer()
		for _, r := range handle(b.Context(), batch) {
			w.must(r.Err)
		}
	}
	b.ReportMetric(float64(n*group)/b.Elapsed().Seconds(), "decisions/s")
}
