package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"crivo/services/config"
)

const deliveriesPath = "/v1/deliveries"

// DeliveriesCmd looks after webhooks that are owed or were sent.
type DeliveriesCmd struct {
	List   DeliveriesListCmd   `cmd:"" help:"List deliveries, newest first."`
	Show   DeliveriesShowCmd   `cmd:"" help:"Show one delivery with its attempts."`
	Resend DeliveriesResendCmd `cmd:"" help:"Send one webhook once more and tell whether it arrived."`
}

// DeliveriesListCmd lists deliveries.
type DeliveriesListCmd struct {
	server
	EndpointID    string `help:"To this endpoint." placeholder:"ID"`
	TransactionID string `help:"About this transaction." placeholder:"ID"`
	Status        string `help:"pending, delivered, exhausted, skipped or cancelled." enum:",pending,delivered,exhausted,skipped,cancelled" default:"" placeholder:"STATUS"`
	page
}

// Help shows an example.
func (DeliveriesListCmd) Help() string {
	return "Example:\n\n  crivo deliveries list --status exhausted"
}

// Check finds a limit that cannot be.
func (c *DeliveriesListCmd) Check() config.Faults {
	f := c.server.Check()
	c.check(&f)
	return f
}

// Run prints one page.
func (c *DeliveriesListCmd) Run(ctx context.Context) error {
	filter := map[string]string{"endpoint_id": c.EndpointID, "transaction_id": c.TransactionID, "status": c.Status}
	return c.table(ctx, c.of(deliveriesPath, filter), "id", "status", "type", "transaction_id", "endpoint_id", "created_at", "next_attempt_at")
}

// DeliveriesShowCmd shows a delivery.
type DeliveriesShowCmd struct {
	server
	ID string `arg:"" help:"Of the delivery."`
}

// Help shows an example.
func (DeliveriesShowCmd) Help() string { return "Example:\n\n  crivo deliveries show dlv_…" }

// Run prints.
func (c *DeliveriesShowCmd) Run(ctx context.Context) error {
	var found jsontext.Value
	if err := c.ask(ctx, http.MethodGet, deliveriesPath+"/"+url.PathEscape(c.ID), nil, &found); err != nil {
		return err
	}
	return c.delivery(found)
}

// DeliveriesResendCmd sends a webhook once more.
type DeliveriesResendCmd struct {
	server
	ID   string        `arg:"" help:"Of the delivery."`
	Wait time.Duration `help:"How long to wait for what becomes of it; 0 is not at all." default:"20s"`
}

// Help shows an example.
func (DeliveriesResendCmd) Help() string {
	return `Whatever became of the delivery before. The tries of the schedule are neither fewer nor more. Exit status 1 where it did not
arrive. Example:

  crivo deliveries resend dlv_…`
}

// Run sends, waits and prints.
func (c *DeliveriesResendCmd) Run(ctx context.Context) error {
	path := deliveriesPath + "/" + url.PathEscape(c.ID)
	var before tried
	if err := c.ask(ctx, http.MethodGet, path, nil, &before); err != nil {
		return err
	}
	last := 0
	if n := len(before.Attempts); n > 0 {
		last = before.Attempts[n-1].Number
	}
	return c.sent(ctx, path+"/resend", last, c.Wait)
}

// attempt is what is shown of one.
type attempt struct {
	Number     int    `json:"number"`
	Trigger    string `json:"trigger"`
	StartedAt  string `json:"started_at"`
	DurationMS int    `json:"duration_ms"`
	Status     int    `json:"status"`
	Error      string `json:"error"`
}

// tried is what is looked at of a delivery.
type tried struct {
	ID       string    `json:"id"`
	Attempts []attempt `json:"attempts"`
}

// delivery prints one with its attempts.
func (s server) delivery(found jsontext.Value) error {
	err := s.members(found, "id", "status", "type", "transaction_id", "endpoint_id", "webhook_id", "created_at", "next_attempt_at")
	if err != nil || s.JSON {
		return err
	}
	var d tried
	if err := json.Unmarshal(found, &d); err != nil || len(d.Attempts) == 0 {
		return err
	}
	fmt.Println()
	out := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(out, "ATTEMPT\tTRIGGER\tSTARTED\tMS\tSTATUS\tERROR")
	for _, a := range d.Attempts {
		fmt.Fprintf(out, "%d\t%s\t%s\t%d\t%d\t%s\n", a.Number, a.Trigger, a.StartedAt, a.DurationMS, a.Status, a.Error)
	}
	return out.Flush()
}

var errNotArrived = errors.New("it did not arrive")

// sent has a webhook sent by path and waits for the attempt that was asked for, later than the one numbered before.
func (s server) sent(ctx context.Context, path string, before int, wait time.Duration) error {
	var found jsontext.Value
	var d tried
	err := s.ask(ctx, http.MethodPost, path, nil, &found)
	if err == nil {
		err = json.Unmarshal(found, &d)
	}
	if err != nil {
		return err
	}
	var trouble error
	for give := time.Now().Add(wait); time.Now().Before(give); {
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
		var final errStream
		if trouble = s.ask(ctx, http.MethodGet, deliveriesPath+"/"+url.PathEscape(d.ID), nil, &found); errors.As(trouble, &final) {
			return trouble
		}
		if trouble != nil {
			continue // no room for this question: that says nothing of the webhook
		}
		now := tried{}
		if err := json.Unmarshal(found, &now); err != nil {
			return err
		}
		i := slices.IndexFunc(now.Attempts, func(a attempt) bool { return a.Number > before && a.Trigger != "auto" })
		if i < 0 {
			continue
		}
		if err := s.delivery(found); err != nil {
			return err
		}
		if now.Attempts[i].Status/100 != 2 {
			return errNotArrived
		}
		return nil
	}
	if err := s.delivery(found); err != nil || wait == 0 {
		return err
	}
	return errors.Join(fmt.Errorf("no attempt within %s", wait), trouble)
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
