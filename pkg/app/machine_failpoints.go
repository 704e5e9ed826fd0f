//go:build failpoints

package app

import (
	"os"
	"time"
)

// machineNow is a machine's clock that CRIVO_CLOCK_OFFSET puts wrong on purpose.
func machineNow() time.Time {
	off, _ := time.ParseDuration(os.Getenv("CRIVO_CLOCK_OFFSET"))
	return time.Now().Add(off)
}
