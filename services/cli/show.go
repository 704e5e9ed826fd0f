package cli

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/go-json-experiment/json"

	"crivo/pkg/txn"
)

// show is what a demo has to show: counts of the whole run, and rates and percentiles of its last seconds. A decision is
// counted once, by its event or by its webhook, whichever comes first.
type show struct {
	mu    sync.Mutex
	began time.Time
	open  map[string]*payment // until told

	accepted, refused, decided, told int
	verdicts                         map[string]int
	last, notable                    []txn.Decision // the newest first

	decide, deliver      *hdrhistogram.Histogram // microseconds, of the whole run
	decideLast, tellLast *hdrhistogram.WindowedHistogram
	turned               time.Time
	marks                []mark
}

// payment is one under way.
type payment struct {
	sent                    time.Time
	accepted, decided, told bool
}

// mark is how far the counts were at a time.
type mark struct {
	at                      time.Time
	accepted, decided, told int
}

const (
	windows    = 6
	windowTime = 5 * time.Second // 30 s in all
	rateTime   = 5 * time.Second
	keptLines  = 40
)

func newShow(now time.Time) *show {
	h := func() *hdrhistogram.Histogram { return hdrhistogram.New(1, horizon.Microseconds(), 3) }
	w := func() *hdrhistogram.WindowedHistogram {
		return hdrhistogram.NewWindowed(windows, 1, horizon.Microseconds(), 3)
	}
	return &show{began: now, turned: now, marks: []mark{{at: now}}, open: map[string]*payment{}, verdicts: map[string]int{}, decide: h(), deliver: h(), decideLast: w(), tellLast: w()}
}

func (s *show) sent(id string, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[id] = &payment{sent: now}
}

func (s *show) answered(id string, accepted bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !accepted {
		s.refused++
		delete(s.open, id)
		return
	}
	s.accepted++
	s.open[id].accepted = true
	s.forget(id)
}

// event is one of the stream of decisions.
func (s *show) event(data []byte) {
	var d txn.Decision
	if json.Unmarshal(data, &d) != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count(d)
	s.forget(d.ID)
}

// webhook is one that verified.
func (s *show) webhook(d txn.Decision, _ string, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count(d)
	if p := s.open[d.ID]; p != nil && !p.told {
		p.told = true
		s.told++
		record(s.deliver, now.Sub(p.sent))
		record(s.tellLast.Current, now.Sub(p.sent))
	}
	s.forget(d.ID)
}

// count takes a decision in, the first time that it is heard of; one that a person asked for is shown too.
func (s *show) count(d txn.Decision) {
	p := s.open[d.ID]
	if p != nil && p.decided || p == nil && slices.ContainsFunc(s.last, func(o txn.Decision) bool { return o.ID == d.ID }) {
		return
	}
	if p != nil {
		p.decided = true
		s.decided++
		s.verdicts[d.Verdict.Decision]++
		record(s.decide, milliseconds(d.LatencyMS))
		record(s.decideLast.Current, milliseconds(d.LatencyMS))
	}
	s.last = atop(s.last, d)
	if d.Verdict.Decision != txn.Approve {
		s.notable = atop(s.notable, d)
	}
}

func atop(list []txn.Decision, d txn.Decision) []txn.Decision {
	return slices.Insert(list[:min(len(list), keptLines-1)], 0, d)
}

// forget drops what all is known of.
func (s *show) forget(id string) {
	if p := s.open[id]; p != nil && p.accepted && p.decided && p.told {
		delete(s.open, id)
	}
}

// settled tells whether all that was accepted is decided and told.
func (s *show) settled() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open) == 0
}

// rates are accepted, decided and told ones a second of late.
func (s *show) rates(now time.Time) (accepted, decided, told float64) {
	s.marks = append(s.marks, mark{now, s.accepted, s.decided, s.told})
	for len(s.marks) > 2 && now.Sub(s.marks[1].at) >= rateTime {
		s.marks = s.marks[1:]
	}
	from := s.marks[0]
	during := now.Sub(from.at)
	return rate1(s.accepted-from.accepted, during), rate1(s.decided-from.decided, during), rate1(s.told-from.told, during)
}

// turn lets go of what is older than the windows.
func (s *show) turn(now time.Time) {
	for now.Sub(s.turned) >= windowTime {
		s.decideLast.Rotate()
		s.tellLast.Rotate()
		s.turned = s.turned.Add(windowTime)
	}
}

func (s *show) share(decision string) float64 {
	return 100 * float64(s.verdicts[decision]) / float64(max(1, s.decided))
}

// middle are the median and the 99th percentile of a histogram.
func middle(h *hdrhistogram.Histogram) string {
	p := percentiles(h)
	return fmt.Sprintf("p50 %.0f ms  p99 %.0f ms", p.P50, p.P99)
}

// line is the picture for who reads a log.
func (s *show) line(now time.Time) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.turn(now)
	accepted, decided, told := s.rates(now)
	return fmt.Sprintf("%4.0f s  accepted %.1f/s  decided %.1f/s  webhooks %.1f/s  approve %.1f %%  review %.1f %%  decline %.1f %%  to decision %s  to webhook %s",
		now.Sub(s.began).Seconds(), accepted, decided, told, s.share(txn.Approve), s.share(txn.Review), s.share(txn.Decline),
		middle(s.decideLast.Merge()), middle(s.tellLast.Merge()))
}

// picture is what a terminal of this size shows now, below so many lines.
func (s *show) picture(now time.Time, width, height, below int, paint func(decision, text string) string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.turn(now)
	accepted, decided, told := s.rates(now)
	out := []string{
		fmt.Sprintf("accepted %6.1f/s   decided %6.1f/s   told by verified webhook %6.1f/s   %s, Ctrl-C ends it", accepted, decided, told,
			now.Sub(s.began).Truncate(time.Second)),
	}
	for _, d := range []string{txn.Approve, txn.Review, txn.Decline} {
		out = append(out, fmt.Sprintf("%s %5.1f %%  %s", paint(d, fmt.Sprintf("%-8s", d)), s.share(d), paint(d, stripe(s.share(d), max(0, min(80, width-20))))))
	}
	out = append(out, fmt.Sprintf("to decision  %s   to webhook  %s   refused %d", middle(s.decideLast.Merge()), middle(s.tellLast.Merge()), s.refused))
	rows := max(4, height-below-len(out)-5)
	list := func(title string, of []txn.Decision, rows int) {
		out = append(out, "", title)
		for i := range rows {
			line := ""
			if i < len(of) {
				line = "  " + decisionLine(of[i], paint)
			}
			out = append(out, line)
		}
	}
	list("last decisions", s.last, min(keptLines, rows/2))
	list("to be reviewed, or declined", s.notable, min(keptLines, rows-rows/2))
	return out[:min(len(out), height-1)]
}

// stripe is a share of 100 as a bar.
func stripe(share float64, width int) string {
	return strings.Repeat("█", int(share/100*float64(width)+0.5))
}

// summary tells what the whole run came to.
func (s *show) summary(now time.Time) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := fmt.Sprintf("in %.0f s accepted %d, decided %d, told by verified webhook %d, refused %d\napprove %.1f %%, review %.1f %%, decline %.1f %%\n",
		now.Sub(s.began).Seconds(), s.accepted, s.decided, s.told, s.refused, s.share(txn.Approve), s.share(txn.Review), s.share(txn.Decline))
	return out + "to decision " + middle(s.decide) + ", to webhook " + middle(s.deliver) + "\n"
}
