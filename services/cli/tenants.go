package cli

import (
	"context"
	"net/http"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"crivo/services/config"
)

// TenantsCmd manages the customers of the installation.
type TenantsCmd struct {
	Create TenantsCreateCmd `cmd:"" help:"Make a tenant; its keys are made with crivo keys create."`
	List   TenantsListCmd   `cmd:"" help:"List the tenants."`
}

// TenantsCreateCmd makes a tenant.
type TenantsCreateCmd struct {
	server
	ID       string        `arg:"" help:"1 to 32 of a-z 0-9 -."`
	Deadline time.Duration `help:"When a decision is late, 1s to 5s after acceptance." default:"2s"`
	TimeZone string        `help:"Of its days, for rules." default:"America/Sao_Paulo" placeholder:"ZONE"`
}

// Help shows an example.
func (TenantsCreateCmd) Help() string {
	return "Example:\n\n  crivo tenants create acme --deadline 1500ms --time-zone America/Manaus"
}

// Check finds a deadline that cannot be.
func (c *TenantsCreateCmd) Check() config.Faults {
	f := c.server.Check()
	if c.Deadline < time.Second || c.Deadline > 5*time.Second {
		f.Add("deadline", "%s: 1s to 5s", c.Deadline)
	}
	return f
}

// Run makes and prints.
func (c *TenantsCreateCmd) Run(ctx context.Context) error {
	body := map[string]any{"id": c.ID, "deadline_ms": c.Deadline.Milliseconds(), "time_zone": c.TimeZone}
	var made jsontext.Value
	if err := c.ask(ctx, http.MethodPost, "/v1/tenants", body, &made); err != nil {
		return err
	}
	return c.members(made, "id", "deadline_ms", "time_zone", "created_at")
}

// TenantsListCmd lists tenants.
type TenantsListCmd struct{ server }

// Help shows an example.
func (TenantsListCmd) Help() string { return "Example:\n\n  crivo tenants list --json" }

// Run prints.
func (c *TenantsListCmd) Run(ctx context.Context) error {
	return c.table(ctx, "/v1/tenants", "id", "deadline_ms", "time_zone", "created_at")
}
