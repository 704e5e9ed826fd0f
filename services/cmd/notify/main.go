// Command notify delivers signed webhooks of decisions.
package main

import (
	"context"
	"os"

	"crivo/pkg/app"
	"crivo/pkg/seal"
	"crivo/services/notify"
	"crivo/services/process"
	"crivo/services/store/mongo"
)

func main() {
	var s struct {
		process.Common
		process.Mongo
		process.Keyset
		process.Allowed
		process.Webhooks
	}
	os.Exit(process.Main(&s, process.Service{Name: "notify", Run: func(ctx context.Context, shell app.Shell) error {
		keys, err := seal.Open(s.KeysetFile, false)
		if err != nil {
			return err
		}
		db, err := mongo.Open(mongo.Options{URI: s.MongoURI.Reveal(), Database: s.MongoDatabase, App: "crivo-notify"})
		if err != nil {
			return err
		}
		defer func() { _ = db.Close(context.Background()) }()
		registry := db.Registry()
		return notify.Run(ctx, notify.Config{Shell: shell, Deliveries: db.Deliveries(), Endpoints: registry, States: registry, Keys: keys, Audit: registry.Record,
			Schedule: s.WebhookSchedule, Timeout: s.WebhookTimeout, Allow: s.WebhookAllow, Version: process.Version})
	}}))
}
