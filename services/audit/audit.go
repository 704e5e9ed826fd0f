// Package audit is the port that every operator's and analyst's act goes through, from whichever side it comes.
package audit

import (
	"context"

	"crivo/services/store"
)

// Record writes one act down before the act takes effect; an error means that the act must not happen.
type Record func(ctx context.Context, act store.Act) error
