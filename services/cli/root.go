package cli

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/alecthomas/kong"

	"crivo/pkg/app"
	"crivo/services/config"
)

// root is the command line of crivo.
type root struct {
	Config string `help:"YAML file of settings, named like the flags; flags and environment win over it." placeholder:"FILE"`

	Up         UpCmd         `cmd:"" help:"Run the whole system in one process."`
	Demo       DemoCmd       `cmd:"" help:"Show the whole system at work, with made-up traffic."`
	Submit     SubmitCmd     `cmd:"" help:"Send transactions from files."`
	Tail       TailCmd       `cmd:"" help:"Print decisions as they are made."`
	Bench      BenchCmd      `cmd:"" help:"Measure a system under open-loop load."`
	Endpoints  EndpointsCmd  `cmd:"" help:"Webhook endpoints: create, list, show, update, pause, resume, rotate-secret, test, replay, delete."`
	Deliveries DeliveriesCmd `cmd:"" help:"Webhooks that are owed or were sent: list, show, resend."`
	DLQ        DLQCmd        `cmd:"" name:"dlq" help:"Dead letters: list, show, redrive, discard."`
	Keys       KeysCmd       `cmd:"" help:"API keys: create, list, delete."`
	Tenants    TenantsCmd    `cmd:"" help:"Tenants: create, list."`
	Lists      ListsCmd      `cmd:"" help:"Lists that transactions are checked against: add, list, remove."`
	Rules      RulesCmd      `cmd:"" help:"Versions of rule sets: list, show."`
	Search     SearchCmd     `cmd:"" help:"Find what was decided; the queue of reviews; exports."`
	Streams    StreamsCmd    `cmd:"" help:"Streams and consumers of a broker: apply, show, diff."`
	Settings   ConfigCmd     `cmd:"" name:"config" help:"Print the effective configuration of up, secrets masked."`
	Health     HealthCmd     `cmd:"" help:"Ask a process whether it is well."`
	Version    VersionCmd    `cmd:"" help:"Print the version."`
}

// Main runs crivo with args and returns its exit status: 0 done, 1 failed, 2 wrongly called.
func Main(args []string) int {
	if len(args) == 0 {
		args = []string{"--help"}
	}
	var grammar root
	command, err := config.Read(&grammar, args, os.LookupEnv, kong.Name("crivo"),
		kong.Description("Screens payments for risk: one explained decision for every transaction, by webhook and by query."),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}))
	if err != nil {
		fmt.Fprintln(os.Stderr, "crivo:", err)
		return app.ExitCode(err)
	}
	return app.Main(func(ctx context.Context) error {
		command.BindTo(ctx, (*context.Context)(nil))
		err := command.Run(command)
		if errors.Is(err, context.Canceled) && ctx.Err() != nil {
			return errors.New("interrupted")
		}
		return err
	})
}

// wrong is an error of the person who called: exit status 2.
type wrong struct{ error }

func (wrong) ExitCode() int   { return 2 }
func (w wrong) Unwrap() error { return w.error }

func usage(err error) error { return wrong{err} }
