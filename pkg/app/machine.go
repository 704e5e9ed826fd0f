//go:build !failpoints

package app

import "time"

func machineNow() time.Time { return time.Now() }
