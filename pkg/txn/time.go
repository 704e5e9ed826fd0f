package txn

import (
	"fmt"
	"time"
)

// Time is an instant that reads and writes as RFC 3339 in UTC with milliseconds.
type Time struct{ time.Time }

// stamp is RFC 3339 with exactly three decimals; shorter inputs parse too.
const stamp = "2006-01-02T15:04:05.000Z"

// At returns t cut to whole milliseconds in UTC.
func At(t time.Time) Time { return Time{t.UTC().Truncate(time.Millisecond)} }

// Millis returns the instant of a Unix time in milliseconds.
func Millis(ms int64) Time { return Time{time.UnixMilli(ms).UTC()} }

// MarshalText writes the instant as 2006-01-02T15:04:05.000Z.
func (t Time) MarshalText() ([]byte, error) {
	return t.UTC().AppendFormat(make([]byte, 0, len(stamp)), stamp), nil
}

// MarshalJSON writes the instant as a JSON string.
func (t Time) MarshalJSON() ([]byte, error) {
	return t.UTC().AppendFormat(make([]byte, 0, len(stamp)+2), `"`+stamp+`"`), nil
}

// UnmarshalText reads an RFC 3339 instant and cuts it to milliseconds. One whose year in UTC is not of four digits is an error: it
// could be written and never read again.
func (t *Time) UnmarshalText(text []byte) error {
	parsed, err := time.Parse(time.RFC3339Nano, string(text))
	if err != nil {
		return fmt.Errorf("time: %w", err)
	}
	at := At(parsed)
	if year := at.Year(); year < 0 || year > 9999 {
		return fmt.Errorf("time: year %d", year)
	}
	*t = at
	return nil
}

// UnmarshalJSON reads a JSON string that holds an RFC 3339 instant.
func (t *Time) UnmarshalJSON(data []byte) error {
	if len(data) < 2 || data[0] != '"' || data[len(data)-1] != '"' {
		return fmt.Errorf("time: not a string")
	}
	return t.UnmarshalText(data[1 : len(data)-1])
}
