// Package process is what the services' mains share: settings that are read once, a connection under the service's own
// credential, and the shell that its Run gets. A process starts in any order: what is not there yet is waited for.
package process

import (
	"context"
	"fmt"
	"os"

	"github.com/alecthomas/kong"
	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"

	"crivo/pkg/app"
	"crivo/pkg/stage"
	"crivo/services/config"
	"crivo/streams"
)

// Version is the program's, told in every decision as engine.
const Version = "0.1.0"

// Settings are a main's own: a struct that embeds Common and what else the service needs.
type Settings interface{ common() *Common }

// Service is one main.
type Service struct {
	Name string
	// First runs once there is a connection, before the clock is set. Nil is nothing.
	First func(ctx context.Context, shell app.Shell) error
	// Provision makes the streams, again and again until one of them has told the time: they may go as soon as they are made, and
	// nobody else makes them. Nil leaves it to the keeper.
	Provision func(ctx context.Context, shell app.Shell) error
	Run       func(ctx context.Context, shell app.Shell) error
}

// Main reads settings, runs the service until a signal ends it and returns the exit status: 0 done, 1 failed, 2 wrongly called.
func Main(settings Settings, s Service) int {
	_, err := config.Read(settings, os.Args[1:], os.LookupEnv, kong.Name(s.Name),
		kong.Description("The "+s.Name+" service of crivo "+Version+"."), kong.ConfigureHelp(kong.HelpOptions{Compact: true}))
	if err != nil {
		fmt.Fprintln(os.Stderr, s.Name+":", err)
		return app.ExitCode(err)
	}
	return app.Main(func(ctx context.Context) error { return s.run(ctx, settings.common()) })
}

func (s Service) run(ctx context.Context, c *Common) error {
	clock := app.NewClock(nil)
	log, err := app.NewLog(os.Stderr, c.LogLevel, clock.Now)
	if err != nil {
		return err
	}
	log = log.With().Str("service", s.Name).Logger()
	health, metrics := &app.Health{}, app.NewRegistry()
	health.Set(starting, "starting")
	ops, err := app.ServeOps(c.Ops, health, metrics)
	if err != nil {
		return fmt.Errorf("%w (--ops)", err)
	}
	defer ops.Close()
	log.Info().Str("ops", ops.Addr()).Str("version", Version).Msg("starting")
	nc, err := c.connect(s.Name, log, health)
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := app.JetStream(nc)
	if err != nil {
		return err
	}
	shell := app.Shell{Name: s.Name, Conn: nc, JS: js, Clock: clock, Log: log, Metrics: metrics, Health: health, Steps: stage.NewMetrics(metrics)}
	if s.First != nil {
		if err := s.First(ctx, shell); err != nil {
			return ended(ctx, err)
		}
	}
	keeping, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	synced, err := s.keepClock(ctx, keeping, shell)
	if err != nil {
		return ended(ctx, err)
	}
	defer func() { stop(); <-synced }()
	health.Set(starting, "")
	log.Info().Msg("running")
	err = s.Run(ctx, shell)
	log.Info().Msg("ended")
	return err
}

// ended drops the error of a process that was told to end before it was ready.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// starting is the part of the health that says so.
const starting = "start"

// keepClock waits for the broker to tell its time and has the clock kept to it until keeping ends.
func (s Service) keepClock(ctx, keeping context.Context, shell app.Shell) (synced <-chan struct{}, err error) {
	err = app.Until(ctx, shell, "the broker and its streams", func(ctx context.Context) (err error) {
		if s.Provision != nil {
			if err := s.Provision(ctx, shell); err != nil {
				return err
			}
		}
		synced, err = shell.Clock.Keep(keeping, shell.Conn, streamOf(s.Name))
		return err
	})
	return synced, err
}

// streamOf is the stream that a service may ask for its state, and thereby for the broker's time.
func streamOf(service string) string {
	for _, spec := range streams.Steps {
		if spec.Step == service {
			return spec.Stream
		}
	}
	return streams.Submitted
}

// connect opens the service's connection; a broker that is away is waited for.
func (c *Common) connect(name string, log zerolog.Logger, health *app.Health) (*nats.Conn, error) {
	return app.Connect(app.Connection{URL: c.NATSURL.Reveal(), Creds: c.NATSCreds, Name: "crivo-" + name, Inbox: streams.InboxPrefix(name),
		Log: log, Health: health, Extra: c.NATS()})
}
