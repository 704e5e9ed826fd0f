package client

import (
	"bufio"
	"strings"
)

// RetryAfter is the reader of that header.
var RetryAfter = retryAfter

// ReadEvents reads a whole stream.
func ReadEvents(text string) (out []Event) {
	var s stream
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		if e, whole := s.line(lines.Bytes()); whole {
			out = append(out, e)
		}
	}
	return out
}
