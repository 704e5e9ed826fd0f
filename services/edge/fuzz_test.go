package edge_test

import (
	"strings"
	"testing"

	"crivo/services/edge"
)

func FuzzPreferWait(f *testing.F) {
	for _, seed := range []string{"wait=2", `respond-async, wait="10"; x`, `foo="a, wait=5"`, `foo="\`, "wait=99999999999999999999", ",;=", "wait=2\x00"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, header string) {
		got := edge.PreferWait([]string{header})
		if got < 0 || got > 10 {
			t.Errorf("%q gave %d", header, got)
		}
		if got > 0 && !strings.Contains(strings.ToLower(header), "wait") {
			t.Errorf("%q gave %d out of nothing", header, got)
		}
		if again := edge.PreferWait([]string{"respond-async", header}); got > 0 && again != got {
			t.Errorf("%q gave %d after another preference", header, again)
		}
		if first := edge.PreferWait([]string{"wait=7", header}); first != 7 {
			t.Errorf("%q before %q gave %d", "wait=7", header, first)
		}
	})
}

func FuzzBearer(f *testing.F) {
	for _, seed := range []string{"Bearer abc", "bearer \t x", "Basic x", "Bearer", "Bearer \x00", "Bearer  a b "} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, header string) {
		key, ok := edge.Bearer(header)
		if !ok {
			return
		}
		if key == "" || len(key) > 256 || key != strings.TrimSpace(key) || !strings.HasSuffix(strings.TrimSpace(header), key) {
			t.Errorf("%q gave %q", header, key)
		}
	})
}
