// Package retry reads how long whoever answers a request wants to be left alone.
package retry

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Longest is the longest time that is believed.
const Longest = 24 * time.Hour

// After reads a Retry-After header, seconds or a date (RFC 9110 §10.2.3), at the time now. What is neither asks for nothing.
func After(header string, now time.Time) time.Duration {
	if header != "" && strings.Trim(header, "0123456789") == "" {
		s, err := strconv.ParseUint(header, 10, 31)
		if err != nil {
			return Longest // beyond any number
		}
		return min(time.Duration(s)*time.Second, Longest)
	}
	if at, err := http.ParseTime(header); err == nil {
		return min(max(at.Sub(now), 0), Longest)
	}
	return 0
}
