// Command validate asks check digits and lists about a transaction.
package main

import (
	"context"
	"os"

	"crivo/pkg/app"
	"crivo/pkg/seal"
	"crivo/services/process"
	"crivo/services/store/mongo"
	"crivo/services/validate"
)

func main() {
	var s struct {
		process.Common
		process.Mongo
		process.Keyset
		process.Lists
	}
	os.Exit(process.Main(&s, process.Service{Name: "validate", Run: func(ctx context.Context, shell app.Shell) error {
		keys, err := seal.Open(s.KeysetFile, false)
		if err != nil {
			return err
		}
		db, err := mongo.Open(mongo.Options{URI: s.MongoURI.Reveal(), Database: s.MongoDatabase, App: "crivo-validate"})
		if err != nil {
			return err
		}
		defer func() { _ = db.Close(context.Background()) }()
		return validate.Run(ctx, validate.Config{Shell: shell, Blocklist: s.Blocklist, Lists: db.Registry(), Keys: keys})
	}}))
}
