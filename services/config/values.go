package config

import (
	"fmt"
	"strconv"
	"strings"
)

// Secret is a value that masks itself in every formatter.
type Secret string

// String is never the secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "********"
}

// Format hides the secret in every verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(s.String())) }

// MarshalText hides the secret.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Reveal is the secret itself.
func (s Secret) Reveal() string { return string(s) }

// Size is a number of bytes, written plain or with KiB, MiB, GiB, TiB (or KB, MB, GB, TB).
type Size int64

// units are the suffixes, the longer ones first.
var units = [...]struct {
	suffix string
	bytes  float64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"B", 1}, {"", 1}}

// UnmarshalText reads a size.
func (s *Size) UnmarshalText(text []byte) error {
	for _, u := range units {
		number, ok := strings.CutSuffix(strings.TrimSpace(string(text)), u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
		if err != nil || n < 0 || n*u.bytes >= 1<<62 || n != n {
			break
		}
		*s = Size(n * u.bytes)
		return nil
	}
	return fmt.Errorf("%q is no size such as 500MB or 2GiB", text)
}

// String is the size in the largest unit that needs no fraction.
func (s Size) String() string {
	for i := 3; i >= 0; i-- {
		if unit := int64(units[i].bytes); s > 0 && int64(s)%unit == 0 {
			return strconv.FormatInt(int64(s)/unit, 10) + units[i].suffix
		}
	}
	return strconv.FormatInt(int64(s), 10)
}
