package system

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"crivo/streams"
)

// asServer marks a test binary's child that is a NATS server, run with the configuration file that its argument names.
const asServer = "CRIVO_TEST_NATS"

// ifServer is a NATS server, and does not return, in a process that was started to be one.
func ifServer() {
	if os.Getenv(asServer) == "" {
		return
	}
	opts, err := server.ProcessConfigFile(os.Args[1])
	if err == nil {
		var s *server.Server
		if s, err = server.NewServer(opts); err == nil {
			s.ConfigureLogger()
			if err = server.Run(s); err == nil {
				s.WaitForShutdown()
				os.Exit(0)
			}
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// ClusterOptions say what separate services stand on.
type ClusterOptions struct {
	MongoURI, Database string
	RedisURL           string
	Nodes              int  // NATS servers: 1 or 3
	Copies             int  // of every service but the keeper; 0: no services, brokers alone
	Sync               bool // NATS syncs every write
	// Between, if set, puts something between the services and the NATS server at address, and returns where it listens.
	Between func(address string) (string, error)
}

// Cluster is the system as separate processes: NATS servers, and every service as a binary of its own with its own credential.
type Cluster struct {
	System     // the API of the first edge; Binary is crivo
	Edges      []string
	Processes  map[string]*Process // by name: nats-1, edge-2, …
	NATSURL    string
	Dir        string // of everything that it keeps, logs and NATS files included
	o          ClusterOptions
	served     string            // NATSURL as the services have it
	Operations map[string]string // process → its operations address
}

// Process is one operating-system process, which can be ended and started again.
type Process struct {
	Name string
	Log  string // file of what it says
	args []string
	env  []string

	cmd    *exec.Cmd
	exited chan struct{}
}

// NewCluster is StartCluster for a test, which stops it at its end; a failed test shows the last of what each process said.
func NewCluster(t testing.TB, o ClusterOptions) *Cluster {
	t.Helper()
	c, err := StartCluster(t.Context(), t.TempDir(), o)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(c.Said())
		}
		c.Stop()
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// programs is the folder of the binaries.
var programs string

// build makes the binaries, once for this process: linking them takes a quarter of a minute.
var build = sync.OnceValue(func() (err error) {
	if programs, err = os.MkdirTemp("", "crivo-programs-"); err != nil {
		return err
	}
	if out, err := exec.Command("go", "build", "-o", programs+"/", "crivo/services/cmd/...").CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w: %s", err, out)
	}
	return nil
})

// Clean removes the binaries. Whoever starts a cluster calls it at the end of the process, as [Main] does.
func Clean() {
	if programs != "" {
		_ = os.RemoveAll(programs)
	}
}

// StartCluster builds the binaries and starts everything in dir, the services before what they stand on, then waits until all
// are ready. What was started must be stopped, after an error too.
func StartCluster(ctx context.Context, dir string, o ClusterOptions) (*Cluster, error) {
	c := &Cluster{Dir: dir, o: o, Processes: map[string]*Process{}, Operations: map[string]string{}}
	for _, step := range []func(context.Context) error{c.prepare, c.secrets, c.configure, c.services, c.servers, c.Ready} {
		if err := step(ctx); err != nil {
			return c, err
		}
	}
	return c, nil
}

func (c *Cluster) file(name string) string { return filepath.Join(c.Dir, name) }

func (c *Cluster) prepare(context.Context) error {
	if err := build(); err != nil {
		return err
	}
	c.Binary = filepath.Join(programs, "crivo")
	return os.MkdirAll(c.Dir, 0o755)
}

func (c *Cluster) secrets(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, c.Binary, "keys", "services", "--dir", c.file("secrets")).CombinedOutput()
	if err != nil {
		return fmt.Errorf("secrets: %w: %s", err, out)
	}
	key, err := os.ReadFile(c.file("secrets/api-key"))
	c.Key = strings.TrimSpace(string(key))
	return err
}

// configure chooses the brokers' addresses and writes their configuration.
func (c *Cluster) configure(context.Context) error {
	addresses, err := Free(2 * c.o.Nodes)
	if err != nil {
		return err
	}
	var clients, routes []string
	for i := range c.o.Nodes {
		clients, routes = append(clients, "nats://"+addresses[2*i]), append(routes, "nats-route://"+addresses[2*i+1])
	}
	c.NATSURL = strings.Join(clients, ",")
	c.served = c.NATSURL
	if c.o.Between != nil {
		var through []string
		for i := range c.o.Nodes {
			address, err := c.o.Between(addresses[2*i])
			if err != nil {
				return err
			}
			through = append(through, "nats://"+address)
		}
		c.served = strings.Join(through, ",")
	}
	for i := range c.o.Nodes {
		text := fmt.Sprintf("server_name: n%d\nlisten: %q\nmax_payload: 1MB\njetstream { store_dir: %q", i+1, addresses[2*i], c.file(c.node(i)))
		if c.o.Sync {
			text += ", sync_interval: always"
		}
		text += " }\n"
		if c.o.Nodes > 1 {
			text += fmt.Sprintf("cluster { name: crivo, listen: %q, routes: [%s] }\n", addresses[2*i+1], strings.Join(routes, ", "))
		}
		if err := os.WriteFile(c.file(c.node(i)+".conf"), []byte(text+"include secrets/nats-auth.conf\n"), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) node(i int) string { return fmt.Sprint("nats-", i+1) }

func (c *Cluster) servers(context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for i := range c.o.Nodes {
		if err := c.run(c.node(i), []string{asServer + "=1"}, self, c.file(c.node(i)+".conf")); err != nil {
			return err
		}
	}
	return nil
}

// services starts the last step first: none may need another to be there.
func (c *Cluster) services(context.Context) error {
	for i := len(streams.Services) - 1; i >= 0 && c.o.Copies > 0; i-- {
		name, copies := streams.Services[i], c.o.Copies
		if name == "keeper" {
			copies = 1
		}
		for n := range copies {
			if err := c.Serve(name, n+1); err != nil {
				return err
			}
		}
	}
	return nil
}

// Serve starts one copy of a service, as the process name-number, and does not wait until it is ready.
func (c *Cluster) Serve(name string, number int) error {
	addresses, err := Free(2)
	if err != nil {
		return err
	}
	args := []string{"--nats-url", c.served, "--nats-creds", c.file("secrets/" + name + ".creds"), "--ops", addresses[0], "--log-level", "info"}
	mongo := []string{"--mongo-uri", c.o.MongoURI, "--mongo-database", c.o.Database}
	keyset := []string{"--keyset-file", c.file("secrets/keyset.json")}
	allow := []string{"--webhook-allow", "127.0.0.0/8"}
	var env []string
	switch name {
	case "edge":
		args = append(append(append(append(args, mongo...), keyset...), allow...), "--http", addresses[1], "--redis-url", c.o.RedisURL)
		env = []string{"CRIVO_API_KEY_FILE=" + c.file("secrets/api-key")}
		c.Edges = append(c.Edges, addresses[1])
		c.URL = "http://" + c.Edges[0]
	case "notify":
		args = append(append(append(args, mongo...), keyset...), allow...)
	case "persist":
		args = append(args, mongo...)
	case "keeper":
		args = append(append(args, mongo...), "--replicas", fmt.Sprint(c.o.Nodes))
	case "enrich":
		args = append(args, "--redis-url", c.o.RedisURL)
	case "validate":
		args = append(append(args, mongo...), keyset...)
	}
	process := fmt.Sprint(name, "-", number)
	c.Operations[process] = addresses[0]
	return c.run(process, env, filepath.Join(programs, name), args...)
}

// run starts a process under a name, and keeps what it says.
func (c *Cluster) run(name string, env []string, binary string, args ...string) error {
	p := &Process{Name: name, Log: c.file(name + ".log"), args: append([]string{binary}, args...), env: env}
	c.Processes[name] = p
	return p.Start()
}

// Start starts the process; again after it has ended. One that runs is left alone.
func (p *Process) Start() error {
	if p.exited != nil {
		select {
		case <-p.exited:
		default:
			return nil
		}
	}
	out, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	p.cmd = exec.Command(p.args[0], p.args[1:]...)
	p.cmd.Env = append(os.Environ(), p.env...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("%s: %w", p.Name, err)
	}
	p.exited = make(chan struct{})
	go func(cmd *exec.Cmd, exited chan struct{}) {
		_ = cmd.Wait()
		close(exited)
	}(p.cmd, p.exited)
	return nil
}

// Kill ends the process as a crash does.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.exited
}

// Stop drains the process; the error says that it did not end well.
func (p *Process) Stop() error {
	if p.cmd.Process.Signal(syscall.SIGTERM) != nil {
		return nil
	}
	select {
	case <-p.exited:
	case <-time.After(time.Minute):
		p.Kill()
		return fmt.Errorf("%s did not end within a minute of SIGTERM", p.Name)
	}
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("%s ended with status %d", p.Name, code)
	}
	return nil
}

// Ready waits until every service says that it is.
func (c *Cluster) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for name, ops := range c.Operations {
		for waiting := ""; ; {
			res, err := http.Get("http://" + ops + "/readyz")
			if err == nil {
				body, _ := io.ReadAll(res.Body)
				_ = res.Body.Close()
				if res.StatusCode == http.StatusOK {
					break
				}
				waiting = string(body)
			}
			select {
			case <-c.Processes[name].exited:
				return fmt.Errorf("%s ended: %s", name, c.Processes[name].cmd.ProcessState)
			case <-ctx.Done():
				return fmt.Errorf("%s is not ready: %s", name, waiting)
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	return nil
}

// Stop ends the services before what they stand on.
func (c *Cluster) Stop() {
	for _, servers := range []bool{false, true} {
		var all sync.WaitGroup
		for name, p := range c.Processes {
			if strings.HasPrefix(name, "nats-") == servers && p.cmd != nil && p.cmd.Process != nil {
				all.Go(func() { _ = p.Stop() })
			}
		}
		all.Wait()
	}
}

// Said is the last of each process's log.
func (c *Cluster) Said() string {
	var b strings.Builder
	for name, p := range c.Processes {
		text, _ := os.ReadFile(p.Log)
		if most := 3000; len(text) > most {
			text = text[len(text)-most:]
		}
		fmt.Fprintf(&b, "--- %s\n%s\n", name, text)
	}
	return b.String()
}

// OperatorCreds is the file of the credential that may do everything.
func (c *Cluster) OperatorCreds() string { return c.file("secrets/operator.creds") }

// Connect returns a NATS client that may do everything, closed when the test ends.
func (c *Cluster) Connect(t testing.TB) (*nats.Conn, jetstream.JetStream) {
	t.Helper()
	nc, err := nats.Connect(c.NATSURL, nats.UserCredentials(c.OperatorCreds()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return nc, js
}

// BehindNginx is Front for a test, which is skipped where there is no nginx.
func (c *Cluster) BehindNginx(t testing.TB) {
	t.Helper()
	err := c.Front(t.Context())
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip("nginx is not installed")
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Front puts the edges behind an nginx with the configuration that compose uses, and sends the system's requests there. The
// error is exec.ErrNotFound where there is none.
func (c *Cluster) Front(ctx context.Context) error {
	binary, err := exec.LookPath("nginx")
	if err != nil {
		return err
	}
	address, err := c.configureNginx()
	if err == nil {
		err = c.run("nginx", nil, binary, "-p", c.file("nginx")+"/", "-c", c.file("nginx/nginx.conf"))
	}
	if err != nil {
		return err
	}
	c.URL = "http://" + address
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		res, err := http.Get(c.URL + "/readyz")
		if err == nil {
			_ = res.Body.Close()
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// configureNginx copies the configuration with this cluster's addresses in it and returns nginx's own.
func (c *Cluster) configureNginx() (string, error) {
	addresses, err := Free(1)
	if err != nil {
		return "", err
	}
	out, err := exec.Command("go", "list", "-f", "{{.Dir}}", "-m", "crivo/services").Output()
	if err != nil {
		return "", fmt.Errorf("where services is: %w", err)
	}
	text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), "deploy", "nginx.conf"))
	if err != nil {
		return "", err
	}
	conf := strings.Replace(string(text), "listen 8080;", "listen "+addresses[0]+";", 1)
	edges := "upstream edges {\n"
	for _, e := range c.Edges {
		edges += "  server " + e + " max_fails=0;\n"
	}
	if err := os.Mkdir(c.file("nginx"), 0o755); err != nil {
		return "", err
	}
	return addresses[0], errors.Join(os.WriteFile(c.file("nginx/nginx.conf"), []byte(conf), 0o600),
		os.WriteFile(c.file("nginx/nginx-edges.conf"), []byte(edges+"  keepalive 64;\n}\n"), 0o600))
}
