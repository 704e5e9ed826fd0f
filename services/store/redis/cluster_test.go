package redis_test

import (
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"crivo/services/enrich"
	"crivo/services/store/storetest"
	"crivo/services/validate"
)

// form makes a cluster of three servers without replicas and returns them with its URL.
func form(t *testing.T) (nodes []*server, address string) {
	t.Helper()
	if _, err := exec.LookPath("redis-cli"); err != nil {
		t.Skip("no redis-cli in the path")
	}
	args := []string{"--cluster", "create"}
	for range 3 {
		n := serve(t, "--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-require-full-coverage", "no",
			"--cluster-port", strconv.Itoa(freePort(t)), "--appendonly", "yes")
		nodes, args = append(nodes, n), append(args, n.addr())
	}
	nodes[0].cli(t, append(args, "--cluster-yes")...)
	for _, n := range nodes {
		until(t, "the cluster stands", func() bool { return strings.Contains(n.cli(t, "cluster", "info"), "cluster_state:ok") })
	}
	return nodes, fmt.Sprintf("%s?addr=%s&addr=%s", nodes[0].url(), nodes[1].addr(), nodes[2].addr())
}

func TestACluster(t *testing.T) {
	nodes, address := form(t)
	t.Run("features", func(t *testing.T) {
		storetest.Features(t, func(t *testing.T) enrich.Features { return whole(t, address, t.Name()+"/") },
			func(t *testing.T, _ enrich.Features) enrich.Features { return whole(t, address, t.Name()+"/") })
	})
	t.Run("cache", func(t *testing.T) {
		storetest.Cache(t, func(t *testing.T) validate.Cache { return open(t, address, t.Name()+"/").Cache() })
	})
	t.Run("every node has its share", func(t *testing.T) {
		for _, n := range nodes {
			if size, _ := strconv.Atoi(n.cli(t, "dbsize")); size < 100 {
				t.Errorf("%s has %d keys", n.addr(), size)
			}
		}
	})
	t.Run("a batch is one round trip to each node at once", func(t *testing.T) {
		f, s := whole(t, address, "trip/"), payments(64)
		if _, err := patiently(f, s); err != nil {
			t.Fatal(err)
		}
		for _, n := range nodes {
			n.cli(t, "config", "resetstat")
		}
		if _, err := patiently(f, s); err != nil {
			t.Fatal(err)
		}
		for _, n := range nodes {
			// What the socket read at once is one read event; a big pipeline may take a few.
			if reads := info(t, n, "total_reads_processed"); reads > 12 {
				t.Errorf("%s: %d reads", n.addr(), reads)
			}
		}
	})
	t.Run("a node that comes back empty", func(t *testing.T) {
		f, s := whole(t, address, "node/"), wide(200)
		if _, err := patiently(f, s); err != nil {
			t.Fatal(err)
		}
		if _, err := s.mend(f); err != nil {
			t.Fatal(err)
		}
		if lost := unknown(t, f, s); lost > 0 {
			t.Fatalf("%d unknown before", lost)
		}
		nodes[1].cli(t, "flushall")
		if lost := unknown(t, f, s); lost < 20 || lost > 120 {
			t.Errorf("%d of 200 unknown, want the third that was on the node", lost)
		}
		replayed, err := s.mend(f)
		if err != nil {
			t.Fatal(err)
		}
		want(t, "replayed", replayed, []uint64{0})
		if lost := unknown(t, f, s); lost > 0 {
			t.Errorf("%d unknown after", lost)
		}
	})
	t.Run("a node that is killed", func(t *testing.T) {
		f, s := whole(t, address, "kill/"), wide(200)
		if _, err := patiently(f, s); err != nil {
			t.Fatal(err)
		}
		nodes[2].kill()
		const most = 600 * time.Millisecond
		took := fastest(tries, most, func() {
			if _, err := f.Apply(context.Background(), s); err == nil {
				t.Error("applied without a third")
			}
		})
		if took > most {
			t.Errorf("took %v", took)
		}
		nodes[2].start(t)
		until(t, "it is whole again", func() bool { _, err := s.mend(f); return err == nil })
		if lost := unknown(t, f, s); lost > 0 {
			t.Errorf("%d unknown after", lost)
		}
	})
}

// wide makes n events of as many payers.
func wide(n int) stream {
	s := payments(n)
	for i := range s {
		s[i].Entities = []enrich.Entity{{Role: "payer", Key: fmt.Sprint("t/payer/", i)}}
	}
	return s
}

// unknown applies all events again and counts those of which nothing, or less than themselves, is known.
func unknown(t *testing.T, f enrich.Features, s stream) (n int) {
	t.Helper()
	got, err := patiently(f, s)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range got {
		if !h[0].Known || h[0].Counts[3] != 1 {
			n++
		}
	}
	return n
}

func info(t *testing.T, n *server, name string) int {
	t.Helper()
	_, rest, _ := strings.Cut(n.cli(t, "info", "stats"), name+":")
	value, _, _ := strings.Cut(rest, "\n")
	out, err := strconv.Atoi(strings.TrimSpace(value))
	if err != nil {
		t.Fatal(err)
	}
	return out
}
