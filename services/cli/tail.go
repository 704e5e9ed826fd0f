package cli

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"golang.org/x/term"

	"crivo/pkg/txn"
	"crivo/services/config"
)

// TailCmd prints decisions as they are made.
type TailCmd struct {
	server
	Decision []string `help:"Only these: approve, review, decline." placeholder:"DECISION"`
	Since    string   `help:"Go on after this id, which an earlier run named at its end." placeholder:"ID"`
}

// Help shows an example.
func (TailCmd) Help() string {
	return `One line a decision until Ctrl-C: when, what, score, transaction, how long it took, reasons. A lost connection is made again
and goes on where it was. --json prints each decision as the API answers it when it has been made; how a review is closed later
is not in it. Examples:

  crivo tail --decision review,decline
  crivo tail --json | jq -r .id`
}

// Check finds decisions that are none.
func (c *TailCmd) Check() config.Faults {
	f := c.server.Check()
	for _, d := range c.Decision {
		if !slices.Contains([]string{txn.Approve, txn.Review, txn.Decline}, d) {
			f.Add("decision", "%q: approve, review or decline", d)
		}
	}
	return f
}

// Run follows and prints; the end that a person makes is no failure.
func (c *TailCmd) Run(ctx context.Context) error {
	key, err := apiKey()
	if err != nil {
		return usage(err)
	}
	paint := painter(os.Stdout)
	e := events{url: strings.TrimRight(c.URL, "/"), key: key, last: c.Since, trouble: func(why string) { fmt.Fprintln(os.Stderr, why) },
		heard: func(data []byte) error { return c.show(data, paint) }}
	err = e.follow(ctx)
	if e.last != "" {
		fmt.Fprintln(os.Stderr, "go on from here with --since", e.last)
	}
	return err
}

// show prints a decision that is wanted.
func (c *TailCmd) show(data []byte, paint func(decision, text string) string) error {
	var d txn.Decision
	if err := json.Unmarshal(data, &d); err != nil {
		return fmt.Errorf("an event that is no decision: %w", err)
	}
	if len(c.Decision) > 0 && !slices.Contains(c.Decision, d.Verdict.Decision) {
		return nil
	}
	text := string(data)
	if !c.JSON {
		text = decisionLine(d, paint)
	}
	_, err := fmt.Println(text)
	return err
}

// decisionLine is a decision on one line, without its end.
func decisionLine(d txn.Decision, paint func(decision, text string) string) string {
	var reasons []string
	for _, r := range d.Reasons {
		reasons = append(reasons, r.Code+" ("+r.Text+")")
	}
	line := fmt.Sprintf("%s  %s  %3d  %-24s  %4d ms  %s", d.DecidedAt.Local().Format("15:04:05.000"),
		paint(d.Verdict.Decision, fmt.Sprintf("%-7s", d.Verdict.Decision)), d.Score, d.ID, d.LatencyMS, strings.Join(reasons, ", "))
	if d.Late {
		line += "  late"
	}
	if len(d.Degraded) > 0 {
		line += "  without " + strings.Join(d.Degraded, ", ")
	}
	return strings.TrimRight(line, " ")
}

// painter colours words of a decision where out is a terminal that should (no-color.org).
func painter(out *os.File) func(decision, text string) string {
	if !term.IsTerminal(int(out.Fd())) || os.Getenv("NO_COLOR") != "" {
		return func(_, text string) string { return text }
	}
	return painted
}

func painted(decision, text string) string {
	colour := map[string]string{txn.Approve: "32", txn.Review: "33", txn.Decline: "31"}[decision]
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}
