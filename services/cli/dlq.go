package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"crivo/services/config"
)

const lettersPath = "/v1/dead-letters"

// DLQCmd looks after messages that were given up.
type DLQCmd struct {
	List    DLQListCmd    `cmd:"" help:"List dead letters, oldest first."`
	Show    DLQShowCmd    `cmd:"" help:"Show one letter."`
	Redrive DLQRedriveCmd `cmd:"" help:"Run undecided transactions again, announce decided ones where that is missing; the letters go."`
	Discard DLQDiscardCmd `cmd:"" help:"Take letters away; their transactions stay as they are."`
}

// letterFilter selects letters.
type letterFilter struct {
	Where map[string]string `help:"step=… and cause=…, separated by a comma." mapsep:"," placeholder:"step=STEP,cause=CAUSE"`
	From  string            `help:"Given up at this time or later." placeholder:"TIME"`
	To    string            `help:"Given up before this time." placeholder:"TIME"`
}

func (l *letterFilter) check(f *config.Faults) {
	for name := range l.Where {
		if name != "step" && name != "cause" {
			f.Add("where", "%q: only step and cause", name)
		}
	}
	checkTimes(f, l.From, l.To)
}

// checkTimes notes ends of a span that are no times; empty is none.
func checkTimes(f *config.Faults, from, to string) {
	for _, at := range []struct{ name, text string }{{"from", from}, {"to", to}} {
		if _, err := time.Parse(time.RFC3339, at.text); at.text != "" && err != nil {
			f.Add(at.name, "%q is no time such as 2026-11-22T23:05:11Z", at.text)
		}
	}
}

// wanted is what is asked for, as the API takes it.
func (l *letterFilter) wanted() map[string]string {
	out := map[string]string{}
	maps.Copy(out, l.Where)
	for name, at := range map[string]string{"from": l.From, "to": l.To} {
		if at != "" {
			out[name] = at
		}
	}
	return out
}

// letterChoice is which letters to act on: those named, or those that a filter matches.
type letterChoice struct {
	letterFilter
	IDs    []string `arg:"" optional:"" name:"id" help:"Of the letters."`
	All    bool     `help:"Every letter, where no filter is given."`
	DryRun bool     `help:"Only count what a filter matches."`
}

func (l *letterChoice) check(f *config.Faults) {
	l.letterFilter.check(f)
	filtered := len(l.wanted()) > 0
	switch {
	case len(l.IDs) > 0 && (filtered || l.All || l.DryRun):
		f.Add("id", "give ids, or a filter with --where, --from, --to or --all")
	case len(l.IDs) == 0 && filtered == l.All:
		f.Add("all", "which letters? give ids, a filter with --where, --from, --to, or --all")
	}
}

// DLQListCmd lists letters.
type DLQListCmd struct {
	server
	letterFilter
	page
}

// Help shows an example.
func (DLQListCmd) Help() string {
	return "Example:\n\n  crivo dlq list --where step=score,cause=panic --from 2026-11-22T00:00:00Z"
}

// Check finds filters that cannot be.
func (c *DLQListCmd) Check() config.Faults {
	f := c.server.Check()
	c.letterFilter.check(&f)
	c.page.check(&f)
	return f
}

// Run prints one page.
func (c *DLQListCmd) Run(ctx context.Context) error {
	return c.table(ctx, c.of(lettersPath, c.wanted()), "id", "step", "cause", "tenant", "transaction_id", "attempts", "last_at", "detail")
}

// DLQShowCmd shows a letter.
type DLQShowCmd struct {
	server
	ID string `arg:"" help:"Of the letter."`
}

// Help shows an example.
func (DLQShowCmd) Help() string { return "Example:\n\n  crivo dlq show dl_42" }

// Run prints.
func (c *DLQShowCmd) Run(ctx context.Context) error {
	var letter jsontext.Value
	if err := c.ask(ctx, http.MethodGet, lettersPath+"/"+url.PathEscape(c.ID), nil, &letter); err != nil {
		return err
	}
	return c.members(letter, "id", "step", "cause", "tenant", "transaction_id", "attempts", "first_at", "last_at", "detail", "stream", "subject", "message_id")
}

// DLQRedriveCmd redrives letters.
type DLQRedriveCmd struct {
	server
	letterChoice
}

// Help shows examples.
func (DLQRedriveCmd) Help() string {
	return `An undecided transaction runs again from the start; of a decided one only what its announcement missed is repeated. A letter
that does not tell whose it is stays, and can only be discarded: exit status 1. Many are redriven by the server, at a pace that
leaves room for new payments. Examples:

  crivo dlq redrive dl_42
  crivo dlq redrive --where step=score,cause=panic --dry-run`
}

// Check finds choices that cannot be.
func (c *DLQRedriveCmd) Check() config.Faults {
	f := c.server.Check()
	c.check(&f)
	return f
}

// Run redrives.
func (c *DLQRedriveCmd) Run(ctx context.Context) error {
	if len(c.IDs) > 0 {
		return c.each(ctx)
	}
	done, err := c.bulk(ctx, c.letterFilter, c.DryRun)
	if err != nil && done.Matched == 0 {
		return err
	}
	if c.JSON {
		err = errors.Join(err, printJSON(done))
	} else if c.DryRun {
		fmt.Println("matched", done.Matched)
	} else {
		fmt.Printf("matched %d, redriven %d: %d run again, %d announced, %d had their decision\n", done.Matched, done.Redriven,
			done.Outcomes["rerun"], done.Outcomes["announced"], done.Outcomes["already_decided"])
	}
	if left := done.Matched - done.Redriven; left > 0 && !c.DryRun && err == nil {
		err = fmt.Errorf("%d cannot be redriven, only discarded", left)
	}
	return err
}

// each redrives the letters that were named, and tells of every one.
func (c *DLQRedriveCmd) each(ctx context.Context) error {
	var failed []error
	items := []map[string]string{}
	for _, id := range c.IDs {
		var out map[string]string
		if err := c.ask(ctx, http.MethodPost, lettersPath+"/"+url.PathEscape(id)+"/redrive", nil, &out); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", id, err))
			continue
		}
		if items = append(items, out); !c.JSON {
			fmt.Println(id, out["transaction_id"], out["outcome"])
		}
	}
	if c.JSON {
		failed = append(failed, printJSON(map[string]any{"items": items}))
	}
	return errors.Join(failed...)
}

// redriven is what a bulk redrive came to.
type redriven struct {
	Matched  int            `json:"matched"`
	Redriven int            `json:"redriven"`
	Outcomes map[string]int `json:"outcomes"`
}

// bulk has the server redrive or count what a filter matches, one bounded request after the other.
func (s server) bulk(ctx context.Context, filter letterFilter, dry bool) (redriven, error) {
	done := redriven{Outcomes: map[string]int{}}
	for cursor := ""; ; {
		var part struct {
			redriven
			Next string `json:"next_cursor"`
		}
		body := map[string]any{"where": filter.wanted(), "dry_run": dry, "cursor": cursor}
		if err := s.ask(ctx, http.MethodPost, lettersPath+"/redrive", body, &part); err != nil {
			return done, err
		}
		done.Matched, done.Redriven = done.Matched+part.Matched, done.Redriven+part.Redriven
		for outcome, n := range part.Outcomes {
			done.Outcomes[outcome] += n
		}
		if cursor = part.Next; cursor == "" {
			return done, nil
		}
	}
}

// DLQDiscardCmd takes letters away.
type DLQDiscardCmd struct {
	server
	letterChoice
}

// Help shows examples.
func (DLQDiscardCmd) Help() string {
	return "Examples:\n\n  crivo dlq discard dl_42\n  crivo dlq discard --where cause=decode --to 2026-11-22T00:00:00Z"
}

// Check finds choices that cannot be.
func (c *DLQDiscardCmd) Check() config.Faults {
	f := c.server.Check()
	c.check(&f)
	return f
}

// Run discards. By a filter it takes as many as there were when it began: later ones are news.
func (c *DLQDiscardCmd) Run(ctx context.Context) error {
	matched := len(c.IDs)
	if matched == 0 {
		counted, err := c.bulk(ctx, c.letterFilter, true)
		if err != nil {
			return err
		}
		matched = counted.Matched
	}
	discarded, failed := 0, error(nil)
	switch {
	case len(c.IDs) > 0:
		discarded, failed = c.drop(ctx, c.IDs)
	case !c.DryRun:
		discarded, failed = c.sweep(ctx, matched)
	}
	if c.JSON {
		return errors.Join(failed, printJSON(map[string]int{"matched": matched, "discarded": discarded}))
	}
	fmt.Printf("matched %d, discarded %d\n", matched, discarded)
	return failed
}

// sweep discards up to most letters page by page.
func (c *DLQDiscardCmd) sweep(ctx context.Context, most int) (discarded int, err error) {
	for cursor := ""; discarded < most; {
		var letters struct {
			Items []struct {
				ID string `json:"id"`
			} `json:"items"`
			Next string `json:"next_cursor"`
		}
		if err := c.ask(ctx, http.MethodGet, page{min(500, most-discarded), cursor}.of(lettersPath, c.wanted()), nil, &letters); err != nil {
			return discarded, err
		}
		var ids []string
		for _, item := range letters.Items {
			ids = append(ids, item.ID)
		}
		n, err := c.drop(ctx, ids)
		if discarded += n; err != nil {
			return discarded, err
		}
		if cursor = letters.Next; cursor == "" {
			break
		}
	}
	return discarded, nil
}

// drop discards letters by id, all that can be.
func (c *DLQDiscardCmd) drop(ctx context.Context, ids []string) (discarded int, err error) {
	for _, id := range ids {
		if failed := c.ask(ctx, http.MethodDelete, lettersPath+"/"+url.PathEscape(id), nil, nil); failed != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", id, failed))
			continue
		}
		discarded++
	}
	return discarded, err
}
