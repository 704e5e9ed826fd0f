package retry_test

import (
	"testing"
	"time"

	"crivo/pkg/retry"
)

func TestW08RetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	const day = 24 * time.Hour
	for header, want := range map[string]time.Duration{
		"":                               0,
		"0":                              0,
		"120":                            2 * time.Minute,
		"86400":                          day,
		"86401":                          day,
		"99999999999999999999999":        day,
		"Sun, 22 Nov 2026 12:00:30 GMT":  30 * time.Second,
		"Sunday, 22-Nov-26 12:00:30 GMT": 30 * time.Second,
		"Sun Nov 22 12:00:30 2026":       30 * time.Second,
		"Sun, 22 Nov 2026 11:59:00 GMT":  0,
		"Sun, 22 Nov 2099 12:00:00 GMT":  day,
		"-1":                             0,
		"+5":                             0,
		"1.5":                            0,
		"1e3":                            0,
		"soon":                           0,
		"２":                              0,
		"2026-11-22T12:00:30Z":           0,
	} {
		if got := retry.After(header, now); got != want {
			t.Errorf("%q: %v, want %v", header, got, want)
		}
	}
}

func FuzzAfter(f *testing.F) {
	for _, seed := range []string{"", "1", "99999999999999999999", "-1", "1.5", "Sun, 22 Nov 2026 23:05:11 GMT", "Sunday, 22-Nov-26 23:05:11 GMT", "Sun Nov 22 23:05:11 2026"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, header string) {
		if got := retry.After(header, time.Unix(1795388711, 0)); got < 0 || got > retry.Longest {
			t.Errorf("%q gave %v", header, got)
		}
	})
}
