package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/sync/errgroup"

	"crivo/pkg/stage"
	"crivo/services/config"
	"crivo/services/feed"
)

// BenchCmd measures a system under open-loop load: requests are sent when they are due, whatever became of the earlier ones.
type BenchCmd struct {
	URL         string            `help:"The edge to load; without it a fresh crivo up is started in a temporary folder."`
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

Latencies are milliseconds from the moment a request was due, so a server that stalls cannot hide it, and count accepted
transactions only. accept: the 2xx answer; decide: accept plus the server's own accepted-to-decided time, or the webhook where
that came sooner; deliver: the verified webhook at the bench's receiver; accept_to_deliver: that webhook, counted from the 2xx
answer (0 where it came sooner). delivered_per_s: webhooks a second, until the last one. within_2s: the share of accepted ones decided within
2 s of acceptance. refused: answered, but not 2xx; failed: not answered; lost: accepted and not decided. CPU and memory are the
server's; of one that runs already they need --ops, and are 0 without.`
}

// Check finds what is wrong before anything is started.
func (c *BenchCmd) Check() config.Faults {
	var f config.Faults
	if c.URL != "" {
		checkURL(&f, c.URL)
	}
	if c.Ops != "" && !strings.Contains(c.Ops, "://") {
		c.Ops = "http://" + c.Ops // as up takes it
	}
	if c.Ops != "" {
		checkAddress(&f, "ops", c.Ops)
	}
	if !(c.Rate > 0 && c.Rate <= 1e5) {
		f.Add("rate", "%g: above 0, at most 100000", c.Rate)
	}
	if c.Duration <= 0 {
		f.Add("duration", "%s: above zero", c.Duration)
	}
	if c.Connections < 1 {
		f.Add("connections", "%d: at least 1", c.Connections)
	}
	checkMapping(&f, c.mapping())
	return f
}

func (c *BenchCmd) mapping() feed.Mapping {
	return feed.Mapping{Columns: c.Map, Set: c.Set, Major: c.AmountUnit == "major"}
}

// Percentiles are milliseconds.
type Percentiles struct {
	P50  float64 `json:"p50"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p999"`
}

// Figures are what a bench run measured. Within2s is the share of accepted transactions decided within 2 s of acceptance.
type Figures struct {
	OfferedPerS   float64     `json:"offered_per_s"`
	DecidedPerS   float64     `json:"decided_per_s"`
	DeliveredPerS float64     `json:"delivered_per_s"`
	Accept        Percentiles `json:"accept_ms"`
	Decide        Percentiles `json:"decide_ms"`
	Deliver       Percentiles `json:"deliver_ms"`
	Notify        Percentiles `json:"accept_to_deliver_ms"`
	Within2s      float64     `json:"within_2s"`
	Accepted      int         `json:"accepted"`
	Lost          int         `json:"lost"`
	Undelivered   int         `json:"undelivered"`
	Double        int         `json:"double"`
	Repeated      int         `json:"repeated"`
	Refused       int         `json:"refused"`
	Failed        int         `json:"failed"`
	CPUMsPerTx    float64     `json:"cpu_ms_per_tx"`
	RSSMB         float64     `json:"rss_mb"`
	Durability    string      `json:"durability"`
}

// patience is how long the bench waits for webhooks that do not come, and for answers about what did not come.
const patience = 15 * time.Second

// Run measures and prints.
func (c *BenchCmd) Run(ctx context.Context) error {
	next, closeSource, err := c.source()
	if err != nil {
		return err
	}
	defer func() { _ = closeSource() }()
	target, err := c.target(ctx)
	if err != nil {
		return err
	}
	defer target.stop()
	trips := newTrips()
	receiver, err := openSink(ctx, c.Sink, target, trips.webhook)
	if err != nil {
		return err
	}
	defer receiver.close()
	before, err := target.usage(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	sending, err := c.load(ctx, target, trips, next)
	if err != nil {
		return err
	}
	trips.settle(ctx, patience)
	lost := trips.askForRest(ctx, target.send, patience)
	after, err := target.usage(ctx)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	f := trips.figures(began, sending)
	f.Lost, f.Durability = lost, target.durability
	if decided := f.Accepted - lost; decided > 0 {
		f.CPUMsPerTx = math.Round((after.cpu-before.cpu)*1e6/float64(decided)) / 1000
	}
	f.RSSMB = math.Round(10*after.rss/(1<<20)) / 10
	return c.print(f)
}

// source returns the next transaction to send, io.EOF at the end of a file.
func (c *BenchCmd) source() (func() (feed.Row, error), func() error, error) {
	run := "b" + strconv.FormatInt(time.Now().UnixMilli(), 36)
	if c.File == "" {
		made := feed.NewSynthetic(run, 1)
		return func() (feed.Row, error) { return made.Next(time.Now()), nil }, func() error { return nil }, nil
	}
	mapping := c.mapping()
	mapping.ID = func(id string) string { return run + "-" + id }
	in, err := feed.Open(c.File, mapping)
	if err != nil {
		return nil, nil, usage(err)
	}
	return in.Next, in.Close, nil
}

// maxUnderWay bounds what a server that does not answer piles up here, a goroutine and a body each. Beyond it sending stalls;
// the due times stand, so that the figures show it.
const maxUnderWay = 10_000

// load sends each transaction when it is due, whatever became of the earlier ones, and waits for the answers. It returns how
// long it was sending.
func (c *BenchCmd) load(ctx context.Context, t *target, trips *trips, next func() (feed.Row, error)) (time.Duration, error) {
	var under errgroup.Group
	under.SetLimit(maxUnderWay)
	defer func() { _ = under.Wait() }()
	start, gap := time.Now(), float64(time.Second)/c.Rate
	n := 0
	for due := start; due.Sub(start) < c.Duration; due = start.Add(time.Duration(float64(n) * gap)) {
		row, err := next()
		var bad *feed.RowError
		switch {
		case errors.Is(err, io.EOF) && n > 0:
			return max(time.Since(start), due.Sub(start)), nil
		case errors.As(err, &bad):
			continue // no transaction, so nothing to measure
		case err != nil:
			return 0, fmt.Errorf("transactions to send: %w", err)
		}
		if err := stage.Sleep(ctx, time.Until(due)); err != nil {
			return 0, err
		}
		if !trips.sent(row.ID, due) {
			continue
		}
		n++
		under.Go(func() error {
			a, err := t.send.submit(ctx, row.Body, 0)
			trips.answered(row.ID, a, err, time.Now())
			return nil
		})
	}
	return max(time.Since(start), c.Duration), nil
}

func (c *BenchCmd) print(f Figures) error {
	if c.JSON {
		return printJSON(&f)
	}
	text, err := json.Marshal(&f, jsontext.WithIndent("  "))
	if err == nil {
		fmt.Printf("%s\n", text)
	}
	return err
}
