package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"crivo/pkg/seal"
	"crivo/services/broker"
	"crivo/services/config"
)

// KeysCmd manages API keys.
type KeysCmd struct {
	Create KeysCreateCmd `cmd:"" help:"Make a key; prints it, once."`
	List   KeysListCmd   `cmd:"" help:"List the keys, without their secrets."`
	Delete KeysDeleteCmd `cmd:"" help:"Withdraw a key, everywhere within a second."`

	Services KeysServicesCmd `cmd:"" help:"Make the secrets that separate services and their NATS servers need."`
}

// KeysCreateCmd makes a key.
type KeysCreateCmd struct {
	server
	Tenant    string        `help:"Whose key; without it the tenant of the key that asks."`
	Roles     []string      `help:"submit, read, admin, operator; submit,read without it."`
	Rate      float64       `help:"Requests a second at most, on each edge; 0 is no limit." default:"0"`
	ExpiresIn time.Duration `help:"How long it is good for; 0 is for ever." default:"0"`
	NATS      bool          `help:"A credential for NATS instead: it may request the tenant's intake and nothing else." name:"nats" typed:""`
	Out       string        `help:"File for that; TENANT.creds without it." placeholder:"FILE"`
	Dir       string        `help:"Folder of a NATS cluster's secrets, made by crivo keys services; without it the server is asked, which is right for crivo up." placeholder:"DIR"`
}

// Help shows examples.
func (KeysCreateCmd) Help() string {
	return `Where no answer came one may have been made all the same: look at crivo keys list before you repeat this. Examples:

  crivo keys create --roles submit --rate 100 --expires-in 720h
  crivo keys create --nats --tenant acme
  crivo keys create --nats --tenant acme --dir ./secrets`
}

// Check finds limits that would be none.
func (c *KeysCreateCmd) Check() config.Faults {
	f := c.server.Check()
	if c.Rate < 0 {
		f.Add("rate", "%g: 0 or more", c.Rate)
	}
	if c.ExpiresIn < 0 {
		f.Add("expires-in", "%s: zero or more", c.ExpiresIn)
	}
	switch {
	case !c.NATS && (c.Out != "" || c.Dir != ""):
		f.Add("nats", "--out and --dir go with it")
	case c.NATS && c.Rate != 0:
		f.Add("rate", "a credential for NATS has none")
	case c.NATS && c.Roles != nil:
		f.Add("roles", "a credential for NATS has none")
	case c.NATS && !goodTenant.MatchString(c.Tenant):
		f.Add("tenant", "%q: 1 to 32 of a-z 0-9 -, whose intake the credential is for", c.Tenant)
	}
	return f
}

var goodTenant = regexp.MustCompile(`^[a-z0-9-]{1,32}$`)

// natsKey is a credential that was made.
type natsKey struct {
	ID    string `json:"id"`
	Creds string `json:"creds,omitzero"`
	File  string `json:"file"`
}

// nats makes a credential, keeps it in a file of its own and prints where. A file that is there is somebody's.
func (c *KeysCreateCmd) nats(ctx context.Context) error {
	made := natsKey{File: c.Out}
	if made.File == "" {
		made.File = c.Tenant + ".creds"
	}
	file, err := os.OpenFile(made.File, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err = c.makeNATS(ctx, &made); err == nil {
		_, err = file.WriteString(made.Creds)
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return errors.Join(err, os.Remove(made.File))
	}
	made.Creds = "" // it is in the file
	if c.JSON {
		return printJSON(made)
	}
	fmt.Printf("id    %s\nfile  %s\n", made.ID, made.File)
	if c.Dir != "" {
		// A container holds the file as it was when it started.
		fmt.Printf("\nHave the NATS servers read %s again: nats-server --signal reload, or with compose.yaml one after the other:\n"+
			"docker compose restart nats\n", filepath.Join(c.Dir, broker.AuthFile))
	}
	return nil
}

func (c *KeysCreateCmd) makeNATS(ctx context.Context, made *natsKey) error {
	if c.Dir == "" {
		body := map[string]any{"tenant": c.Tenant, "nats": true}
		if c.ExpiresIn > 0 {
			body["expires_at"] = fromNow(c.ExpiresIn)
		}
		return c.ask(ctx, http.MethodPost, "/v1/keys", body, made)
	}
	var until time.Time
	if c.ExpiresIn > 0 {
		until = time.Now().Add(c.ExpiresIn)
	}
	id, creds, err := broker.ClusterTenant(c.Dir, c.Tenant, until)
	made.ID, made.Creds = id, string(creds)
	return err
}

// Run makes and prints.
func (c *KeysCreateCmd) Run(ctx context.Context) error {
	if c.NATS {
		return c.nats(ctx)
	}
	body := map[string]any{"roles": c.Roles}
	if c.Roles == nil {
		body["roles"] = []string{"submit", "read"}
	}
	if c.Tenant != "" {
		body["tenant"] = c.Tenant
	}
	if c.Rate > 0 {
		body["rate"] = c.Rate
	}
	if c.ExpiresIn > 0 {
		body["expires_at"] = fromNow(c.ExpiresIn)
	}
	var made jsontext.Value
	if err := c.ask(ctx, http.MethodPost, "/v1/keys", body, &made); err != nil {
		return err
	}
	return c.print(made, func() error {
		var k struct{ ID, Key string }
		if err := json.Unmarshal(made, &k, json.MatchCaseInsensitiveNames(true)); err != nil {
			return err
		}
		fmt.Printf("id   %s\nkey  %s   (shown this once)\n", k.ID, k.Key)
		return nil
	})
}

// fromNow is the instant after d as the API reads it.
func fromNow(d time.Duration) string {
	return time.Now().Add(d).UTC().Format("2006-01-02T15:04:05.000Z")
}

// KeysListCmd lists keys.
type KeysListCmd struct{ server }

// Help shows an example.
func (KeysListCmd) Help() string { return "Example:\n\n  crivo keys list --json" }

// Run prints.
func (c *KeysListCmd) Run(ctx context.Context) error {
	return c.table(ctx, "/v1/keys", "id", "tenant", "roles", "rate", "created_at", "expires_at")
}

// KeysDeleteCmd withdraws a key.
type KeysDeleteCmd struct {
	server
	ID string `arg:"" help:"Of the key."`
}

// Help shows an example.
func (KeysDeleteCmd) Help() string {
	return `key_bootstrap is the key that the edge was given (CRIVO_API_KEY, or the file api-key): to withdraw it give the edge another one and
restart it. Example:

  crivo keys delete key_…`
}

// Run deletes.
func (c *KeysDeleteCmd) Run(ctx context.Context) error { return c.remove(ctx, "/v1/keys/", c.ID) }

// KeysServicesCmd makes the secrets of an installation of separate services.
type KeysServicesCmd struct {
	Dir  string `help:"Folder for them; what is there and good stays." default:"./secrets" placeholder:"DIR"`
	JSON bool   `help:"Print as JSON." name:"json"`
}

// Help shows an example.
func (KeysServicesCmd) Help() string {
	return `Writes nats-auth.conf for the NATS servers, a .creds file for each service with the rights it needs and no more,
operator.creds for you, the sealing keys (keyset.json) and the first API key (api-key). Keep nats-keys.json where no server
reads it: it is what all credentials are made with. Example:

  crivo keys services --dir ./secrets`
}

// Run writes.
func (c *KeysServicesCmd) Run() error {
	written, err := broker.Provision(c.Dir)
	if err != nil {
		return err
	}
	written = append(written, keysetFile, keyFile)
	keys, err := seal.Open(filepath.Join(c.Dir, keysetFile), true)
	if err != nil {
		return err
	}
	if err := keys.Add(firstTenant); err != nil {
		return err
	}
	f := folder{path: c.Dir}
	if _, _, err := f.apiKey(""); err != nil {
		return err
	}
	if c.JSON {
		return printJSON(map[string][]string{"files": written})
	}
	for _, name := range written {
		fmt.Println(filepath.Join(c.Dir, name))
	}
	return nil
}

// firstTenant is there from the start; see the edge.
const firstTenant = "default"
