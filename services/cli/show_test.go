package cli

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"crivo/pkg/txn"
)

func TestAShowCountsEachDecisionOnceAndFitsItsTerminal(t *testing.T) {
	began := time.Date(2026, 11, 22, 23, 5, 11, 0, time.UTC)
	s := newShow(began)
	for i := range 100 {
		d := txn.Decision{ID: fmt.Sprint("p-", i), LatencyMS: 10, Verdict: txn.Verdict{Decision: txn.Approve}}
		if i%4 == 0 {
			d.Verdict = txn.Verdict{Decision: txn.Decline, Reasons: []txn.Reason{{Code: "LONG", Text: strings.Repeat("x", 300)}}}
		}
		at := began.Add(time.Duration(i) * 50 * time.Millisecond)
		s.sent(d.ID, at)
		data, err := json.Marshal(&d)
		if err != nil {
			t.Fatal(err)
		}
		hear := []func(){func() { s.event(data) }, func() { s.webhook(d, "msg_1", at.Add(30*time.Millisecond)) }, func() { s.answered(d.ID, true) }}
		for k := range hear { // in any order
			hear[(k+i)%3]()
		}
		s.event(data) // at least once means that
	}
	s.sent("refused", began)
	s.answered("refused", false)
	if !s.settled() || s.accepted != 100 || s.decided != 100 || s.told != 100 || s.refused != 1 || s.verdicts[txn.Decline] != 25 {
		t.Errorf("%+v", s)
	}
	plain := func(_, text string) string { return text }
	now := began.Add(5 * time.Second)
	for _, height := range []int{8, 24, 50, 200} {
		picture := s.picture(now, 80, height, 11, plain)
		if len(picture) >= height {
			t.Errorf("%d lines on %d", len(picture), height)
		}
		text := strings.Join(picture, "\n")
		for _, want := range []string{"accepted   20.0/s   decided   20.0/s   told by verified webhook   20.0/s   5s", "decline   25.0 %  ███████████████\n", "to decision  p50 10 ms  p99 10 ms   to webhook  p50 30 ms"} {
			if !strings.Contains(text, want) {
				t.Errorf("no %q in\n%s", want, text)
			}
		}
		if height >= 24 && !strings.Contains(text, "decline    0  p-96") {
			t.Errorf("no last one in\n%s", text)
		}
	}
	for _, width := range []int{0, 1, 19, 20, 1000} {
		if picture := s.picture(now, width, 24, 11, plain); len(picture) == 0 {
			t.Errorf("nothing on %d columns", width)
		}
	}
	s.turn(now.Add(time.Hour))
	if n := s.decideLast.Merge().TotalCount(); n != 0 || s.decide.TotalCount() != 100 {
		t.Errorf("%d after an hour, %d in all", n, s.decide.TotalCount())
	}
}
