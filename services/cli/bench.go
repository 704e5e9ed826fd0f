package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"crivo/services/feed"
)

// BenchCmd measures a system under open-loop load: requests are sent when they are due, whatever became of the earlier ones.
type BenchCmd struct {
	URL         string            `help:"The edge to load; without it a fresh crivo up is started in a temporary folder." env:"CRIVO_URL"`
	Ops         string            `help:"Operations address of a running server, for its CPU and memory: http://127.0.0.1:8081."`
	Rate        float64           `help:"Transactions a second." default:"500"`
	Duration    time.Duration     `help:"How long to send." default:"30s"`
	File        string            `help:"Send the rows of this file (see submit) instead of made-up ones."`
	Map         map[string]string `help:"As in submit." mapsep:"none" placeholder:"FIELD=COLUMN"`
	Set         map[string]string `help:"As in submit." mapsep:"none" placeholder:"FIELD=VALUE"`
	AmountUnit  string            `help:"As in submit." enum:"minor,major" default:"minor"`
	Sink        string            `help:"Where the bench's own webhook receiver listens; the server must be allowed to reach it." default:"127.0.0.1:0"`
	Connections int               `help:"HTTP connections at most." default:"256"`
	Durability  string            `help:"Durability of the started system: fsync or interval." enum:"fsync,interval" default:"fsync"`
	JSON        bool              `help:"Print the figures as JSON." name:"json"`
}

// Help shows an example.
func (BenchCmd) Help() string {
	return `Example:

  crivo bench --rate 800 --duration 30s

Latencies count from the moment a request was due, so a server that stalls cannot hide it. accept: the 2xx answer; decide:
accept plus the server's own accepted-to-decided time; deliver: the verified webhook at the bench's receiver.`
}

// Percentiles are milliseconds.
type Percentiles struct {
	P50  float64 `json:"p50"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p999"`
}

// Figures are what a bench run measured. Within2s is the share of accepted transactions decided within 2 s of acceptance.
type Figures struct {
	OfferedPerS float64     `json:"offered_per_s"`
	DecidedPerS float64     `json:"decided_per_s"`
	Accept      Percentiles `json:"accept_ms"`
	Decide      Percentiles `json:"decide_ms"`
	Deliver     Percentiles `json:"deliver_ms"`
	Within2s    float64     `json:"within_2s"`
	Accepted    int         `json:"accepted"`
	Lost        int         `json:"lost"`
	Undelivered int         `json:"undelivered"`
	Double      int         `json:"double"`
	Refused     int         `json:"refused"`
	CPUMsPerTx  float64     `json:"cpu_ms_per_tx"`
	RSSMB       float64     `json:"rss_mb"`
	Durability  string      `json:"durability"`
}

// Run measures and prints.
func (c *BenchCmd) Run(ctx context.Context) error {
	if c.Rate <= 0 || c.Rate > 1e5 || c.Duration <= 0 || c.Connections < 1 {
		return usage(errors.New("--rate, --duration and --connections must be above 0 (rate at most 100000)"))
	}
	target, err := c.target(ctx)
	if err != nil {
		return err
	}
	defer target.stop()
	trips := newTrips()
	receiver, err := openSink(ctx, c.Sink, target, trips)
	if err != nil {
		return err
	}
	defer receiver.close()
	before, err := target.usage(ctx)
	if err != nil {
		return err
	}
	started := time.Now()
	if err := c.load(ctx, target, trips); err != nil {
		return err
	}
	sent := time.Since(started)
	trips.settle(ctx, 15*time.Second)
	undecided := trips.askForRest(ctx, target.send)
	after, err := target.usage(ctx)
	if err != nil {
		return err
	}
	f := trips.figures(started, sent)
	f.Lost, f.Durability = undecided, target.durability
	if decided := f.Accepted - undecided; decided > 0 {
		f.CPUMsPerTx = (after.cpu - before.cpu) * 1000 / float64(decided)
	}
	f.RSSMB = after.rss / (1 << 20)
	return c.print(f)
}

// source returns the next transaction to send, io.EOF at the end of a file.
func (c *BenchCmd) source() (func() (feed.Row, error), func() error, error) {
	run := "b" + strconv.FormatInt(time.Now().UnixMilli(), 36)
	if c.File == "" {
		made := feed.NewSynthetic(run, 1)
		return func() (feed.Row, error) { return made.Next(time.Now()), nil }, func() error { return nil }, nil
	}
	in, err := feed.Open(c.File, feed.Mapping{Columns: c.Map, Set: c.Set, Major: c.AmountUnit == "major",
		ID: func(id string) string { return run + "-" + id }})
	if err != nil {
		return nil, nil, usage(err)
	}
	return in.Next, in.Close, nil
}

// load sends each transaction when it is due; a late sender does not move the times that latencies count from.
func (c *BenchCmd) load(ctx context.Context, t *target, trips *trips) error {
	next, closeSource, err := c.source()
	if err != nil {
		return err
	}
	defer func() { _ = closeSource() }()
	var under sync.WaitGroup
	defer under.Wait()
	start, gap := time.Now(), float64(time.Second)/c.Rate
	for i := 0; ; i++ {
		due := start.Add(time.Duration(float64(i) * gap))
		if due.Sub(start) >= c.Duration {
			return nil
		}
		row, err := next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := pauseFor(ctx, time.Until(due)); err != nil {
			return err
		}
		under.Go(func() {
			trips.sent(row.ID, due)
			a, err := t.send.submit(ctx, row.Body, 0)
			trips.answered(row.ID, a, err, time.Now())
		})
	}
}

func (c *BenchCmd) print(f Figures) error {
	if c.JSON {
		line, err := json.Marshal(&f)
		if err == nil {
			fmt.Printf("%s\n", line)
		}
		return err
	}
	text, err := json.Marshal(&f, jsontext.WithIndent("  "))
	if err == nil {
		fmt.Fprintf(os.Stdout, "%s\n", text)
	}
	return err
}
