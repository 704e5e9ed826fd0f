package cli

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// HealthCmd asks a process whether it is well, from inside a container that has nothing else to ask with.
type HealthCmd struct {
	URL string `arg:"" help:"Of the process's /readyz or /livez."`
}

// Help shows an example.
func (HealthCmd) Help() string {
	return "Exit status 0 when it is, 1 when not or when it does not answer. Example:\n\n  crivo health http://127.0.0.1:8081/readyz"
}

// healthWithin is how long a process may take to answer: it computes nothing for it.
const healthWithin = 3 * time.Second

// Run asks; what is not well is its error.
func (c *HealthCmd) Run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, healthWithin)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.URL, nil)
	if err != nil {
		return usage(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	said, err := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", res.Status, strings.TrimSpace(string(said)))
	}
	return nil
}
