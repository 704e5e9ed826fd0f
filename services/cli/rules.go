package cli

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// RulesCmd shows what decisions were and are made by.
type RulesCmd struct {
	List RulesListCmd `cmd:"" help:"List every version of every rule set."`
	Show RulesShowCmd `cmd:"" help:"Print one version's file."`
}

// RulesListCmd lists versions.
type RulesListCmd struct{ server }

// Help shows an example.
func (RulesListCmd) Help() string { return "Example:\n\n  crivo rules list" }

// Run prints.
func (c *RulesListCmd) Run(ctx context.Context) error {
	return c.table(ctx, "/v1/rule-sets", "name", "version", "digest", "created_at")
}

// RulesShowCmd prints one version.
type RulesShowCmd struct {
	server
	Name    string `arg:"" help:"Of the rule set."`
	Version int    `arg:"" help:"Its version."`
}

// Help shows an example.
func (RulesShowCmd) Help() string { return "Example:\n\n  crivo rules show default 1 > default-1.yaml" }

// Run prints the file as it is.
func (c *RulesShowCmd) Run(ctx context.Context) error {
	var answer jsontext.Value
	if err := c.ask(ctx, http.MethodGet, "/v1/rule-sets/"+url.PathEscape(c.Name)+"/"+strconv.Itoa(c.Version), nil, &answer); err != nil {
		return err
	}
	return c.print(answer, func() error {
		var set struct {
			Source string `json:"source"`
		}
		if err := json.Unmarshal(answer, &set); err != nil {
			return err
		}
		fmt.Print(set.Source)
		return nil
	})
}
