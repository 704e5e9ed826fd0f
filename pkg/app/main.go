package app

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// Main runs one process: ctx ends at the first SIGINT or SIGTERM, so that run can drain; a second signal ends the process at
// once with status 1. It returns the exit status of run's error: see [ExitCode].
func Main(run func(ctx context.Context) error) int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(signals)
	go func() {
		select {
		case <-signals:
			cancel()
		case <-ctx.Done():
			return
		}
		<-signals
		fmt.Fprintln(os.Stderr, "crivo: ended at once, without draining")
		os.Exit(1)
	}()
	err := run(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "crivo:", err)
	}
	return ExitCode(err)
}

// ExitCode is 0 for nil, what an ExitCode method in err's chain says, else 1.
func ExitCode(err error) int {
	if err == nil {
		return 0
	}
	var coded interface{ ExitCode() int }
	if errors.As(err, &coded) {
		return coded.ExitCode()
	}
	return 1
}
