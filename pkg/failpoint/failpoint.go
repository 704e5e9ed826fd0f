// Package failpoint names the moments at which a crash is worth a test. In a build with the tag failpoints,
// CRIVO_FAILPOINT=NAME=kill ends the process at the first of them, as SIGKILL does, and NAME=kill@3 at the third; in any other
// build a point costs nothing.
package failpoint

// Names lists all points.
func Names() []string {
	out := []string{"edge.claimed", "edge.published", "guard.written", "enrich.applied", "persist.written", "notify.inserted", "notify.sent"}
	for _, step := range []string{"enrich", "validate", "score", "persist", "notify"} {
		out = append(out, step+".computed", step+".published")
	}
	return out
}
