package streams

import (
	"crivo/pkg/app"
	"crivo/pkg/stage"
)

// Runner returns the runner of a step in a process. body may be nil: see [Bury].
func Runner(s app.Shell, spec stage.Spec, handle stage.Handler, body Body) stage.Runner {
	return stage.Runner{JS: s.JS, Spec: spec, Handle: handle, Bury: Bury(spec, body), Metrics: s.Steps, Log: s.Log, Now: s.Clock.Now,
		NotReady: func(reason string) { s.Health.Set(spec.Step, reason) }, Attempts: &stage.KV{JS: s.JS, Bucket: AttemptsBucket}, BatchFrom: s.BatchFrom}
}
