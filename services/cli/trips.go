package cli

import (
	"context"
	"math"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/go-json-experiment/json"

	"crivo/pkg/stage"
	"crivo/pkg/txn"
)

// trips follows every transaction of a bench run from when it was due to its webhook. Only accepted ones are measured: what a
// refused one took, or whether it was decided all the same, says nothing about what was promised for it.
type trips struct {
	mu       sync.Mutex
	byID     map[string]*trip
	progress time.Time // of the last delivery of an accepted one
	finished time.Time // of the last decision

	accept, decide, deliver    *hdrhistogram.Histogram // microseconds
	notify                     *hdrhistogram.Histogram // from the answer to the webhook
	accepted, refused, failed  int
	arrived, inTime, conflicts int
	repeated                   int // webhooks that came again, under the same id
}

type trip struct {
	due      time.Time
	accept   time.Duration // due to answer
	deliver  time.Duration // due to webhook
	accepted bool
	latency  time.Duration // accepted to decided, by the server's clock
	verdict  string        // of the first webhook
	webhook  string        // its id
}

// horizon is the longest latency that is told apart.
const horizon = 10 * time.Minute

// promised is how soon after acceptance a decision is due.
const promised = 2 * time.Second

func newTrips() *trips {
	h := func() *hdrhistogram.Histogram { return hdrhistogram.New(1, horizon.Microseconds(), 3) }
	return &trips{byID: map[string]*trip{}, accept: h(), decide: h(), deliver: h(), notify: h()}
}

// sent notes when a transaction was due; it returns false for an id that was sent before, which would not be one more.
func (t *trips) sent(id string, due time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byID[id] != nil {
		return false
	}
	t.byID[id] = &trip{due: due}
	return true
}

// answered notes what became of a request. No answer is neither an acceptance nor a refusal: nobody knows.
func (t *trips) answered(id string, a answer, err error, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case err != nil:
		t.failed++
		return
	case a.status >= 300:
		t.refused++
		return
	}
	trip := t.byID[id]
	trip.accepted, trip.accept = true, now.Sub(trip.due)
	t.accepted++
	record(t.accept, trip.accept)
	if trip.verdict != "" {
		t.complete(trip)
	}
}

// webhook notes one that verified.
func (t *trips) webhook(d txn.Decision, webhookID string, now time.Time) {
	verdict, _ := json.Marshal(&d.Verdict, json.Deterministic(true))
	t.delivered(d.ID, string(verdict), webhookID, d.LatencyMS, now)
}

// delivered notes a verified webhook. One may come again under its id; another verdict, or the same under another id, is one too many.
func (t *trips) delivered(id, verdict, webhookID string, latencyMS int64, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	trip, ok := t.byID[id]
	if !ok {
		return // another run's
	}
	switch {
	case trip.verdict == "":
		trip.verdict, trip.webhook, trip.latency, trip.deliver = verdict, webhookID, milliseconds(latencyMS), now.Sub(trip.due)
		if trip.accepted {
			t.complete(trip)
		}
	case trip.verdict == asked:
	case trip.verdict != verdict, trip.webhook != webhookID:
		t.conflicts++
	default:
		t.repeated++
	}
}

// complete counts a trip that was accepted and delivered, in whatever order these two became known.
func (t *trips) complete(trip *trip) {
	t.arrived++
	record(t.deliver, trip.deliver)
	record(t.notify, trip.deliver-trip.accept)
	if at := trip.due.Add(trip.deliver); at.After(t.progress) {
		t.progress = at
	}
	t.decided(trip, min(trip.accept+trip.latency, trip.deliver))
}

// decided counts a decision that was made so long after it was due at the latest: the server took its time between the due
// moment and its answer, and had decided before it told anybody.
func (t *trips) decided(trip *trip, took time.Duration) {
	record(t.decide, took)
	if at := trip.due.Add(took); at.After(t.finished) {
		t.finished = at
	}
	if trip.latency <= promised {
		t.inTime++
	}
}

// record counts what is beyond the horizon as the horizon: it must not vanish from the percentiles.
func record(h *hdrhistogram.Histogram, d time.Duration) {
	_ = h.RecordValue(max(0, min(d, horizon).Microseconds()))
}

func milliseconds(ms int64) time.Duration { return time.Duration(ms) * time.Millisecond }

// settle waits until every accepted transaction has its webhook, or none came for as long as patience.
func (t *trips) settle(ctx context.Context, patience time.Duration) {
	began := time.Now()
	for {
		t.mu.Lock()
		last := t.progress
		if last.Before(began) {
			last = began
		}
		done := t.arrived >= t.accepted || time.Since(last) > patience
		t.mu.Unlock()
		if done || stage.Sleep(ctx, 50*time.Millisecond) != nil {
			return
		}
	}
}

// askForRest asks the server, as long as patience lasts, for what was accepted and not delivered; it returns how many are not
// decided as far as anybody can tell. All are asked for once, unless no answer comes for as long as patience.
func (t *trips) askForRest(ctx context.Context, s *sender, patience time.Duration) int {
	answered := time.Now()
	give := answered.Add(patience)
	rest := t.undelivered()
	for {
		var still []string
		for _, id := range rest {
			asking, cancel := context.WithDeadline(ctx, answered.Add(patience))
			decided, err := t.ask(asking, s, id)
			cancel()
			if err == nil {
				answered = time.Now()
			}
			if !decided {
				still = append(still, id)
			}
		}
		rest = still
		if len(rest) == 0 || time.Now().After(give) || stage.Sleep(ctx, 500*time.Millisecond) != nil {
			return len(rest)
		}
	}
}

func (t *trips) undelivered() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []string
	for id, trip := range t.byID {
		if trip.accepted && trip.verdict == "" {
			out = append(out, id)
		}
	}
	return out
}

// ask tells whether a transaction is decided, and counts its decision; a webhook that came meanwhile has done so already. No answer
// is an error.
func (t *trips) ask(ctx context.Context, s *sender, id string) (decided bool, err error) {
	a, err := s.get(ctx, id, 0)
	t.mu.Lock()
	defer t.mu.Unlock()
	trip := t.byID[id]
	if trip.verdict != "" || err != nil || a.decision == "" {
		return trip.verdict != "", err
	}
	trip.verdict, trip.latency = asked, milliseconds(a.latency)
	t.decided(trip, trip.accept+trip.latency)
	return true, nil
}

// asked stands for the verdict of a transaction whose webhook was given up: what still comes is not compared.
const asked = "asked"

// figures sums up a run that began then and sent for so long; decisions are counted a second until the last one was made.
func (t *trips) figures(began time.Time, sending time.Duration) Figures {
	t.mu.Lock()
	defer t.mu.Unlock()
	deciding := max(sending, t.finished.Sub(began))
	f := Figures{OfferedPerS: rate1(len(t.byID), sending), DecidedPerS: rate1(int(t.decide.TotalCount()), deciding),
		DeliveredPerS: rate1(t.arrived, max(sending, t.progress.Sub(began))),
		Accept:        percentiles(t.accept), Decide: percentiles(t.decide), Deliver: percentiles(t.deliver), Notify: percentiles(t.notify),
		Accepted: t.accepted, Undelivered: t.accepted - t.arrived, Double: t.conflicts, Repeated: t.repeated, Refused: t.refused, Failed: t.failed}
	if t.accepted > 0 {
		f.Within2s = float64(t.inTime) / float64(t.accepted)
	}
	return f
}

// rate1 is n a second, to one decimal.
func rate1(n int, during time.Duration) float64 {
	if during <= 0 {
		return 0
	}
	return math.Round(10*float64(n)/during.Seconds()) / 10
}

func percentiles(h *hdrhistogram.Histogram) Percentiles {
	at := func(q float64) float64 { return float64(h.ValueAtPercentile(q)) / 1000 }
	return Percentiles{P50: at(50), P99: at(99), P999: at(99.9)}
}
