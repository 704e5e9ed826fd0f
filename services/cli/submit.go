package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
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
	"golang.org/x/time/rate"

	"crivo/pkg/stage"
	"crivo/pkg/txn"
	"crivo/services/config"
	"crivo/services/feed"
)

// SubmitCmd sends the transactions of files to an edge.
type SubmitCmd struct {
	Files      []string          `arg:"" name:"file" help:"NDJSON or CSV, plain or gzipped; - is stdin."`
	URL        string            `help:"Where the edge is." default:"http://127.0.0.1:8080"`
	Map        map[string]string `help:"Take a field from a column: --map payer.customer_id=customer (repeatable)." mapsep:"none" placeholder:"FIELD=COLUMN"`
	Set        map[string]string `help:"Give a field a constant: --set type=card (repeatable)." mapsep:"none" placeholder:"FIELD=VALUE"`
	AmountUnit string            `help:"Unit of amounts in the file: minor or major." enum:"minor,major" default:"minor"`
	Rate       float64           `help:"Transactions a second at most; 0 is as fast as accepted." default:"0"`
	Workers    int               `help:"Requests under way at once." default:"64"`
	Limit      int               `help:"Stop after this many rows of each file; 0 is all." default:"0"`
	Ordered    bool              `help:"One lane, in file order; ends at the first row that is not accepted in time."`
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

The key comes from CRIVO_API_KEY, else from ./crivo-data/api-key. What comes through a pipe goes in as stdin, with - as FILE.

A run that is cut short keeps its place in FILE.crivo-resume: the same command goes on there. A run that did all it was asked
to, --limit included, keeps none: the next one begins with row 1, so --limit 200 after --limit 100 sends 200 rows. Rows that
were accepted before are answered, never screened twice.

Exit status: 0 all accepted (with --wait: and decided), 1 some not, 2 wrongly called.`
}

// Check finds what is wrong before anything is sent.
func (c *SubmitCmd) Check() config.Faults {
	var f config.Faults
	checkURL(&f, c.URL)
	if c.Workers < 1 || c.Workers > maxWorkers {
		f.Add("workers", "%d: 1 to %d", c.Workers, maxWorkers)
	}
	if !(c.Rate >= 0 && c.Rate <= 1e6) {
		f.Add("rate", "%g: 0 to 1000000", c.Rate)
	}
	if c.Limit < 0 {
		f.Add("limit", "%d: 0 or more", c.Limit)
	}
	if c.Patience < 0 {
		f.Add("patience", "%s: zero or more", c.Patience)
	}
	checkMapping(&f, c.mapping())
	return f
}

// maxWorkers keeps the connections of one command below a usual limit of open files.
const maxWorkers = 512

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
	cmd  *SubmitCmd
	send *sender
	pace *rate.Limiter // nil: as fast as accepted
	stop context.CancelCauseFunc
	sum  Summary
	said atomic.Int64
	bar  *progressbar.ProgressBar

	undecided atomic.Int64 // accepted, but not decided as long as patience lasted
}

// Run sends every file. It exits 0 when all were accepted, 1 when some were not, 2 when the command was wrong.
func (c *SubmitCmd) Run(ctx context.Context) error {
	key, err := apiKey()
	if err != nil {
		return usage(err)
	}
	if err := c.readable(); err != nil {
		return usage(err)
	}
	if c.Ordered {
		c.Workers = 1
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	s := &submission{cmd: c, send: newSender(c.URL, key, c.Workers), pace: pace(c.Rate, time.Now()), stop: stop, bar: bar(c.JSON)}
	s.send.trouble = s.waiting()
	start := time.Now()
	for _, path := range c.Files {
		if err = s.file(ctx, path); err != nil {
			break
		}
	}
	_ = s.bar.Finish()
	s.sum.Seconds = time.Since(start).Seconds()
	if printErr := s.print(); err == nil {
		err = printErr
	}
	if err == nil {
		err = s.verdict()
	}
	return err
}

// readable opens every file once, so that a missing one, or one without a mapped column, is said before another is sent.
func (c *SubmitCmd) readable() error {
	var errs []error
	for _, path := range c.Files {
		if path != "-" {
			errs = append(errs, c.again(path))
		}
	}
	return errors.Join(errs...)
}

// again tells why a file cannot be read, and read again from its beginning: what was read of a pipe is gone.
func (c *SubmitCmd) again(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is no regular file; what comes through a pipe is read from stdin: use -", path)
	}
	in, err := feed.Open(path, c.mapping())
	if err != nil {
		return err
	}
	return in.Close()
}

var errSomeNot = errors.New("not all were accepted")

// verdict is nil when all were accepted and, if that was asked, decided.
func (s *submission) verdict() error {
	if s.sum.Refused+s.sum.Failed > 0 {
		return errSomeNot
	}
	if n := s.undecided.Load(); n > 0 {
		return fmt.Errorf("%d accepted ones are not decided yet", n)
	}
	return nil
}

func (c *SubmitCmd) mapping() feed.Mapping {
	return feed.Mapping{Columns: c.Map, Set: c.Set, Major: c.AmountUnit == "major"}
}

// pace allows perSecond transactions from now on. What a late wake-up missed is made up for within 50 ms, so that the rate is
// exact where timers are not.
func pace(perSecond float64, now time.Time) *rate.Limiter {
	if perSecond <= 0 {
		return nil
	}
	burst := max(1, int(perSecond/20))
	l := rate.NewLimiter(rate.Limit(perSecond), burst)
	l.AllowN(now, burst-1) // it begins with one, not with a burst
	return l
}

// bar is seen on a terminal only. It is drawn as rows are done, by no goroutine of its own.
func bar(quiet bool) *progressbar.ProgressBar {
	return progressbar.NewOptions64(-1, progressbar.OptionSetWriter(os.Stderr), progressbar.OptionShowIts(),
		progressbar.OptionShowCount(), progressbar.OptionSetItsString("tx"), progressbar.OptionThrottle(200*time.Millisecond),
		progressbar.OptionClearOnFinish(), progressbar.OptionSetSpinnerChangeInterval(0),
		progressbar.OptionSetVisibility(!quiet && term.IsTerminal(int(os.Stderr.Fd()))))
}

// file sends one file from its resume place on and keeps that place up to date.
func (s *submission) file(ctx context.Context, path string) error {
	in, err := feed.Open(path, s.cmd.mapping())
	if err != nil {
		return usage(err)
	}
	defer in.Close()
	of, err := s.fingerprint(path)
	if err != nil {
		return err
	}
	place, err := openPlace(path, of)
	if err != nil {
		return err
	}
	s.tell(place.said())
	rows := make(chan feed.Row)
	var lanes sync.WaitGroup
	var unsettled atomic.Bool
	for range s.cmd.Workers {
		lanes.Go(func() {
			for row := range rows {
				if ctx.Err() != nil { // handed out in the moment of the end
					unsettled.Store(true)
					continue
				}
				atomic.AddInt64(&s.sum.Read, 1)
				if s.one(ctx, row) {
					place.done(row.Number)
					continue
				}
				unsettled.Store(true)
				if s.cmd.Ordered {
					s.stop(errSomeNot) // what follows must not overtake it
				}
			}
		})
	}
	complete, err := s.read(ctx, in, place, rows)
	close(rows)
	lanes.Wait()
	if err != nil {
		err = fmt.Errorf("%s: %w", path, err)
	}
	complete = complete && !unsettled.Load()
	closeErr := place.close(complete)
	switch {
	case closeErr != nil:
		s.tell("the place in " + path + " could not be kept: " + closeErr.Error())
	case !complete:
		s.tell(place.kept())
	}
	return errors.Join(err, closeErr, context.Cause(ctx))
}

// fingerprint names what a row's fate depends on: the server, the key (its tenant), how the file begins and how its columns are mapped.
func (s *submission) fingerprint(path string) (string, error) {
	sum := sha256.New()
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return "", err
		}
		defer f.Close()
		if _, err := io.Copy(sum, io.LimitReader(f, 64<<10)); err != nil {
			return "", err
		}
	}
	mapping, err := json.Marshal([]any{s.cmd.Map, s.cmd.Set, s.cmd.AmountUnit}, json.Deterministic(true))
	if err != nil {
		return "", err
	}
	_, _ = sum.Write(mapping)
	_, _ = sum.Write([]byte(s.send.key))
	return s.send.url + " " + hex.EncodeToString(sum.Sum(nil)[:8]), nil
}

// read hands rows out; it tells whether it came to the end of what was asked for.
func (s *submission) read(ctx context.Context, in *feed.Reader, place *place, rows chan<- feed.Row) (bool, error) {
	limit := s.cmd.Limit
	if limit > 0 && limit < place.from {
		return false, nil // an earlier run that asked for more is not through
	}
	for last := 0; ; {
		row, err := in.Next()
		var bad *feed.RowError
		switch {
		case errors.Is(err, io.EOF) && last < place.from:
			return false, fmt.Errorf("has %d rows, and %s says that %d are sent; delete it to start over", last, place.path, place.from)
		case errors.Is(err, io.EOF):
			return true, nil
		case errors.As(err, &bad):
			row.Number = bad.Number
		case err != nil:
			return false, err
		}
		last = row.Number
		if limit > 0 && row.Number > limit {
			return true, nil
		}
		if row.Number <= place.from {
			continue
		}
		if bad != nil {
			atomic.AddInt64(&s.sum.Read, 1)
			s.refuse(bad.Number, bad.Err.Error())
			place.done(bad.Number)
			continue
		}
		if s.pace != nil && s.pace.Wait(ctx) != nil {
			return false, nil
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
	case a.elsewhere():
		atomic.AddInt64(&s.sum.Failed, 1)
		s.stop(fmt.Errorf("%s: %s", s.send.url, a.problem))
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
			s.undecided.Add(1)
			if ctx.Err() == nil {
				s.complain(row.Number, "accepted, but its decision is not known: "+err.Error())
			}
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
		if err := stage.Sleep(ctx, max(a.after, 100*time.Millisecond)); err != nil {
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

// waiting says the first request that got no answer, so that nobody wonders what is going on meanwhile.
func (s *submission) waiting() func(error) {
	var once sync.Once
	return func(err error) {
		once.Do(func() { s.tell(fmt.Sprintf("%v; trying each transaction for %s", err, s.cmd.Patience)) })
	}
}

func (s *submission) tell(line string) {
	if line != "" {
		fmt.Fprintln(os.Stderr, line)
	}
}

func (s *submission) print() error {
	if s.cmd.JSON {
		return printJSON(&s.sum)
	}
	fmt.Printf("read %d, accepted %d (of these %d sent before), refused %d, failed %d in %.1f s\n",
		s.sum.Read, s.sum.Accepted, s.sum.Replayed, s.sum.Refused, s.sum.Failed, s.sum.Seconds)
	if d := s.sum.Decided; s.cmd.Wait {
		fmt.Printf("decided: approve %d, review %d, decline %d\n", d.Approve, d.Review, d.Decline)
	}
	return nil
}
