package stage

import (
	"strings"
	"sync"
)

// The reasons why a step may not be ready. Each is set and cleared by its own cause alone.
const (
	doubtConsumer = iota
	doubtPublish
	doubtDependency
	doubtSchema
	doubtKinds
)

// doubts are the reasons that hold now; tell hears of every change.
type doubts struct {
	tell func(string)

	mu  sync.Mutex
	all [doubtKinds]string
}

func (d *doubts) set(kind int, reason string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.tell == nil || d.all[kind] == reason {
		return
	}
	d.all[kind] = reason
	var now []string
	for _, r := range d.all {
		if r != "" {
			now = append(now, r)
		}
	}
	d.tell(strings.Join(now, "; "))
}
