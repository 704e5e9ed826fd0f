package notify_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"crivo/services/notify"
	"crivo/services/store"
)

// A row goes through tries of its schedule and attempts that were asked for; "replay 500" is asked for and answered so.
func TestW23WhatIsAskedForIsOneMoreAndTheScheduleStays(t *testing.T) {
	schedule := []time.Duration{0, time.Hour, time.Hour}
	for name, c := range map[string]struct {
		steps, status string
		triggers      string
	}{
		"a failed try by hand costs the schedule none":  {"auto 500, manual 500, auto 500, manual 500, auto 500", store.Exhausted, "auto manual auto manual auto"},
		"one that arrives ends the schedule":            {"auto 500, manual 200", store.Delivered, "auto manual"},
		"before the first try":                          {"manual 500, auto 500, auto 500", store.Pending, "manual auto auto"},
		"after success":                                 {"auto 200, manual 200", store.Delivered, "auto manual"},
		"after success it stays one":                    {"auto 200, manual 500", store.Delivered, "auto manual"},
		"after exhaustion":                              {"auto 500, auto 500, auto 500, manual 200", store.Delivered, "auto auto auto manual"},
		"exhausted stays exhausted":                     {"auto 500, auto 500, auto 500, manual 500", store.Exhausted, "auto auto auto manual"},
		"gone by hand":                                  {"auto 200, manual 410", store.Skipped, "auto manual"},
		"a replay begins the schedule anew":             {"auto 500, auto 500, auto 500, replay 500, auto 500", store.Pending, "auto auto auto replay auto"},
		"and ends it":                                   {"auto 200, replay 500, auto 500, auto 500", store.Exhausted, "auto replay auto auto"},
		"by hand in the midst of a replay":              {"auto 200, replay 500, manual 500, auto 500, manual 500, auto 500", store.Exhausted, "auto replay manual auto manual auto"},
		"a test is tried once":                          {"test 500", store.Exhausted, "test"},
		"a test that failed can be asked for once more": {"test 500, manual 200", store.Delivered, "test manual"},
	} {
		t.Run(name, func(t *testing.T) {
			row, now := store.Delivery{Status: store.Pending, NextAttemptAt: at}, at
			for step := range strings.SplitSeq(c.steps, ", ") {
				var status int
				var trigger string
				if _, err := fmt.Sscan(step, &trigger, &status); err != nil {
					t.Fatal(err)
				}
				due := row.NextAttemptAt
				switch trigger {
				case store.Auto:
					if now = due; row.Status != store.Pending {
						t.Fatalf("%s: not owed: %+v", step, row)
					}
				case store.Test:
					row.Trigger = trigger
				default:
					row.Trigger, row.Was, row.Status, row.NextAttemptAt = trigger, row.Status, store.Pending, now
				}
				was := row.Was
				row = notify.After(schedule, row, status, now)
				if trigger == store.Manual && was == store.Pending && row.Status == store.Pending && row.NextAttemptAt.UnixMilli() != due.UnixMilli() {
					t.Errorf("%s: the next try moved from %v to %v", step, due, row.NextAttemptAt)
				}
			}
			var triggers []string
			for i, a := range row.Attempts {
				if triggers = append(triggers, a.Trigger); a.Number != i+1 {
					t.Errorf("number %d at %d", a.Number, i)
				}
			}
			if row.Status != c.status || strings.Join(triggers, " ") != c.triggers || row.Trigger != "" || row.Was != "" {
				t.Errorf("%s after %v: %+v", row.Status, triggers, row)
			}
		})
	}
}

func TestARowThatIsAskedForAgainAndAgainStaysSmall(t *testing.T) {
	row := store.Delivery{Status: store.Delivered}
	for range 150 {
		row.Trigger, row.Was, row.Status = store.Manual, row.Status, store.Pending
		row = notify.After(quick, row, http.StatusInternalServerError, at)
	}
	if n := len(row.Attempts); n != 100 || row.Attempts[n-1].Number != 150 || row.Status != store.Delivered {
		t.Errorf("%d attempts, %+v", n, row.Attempts[n-1])
	}
}
