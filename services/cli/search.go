package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"crivo/services/config"
)

const searchPath = "/v1/transactions/search"

// SearchCmd finds what was decided.
type SearchCmd struct {
	server
	CSV         bool   `help:"Everything that is found as CSV." name:"csv" xor:"form"`
	NDJSON      bool   `help:"Everything that is found, a JSON object in each line." name:"ndjson" xor:"form"`
	Document    string `help:"Of payer or payee, with or without punctuation; - reads it from stdin." placeholder:"DOCUMENT"`
	Account     string `help:"Of payer or payee, as it was submitted; - reads it from stdin." placeholder:"ISPB/BRANCH/NUMBER"`
	Decision    string `help:"approve, review or decline." placeholder:"DECISION"`
	Reason      string `help:"A code among the reasons." placeholder:"CODE"`
	Open        bool   `help:"Reviews that nobody has closed: the queue." xor:"disposition"`
	Disposition string `help:"Reviews that were closed as approved or declined." placeholder:"OUTCOME" xor:"disposition"`
	From        string `help:"Accepted at this time or later." placeholder:"TIME"`
	To          string `help:"Accepted before this time." placeholder:"TIME"`
	Oldest      bool   `help:"Oldest first."`
	Limit       int    `help:"How many at most: 50 without it and 500 at most, of --csv and --ndjson as many as there are." default:"0"`
	Cursor      string `help:"Where the page before ended." placeholder:"CURSOR"`
}

// Help shows examples.
func (SearchCmd) Help() string {
	return `What is personal goes into the request's body; from stdin no shell remembers it and no list of processes shows it. Examples:

  crivo search --open --oldest
  echo 529.982.247-25 | crivo search --document - --from 2026-11-01T00:00:00Z
  crivo search --decision decline --csv > declined.csv`
}

// Check finds conditions that cannot be; the server knows the rest.
func (c *SearchCmd) Check() config.Faults {
	f := c.server.Check()
	checkTimes(&f, c.From, c.To)
	if _, err := accountOf(c.Account); err != nil && c.Account != "" && c.Account != "-" {
		f.Add("account", "%v", err)
	}
	if c.Document == "-" && c.Account == "-" {
		f.Add("account", "only one of document and account can come from stdin")
	}
	if c.JSON && (c.CSV || c.NDJSON) {
		f.Add("json", "one form: --json, --csv or --ndjson")
	}
	if c.Limit < 0 {
		f.Add("limit", "%d: zero or more", c.Limit)
	}
	return f
}

// accountOf reads an account without ever telling it.
func accountOf(text string) (map[string]string, error) {
	parts := strings.SplitN(text, "/", 3)
	if len(parts) < 3 || parts[2] == "" {
		return nil, errors.New("an account is ISPB/BRANCH/NUMBER")
	}
	return map[string]string{"ispb": parts[0], "branch": parts[1], "number": parts[2]}, nil
}

// conditions is the body of the request.
func (c *SearchCmd) conditions() (map[string]any, error) {
	for _, value := range []*string{&c.Document, &c.Account} {
		if *value != "-" {
			continue
		}
		text, err := io.ReadAll(io.LimitReader(os.Stdin, 4096))
		if err != nil {
			return nil, fmt.Errorf("stdin: %w", err)
		}
		*value = strings.TrimSpace(string(text))
		if *value == "" {
			return nil, usage(errors.New("stdin is empty"))
		}
	}
	out := map[string]any{}
	for name, value := range map[string]string{"document": c.Document, "decision": c.Decision, "reason": c.Reason, "disposition": c.Disposition,
		"from": c.From, "to": c.To, "cursor": c.Cursor} {
		if value != "" {
			out[name] = value
		}
	}
	if c.Account != "" {
		account, err := accountOf(c.Account)
		if err != nil {
			return nil, usage(err)
		}
		out["account"] = account
	}
	if c.Open {
		out["disposition"] = "open"
	}
	if c.Oldest {
		out["order"] = "oldest"
	}
	if c.Limit > 0 {
		out["limit"] = c.Limit
	}
	return out, nil
}

// Run prints one page, or an export whole.
func (c *SearchCmd) Run(ctx context.Context) error {
	conditions, err := c.conditions()
	if err != nil {
		return err
	}
	switch {
	case c.CSV:
		return c.stream(ctx, searchPath, conditions, "text/csv", os.Stdout)
	case c.NDJSON:
		return c.stream(ctx, searchPath, conditions, "application/x-ndjson", os.Stdout)
	}
	var page jsontext.Value
	if err := c.ask(ctx, http.MethodPost, searchPath, conditions, &page); err != nil {
		return err
	}
	return c.print(page, func() error { return printFound(page) })
}

// printFound writes a page for a person.
func printFound(answer jsontext.Value) error {
	var page struct {
		Items []struct {
			ID          string `json:"id"`
			AcceptedAt  string `json:"accepted_at"`
			Decision    string `json:"decision"`
			Score       int    `json:"score"`
			Disposition string `json:"disposition"`
			Reasons     []struct {
				Code string `json:"code"`
			} `json:"reasons"`
			Transaction struct {
				Amount   int64  `json:"amount"`
				Currency string `json:"currency"`
			} `json:"transaction"`
		} `json:"items"`
		Next string `json:"next_cursor"`
	}
	if err := json.Unmarshal(answer, &page); err != nil {
		return err
	}
	out := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(out, "ID\tACCEPTED_AT\tDECISION\tSCORE\tAMOUNT\tCURRENCY\tDISPOSITION\tREASONS")
	for _, x := range page.Items {
		codes := make([]string, len(x.Reasons))
		for i, r := range x.Reasons {
			codes[i] = r.Code
		}
		if x.Disposition == "" {
			x.Disposition = "-"
		}
		fmt.Fprintf(out, "%s\t%s\t%s\t%d\t%d\t%s\t%s\t%s\n", x.ID, x.AcceptedAt, x.Decision, x.Score, x.Transaction.Amount, x.Transaction.Currency,
			x.Disposition, strings.Join(codes, ","))
	}
	if err := out.Flush(); err != nil {
		return err
	}
	if page.Next != "" {
		fmt.Printf("\nmore with --cursor %s\n", page.Next)
	}
	return nil
}

// stream prints an answer of any length as it comes.
func (s server) stream(ctx context.Context, path string, in any, accept string, out io.Writer) error {
	key, err := apiKey()
	if err != nil {
		return usage(err)
	}
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	return pour(ctx, direct, strings.TrimRight(s.URL, "/")+path, key, body, accept, out)
}
