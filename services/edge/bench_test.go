package edge_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"crivo/pkg/seal"
	"crivo/services/broker"
	"crivo/services/edge"
	"crivo/services/store/memory"
	"crivo/services/store/sqlite"
)

// BenchmarkAccept takes a transaction in from its HTTP body to the 202: claim in SQLite, message in the broker. With sync both
// wait for the disk. It runs 64 requests at once, as many as share one commit and one batch.
func BenchmarkAccept(b *testing.B) {
	for _, sync := range []bool{false, true} {
		b.Run(fmt.Sprintf("sync=%v", sync), func(b *testing.B) {
			handler, r := accepting(b, sync)
			var n atomic.Int64
			b.SetParallelism(64 / 2)
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					req := httptest.NewRequest(http.MethodPost, "/v1/transactions", strings.NewReader(r.payment(fmt.Sprint("x", n.Add(1)))))
					req.Header.Set("Authorization", "Bearer "+bootstrap)
					req.Header.Set("Content-Type", "application/json")
					w := httptest.NewRecorder()
					handler.ServeHTTP(w, req)
					if w.Code != http.StatusAccepted {
						b.Errorf("%d %s", w.Code, w.Body)
						return
					}
				}
			})
		})
	}
}

func accepting(b *testing.B, sync bool) (http.Handler, *rig) {
	b.Helper()
	dir := b.TempDir()
	server, err := broker.Start(broker.Options{Dir: filepath.Join(dir, "nats"), Sync: sync})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(server.Close)
	keys, err := seal.Open(filepath.Join(dir, "keyset.json"), true)
	if err != nil {
		b.Fatal(err)
	}
	transactions, err := sqlite.OpenTransactions(filepath.Join(dir, "transactions.db"), sqlite.Options{Sync: sync})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = transactions.Close() })
	r := &rig{t: b, server: server, registry: memory.NewRegistry(), keys: keys, clock: newClock()}
	r.audit = r.registry.Record
	r.js = r.jetStream(r.connect())
	r.stream(func(*jetstream.StreamConfig) {})
	cfg := r.config("bench")
	cfg.Transactions, cfg.MaxInFlight = transactions, 1<<30
	served, err := edge.Serve(b.Context(), cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(served.Close)
	return served.Server().Handler, r
}
