package cli

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"crivo/services/config"
)

// EndpointsCmd manages where webhooks go.
type EndpointsCmd struct {
	Create EndpointsCreateCmd `cmd:"" help:"Register a receiver; prints its signing secret, once."`
	List   EndpointsListCmd   `cmd:"" help:"List the receivers."`
	Show   EndpointsShowCmd   `cmd:"" help:"Show one receiver."`
	Update EndpointsUpdateCmd `cmd:"" help:"Change a receiver."`
	Pause  EndpointsPauseCmd  `cmd:"" help:"Hold back what a receiver is owed."`
	Resume EndpointsResumeCmd `cmd:"" help:"Send to a receiver again, a disabled one too."`

	RotateSecret EndpointsRotateCmd `cmd:"" help:"Give a receiver a new signing secret; prints it, once."`
	Test         EndpointsTestCmd   `cmd:"" help:"Send a test event and tell whether it arrived."`
	Replay       EndpointsReplayCmd `cmd:"" help:"Send the webhooks of a time once more; show or cancel that."`
	Delete       EndpointsDeleteCmd `cmd:"" help:"Take a receiver away; what it is still owed is cancelled."`
}

// EndpointsCreateCmd registers a receiver.
type EndpointsCreateCmd struct {
	server
	Target      string            `arg:"" name:"receiver" help:"URL that webhooks are posted to."`
	Events      []string          `help:"Event types to send; all about transactions without it (repeatable)."`
	Description string            `help:"For people."`
	Payload     string            `help:"thin: the verdict in short; full: the whole public answer." enum:"thin,full" default:"thin"`
	Headers     map[string]string `help:"Headers to send along (repeatable); - as the value of one reads it from stdin, so that no list of processes shows it." name:"header" mapsep:"none" placeholder:"NAME=VALUE"`
}

// Help shows an example.
func (EndpointsCreateCmd) Help() string {
	return "Where no answer came one may have been made all the same: look at crivo endpoints list before you repeat this. Example:\n\n" +
		"  crivo endpoints create https://example.com/hook --payload full --header Authorization=- < credential"
}

// Check finds headers that cannot be read.
func (c *EndpointsCreateCmd) Check() config.Faults {
	f := c.server.Check()
	checkHeaders(&f, c.Headers)
	return f
}

// Run registers and prints.
func (c *EndpointsCreateCmd) Run(ctx context.Context) error {
	body := map[string]any{"url": c.Target, "payload": c.Payload}
	if len(c.Events) > 0 {
		body["events"] = c.Events
	}
	if c.Description != "" {
		body["description"] = c.Description
	}
	if len(c.Headers) > 0 {
		headers, err := spokenHeaders(c.Headers)
		if err != nil {
			return err
		}
		body["headers"] = headers
	}
	var made jsontext.Value
	if err := c.ask(ctx, http.MethodPost, "/v1/webhook-endpoints", body, &made); err != nil {
		return err
	}
	return c.print(made, func() error {
		var e struct{ ID, Secret string }
		if err := json.Unmarshal(made, &e, json.MatchCaseInsensitiveNames(true)); err != nil {
			return err
		}
		fmt.Printf("id      %s\nsecret  %s   (shown this once; receivers verify signatures with it)\n", e.ID, e.Secret)
		return nil
	})
}

// checkHeaders finds more than one header whose value stdin holds.
func checkHeaders(f *config.Faults, headers map[string]string) {
	n := 0
	for _, value := range headers {
		if value == "-" {
			n++
		}
	}
	if n > 1 {
		f.Add("header", "- reads all of stdin: for one of them only")
	}
}

// spokenHeaders returns headers with the value that stdin holds.
func spokenHeaders(headers map[string]string) (map[string]string, error) {
	out := make(map[string]string, len(headers))
	for name, value := range headers {
		var err error
		if out[name], err = spoken(value); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// EndpointsListCmd lists receivers.
type EndpointsListCmd struct{ server }

// Help shows an example.
func (EndpointsListCmd) Help() string { return "Example:\n\n  crivo endpoints list --json" }

// Run prints.
func (c *EndpointsListCmd) Run(ctx context.Context) error {
	return c.table(ctx, "/v1/webhook-endpoints", "id", "status", "payload", "url", "description")
}

// EndpointsDeleteCmd takes a receiver away.
type EndpointsDeleteCmd struct {
	server
	ID string `arg:"" help:"Of the endpoint."`
}

// Help shows an example.
func (EndpointsDeleteCmd) Help() string { return "Example:\n\n  crivo endpoints delete ep_…" }

// Run deletes.
func (c *EndpointsDeleteCmd) Run(ctx context.Context) error {
	return c.remove(ctx, "/v1/webhook-endpoints/", c.ID)
}

const endpointsPath = "/v1/webhook-endpoints/"

// oneEndpoint is one receiver of a running system.
type oneEndpoint struct {
	server
	ID string `arg:"" help:"Of the endpoint."`
}

func (c oneEndpoint) path() string { return endpointsPath + url.PathEscape(c.ID) }

// does asks something of the endpoint and prints chosen members of the answer.
func (c oneEndpoint) does(ctx context.Context, method, what string, in any, members ...string) error {
	var answer jsontext.Value
	if err := c.ask(ctx, method, c.path()+what, in, &answer); err != nil {
		return err
	}
	return c.members(answer, members...)
}

var endpointMembers = []string{"id", "status", "breaker", "url", "events", "payload", "description", "headers", "created_at"}

// EndpointsShowCmd shows a receiver.
type EndpointsShowCmd struct{ oneEndpoint }

// Help shows an example.
func (EndpointsShowCmd) Help() string { return "Example:\n\n  crivo endpoints show ep_…" }

// Run prints.
func (c *EndpointsShowCmd) Run(ctx context.Context) error {
	return c.does(ctx, http.MethodGet, "", nil, endpointMembers...)
}

// EndpointsUpdateCmd changes a receiver; what is not given stays.
type EndpointsUpdateCmd struct {
	oneEndpoint
	Target      *string           `help:"URL that webhooks are posted to." name:"receiver" placeholder:"URL"`
	Events      []string          `help:"Event types to send, instead of those before (repeatable)."`
	AllEvents   bool              `help:"Send every type of event about transactions."`
	Description *string           `help:"For people."`
	Payload     string            `help:"thin or full." enum:",thin,full" default:""`
	Headers     map[string]string `help:"Headers to send along, instead of those before (repeatable); - as the value of one reads it from stdin." name:"header" mapsep:"none" placeholder:"NAME=VALUE"`
	NoHeaders   bool              `help:"Send no headers along."`
}

// Help shows an example.
func (EndpointsUpdateCmd) Help() string {
	return "Example:\n\n  crivo endpoints update ep_… --receiver https://example.com/new --events transaction.decided"
}

// Check finds changes that contradict each other, and none at all.
func (c *EndpointsUpdateCmd) Check() config.Faults {
	f := c.server.Check()
	checkHeaders(&f, c.Headers)
	if len(c.Events) > 0 && c.AllEvents {
		f.Add("all-events", "not together with --events")
	}
	if len(c.Headers) > 0 && c.NoHeaders {
		f.Add("no-headers", "not together with --header")
	}
	if len(c.change()) == 0 {
		f.Add("receiver", "nothing to change: give --receiver, --events, --all-events, --description, --payload, --header or --no-headers")
	}
	return f
}

func (c *EndpointsUpdateCmd) change() map[string]any {
	out := map[string]any{}
	if c.Target != nil {
		out["url"] = *c.Target
	}
	if len(c.Events) > 0 || c.AllEvents {
		out["events"] = append([]string{}, c.Events...)
	}
	if c.Description != nil {
		out["description"] = *c.Description
	}
	if c.Payload != "" {
		out["payload"] = c.Payload
	}
	if len(c.Headers) > 0 || c.NoHeaders {
		out["headers"] = maps.Collect(maps.All(c.Headers))
	}
	return out
}

// Run changes and prints what stands.
func (c *EndpointsUpdateCmd) Run(ctx context.Context) error {
	headers, err := spokenHeaders(c.Headers)
	if err != nil {
		return err
	}
	c.Headers = headers
	return c.does(ctx, http.MethodPatch, "", c.change(), endpointMembers...)
}

// EndpointsPauseCmd holds deliveries back.
type EndpointsPauseCmd struct{ oneEndpoint }

// Help shows an example.
func (EndpointsPauseCmd) Help() string { return "Example:\n\n  crivo endpoints pause ep_…" }

// Run pauses.
func (c *EndpointsPauseCmd) Run(ctx context.Context) error {
	return c.does(ctx, http.MethodPatch, "", map[string]bool{"paused": true}, "id", "status", "url")
}

// EndpointsResumeCmd lets deliveries go on.
type EndpointsResumeCmd struct{ oneEndpoint }

// Help shows an example.
func (EndpointsResumeCmd) Help() string { return "Example:\n\n  crivo endpoints resume ep_…" }

// Run resumes.
func (c *EndpointsResumeCmd) Run(ctx context.Context) error {
	return c.does(ctx, http.MethodPatch, "", map[string]bool{"paused": false}, "id", "status", "url")
}

// EndpointsRotateCmd changes the signing secret.
type EndpointsRotateCmd struct {
	oneEndpoint
	Grace time.Duration `help:"How long the secrets before go on signing." default:"24h"`
}

// Help shows an example.
func (EndpointsRotateCmd) Help() string {
	return "Example:\n\n  crivo endpoints rotate-secret ep_… --grace 1h"
}

// Check finds a grace that cannot be.
func (c *EndpointsRotateCmd) Check() config.Faults {
	f := c.server.Check()
	if c.Grace < 0 || c.Grace%time.Second != 0 {
		f.Add("grace", "%s: whole seconds, zero or more", c.Grace)
	}
	return f
}

// Run rotates and prints.
func (c *EndpointsRotateCmd) Run(ctx context.Context) error {
	return c.does(ctx, http.MethodPost, "/rotate-secret", map[string]int{"grace_s": int(c.Grace / time.Second)}, "id", "secret")
}

// EndpointsTestCmd sends a test event.
type EndpointsTestCmd struct {
	oneEndpoint
	Wait time.Duration `help:"How long to wait for what becomes of it; 0 is not at all." default:"20s"`
}

// Help shows an example.
func (EndpointsTestCmd) Help() string {
	return "Exit status 1 where it did not arrive. Example:\n\n  crivo endpoints test ep_…"
}

// Run sends, waits and prints.
func (c *EndpointsTestCmd) Run(ctx context.Context) error {
	return c.sent(ctx, c.path()+"/test", 0, c.Wait)
}

// EndpointsReplayCmd sends the webhooks of a time once more.
type EndpointsReplayCmd struct {
	oneEndpoint
	From   string `help:"Deliveries made at this time or later." placeholder:"TIME"`
	To     string `help:"And before this time; now without it." placeholder:"TIME"`
	Only   string `help:"Those alone that stand so: pending, delivered, exhausted, skipped, cancelled." enum:",pending,delivered,exhausted,skipped,cancelled" default:"" placeholder:"STATUS"`
	Show   bool   `help:"Show how far the last one is."`
	Cancel bool   `help:"Cancel the one that is under way."`
}

// Help shows examples.
func (EndpointsReplayCmd) Help() string {
	return `Examples:

  crivo endpoints replay ep_… --from 2026-11-22T00:00:00Z --to 2026-11-23T00:00:00Z --only skipped
  crivo endpoints replay ep_… --show
  crivo endpoints replay ep_… --cancel`
}

// Check finds what is none of the three things that can be done.
func (c *EndpointsReplayCmd) Check() config.Faults {
	f := c.server.Check()
	checkTimes(&f, c.From, c.To)
	wish := c.From != "" || c.To != "" || c.Only != ""
	switch {
	case c.Show && c.Cancel, (c.Show || c.Cancel) && wish:
		f.Add("show", "give a time, or --show, or --cancel")
	case !c.Show && !c.Cancel && c.From == "":
		f.Add("from", "must be given")
	}
	return f
}

// Run starts, shows or cancels.
func (c *EndpointsReplayCmd) Run(ctx context.Context) error {
	method, body := http.MethodPost, map[string]string{"from": c.From}
	switch {
	case c.Show:
		method, body = http.MethodGet, nil
	case c.Cancel:
		method, body = http.MethodDelete, nil
	}
	for name, value := range map[string]string{"to": c.To, "only": c.Only} {
		if value != "" {
			body[name] = value
		}
	}
	var in any
	if body != nil {
		in = body
	}
	return c.does(ctx, method, "/replay", in, "id", "status", "from", "to", "only", "matched", "enqueued", "created_at", "ended_at")
}

// print writes the server's answer as it is, or text for a person.
func (s server) print(answer jsontext.Value, text func() error) error {
	if !s.JSON {
		return text()
	}
	if err := answer.Compact(); err != nil {
		return err
	}
	fmt.Printf("%s\n", answer)
	return nil
}

// page is which part of a list is asked for.
type page struct {
	Limit  int    `help:"How many at most, 1 to 500." default:"50"`
	Cursor string `help:"Where the list before ended." placeholder:"CURSOR"`
}

func (p page) check(f *config.Faults) {
	if p.Limit < 1 || p.Limit > 500 {
		f.Add("limit", "%d: 1 to 500", p.Limit)
	}
}

// of is a list's path with this page of what a filter selects; empty members of the filter select nothing.
func (p page) of(path string, filter map[string]string) string {
	query := url.Values{"limit": {strconv.Itoa(p.Limit)}}
	for name, value := range filter {
		if value != "" {
			query.Set(name, value)
		}
	}
	if p.Cursor != "" {
		query.Set("cursor", p.Cursor)
	}
	return path + "?" + query.Encode()
}

// table prints chosen members of what a list route returns, and how to see more.
func (s server) table(ctx context.Context, path string, columns ...string) error {
	var answer jsontext.Value
	if err := s.ask(ctx, http.MethodGet, path, nil, &answer); err != nil {
		return err
	}
	if err := s.columns(answer, columns...); err != nil {
		return err
	}
	return s.more(answer)
}

// columns prints chosen members of a list.
func (s server) columns(answer jsontext.Value, columns ...string) error {
	return s.print(answer, func() error {
		var list struct {
			Items []map[string]any `json:"items"`
		}
		if err := json.Unmarshal(answer, &list); err != nil {
			return err
		}
		out := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
		fmt.Fprintln(out, strings.ToUpper(strings.Join(columns, "\t")))
		for _, item := range list.Items {
			cells := make([]string, len(columns))
			for i, name := range columns {
				cells[i] = cell(item[name])
			}
			fmt.Fprintln(out, strings.Join(cells, "\t"))
		}
		return out.Flush()
	})
}

// more tells a person how to see the next page of a list.
func (s server) more(page jsontext.Value) error {
	var next struct {
		Cursor string `json:"next_cursor"`
	}
	if err := json.Unmarshal(page, &next); err != nil {
		return err
	}
	if next.Cursor != "" && !s.JSON {
		fmt.Printf("\nmore with --cursor %s\n", next.Cursor)
	}
	return nil
}

// members prints chosen members of one thing, a line each.
func (s server) members(answer jsontext.Value, names ...string) error {
	return s.print(answer, func() error {
		var members map[string]any
		if err := json.Unmarshal(answer, &members); err != nil {
			return err
		}
		out := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
		for _, name := range names {
			fmt.Fprintf(out, "%s\t%s\n", name, cell(members[name]))
		}
		return out.Flush()
	})
}

func cell(v any) string {
	switch v := v.(type) {
	case nil:
		return "-"
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64) // a count is no power of ten
	case []any:
		parts := make([]string, len(v))
		for i, p := range v {
			parts[i] = cell(p)
		}
		return strings.Join(parts, ",")
	case map[string]any:
		var parts []string
		for _, name := range slices.Sorted(maps.Keys(v)) {
			parts = append(parts, name+"="+cell(v[name]))
		}
		return strings.Join(parts, ", ")
	}
	return fmt.Sprint(v)
}

func (s server) remove(ctx context.Context, path, id string) error {
	if err := s.ask(ctx, http.MethodDelete, path+url.PathEscape(id), nil, nil); err != nil {
		return err
	}
	if s.JSON {
		return printJSON(map[string]string{"deleted": id})
	}
	fmt.Println("deleted", id)
	return nil
}
