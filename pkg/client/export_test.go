package client

import (
	"bufio"
	"strings"
)

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
