// Command score judges what was found out about a transaction, by the rule set.
package main

import (
	"context"
	"os"

	"crivo/pkg/app"
	"crivo/services/process"
	"crivo/services/rules"
	"crivo/services/score"
)

func main() {
	var s struct{ process.Common }
	os.Exit(process.Main(&s, process.Service{Name: "score", Run: func(ctx context.Context, shell app.Shell) error {
		set, err := rules.Default()
		if err != nil {
			return err
		}
		return score.Run(ctx, score.Config{Shell: shell, Rules: rules.NewLive(set), Engine: process.Version})
	}}))
}
