package keeper_test

import (
	"bytes"
	"testing"

	"crivo/services/store"
	"crivo/streams"
)

// BenchmarkPurge makes room in a stream that 100,000 finished small messages fill.
func BenchmarkPurge(b *testing.B) {
	const n = 100_000
	for b.Loop() {
		b.StopTimer()
		w := newWorld(b)
		if _, err := streams.Ensure(b.Context(), w.js, w.layout); err != nil {
			b.Fatal(err)
		}
		all := claims("x", n)
		for i := 0; i < n; i += 1000 {
			w.claim(all[i : i+1000]...)
			w.decide(false, all[i:i+1000]...)
		}
		small := bytes.Repeat([]byte("x"), 200)
		w.publish(outputs(streams.EventSubmitted, func(store.Claim) []byte { return small }, all)...)
		w.acknowledge(streams.Enrich, n)
		used := w.state(streams.Submitted).Bytes
		w.layout.SubmittedBytes = int64(float64(used) / 0.99)
		b.StartTimer()
		stop := w.run()
		w.until("room", func() bool { return w.state(streams.Submitted).Bytes < used*6/10 })
		stop()
	}
}
