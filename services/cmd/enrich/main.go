// Command enrich adds what is known of the parties to a transaction.
package main

import (
	"context"
	"os"

	"crivo/pkg/app"
	"crivo/services/enrich"
	"crivo/services/process"
	"crivo/services/rules"
	"crivo/services/store/redis"
)

func main() {
	var s struct {
		process.Common
		process.Redis
	}
	os.Exit(process.Main(&s, process.Service{Name: "enrich", Run: func(ctx context.Context, shell app.Shell) error {
		set, err := rules.Default()
		if err != nil {
			return err
		}
		client, err := redis.Open(redis.Options{URL: s.RedisURL.Reveal(), Log: shell.Log})
		if err != nil {
			return err
		}
		defer func() { _ = client.Close() }()
		return enrich.Run(ctx, enrich.Config{Shell: shell, Features: client.Features(), RuleSet: set.Ref})
	}}))
}
