package cli

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"crivo/services/config"
)

// ListsCmd manages the lists that transactions are checked against.
type ListsCmd struct {
	Add    ListsAddCmd    `cmd:"" help:"Put a value on a list; the same again gives its entry the new reason and end."`
	List   ListsListCmd   `cmd:"" help:"List a list's entries, which do not tell their values."`
	Remove ListsRemoveCmd `cmd:"" help:"Take an entry off a list."`
}

// onList is one list of a running system.
type onList struct {
	server
	List string `help:"Which list: block is the only one." default:"block"`
}

func (l onList) entries() string { return "/v1/lists/" + url.PathEscape(l.List) + "/entries" }

// ListsAddCmd puts a value on a list.
type ListsAddCmd struct {
	onList
	Kind      string        `arg:"" help:"document, document_root, account, pix_key, customer_id, device_id, card_token, ip, merchant_id or terminal_id."`
	Value     string        `help:"The value; - reads it from stdin, so that no shell remembers it and no list of processes shows it." required:""`
	Reason    string        `help:"For people; nothing personal."`
	ExpiresIn time.Duration `help:"How long it holds; 0 is until it is removed." default:"0"`
}

// Help shows an example.
func (ListsAddCmd) Help() string {
	return "Example:\n\n  echo 529.982.247-25 | crivo lists add document --value - --reason chargebacks --expires-in 720h"
}

// Check finds an end that is past.
func (c *ListsAddCmd) Check() config.Faults {
	f := c.server.Check()
	if c.ExpiresIn < 0 {
		f.Add("expires-in", "%s: zero or more", c.ExpiresIn)
	}
	return f
}

// Run adds and prints.
func (c *ListsAddCmd) Run(ctx context.Context) error {
	value, err := spoken(c.Value)
	if err != nil {
		return err
	}
	body := map[string]any{"kind": c.Kind, "value": value}
	if c.Reason != "" {
		body["reason"] = c.Reason
	}
	if c.ExpiresIn > 0 {
		body["expires_at"] = fromNow(c.ExpiresIn)
	}
	var made jsontext.Value
	if err := c.ask(ctx, http.MethodPost, c.entries(), body, &made); err != nil {
		return err
	}
	return c.print(made, func() error {
		var e struct {
			ID string `json:"id"`
		}
		if err := json.Unmarshal(made, &e); err != nil {
			return err
		}
		fmt.Println("id ", e.ID)
		return nil
	})
}

// spoken is a value, or what stdin holds where that is "-".
func spoken(value string) (string, error) {
	if value != "-" {
		return value, nil
	}
	text, err := io.ReadAll(io.LimitReader(os.Stdin, 4096))
	if err != nil {
		return "", fmt.Errorf("value: %w", err)
	}
	return strings.TrimRight(string(text), "\r\n"), nil
}

// ListsListCmd lists entries.
type ListsListCmd struct{ onList }

// Help shows an example.
func (ListsListCmd) Help() string { return "Example:\n\n  crivo lists list --json" }

// Run prints all pages as one.
func (c *ListsListCmd) Run(ctx context.Context) error {
	var all struct {
		Items []jsontext.Value `json:"items"`
	}
	for cursor := ""; ; {
		var page struct {
			Items []jsontext.Value `json:"items"`
			Next  string           `json:"next_cursor"`
		}
		if err := c.ask(ctx, http.MethodGet, c.entries()+"?limit=500&cursor="+url.QueryEscape(cursor), nil, &page); err != nil {
			return err
		}
		all.Items = append(all.Items, page.Items...)
		if cursor = page.Next; cursor == "" {
			break
		}
	}
	answer, err := json.Marshal(&all)
	if err != nil {
		return err
	}
	return c.columns(answer, "id", "kind", "reason", "added_by", "created_at", "expires_at")
}

// ListsRemoveCmd takes an entry off a list.
type ListsRemoveCmd struct {
	onList
	ID string `arg:"" help:"Of the entry."`
}

// Help shows an example.
func (ListsRemoveCmd) Help() string { return "Example:\n\n  crivo lists remove ent_…" }

// Run removes.
func (c *ListsRemoveCmd) Run(ctx context.Context) error { return c.remove(ctx, c.entries()+"/", c.ID) }
