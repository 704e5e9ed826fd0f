package mongo_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"crivo/services/store"
)

// started tells apart what several rounds of one benchmark write.
var started atomic.Int64

func BenchmarkClaim(b *testing.B) {
	tx := fresh(b).Transactions()
	for _, size := range []int{1, 64, 128} {
		b.Run(fmt.Sprint("group=", size), func(b *testing.B) {
			groups(b, size, func(claims []store.Claim) error {
				_, err := tx.Claim(context.Background(), claims)
				return err
			})
		})
	}
}

func BenchmarkDecide(b *testing.B) {
	tx := fresh(b).Transactions()
	for _, size := range []int{1, 64, 128} {
		b.Run(fmt.Sprint("group=", size), func(b *testing.B) {
			groups(b, size, func(claims []store.Claim) error {
				decides := make([]store.Decide, size)
				for i, c := range claims {
					decides[i] = decided(i)
					decides[i].Claim = c
				}
				b.StopTimer()
				_, err := tx.Claim(context.Background(), claims)
				b.StartTimer()
				if err != nil {
					return err
				}
				_, err = tx.Decide(context.Background(), decides)
				return err
			})
		})
	}
}

// groups runs a write of groups of new claims and tells how many transactions that is in a second.
func groups(b *testing.B, size int, write func([]store.Claim) error) {
	claims := make([]store.Claim, size)
	for b.Loop() {
		round := started.Add(1)
		for i := range claims {
			claims[i] = sample(i)
			claims[i].ID = fmt.Sprint(round, "-", i)
		}
		if err := write(claims); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N*size)/b.Elapsed().Seconds(), "tx/s")
}

func BenchmarkGet(b *testing.B) {
	db := fresh(b)
	fill(b, db)
	for n := 0; b.Loop(); n++ {
		if _, err := db.Transactions().Get(context.Background(), sample(n%4000).Key); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSearch(b *testing.B) {
	db := fresh(b)
	fill(b, db)
	for name, q := range map[string]store.Query{"time": {}, "decision": {Decision: "review"}, "reason": {Reason: "R8"}, "token": {Tokens: []string{"p3", "p8"}}} {
		q.Tenant, q.Limit = "t", 50
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if got, _, err := db.Transactions().Search(context.Background(), q); err != nil || len(got) < 40 {
					b.Fatal(len(got), err)
				}
			}
		})
	}
}

func BenchmarkInsertDeliveries(b *testing.B) {
	dl := fresh(b).Deliveries()
	for _, size := range []int{1, 128} {
		b.Run(fmt.Sprint("group=", size), func(b *testing.B) {
			groups(b, size, func(claims []store.Claim) error {
				rows := make([]store.Delivery, size)
				for i, c := range claims {
					rows[i] = row(0)
					rows[i].ID, rows[i].WebhookID, rows[i].TransactionID = c.ID, c.ID, c.ID
				}
				_, err := dl.Insert(context.Background(), rows)
				return err
			})
		})
	}
}

func BenchmarkLeaseAndUpdate(b *testing.B) {
	db := fresh(b)
	fill(b, db)
	dl, now := db.Deliveries(), noon.Add(time.Hour)
	for b.Loop() {
		rows, err := dl.Lease(context.Background(), "e1", now, now.Add(time.Minute), 64)
		if err != nil || len(rows) != 64 {
			b.Fatal(len(rows), err)
		}
		for i := range rows {
			rows[i].LeasedUntil = time.UnixMilli(0)
		}
		if err := dl.Update(context.Background(), rows); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDueEndpoints(b *testing.B) {
	db := fresh(b)
	fill(b, db)
	for b.Loop() {
		if due, err := db.Deliveries().DueEndpoints(context.Background(), noon.Add(time.Hour)); err != nil || len(due) != 4 {
			b.Fatal(due, err)
		}
	}
}
