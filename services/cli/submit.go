package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"crivo/pkg/txn"
	"crivo/services/feed"
)

// SubmitCmd sends the transactions of files to an edge.
type SubmitCmd struct {
	Files      []string          `arg:"" name:"file" help:"NDJSON or CSV, plain or gzipped; - is stdin."`
	URL        string            `help:"Where the edge is." default:"http://127.0.0.1:8080" env:"CRIVO_URL"`
	Map        map[string]string `help:"Take a field from a column: --map payer.customer_id=customer (repeatable)." mapsep:"none" placeholder:"FIELD=COLUMN"`
	Set        map[string]string `help:"Give a field a constant: --set type=card (repeatable)." mapsep:"none" placeholder:"FIELD=VALUE"`
	AmountUnit string            `help:"Unit of amounts in the file: minor or major." enum:"minor,major" default:"minor"`
	Rate       float64           `help:"Transactions a second at most; 0 is as fast as accepted." default:"0"`
	Workers    int               `help:"Requests under way at once." default:"64"`
	Limit      int               `help:"Stop after this many rows of each file; 0 is all." default:"0"`
	Ordered    bool              `help:"One lane, in file order."`
	Wait       bool              `help:"Wait until all are decided."`
	Patience   time.Duration     `help:"How long to go on trying one transaction that is not accepted." default:"2m"`
	JSON       bool              `help:"Print the summary as JSON." name:"json"`
}

// Help shows an example.
func (SubmitCmd) Help() string {
	return `Example:

  crivo submit transactions.csv.gz --map id=transaction_id --map created_at=tx_datetime \
    --map payer.customer_id=customer_id --map merchant.terminal_id=terminal_id --map amount=tx_amount \
    --amount-unit major --set type=card --set currency=BRL --wait

The key comes from CRIVO_API_KEY, else from ./crivo-data/api-key. The place in a file is kept in FILE.crivo-resume
until the file is done: the same command goes on where it was.`
}

// Summary is what a submit run came to.
type Summary struct {
	Read     int64 `json:"read"`
	Accepted int64 `json:"accepted"`
	Replayed int64 `json:"replayed"`
	Refused  int64 `json:"refused"`
	Failed   int64 `json:"failed"`
	Decided  struct {
		Approve int64 `json:"approve"`
		Review  int64 `json:"review"`
		Decline int64 `json:"decline"`
	} `json:"decided"`
	Seconds float64 `json:"seconds"`
}

// complaints is how many refused rows are explained on stderr; the summary counts them all.
const complaints = 10

type submission struct {
	cmd    *SubmitCmd
	send   *sender
	sum    Summary
	said   atomic.Int64
	bar    *progressbar.ProgressBar
	ticker <-chan time.Time
}

// Run sends every file. It exits 0 when all were accepted, 1 when some were not, 2 when the command was wrong.
func (c *SubmitCmd) Run(ctx context.Context) error {
	key, err := apiKey()
	if err != nil {
		return usage(err)
	}
	if err := c.check(); err != nil {
		return usage(err)
	}
	s := &submission{cmd: c, send: newSender(c.URL, key, c.Workers), bar: bar(c.JSON)}
	if c.Rate > 0 {
		t := time.NewTicker(time.Duration(float64(time.Second) / c.Rate))
		defer t.Stop()
		s.ticker = t.C
	}
	start := time.Now()
	for _, path := range c.Files {
		if err = s.file(ctx, path); err != nil {
			break
		}
	}
	_ = s.bar.Finish()
	s.sum.Seconds = time.Since(start).Seconds()
	if printErr := s.print(os.Stdout); err == nil {
		err = printErr
	}
	if err == nil && s.sum.Refused+s.sum.Failed > 0 {
		err = errSomeNot
	}
	return err
}

var errSomeNot = errors.New("not all were accepted")

func (c *SubmitCmd) check() error {
	var errs []error
	if c.Workers < 1 {
		errs = append(errs, errors.New("--workers: at least 1"))
	}
	if c.Rate < 0 || c.Rate > 1e6 {
		errs = append(errs, errors.New("--rate: 0 to 1000000"))
	}
	if c.Limit < 0 {
		errs = append(errs, errors.New("--limit: 0 or more"))
	}
	if c.Ordered {
		c.Workers = 1
	}
	return errors.Join(errs...)
}

func (c *SubmitCmd) mapping() feed.Mapping {
	return feed.Mapping{Columns: c.Map, Set: c.Set, Major: c.AmountUnit == "major"}
}

func bar(quiet bool) *progressbar.ProgressBar {
	if quiet || !term.IsTerminal(int(os.Stderr.Fd())) {
		return progressbar.DefaultSilent(-1)
	}
	return progressbar.NewOptions64(-1, progressbar.OptionSetWriter(os.Stderr), progressbar.OptionShowIts(),
		progressbar.OptionShowCount(), progressbar.OptionSetItsString("tx"), progressbar.OptionThrottle(200*time.Millisecond),
		progressbar.OptionClearOnFinish())
}

// file sends one file from its resume place on and keeps that place up to date.
func (s *submission) file(ctx context.Context, path string) error {
	in, err := feed.Open(path, s.cmd.mapping())
	if err != nil {
		return usage(err)
	}
	defer in.Close()
	place, err := openPlace(path)
	if err != nil {
		return err
	}
	rows := make(chan feed.Row)
	var lanes sync.WaitGroup
	var unsettled atomic.Bool
	for range s.cmd.Workers {
		lanes.Go(func() {
			for row := range rows {
				if s.one(ctx, row) {
					place.done(row.Number)
				} else {
					unsettled.Store(true)
				}
			}
		})
	}
	complete, err := s.read(ctx, in, place, rows)
	close(rows)
	lanes.Wait()
	return errors.Join(err, place.close(complete && !unsettled.Load()), ctx.Err())
}

// read hands rows out; it tells whether it came to the end of the file.
func (s *submission) read(ctx context.Context, in *feed.Reader, place *place, rows chan<- feed.Row) (bool, error) {
	for {
		row, err := in.Next()
		var bad *feed.RowError
		switch {
		case errors.Is(err, io.EOF):
			return true, nil
		case errors.As(err, &bad):
			row.Number = bad.Number
		case err != nil:
			return false, err
		}
		if s.cmd.Limit > 0 && row.Number > s.cmd.Limit {
			return true, nil
		}
		if row.Number <= place.from {
			continue
		}
		atomic.AddInt64(&s.sum.Read, 1)
		if bad != nil {
			s.refuse(bad.Number, bad.Err.Error())
			place.done(bad.Number)
			continue
		}
		if s.ticker != nil {
			select {
			case <-s.ticker:
			case <-ctx.Done():
				return false, nil
			}
		}
		select {
		case rows <- row:
		case <-ctx.Done():
			return false, nil
		}
	}
}

// one sends a row and counts what came of it; it tells whether the row is settled and need not be sent again.
func (s *submission) one(ctx context.Context, row feed.Row) bool {
	wait := 0
	if s.cmd.Wait {
		wait = 10
	}
	a, err := s.send.persistently(ctx, row.Body, wait, s.cmd.Patience)
	_ = s.bar.Add(1)
	switch {
	case err != nil:
		atomic.AddInt64(&s.sum.Failed, 1)
		if ctx.Err() == nil {
			s.complain(row.Number, err.Error())
		}
		return false
	case a.status >= 300:
		s.refuse(row.Number, a.problem.String())
		return true
	}
	atomic.AddInt64(&s.sum.Accepted, 1)
	if a.replayed {
		atomic.AddInt64(&s.sum.Replayed, 1)
	}
	if s.cmd.Wait && a.decision == "" {
		if a, err = s.await(ctx, row.ID); err != nil {
			s.complain(row.Number, "accepted, but its decision is not known: "+err.Error())
			return false
		}
	}
	s.count(a.decision)
	return true
}

// await asks until the transaction is decided.
func (s *submission) await(ctx context.Context, id string) (answer, error) {
	give := time.Now().Add(s.cmd.Patience)
	for {
		a, err := s.send.get(ctx, id, 10)
		if err == nil && a.decision != "" {
			return a, nil
		}
		if err == nil && a.final() && a.status >= 300 {
			return a, errors.New(a.problem.String())
		}
		if time.Now().After(give) {
			return a, errors.Join(errors.New("still undecided"), err)
		}
		if err := pauseFor(ctx, max(a.after, 100*time.Millisecond)); err != nil {
			return a, err
		}
	}
}

func (s *submission) count(decision string) {
	switch decision {
	case txn.Approve:
		atomic.AddInt64(&s.sum.Decided.Approve, 1)
	case txn.Review:
		atomic.AddInt64(&s.sum.Decided.Review, 1)
	case txn.Decline:
		atomic.AddInt64(&s.sum.Decided.Decline, 1)
	}
}

func (s *submission) refuse(row int, why string) {
	atomic.AddInt64(&s.sum.Refused, 1)
	s.complain(row, why)
}

func (s *submission) complain(row int, why string) {
	if n := s.said.Add(1); n <= complaints {
		fmt.Fprintf(os.Stderr, "row %d: %s\n", row, why)
	} else if n == complaints+1 {
		fmt.Fprintln(os.Stderr, "… and more; the summary counts them")
	}
}

func (s *submission) print(out io.Writer) error {
	if s.cmd.JSON {
		line, err := json.Marshal(&s.sum)
		if err == nil {
			fmt.Fprintf(out, "%s\n", line)
		}
		return err
	}
	fmt.Fprintf(out, "read %d, accepted %d (of these %d sent before), refused %d, failed %d in %.1f s\n",
		s.sum.Read, s.sum.Accepted, s.sum.Replayed, s.sum.Refused, s.sum.Failed, s.sum.Seconds)
	if d := s.sum.Decided; s.cmd.Wait {
		fmt.Fprintf(out, "decided: approve %d, review %d, decline %d\n", d.Approve, d.Review, d.Decline)
	}
	return nil
}
