package fault_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/nats-io/nats.go/jetstream"

	"crivo/streams"
	"crivo/test/system"
)

func TestF02TheBrokerKilledUnderLoad(t *testing.T) {
	b := theSingle(t)
	x := newTrial(t, b.Cluster)
	broker := b.Processes["nats-1"]
	for range kills(t, 3) {
		x.await(t, 20+random.IntN(40))
		x.kill(broker)
		hold(t, 1)
		began := time.Now()
		restart(t, b.Cluster, broker)
		x.recovered(t, began)
	}
	x.finish(t)
}

func TestF03TheBrokerUnreachableOrSlow(t *testing.T) {
	b := theSingle(t)
	x := newTrial(t, b.Cluster)
	for _, fault := range []func(*testing.T, *toxiproxy.Proxy){refuses, swallows, slow(500)} {
		x.await(t, 20)
		fault(t, b.nats)
		hold(t, 3)
		began := time.Now()
		heal(b.nats)
		x.recovered(t, began)
	}
	x.finish(t)
}

// Whoever leads is killed: what was accepted is decided meanwhile by the guard, and nobody leads for some seconds.
func TestF11TheNodeThatLeadsIsKilledUnderLoad(t *testing.T) {
	c := thePair(t)
	x := newTrial(t, c)
	for n := range kills(t, 2) {
		x.await(t, 20+random.IntN(40))
		leader := c.Processes[strings.Replace(leading(t, c, n), "n", "nats-", 1)]
		x.kill(leader)
		began := time.Now()
		x.recovered(t, began)
		x.await(t, 20)
		restart(t, c, leader)
		caughtUp(t, c)
	}
	x.finish(t)
}

// leading is the node that leads a stream or a consumer, another one each time.
func leading(t *testing.T, c *system.Cluster, n int) string {
	t.Helper()
	_, js := c.Connect(t)
	step := streams.Steps[n/2%len(streams.Steps)]
	for give := time.Now().Add(time.Minute); time.Now().Before(give); time.Sleep(50 * time.Millisecond) {
		var cluster *jetstream.ClusterInfo
		if n%2 == 0 {
			stream, err := js.Stream(t.Context(), step.Stream)
			if err != nil {
				t.Fatal(err)
			}
			cluster = stream.CachedInfo().Cluster
		} else {
			consumer, err := js.Consumer(t.Context(), step.Stream, step.Durable)
			if err != nil {
				t.Fatal(err)
			}
			cluster = consumer.CachedInfo().Cluster
		}
		if cluster.Leader != "" {
			return cluster.Leader
		}
	}
	t.Fatalf("nobody leads %s", step.Stream)
	return ""
}

// caughtUp waits until every copy of every stream and consumer is there again, so that the loss of another node costs no majority.
func caughtUp(t *testing.T, c *system.Cluster) {
	t.Helper()
	_, js := c.Connect(t)
	for give := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if lagging := lagging(t.Context(), js); lagging == "" {
			return
		} else if time.Now().After(give) {
			t.Fatal(lagging, " has not caught up after a minute")
		}
	}
}

func lagging(ctx context.Context, js jetstream.JetStream) string {
	for _, step := range streams.Steps {
		stream, err := js.Stream(ctx, step.Stream)
		if err != nil || !current(stream.CachedInfo().Cluster) {
			return step.Stream
		}
		consumer, err := stream.Consumer(ctx, step.Durable)
		if err != nil || !current(consumer.CachedInfo().Cluster) {
			return step.Durable
		}
	}
	return ""
}

func current(c *jetstream.ClusterInfo) bool {
	if c == nil || c.Leader == "" || len(c.Replicas) < 2 {
		return false
	}
	for _, r := range c.Replicas {
		if !r.Current || r.Offline {
			return false
		}
	}
	return true
}

// The broker comes back empty, and the edge that could have decided what was under way died with it: the store knows what was
// accepted. Step score is away first, so that some of it is undecided.
func TestF15TheBrokerLosesItsDisk(t *testing.T) {
	b := theSingle(t)
	x := newTrial(t, b.Cluster)
	for range kills(t, 1) {
		x.await(t, 20)
		down := []*system.Process{b.Processes["score-1"], b.Processes["edge-1"], b.Processes["nats-1"]}
		x.kill(down[0])
		x.await(t, 20)
		x.kill(down[1])
		x.kill(down[2])
		if err := os.RemoveAll(filepath.Join(b.Dir, "nats-1")); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		x.wiped = began
		for _, p := range down {
			if err := p.Start(); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		x.recovered(t, began)
	}
	x.finish(t)
}
