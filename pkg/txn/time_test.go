package txn_test

import (
	"testing"

	"crivo/pkg/txn"
)

func TestATimeThatIsReadCanBeWrittenAndReadAgain(t *testing.T) {
	for in, want := range map[string]string{
		"2026-01-02T03:04:05Z":           "2026-01-02T03:04:05.000Z",
		"2026-01-02T03:04:05.6789-03:00": "2026-01-02T06:04:05.678Z",
		"9999-12-31T23:59:59-00:00":      "9999-12-31T23:59:59.000Z",
		"9999-12-31T23:59:59-03:00":      "", // the year 10000
		"0001-01-01T00:00:00+01:00":      "0000-12-31T23:00:00.000Z",
		"0000-01-01T00:00:00Z":           "0000-01-01T00:00:00.000Z",
		"0000-01-01T00:00:00+01:00":      "", // the year -1
	} {
		var read, again txn.Time
		if err := read.UnmarshalText([]byte(in)); (err != nil) != (want == "") {
			t.Errorf("%s: %v", in, err)
		}
		if want == "" {
			continue
		}
		text, err := read.MarshalText()
		if err != nil || string(text) != want {
			t.Errorf("%s: %s, %v", in, text, err)
		}
		if err := again.UnmarshalText(text); err != nil || !again.Equal(read.Time) {
			t.Errorf("%s: read again as %v, %v", in, again, err)
		}
	}
}
