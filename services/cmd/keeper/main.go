// Command keeper provisions streams and collections, brings back what fell out of the flow and makes room. One at a time.
package main

import (
	"context"
	"os"
	"sync"

	"crivo/pkg/app"
	"crivo/services/keeper"
	"crivo/services/process"
	"crivo/services/rules"
	"crivo/services/store/mongo"
	"crivo/streams"
)

func main() {
	var s struct {
		process.Common
		process.Mongo
		process.Streams
	}
	provision := func(ctx context.Context, shell app.Shell) error {
		_, err := streams.Make(ctx, shell.JS, s.Layout())
		if streams.Refused(err) {
			if _, missing := shell.JS.Stream(ctx, streams.Submitted); missing == nil {
				return nil // the keeper says what was refused, and does what it can
			}
		}
		return err
	}
	os.Exit(process.Main(&s, process.Service{Name: "keeper", Provision: provision, Run: func(ctx context.Context, shell app.Shell) error {
		set, err := rules.Default()
		if err != nil {
			return err
		}
		db, err := mongo.Open(mongo.Options{URI: s.MongoURI.Reveal(), Database: s.MongoDatabase, App: "crivo-keeper"})
		if err != nil {
			return err
		}
		defer func() { _ = db.Close(context.Background()) }()
		ctx, stop := context.WithCancel(ctx)
		var beside sync.WaitGroup
		// Beside, since a database may be away and indexes of what has grown large take long. The keeper is right without them.
		beside.Go(func() { _ = app.Until(ctx, shell, "the database, to make the collections", db.Ensure) }) // its error is the end
		defer beside.Wait()
		defer stop()
		registry := db.Registry()
		return keeper.Run(ctx, keeper.Config{Shell: shell, Transactions: db.Transactions(), RuleSets: registry, Rules: set, Layout: s.Layout(),
			Tenants: registry.Tenants, State: registry, Replays: registry, Outbox: db.Deliveries()})
	}}))
}
