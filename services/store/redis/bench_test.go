package redis_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"crivo/services/enrich"
	"crivo/services/store/redis"
)

// fill gives one entity n events in order, a longest window apart from first to last.
func fill(b *testing.B, f *redis.Features, key string, n int) time.Time {
	b.Helper()
	span := enrich.Windows[len(enrich.Windows)-1].Span
	at := created.Add(-span)
	for i := 0; i < n; i += 64 {
		var batch []enrich.Event
		for j := i; j < min(i+64, n); j++ {
			at = at.Add(span / time.Duration(n))
			batch = append(batch, enrich.Event{Key: fmt.Sprint(key, "/", j), At: at, Amount: 13725, Entities: []enrich.Entity{{Role: "r", Key: key}}})
		}
		if _, err := patiently(f, batch); err != nil {
			b.Fatal(err)
		}
	}
	return at
}

func BenchmarkApply(b *testing.B) {
	address, _ := shared(b)
	for name, tc := range map[string]struct {
		terminal int           // events in its window
		late     time.Duration // how far the benchmark's events lie back
	}{
		"small entities":                     {0, 0},
		"a terminal of 100000":               {100_000, 0},
		"a terminal of 100000, an hour late": {100_000, time.Hour},
		"a terminal of 100000, 10 days late": {100_000, 10 * 24 * time.Hour},
	} {
		b.Run(name, func(b *testing.B) {
			_, prefix := shared(b)
			f := whole(b, address, prefix)
			at := created
			if tc.terminal > 0 {
				at = fill(b, f, "t/terminal/busy", tc.terminal).Add(-tc.late)
			}
			batch := make([]enrich.Event, 64)
			for n := 0; b.Loop(); n++ {
				for j := range batch {
					i := n*len(batch) + j
					at = at.Add(time.Millisecond)
					batch[j] = enrich.Event{Key: fmt.Sprint("t/", i), At: at, Amount: 13725, Entities: []enrich.Entity{{Role: "payer", Key: fmt.Sprint("t/payer/", i%5000)},
						{Role: "payee", Key: fmt.Sprint("t/payee/", i%7919)}, {Role: "device", Key: fmt.Sprint("t/device/", i%4999)}, {Role: "terminal", Key: "t/terminal/busy"}}}
				}
				if _, err := patiently(f, batch); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(batch)), "ns/event")
		})
	}
}

// BenchmarkMemory measures what the server needs for an event of one entity.
func BenchmarkMemory(b *testing.B) {
	address, _ := shared(b)
	rdb := plain(b, address)
	defer rdb.Close()
	for _, n := range []int{1, 10, 50, 1000, 100_000} {
		b.Run(fmt.Sprint("events ", n), func(b *testing.B) {
			_, prefix := shared(b)
			f := whole(b, address, prefix)
			for b.Loop() {
				fill(b, f, "t/payer/x", n)
			}
			b.ReportMetric(float64(usage(b, rdb, prefix))/float64(n), "B/event")
		})
	}
}

// usage adds up what an entity's keys need.
func usage(b *testing.B, rdb *goredis.Client, prefix string) (total int64) {
	ctx := context.Background()
	for keys := rdb.Scan(ctx, 0, prefix+"t/*", 1000).Iterator(); keys.Next(ctx); {
		n, err := rdb.MemoryUsage(ctx, keys.Val(), 0).Result()
		if err != nil {
			b.Fatal(err)
		}
		if !strings.Contains(keys.Val(), "crivo:") {
			total += n
		}
	}
	return total
}
