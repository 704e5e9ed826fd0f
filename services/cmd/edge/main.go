// Command edge is the door: it accepts transactions by HTTP and NATS and answers for them.
package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"strings"

	"crivo/pkg/app"
	"crivo/pkg/seal"
	"crivo/services/decide"
	"crivo/services/edge"
	"crivo/services/process"
	"crivo/services/rules"
	"crivo/services/store/mongo"
	"crivo/services/store/redis"
	"crivo/services/validate"
)

type settings struct {
	process.Common
	process.Mongo
	process.Redis
	process.Keyset
	process.Lists
	process.Door
	process.Allowed
}

func main() {
	var s settings
	os.Exit(process.Main(&s, process.Service{Name: "edge", First: closed, Run: s.run}))
}

// closed says that there is no door yet: Run opens it, and the edge is ready from then on.
func closed(_ context.Context, shell app.Shell) error {
	shell.Health.Set("edge", "starting")
	return nil
}

func (s *settings) run(ctx context.Context, shell app.Shell) error {
	keys, err := seal.Open(s.KeysetFile, false)
	if err != nil {
		return err
	}
	certificate, err := s.TLS()
	if err != nil {
		return err
	}
	db, err := mongo.Open(mongo.Options{URI: s.MongoURI.Reveal(), Database: s.MongoDatabase, App: "crivo-edge"})
	if err != nil {
		return err
	}
	defer func() { _ = db.Close(context.Background()) }()
	set, err := rules.Default()
	if err != nil {
		return err
	}
	client, err := redis.Open(redis.Options{URL: s.RedisURL.Reveal(), Log: shell.Log})
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	core, closes, err := decide.Open(ctx, client.Features(), rules.NewLive(set), validate.Config{Shell: shell, Blocklist: s.Blocklist, Lists: db.Registry(), Keys: keys}, process.Version)
	if err != nil {
		return err
	}
	defer closes()
	door, err := net.Listen("tcp", s.HTTP)
	if err != nil {
		return fmt.Errorf("API address: %w (--http)", err)
	}
	shell.Log.Info().Stringer("http", door.Addr()).Msg("listening")
	registry := db.Registry()
	return edge.Run(ctx, edge.Config{Shell: shell, Listener: door, TLS: certificate, InsecureHTTP: s.InsecureHTTP, Transactions: db.Transactions(),
		Decider: core.Guard, DryRun: core.Decide, Registry: registry, Deliveries: db.Deliveries(), Keys: keys, Audit: registry.Record,
		Instance: strings.ToLower(rand.Text()), MaxInFlight: s.MaxInFlight, BootstrapKey: s.APIKey.Reveal(), Allow: s.WebhookAllow, Version: process.Version})
}
