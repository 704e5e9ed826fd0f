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
	"crivo/services/edge"
	"crivo/services/process"
	"crivo/services/store/mongo"
)

type settings struct {
	process.Common
	process.Mongo
	process.Keyset
	process.Door
	process.Allowed
}

func main() {
	var s settings
	os.Exit(process.Main(&s, process.Service{Name: "edge", Run: s.run}))
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
	door, err := net.Listen("tcp", s.HTTP)
	if err != nil {
		return fmt.Errorf("API address: %w (--http)", err)
	}
	shell.Log.Info().Stringer("http", door.Addr()).Msg("listening")
	registry := db.Registry()
	return edge.Run(ctx, edge.Config{Shell: shell, Listener: door, TLS: certificate, InsecureHTTP: s.InsecureHTTP, Transactions: db.Transactions(),
		Registry: registry, Deliveries: db.Deliveries(), Keys: keys, Audit: registry.Record, Instance: strings.ToLower(rand.Text()),
		MaxInFlight: s.MaxInFlight, BootstrapKey: s.APIKey.Reveal(), Allow: s.WebhookAllow, Version: process.Version})
}
