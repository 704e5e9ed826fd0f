// Command parts measures the same load on embedded and on real parts, one after the other in one run, and prints a table: crivo up
// on its own, crivo up with each part replaced and with all, and separate services on one and on three NATS servers.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/go-json-experiment/json"

	"crivo/test/system"
)

var (
	mongoURI = flag.String("mongo-uri", os.Getenv("CRIVO_TEST_MONGO_URI"), "MongoDB")
	redisURL = flag.String("redis-url", os.Getenv("CRIVO_TEST_REDIS_URL"), "Redis; what is in it stays and is added to")
	rate     = flag.Int("rate", 200, "transactions a second")
	duration = flag.Duration("duration", 20*time.Second, "of each load")
)

func main() {
	system.IfChild()
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx)
	system.Clean()
	if err != nil {
		fmt.Fprintln(os.Stderr, "parts:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	if *mongoURI == "" || *redisURL == "" {
		return errors.New("--mongo-uri and --redis-url are needed")
	}
	dir, err := os.MkdirTemp("", "crivo-parts-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	database := "crivo_parts_" + strconv.FormatInt(time.Now().UnixNano(), 36)
	fmt.Println("| parts | decided/s | accept p50, p99 | decide p50, p99 | deliver p50, p99 | within 2 s | refused |\n|---|---|---|---|---|---|---|")
	for i, one := range []struct {
		name               string
		mongo, redis, nats bool
	}{{"crivo up, all embedded", false, false, false}, {"MongoDB's protocol for SQLite", true, false, false}, {"Redis for memory", false, true, false},
		{"NATS server for the embedded one", false, false, true}, {"all three", true, true, true}} {
		var args []string
		if one.mongo {
			args = append(args, "--mongo-uri", *mongoURI, "--mongo-database", database+strconv.Itoa(i))
		}
		if one.redis {
			args = append(args, "--redis-url", *redisURL)
		}
		if err := up(ctx, filepath.Join(dir, strconv.Itoa(i)), one.name, one.nats, args); err != nil {
			return fmt.Errorf("%s: %w", one.name, err)
		}
	}
	for _, o := range []system.ClusterOptions{{Nodes: 1, Copies: 1}, {Nodes: 3, Copies: 2}} {
		o.MongoURI, o.RedisURL, o.Database, o.Sync = *mongoURI, *redisURL, fmt.Sprint(database, "_", o.Nodes), true
		name := fmt.Sprintf("separate services, %d of each, %d NATS", o.Copies, o.Nodes)
		if err := separate(ctx, filepath.Join(dir, name), name, o); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// up loads one process, on a NATS server of its own if asked for.
func up(ctx context.Context, dir, name string, nats bool, args []string) error {
	nodes := 0
	if nats {
		nodes = 1
	}
	c, err := system.StartCluster(ctx, dir, system.ClusterOptions{Nodes: nodes, Sync: true})
	defer c.Stop()
	if err != nil {
		return err
	}
	if nats {
		args = append(args, "--nats-url", c.NATSURL, "--nats-creds", c.OperatorCreds())
	}
	s, err := system.Start(ctx, system.Options{Binary: c.Binary, Data: filepath.Join(dir, "data"), Durability: "fsync",
		Args: append([]string{"--log-level", "error"}, args...), Log: os.Stderr})
	if err != nil {
		return err
	}
	defer func() { _ = s.Stop() }()
	return bench(ctx, name, s)
}

func separate(ctx context.Context, dir, name string, o system.ClusterOptions) error {
	c, err := system.StartCluster(ctx, dir, o)
	defer c.Stop()
	if err != nil {
		return err
	}
	return bench(ctx, name, &c.System)
}

// figures are what crivo bench prints, as far as it counts here.
type figures struct {
	Decided  float64 `json:"decided_per_s"`
	Accept   spread  `json:"accept_ms"`
	Decide   spread  `json:"decide_ms"`
	Deliver  spread  `json:"deliver_ms"`
	Within2s float64 `json:"within_2s"`
	Lost     int     `json:"lost"`
	Double   int     `json:"double"`
	Refused  int     `json:"refused"`
}

type spread struct{ P50, P99 float64 }

func bench(ctx context.Context, name string, s *system.System) error {
	cmd := exec.CommandContext(ctx, s.Binary, "bench", "--url", s.URL, "--rate", strconv.Itoa(*rate), "--duration", duration.String(), "--json")
	cmd.Env = append(os.Environ(), "CRIVO_API_KEY="+s.Key)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	runErr := cmd.Run()
	var f figures
	if err := json.Unmarshal(out.Bytes(), &f, json.MatchCaseInsensitiveNames(true)); err != nil {
		return fmt.Errorf("crivo bench: %w: %s", errors.Join(runErr, err), out.Bytes())
	}
	fmt.Printf("| %s | %.0f | %.0f, %.0f ms | %.0f, %.0f ms | %.0f, %.0f ms | %.2f %% | %d |\n", name, f.Decided, f.Accept.P50, f.Accept.P99,
		f.Decide.P50, f.Decide.P99, f.Deliver.P50, f.Deliver.P99, 100*f.Within2s, f.Refused)
	if f.Lost+f.Double > 0 {
		return fmt.Errorf("%d lost, %d double", f.Lost, f.Double)
	}
	return nil
}
