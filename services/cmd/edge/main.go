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
	var door *edge.Door
	open := func(_ context.Context, shell app.Shell) (err error) {
		door, err = s.open(shell)
		return err
	}
	run := func(ctx context.Context, shell app.Shell) error { return s.run(ctx, shell, door) }
	os.Exit(process.Main(&s, process.Service{Name: "edge", First: open, Run: run}))
}

// open comes first: whoever knocks while the broker is waited for is told so.
func (s *settings) open(shell app.Shell) (*edge.Door, error) {
	certificate, err := s.TLS()
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", s.HTTP)
	if err != nil {
		return nil, fmt.Errorf("API address: %w (--http)", err)
	}
	shell.Log.Info().Stringer("http", listener.Addr()).Msg("listening")
	return edge.OpenDoor(edge.Doorway{Listener: listener, TLS: certificate, InsecureHTTP: s.InsecureHTTP, Health: shell.Health, Log: shell.Log})
}

func (s *settings) run(ctx context.Context, shell app.Shell, door *edge.Door) error {
	keys, err := seal.Open(s.KeysetFile, false)
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
	registry := db.Registry()
	return edge.Run(ctx, edge.Config{Shell: shell, Door: door, Transactions: db.Transactions(),
		Decider: core.Guard, DryRun: core.Decide, Registry: registry, Deliveries: db.Deliveries(), Keys: keys, Audit: registry.Record,
		Instance: strings.ToLower(rand.Text()), MaxInFlight: s.MaxInFlight, BootstrapKey: s.APIKey.Reveal(), Allow: s.WebhookAllow, Version: process.Version})
}
