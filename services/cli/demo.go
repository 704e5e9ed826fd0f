package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/term"

	"crivo/pkg/stage"
	"crivo/services/config"
	"crivo/services/feed"
)

// DemoCmd shows the whole system at work.
type DemoCmd struct {
	Rate     float64       `help:"Transactions a second." default:"40"`
	Duration time.Duration `help:"How long to send; 0 is until Ctrl-C." default:"0s"`
}

// Help shows an example.
func (DemoCmd) Help() string {
	return `Starts crivo up in a temporary folder on free ports, sends it made-up payments, receives and verifies its webhooks, and shows
what is decided as it happens; where the output is no terminal, as a line every few seconds. Nothing is left when it ends. To
decision: from acceptance, by the server's clock; to webhook: from the moment of sending to a verified signature. Example:

  crivo demo --rate 100`
}

// Check finds what is wrong before anything is started.
func (c *DemoCmd) Check() config.Faults {
	var f config.Faults
	if !(c.Rate > 0 && c.Rate <= 2000) {
		f.Add("rate", "%g: above 0, at most 2000", c.Rate)
	}
	if c.Duration < 0 {
		f.Add("duration", "%s: zero or more", c.Duration)
	}
	return f
}

const (
	demoConnections = 64
	redrawEvery     = 200 * time.Millisecond
	lineEvery       = 5 * time.Second
	demoPatience    = 5 * time.Second // for what is under way at the end
)

// Run shows until a person has seen enough; that is no failure.
func (c *DemoCmd) Run(ctx context.Context) error {
	fmt.Println("starting crivo …")
	target, err := child(ctx, "demo", "fsync", demoConnections)
	if err != nil {
		return err
	}
	defer target.stop()
	s := newShow(time.Now())
	receiver, err := openSink(ctx, "127.0.0.1:0", target, s.webhook)
	if err != nil {
		return err
	}
	defer receiver.close()
	sending, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	if c.Duration > 0 {
		enough := time.AfterFunc(c.Duration, func() { stop(nil) })
		defer enough.Stop()
	}
	hearing, hush := context.WithCancel(context.WithoutCancel(ctx))
	defer hush()
	var senders, side errgroup.Group
	side.Go(func() error { return s.listen(hearing, target.send) })
	senders.Go(func() error { return c.send(sending, target.send, s) })
	hints := tryLines(target.send.url, target.send.key, invocation(executable(), os.Args[0], exists), time.Now())
	s.present(sending, os.Stdout, hints)
	sent := senders.Wait() // only then all is known that is to be decided
	s.settle(context.WithoutCancel(ctx), demoPatience)
	hush()
	err = errors.Join(sent, side.Wait())
	fmt.Print(s.summary(time.Now()))
	return err
}

// send sends at the rate until ctx ends. A refusal is an answer: it is counted and not sent again.
func (c *DemoCmd) send(ctx context.Context, to *sender, s *show) error {
	made := feed.NewLively("demo"+strconv.FormatInt(time.Now().Unix()%100000, 10), uint64(time.Now().UnixNano()))
	limit := pace(c.Rate, time.Now())
	var under errgroup.Group
	under.SetLimit(demoConnections)
	defer func() { _ = under.Wait() }()
	for limit.Wait(ctx) == nil {
		now := time.Now()
		row := made.Next(now)
		s.sent(row.ID, now)
		under.Go(func() error {
			a, err := to.submit(context.WithoutCancel(ctx), row.Body, 0)
			s.answered(row.ID, err == nil && a.status < 300)
			return nil
		})
	}
	return nil
}

// listen hears decisions as any client does.
func (s *show) listen(ctx context.Context, from *sender) error {
	heard := func(data []byte) error {
		s.event(data)
		return nil
	}
	e := events{url: from.url, key: from.key, heard: heard, trouble: func(string) {}}
	return e.follow(ctx)
}

// settle waits until what was accepted is decided and told, as long as patience lasts.
func (s *show) settle(ctx context.Context, patience time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for !s.settled() && stage.Sleep(ctx, 20*time.Millisecond) == nil {
	}
}

// tryLines are what a person may type into another terminal meanwhile.
func tryLines(url, key, crivo string, now time.Time) []string {
	return []string{
		"Try it in another terminal:", "",
		"  export CRIVO_URL=" + url,
		"  export CRIVO_API_KEY=" + key,
		`  curl -s $CRIVO_URL/v1/transactions -H "Authorization: Bearer $CRIVO_API_KEY" \`,
		`    -H 'Content-Type: application/json' -H 'Prefer: wait=2' -d '{"id":"try-1",`,
		`    "type":"pix","amount":13725,"currency":"BRL","created_at":"` + now.UTC().Format(time.RFC3339) + `",`,
		`    "payer":{"document":"529.982.247-26"}}'`,
		`  curl -sN $CRIVO_URL/v1/events -H "Authorization: Bearer $CRIVO_API_KEY"`,
		"  " + crivo + " tail --decision review,decline", "",
	}
}

// present shows until ctx ends: a picture on a terminal, else lines.
func (s *show) present(ctx context.Context, out *os.File, hints []string) {
	fmt.Fprintln(out, strings.Join(hints, "\n"))
	if !term.IsTerminal(int(out.Fd())) {
		for stage.Sleep(ctx, lineEvery) == nil {
			fmt.Fprintln(out, s.line(time.Now()))
		}
		return
	}
	fmt.Fprint(out, "\x1b[?25l\x1b[?7l") // no cursor, no wrapped lines
	defer fmt.Fprint(out, "\x1b[?7h\x1b[?25h")
	paint := painter(out)
	for drawn := 0; ; {
		width, height, err := term.GetSize(int(out.Fd()))
		if err != nil || height < 8 {
			width, height = 80, 24
		}
		drawn = draw(out, s.picture(time.Now(), width, height, len(hints), paint), drawn)
		if stage.Sleep(ctx, redrawEvery) != nil {
			return
		}
	}
}

// draw puts a picture in the place of the last one, which had so many lines, in one write, so that it does not flicker.
func draw(out io.Writer, lines []string, last int) int {
	up := ""
	if last > 0 {
		up = fmt.Sprintf("\x1b[%dA", last)
	}
	fmt.Fprint(out, up+"\r"+strings.Join(lines, "\x1b[K\n")+"\x1b[K\n\x1b[J")
	return len(lines)
}
