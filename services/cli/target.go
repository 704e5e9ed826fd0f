package cli

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"crivo/pkg/stage"
	"crivo/services/config"
)

// target is the system under load: one that runs already, or a child of this process in a folder that goes with it.
type target struct {
	send       *sender
	ops        string // empty: CPU and memory stay unknown
	durability string
	stop       func()
}

// resources are a process's CPU seconds so far and resident bytes now.
type resources struct{ cpu, rss float64 }

func (c *BenchCmd) target(ctx context.Context) (*target, error) {
	if c.URL != "" {
		key, err := apiKey()
		if err != nil {
			return nil, usage(err)
		}
		return &target{send: newSender(c.URL, key, c.Connections), ops: c.Ops, durability: "unknown", stop: func() {}}, nil
	}
	return child(ctx, "bench", c.Durability, c.Connections)
}

// child starts crivo up beside this process, for the command called name, and waits until it is ready.
func child(ctx context.Context, name, durability string, connections int) (*target, error) {
	dir, err := os.MkdirTemp("", "crivo-"+name+"-")
	if err != nil {
		return nil, err
	}
	t, err := childIn(ctx, dir, name, durability, connections)
	if err != nil {
		_ = os.RemoveAll(dir)
	}
	return t, err
}

func childIn(ctx context.Context, dir, name, durability string, connections int) (*target, error) {
	addresses, err := freeAddresses(2)
	if err != nil {
		return nil, err
	}
	binary, err := os.Executable()
	if err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(dir, "up.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	key := name + "-" + rand.Text()
	cmd := exec.Command(binary, "up", "--data", filepath.Join(dir, "data"), "--http", addresses[0], "--ops", addresses[1],
		"--nats", "none", "--webhook-allow", "127.0.0.0/8", "--durability", durability, "--tls-cert=", "--tls-key=")
	// It stands alone, whatever system the caller's settings name.
	ours := func(variable string) bool { return strings.HasPrefix(variable, config.Prefix) }
	cmd.Env = append(slices.DeleteFunc(os.Environ(), ours), config.Env(keyFile)+"="+key)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(exited)
	}()
	t := &target{send: newSender("http://"+addresses[0], key, connections), ops: "http://" + addresses[1], durability: durability}
	t.stop = func() { stopChild(cmd.Process, exited); _ = os.RemoveAll(dir) }
	if err := t.ready(ctx, exited); err != nil {
		text, _ := os.ReadFile(log.Name())
		t.stop()
		return nil, fmt.Errorf("crivo up: %w\n%s", err, text)
	}
	return t, nil
}

func stopChild(p *os.Process, exited <-chan struct{}) {
	_ = p.Signal(syscall.SIGTERM)
	select {
	case <-exited:
	case <-time.After(30 * time.Second):
		_ = p.Kill()
		<-exited
	}
}

// freeAddresses returns loopback addresses that were free a moment ago.
func freeAddresses(n int) ([]string, error) {
	var out []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		out = append(out, l.Addr().String())
	}
	return out, nil
}

func (t *target) ready(ctx context.Context, exited <-chan struct{}) error {
	for give := time.Now().Add(time.Minute); time.Now().Before(give); {
		res, err := http.Get(t.ops + "/readyz")
		if err == nil {
			_ = res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-exited:
			return errors.New("it ended")
		default:
		}
		if err := stage.Sleep(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	return errors.New("not ready after a minute")
}

// usage reads the server's own account of CPU and memory from its metrics.
func (t *target) usage(ctx context.Context) (resources, error) {
	if t.ops == "" {
		return resources{}, nil
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimRight(t.ops, "/")+"/metrics", nil)
	if err != nil {
		return resources{}, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return resources{}, fmt.Errorf("metrics: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return resources{}, fmt.Errorf("metrics of %s: %s", t.ops, res.Status)
	}
	var r resources
	for lines := bufio.NewScanner(res.Body); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), " ")
		switch name {
		case "process_cpu_seconds_total":
			r.cpu, _ = strconv.ParseFloat(value, 64)
		case "process_resident_memory_bytes":
			r.rss, _ = strconv.ParseFloat(value, 64)
		}
	}
	return r, nil
}
