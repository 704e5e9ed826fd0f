// Command skeleton shows the main promise on real input: it starts crivo up in a fresh folder, sends a file of transactions
// through crivo submit, receives every webhook on a socket of its own, verifies each signature with the official Standard
// Webhooks library, and prints what it took. It exits 1 when anything is missing, doubled or unverified.
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/go-json-experiment/json"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
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
	s := &system{binary: filepath.Join(dir, "crivo"), data: filepath.Join(dir, "data"), key: rand.Text()}
	if err := command(ctx, "go", "build", "-o", s.binary, "crivo/services/cmd/crivo").Run(); err != nil {
		return fmt.Errorf("build: %w", err)
	}
	if err := s.start(ctx, durability); err != nil {
		return err
	}
	defer s.stop()
	l := &ledger{verdicts: map[string]string{}}
	if err := s.receive(l); err != nil {
		return err
	}
	began := time.Now()
	sum, err := s.submit(ctx, file, limit)
	if err != nil {
		return err
	}
	submitted := time.Since(began)
	l.await(ctx, int(sum.Accepted), time.Minute)
	return s.report(l, sum, submitted, time.Since(began), durability)
}

type summary struct {
	Read, Accepted, Replayed, Refused, Failed int64
}

type system struct {
	binary, data, key string
	http, ops         string
	process           *exec.Cmd
	receiver          *http.Server
}

func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, name, args...)
	c.Stderr = os.Stderr
	return c
}

// start runs crivo up on free ports and waits until it is ready.
func (s *system) start(ctx context.Context, durability string) error {
	s.http, s.ops = freeAddress(), freeAddress()
	s.process = exec.Command(s.binary, "up", "--data", s.data, "--http", s.http, "--ops", s.ops, "--nats", "none",
		"--webhook-allow", "127.0.0.1/32", "--durability", durability, "--log-level", "warn")
	s.process.Env = append(os.Environ(), "CRIVO_API_KEY="+s.key)
	s.process.Stderr = os.Stderr
	if err := s.process.Start(); err != nil {
		return err
	}
	for give := time.Now().Add(time.Minute); time.Now().Before(give) && ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
		res, err := http.Get("http://" + s.ops + "/readyz")
		if err != nil {
			continue
		}
		_ = res.Body.Close()
		if res.StatusCode == http.StatusOK {
			return nil
		}
	}
	s.stop()
	return errors.New("crivo up is not ready after a minute")
}

func freeAddress() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "127.0.0.1:0"
	}
	defer l.Close()
	return l.Addr().String()
}

func (s *system) stop() {
	if s.receiver != nil {
		_ = s.receiver.Close()
	}
	_ = s.process.Process.Signal(syscall.SIGTERM)
	_ = s.process.Wait()
}

// receive registers a webhook endpoint and listens for it.
func (s *system) receive(l *ledger) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	body := fmt.Sprintf(`{"url":"http://%s/hook","events":["transaction.decided"]}`, listener.Addr())
	req, err := http.NewRequest(http.MethodPost, "http://"+s.http+"/v1/webhook-endpoints", strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+s.key)
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusCreated {
		return fmt.Errorf("webhook endpoint: %s %s %w", res.Status, text, err)
	}
	var made struct{ Secret string }
	if err := json.Unmarshal(text, &made, json.MatchCaseInsensitiveNames(true)); err != nil {
		return err
	}
	if l.verifier, err = standardwebhooks.NewWebhook(made.Secret); err != nil {
		return err
	}
	s.receiver = &http.Server{Handler: l, ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = s.receiver.Serve(listener) }()
	return nil
}

func (s *system) submit(ctx context.Context, file string, limit int) (summary, error) {
	cmd := command(ctx, s.binary, "submit", file, "--url", "http://"+s.http, "--limit", fmt.Sprint(limit), "--json",
		"--map", "id=transaction_id", "--map", "created_at=tx_datetime", "--map", "payer.customer_id=customer_id",
		"--map", "merchant.terminal_id=terminal_id", "--map", "amount=tx_amount", "--amount-unit", "major",
		"--set", "type=card", "--set", "currency=BRL")
	cmd.Env = append(os.Environ(), "CRIVO_API_KEY="+s.key)
	var out bytes.Buffer
	cmd.Stdout = &out
	runErr := cmd.Run()
	var sum summary
	if err := json.Unmarshal(out.Bytes(), &sum, json.MatchCaseInsensitiveNames(true)); err != nil {
		return sum, fmt.Errorf("crivo submit: %w: %s", errors.Join(runErr, err), out.Bytes())
	}
	return sum, nil
}

// ledger is what a receiver knows: the verdict of each transaction, and what should never come.
type ledger struct {
	verifier   *standardwebhooks.Webhook
	mu         sync.Mutex
	verdicts   map[string]string
	unverified int
	repeated   int
	double     int
	last       time.Time
}

func (l *ledger) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	err = l.verifier.Verify(body, r.Header)
	var event struct {
		Data jsonData `json:"data"`
	}
	if err == nil {
		err = json.Unmarshal(body, &event)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.unverified++
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	verdict := fmt.Sprint(event.Data.Decision, event.Data.Score, event.Data.Reasons)
	if before, ok := l.verdicts[event.Data.ID]; ok {
		l.repeated++
		if before != verdict {
			l.double++
		}
	}
	l.verdicts[event.Data.ID] = verdict
	l.last = time.Now()
	w.WriteHeader(http.StatusNoContent)
}

type jsonData struct {
	ID       string   `json:"id"`
	Decision string   `json:"decision"`
	Score    int      `json:"score"`
	Reasons  []string `json:"reasons"`
}

// await returns when want webhooks came or none came for as long as patience.
func (l *ledger) await(ctx context.Context, want int, patience time.Duration) {
	for start := time.Now(); ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
		l.mu.Lock()
		last := l.last
		done := len(l.verdicts) >= want
		l.mu.Unlock()
		if last.IsZero() {
			last = start
		}
		if done || time.Since(last) > patience {
			return
		}
	}
}

func (s *system) report(l *ledger, sum summary, submitted, all time.Duration, durability string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	counts := map[string]int{}
	for _, v := range l.verdicts {
		for _, d := range []string{"approve", "review", "decline"} {
			if strings.HasPrefix(v, d) {
				counts[d]++
			}
		}
	}
	n := float64(sum.Accepted)
	fmt.Printf("read %d, accepted %d, refused %d, failed %d in %.1f s (%.0f a second)\n", sum.Read, sum.Accepted, sum.Refused, sum.Failed,
		submitted.Seconds(), n/submitted.Seconds())
	fmt.Printf("webhooks: %d transactions, all by %.1f s (%.0f a second), %d repeated, %d unverified, %d with a second verdict\n",
		len(l.verdicts), all.Seconds(), n/all.Seconds(), l.repeated, l.unverified, l.double)
	fmt.Printf("decisions: approve %d, review %d, decline %d\n", counts["approve"], counts["review"], counts["decline"])
	fmt.Printf("peak memory of crivo up %.0f MB, data folder %.0f MB, durability %s, %d cores (receiver and submit on the same)\n",
		peakMB(s.process.Process.Pid), folderMB(s.data), durability, runtime.NumCPU())
	if sum.Refused+sum.Failed > 0 || len(l.verdicts) != int(sum.Accepted) || l.unverified+l.double > 0 {
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
