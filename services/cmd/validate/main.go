// Command validate asks check digits and lists about a transaction.
package main

import (
	"context"
	"os"

	"crivo/pkg/app"
	"crivo/pkg/seal"
	"crivo/services/process"
	"crivo/services/validate"
)

func main() {
	var s struct {
		process.Common
		process.Keyset
		process.Lists
	}
	os.Exit(process.Main(&s, process.Service{Name: "validate", Run: func(ctx context.Context, shell app.Shell) error {
		keys, err := seal.Open(s.KeysetFile, false)
		if err != nil {
			return err
		}
		return validate.Run(ctx, validate.Config{Shell: shell, Blocklist: s.Blocklist, Keys: keys})
	}}))
}
