package process_test

import (
	"testing"

	"crivo/services/process"
)

func TestOnlyLoopbackIsThisMachineAlone(t *testing.T) {
	for address, want := range map[string]bool{"127.0.0.1:1": true, "[::1]:1": true, "0.0.0.0:1": false, "[::]:1": false, ":8080": false, "192.0.2.1:1": false} {
		if got := process.Loopback(address); got != want {
			t.Errorf("%s: %v", address, got)
		}
	}
}
