// Command persist completes each claim with its decision, once, and announces it.
package main

import (
	"context"
	"os"

	"crivo/pkg/app"
	"crivo/services/persist"
	"crivo/services/process"
	"crivo/services/store/mongo"
)

func main() {
	var s struct {
		process.Common
		process.Mongo
	}
	os.Exit(process.Main(&s, process.Service{Name: "persist", Run: func(ctx context.Context, shell app.Shell) error {
		db, err := mongo.Open(mongo.Options{URI: s.MongoURI.Reveal(), Database: s.MongoDatabase, App: "crivo-persist"})
		if err != nil {
			return err
		}
		defer func() { _ = db.Close(context.Background()) }()
		transactions := db.Transactions()
		return persist.Run(ctx, persist.Config{Shell: shell, Transactions: transactions, Ping: transactions.Ping})
	}}))
}
