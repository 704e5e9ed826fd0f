package cli

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// EndpointsCmd manages where webhooks go.
type EndpointsCmd struct {
	Create EndpointsCreateCmd `cmd:"" help:"Register a receiver; prints its signing secret, once."`
	List   EndpointsListCmd   `cmd:"" help:"List the receivers."`
	Delete EndpointsDeleteCmd `cmd:"" help:"Take a receiver away; what it is still owed is cancelled."`
}

// EndpointsCreateCmd registers a receiver.
type EndpointsCreateCmd struct {
	server
	Target      string            `arg:"" name:"receiver" help:"URL that webhooks are posted to."`
	Events      []string          `help:"Event types to send; all without it (repeatable)."`
	Description string            `help:"For people."`
	Payload     string            `help:"thin: the verdict in short; full: the whole public answer." enum:"thin,full" default:"thin"`
	Headers     map[string]string `help:"Headers to send along (repeatable)." name:"header" mapsep:"none" placeholder:"NAME=VALUE"`
}

// Help shows an example.
func (EndpointsCreateCmd) Help() string {
	return "Example:\n\n  crivo endpoints create https://example.com/hook --payload full"
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
		body["headers"] = c.Headers
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

// table prints chosen members of what a list route returns.
func (s server) table(ctx context.Context, path string, columns ...string) error {
	var answer jsontext.Value
	if err := s.ask(ctx, http.MethodGet, path, nil, &answer); err != nil {
		return err
	}
	return s.printItems(answer, columns...)
}

// printItems prints chosen members of a list.
func (s server) printItems(answer jsontext.Value, columns ...string) error {
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

func cell(v any) string {
	switch v := v.(type) {
	case nil:
		return "-"
	case []any:
		parts := make([]string, len(v))
		for i, p := range v {
			parts[i] = cell(p)
		}
		return strings.Join(parts, ",")
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
