package cli

import (
	"context"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// trips follows every transaction of a bench run from when it was due to its webhook.
type trips struct {
	mu       sync.Mutex
	byID     map[string]*trip
	progress time.Time // of the last delivery

	accept, decide, deliver    *hdrhistogram.Histogram // microseconds
	accepted, refused, arrived int
	inTime, double             int
}

type trip struct {
	due      time.Time
	accept   time.Duration
	accepted bool
	latency  int64  // ms, accepted to decided by the server's clock
	verdict  string // of the first webhook
}

func newTrips() *trips {
	h := func() *hdrhistogram.Histogram { return hdrhistogram.New(1, 10*time.Minute.Microseconds(), 3) }
	return &trips{byID: map[string]*trip{}, accept: h(), decide: h(), deliver: h(), progress: time.Now()}
}

func (t *trips) sent(id string, due time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.byID[id] = &trip{due: due}
}

// answered notes acceptance; anything but a 2xx is a refusal (what a time-out means is unknown, the ledger says so).
func (t *trips) answered(id string, a answer, err error, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil || a.status >= 300 {
		t.refused++
		return
	}
	trip := t.byID[id]
	trip.accepted, trip.accept = true, now.Sub(trip.due)
	t.accepted++
	_ = t.accept.RecordValue(trip.accept.Microseconds())
	if trip.verdict != "" {
		t.decided(trip)
	}
}

// delivered notes a verified webhook.
func (t *trips) delivered(id, verdict string, latency int64, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	trip, ok := t.byID[id]
	if !ok {
		return // another run's
	}
	if trip.verdict != "" {
		if trip.verdict != verdict {
			t.double++
		}
		return
	}
	trip.verdict, trip.latency = verdict, latency
	t.arrived++
	t.progress = now
	_ = t.deliver.RecordValue(now.Sub(trip.due).Microseconds())
	if trip.accepted {
		t.decided(trip)
	}
}

// decided counts a trip whose acceptance and decision are both known.
func (t *trips) decided(trip *trip) {
	latency := time.Duration(trip.latency) * time.Millisecond
	_ = t.decide.RecordValue((trip.accept + latency).Microseconds())
	if latency <= 2*time.Second {
		t.inTime++
	}
}

// settle waits until every accepted transaction has its webhook, or none came for as long as patience.
func (t *trips) settle(ctx context.Context, patience time.Duration) {
	for {
		t.mu.Lock()
		done := t.arrived >= t.accepted || time.Since(t.progress) > patience
		t.mu.Unlock()
		if done || pauseFor(ctx, 50*time.Millisecond) != nil {
			return
		}
	}
}

// askForRest asks the server for what was accepted and not delivered; it returns how many are not even decided.
func (t *trips) askForRest(ctx context.Context, s *sender) int {
	t.mu.Lock()
	var rest []string
	for id, trip := range t.byID {
		if trip.accepted && trip.verdict == "" {
			rest = append(rest, id)
		}
	}
	t.mu.Unlock()
	undecided := 0
	for _, id := range rest {
		a, err := s.get(ctx, id, 0)
		if err != nil || a.decision == "" {
			undecided++
			continue
		}
		t.mu.Lock()
		trip := t.byID[id]
		trip.latency = a.latency
		t.decided(trip)
		t.mu.Unlock()
	}
	return undecided
}

// figures sums up a run that started then and sent for so long; the rate counts until the last delivery.
func (t *trips) figures(started time.Time, sent time.Duration) Figures {
	t.mu.Lock()
	defer t.mu.Unlock()
	seconds := max(sent, t.progress.Sub(started)).Seconds()
	f := Figures{OfferedPerS: float64(len(t.byID)) / sent.Seconds(), DecidedPerS: float64(t.decide.TotalCount()) / seconds,
		Accept: percentiles(t.accept), Decide: percentiles(t.decide), Deliver: percentiles(t.deliver),
		Accepted: t.accepted, Undelivered: max(0, t.accepted-t.arrived), Double: t.double, Refused: t.refused}
	if t.accepted > 0 {
		f.Within2s = float64(t.inTime) / float64(t.accepted)
	}
	return f
}

func percentiles(h *hdrhistogram.Histogram) Percentiles {
	at := func(q float64) float64 { return float64(h.ValueAtQuantile(q)) / 1000 }
	return Percentiles{P50: at(50), P99: at(99), P999: at(99.9)}
}
