package fault_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"crivo/test/system"
)

// services are the names of a system's own processes, in order.
func services(c *system.Cluster) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(c.Processes)), func(name string) bool {
		return name == "nginx" || strings.HasPrefix(name, "nats-")
	})
}

func restart(t *testing.T, c *system.Cluster, p *system.Process) {
	t.Helper()
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	if err := c.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestF01EachServiceKilledInTurnUnderLoad(t *testing.T) {
	c := thePair(t)
	x := newTrial(t, c)
	names := services(c)
	for n := range kills(t, len(names)) {
		x.await(t, 10+random.IntN(30))
		p := c.Processes[names[n%len(names)]]
		x.kill(p)
		began := time.Now()
		x.await(t, 10+random.IntN(30)) // the others go on
		restart(t, c, p)
		x.recovered(t, began)
	}
	x.finish(t)
}

func TestF10EachServiceRestartedInTurnUnderLoad(t *testing.T) {
	c := thePair(t)
	x := newTrial(t, c)
	for _, name := range services(c) {
		x.await(t, 10)
		p := c.Processes[name]
		began := time.Now()
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
		restart(t, c, p)
		x.recovered(t, began)
	}
	x.finish(t)
}

// Brokers are restarted as planned, one at a time: each hands its leading over before it ends.
func TestF10EachBrokerRestartedInTurnUnderLoad(t *testing.T) {
	c := thePair(t)
	x := newTrial(t, c)
	for n := range 3 {
		x.await(t, 20)
		broker := c.Processes[fmt.Sprint("nats-", n+1)]
		began := time.Now()
		if err := broker.Stop(); err != nil {
			t.Error(err)
		}
		restart(t, c, broker)
		caughtUp(t, c)
		x.recovered(t, began)
	}
	x.finish(t)
}
