// Command skeleton shows the main promise on real input: it starts crivo up in a fresh folder, sends a file of transactions
// through crivo submit, receives every webhook on a socket of its own, verifies each signature with the official Standard
// Webhooks library, and prints what it took. It exits 1 when anything is missing, doubled or unverified.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/go-json-experiment/json"

	"crivo/test/system"
)

func main() {
	file := flag.String("file", "", "CSV of card transactions: transaction_id, tx_datetime, customer_id, terminal_id, tx_amount")
	limit := flag.Int("limit", 200_000, "rows to send")
	durability := flag.String("durability", "fsync", "fsync or interval")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *file, *limit, *durability); err != nil {
		fmt.Fprintln(os.Stderr, "skeleton:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, file string, limit int, durability string) error {
	if file == "" {
		return errors.New("--file is needed")
	}
	dir, err := os.MkdirTemp("", "crivo-skeleton-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	binary := filepath.Join(dir, "crivo")
	build := exec.CommandContext(ctx, "go", "build", "-o", binary, "crivo/services/cmd/crivo")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("build: %w", err)
	}
	s, err := system.Start(ctx, system.Options{Binary: binary, Data: filepath.Join(dir, "data"), Durability: durability,
		Args: []string{"--log-level", "warn"}, Log: os.Stderr})
	if err != nil {
		return err
	}
	defer func() { _ = s.Stop() }()
	r, err := s.Receive(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	began := time.Now()
	sum, err := submit(ctx, s, file, limit)
	if err != nil {
		return err
	}
	submitted := time.Since(began)
	r.Await(ctx, int(sum.Accepted), time.Minute)
	return report(s, r, sum, submitted, time.Since(began))
}

// summary is what crivo submit --json prints, as far as it counts here.
type summary struct {
	Read     int64 `json:"read"`
	Accepted int64 `json:"accepted"`
	Refused  int64 `json:"refused"`
	Failed   int64 `json:"failed"`
}

func submit(ctx context.Context, s *system.System, file string, limit int) (summary, error) {
	cmd := exec.CommandContext(ctx, s.Binary, "submit", file, "--url", s.URL, "--limit", fmt.Sprint(limit), "--json",
		"--map", "id=transaction_id", "--map", "created_at=tx_datetime", "--map", "payer.customer_id=customer_id",
		"--map", "merchant.terminal_id=terminal_id", "--map", "amount=tx_amount", "--amount-unit", "major",
		"--set", "type=card", "--set", "currency=BRL")
	cmd.Env = append(os.Environ(), "CRIVO_API_KEY="+s.Key)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	runErr := cmd.Run()
	var sum summary
	if err := json.Unmarshal(out.Bytes(), &sum); err != nil {
		return sum, fmt.Errorf("crivo submit: %w: %s", errors.Join(runErr, err), out.Bytes())
	}
	return sum, nil
}

func report(s *system.System, r *system.Receiver, sum summary, submitted, all time.Duration) error {
	decisions, repeated, double := map[string]int{}, 0, 0
	verdicts := r.Verdicts()
	for _, of := range verdicts {
		for verdict, n := range of {
			decision, _, _ := strings.Cut(verdict, " ")
			decisions[decision]++
			repeated += n - 1
		}
		double += len(of) - 1
	}
	n := float64(sum.Accepted)
	fmt.Printf("read %d, accepted %d, refused %d, failed %d in %.1f s (%.0f a second)\n", sum.Read, sum.Accepted, sum.Refused, sum.Failed,
		submitted.Seconds(), n/submitted.Seconds())
	fmt.Printf("webhooks: %d transactions, all by %.1f s (%.0f a second), %d repeated, %d unverified, %d with a second verdict\n",
		len(verdicts), all.Seconds(), n/all.Seconds(), repeated, r.Unverified(), double)
	fmt.Printf("decisions: approve %d, review %d, decline %d\n", decisions["approve"], decisions["review"], decisions["decline"])
	fmt.Printf("peak memory of crivo up %.0f MB, data folder %.0f MB, durability %s, %d cores (receiver and submit on the same)\n",
		peakMB(s.PID()), folderMB(s.Data), s.Durability, runtime.NumCPU())
	if sum.Refused+sum.Failed > 0 || len(verdicts) != int(sum.Accepted) || r.Unverified()+double > 0 {
		return errors.New("not every row came through exactly once")
	}
	return nil
}

// peakMB reads a process's high-water mark of resident memory; 0 where the system does not tell.
func peakMB(pid int) float64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		var kb float64
		if n, _ := fmt.Sscanf(line, "VmHWM: %f kB", &kb); n == 1 {
			return kb / 1024
		}
	}
	return 0
}

func folderMB(dir string) float64 {
	var size int64
	_ = filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil
		}
		if info, err := d.Info(); err == nil {
			size += info.Size()
		}
		return nil
	})
	return float64(size) / (1 << 20)
}
