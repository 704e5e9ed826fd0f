package compose_test

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"crivo/streams"
)

// within is how long a fact may take to show.
const within = 30 * time.Second

// wait returns once fact holds.
func wait(t *testing.T, what string, fact func() bool) {
	t.Helper()
	for deadline := time.Now().Add(within); !fact(); {
		if time.Now().After(deadline) {
			t.Fatalf("not in %s: %s", within, what)
		}
		select {
		case <-t.Context().Done():
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// natsOptions is a configuration read by the server's own parser from a folder as in the container.
func natsOptions(t *testing.T, config, secrets string) *server.Options {
	t.Helper()
	dir := t.TempDir()
	for from, names := range map[string][]string{filepath.Join(root, "services/deploy"): {"nats.conf", "nats-cluster.conf"}, secrets: {"nats-auth.conf", "nats-routes.conf"}} {
		for _, name := range names {
			if err := os.WriteFile(filepath.Join(dir, name), must(os.ReadFile(filepath.Join(from, name))), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	o, err := server.ProcessConfigFile(filepath.Join(dir, config))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// start runs a server with its ports and its folder moved to where a test may have them.
func start(t *testing.T, o *server.Options) *server.Server {
	t.Helper()
	o.Host, o.Port, o.HTTPPort, o.StoreDir, o.NoSigs, o.NoLog = "127.0.0.1", server.RANDOM_PORT, server.RANDOM_PORT, t.TempDir(), true, true
	s, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(within) {
		t.Fatal("the server is not ready")
	}
	return s
}

// connect is a connection under a credential; refused gets the subjects that the server refuses.
func connect(t *testing.T, s *server.Server, creds, inbox string, refused chan<- string) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(s.ClientURL(), nats.UserCredentials(creds), nats.CustomInboxPrefix(inbox), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		if errors.Is(err, nats.ErrPermissionViolation) {
			refused <- quoted.FindStringSubmatch(err.Error())[1]
		}
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

var quoted = regexp.MustCompile(`"([^"]+)"`)

func TestNATSKeepsWhatItAcknowledges(t *testing.T) {
	t.Parallel()
	for _, config := range []string{"nats.conf", "nats-cluster.conf"} {
		o := natsOptions(t, config, provisioned(t))
		if !o.JetStream || !o.SyncAlways || o.MaxPayload != 1<<20 || o.HTTPHost != "127.0.0.1" || o.StoreDir != "/var/tmp/nats" || o.Port != 4222 {
			t.Errorf("%s: %+v", config, o)
		}
		if clustered := o.Cluster.Name != ""; clustered != (config == "nats-cluster.conf") {
			t.Errorf("%s: cluster %v", config, o.Cluster)
		}
	}
}

// The names that servers of the cluster call each other by are those of compose.yaml.
func TestRoutesLeadToTheServersOfTheCluster(t *testing.T) {
	t.Parallel()
	o := natsOptions(t, "nats-cluster.conf", provisioned(t))
	p := load(t, sizes["cluster"], nil)
	got := map[string]bool{}
	for _, route := range o.Routes {
		password, _ := route.User.Password()
		if _, there := p.Services[route.Hostname()]; !there || route.Port() != fmt.Sprint(o.Cluster.Port) || password != o.Cluster.Password || len(password) != 48 {
			t.Errorf("route to %s", route.Host)
		}
		got[route.Hostname()] = true
	}
	if diff := cmp.Diff(map[string]bool{"nats": true, "nats-2": true, "nats-3": true}, got); diff != "" {
		t.Error(diff)
	}
	for name := range got {
		args := strings.Join(p.Services[name].Command, " ")
		if args != "nats-server --config /etc/nats/nats-cluster.conf --name "+name {
			t.Errorf("%s runs %s", name, args)
		}
	}
}

// The options must be the server's, the image's version one that the tests run with.
func TestNATSImageIsOfTheServerThatIsTested(t *testing.T) {
	t.Parallel()
	minor := regexp.MustCompile(`^\d+\.\d+`).FindString(server.VERSION)
	if image := load(t, nil, nil).Services["nats"].Image; !strings.HasPrefix(image, "nats:"+minor+".") || !strings.HasSuffix(image, "-alpine") {
		t.Errorf("%s, and the tests run %s", image, server.VERSION)
	}
	args := load(t, nil, nil).Services["nats"].Command
	o, err := server.ConfigureOptions(flag.NewFlagSet(args[0], flag.ContinueOnError), args[3:], nil, nil, nil)
	if err != nil || o.ServerName != "nats" {
		t.Errorf("%v: %v", args, err)
	}
}

// TestEachCredentialSaysWhatItMay connects as every service to a server that runs with the configuration of compose.yaml.
func TestEachCredentialSaysWhatItMay(t *testing.T) {
	t.Parallel()
	secrets := provisioned(t)
	s := start(t, natsOptions(t, "nats.conf", secrets))
	if nc, err := nats.Connect(s.ClientURL()); err == nil {
		nc.Close()
		t.Error("somebody without a credential was let in")
	}
	p := load(t, nil, nil)
	for service, tc := range map[string]struct{ may, not string }{
		"edge":     {"tx.submitted.acme", "tx.enriched.acme"},
		"enrich":   {"tx.enriched.acme", "tx.decided.acme"},
		"validate": {"tx.validated.acme", "tx.submitted.acme"},
		"score":    {"tx.scored.acme", "tx.decided.acme"},
		"persist":  {"tx.decided.acme", "tx.scored.acme"},
		"notify":   {"dlq.notify.reject.acme", "tx.decided.acme"},
		"keeper":   {"$JS.API.STREAM.CREATE.TX_SUBMITTED", "tx.rejected.acme"},
		"operator": {"tx.rejected.acme", ""},
	} {
		t.Run(service, func(t *testing.T) {
			creds := filepath.Join(secrets, service+".creds")
			if service != "operator" {
				creds = valueOf(t, environment(p.Services[service], secrets), "CRIVO_NATS_CREDS")
			}
			refused := make(chan string, 2)
			nc := connect(t, s, creds, streams.InboxPrefix(service), refused)
			for _, subject := range []string{tc.may, tc.not} {
				if subject != "" {
					if err := nc.Publish(subject, nil); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := nc.Flush(); err != nil { // errors come before the answer
				t.Fatal(err)
			}
			if tc.not != "" {
				select {
				case subject := <-refused:
					if subject != tc.not {
						t.Errorf("refused %s", subject)
					}
				case <-time.After(within):
					t.Errorf("may say %s", tc.not)
				}
			}
			if len(refused) > 0 {
				t.Errorf("may not say %s", <-refused)
			}
		})
	}
}

// valueOf is the value of a name in an environment.
func valueOf(t *testing.T, env []string, name string) string {
	t.Helper()
	for _, entry := range env {
		if value, ok := strings.CutPrefix(entry, name+"="); ok {
			return value
		}
	}
	t.Fatalf("no %s", name)
	return ""
}

// freePorts are ports of loopback that nobody listens on.
func freePorts(t *testing.T, n int) []int {
	t.Helper()
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close() // all are held until all are known
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports
}

func TestThreeServersBecomeACluster(t *testing.T) {
	t.Parallel()
	secrets, names, ports := provisioned(t), []string{"nats", "nats-2", "nats-3"}, freePorts(t, 3)
	var moved []string
	for i, name := range names {
		moved = append(moved, "@"+name+":6222", fmt.Sprintf("@127.0.0.1:%d", ports[i]))
	}
	local := t.TempDir()
	for _, name := range []string{"nats-auth.conf", "nats-routes.conf"} {
		text := strings.NewReplacer(moved...).Replace(string(must(os.ReadFile(filepath.Join(secrets, name)))))
		if err := os.WriteFile(filepath.Join(local, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var servers []*server.Server
	for i, name := range names {
		o := natsOptions(t, "nats-cluster.conf", local)
		o.ServerName, o.Cluster.Host, o.Cluster.Port = name, "127.0.0.1", ports[i]
		servers = append(servers, start(t, o))
	}
	wait(t, "a leader", func() bool { return leader(servers) })
	js, err := jetstream.New(connect(t, servers[0], filepath.Join(secrets, "keeper.creds"), streams.InboxPrefix("keeper"), make(chan string, 9)))
	if err != nil {
		t.Fatal(err)
	}
	wait(t, "streams with three copies", func() bool {
		_, err = streams.Ensure(t.Context(), js, streams.Layout{Replicas: 3, SubmittedBytes: 2 << 30})
		return err == nil
	})
	stream, err := js.Stream(t.Context(), streams.Submitted)
	if err != nil || stream.CachedInfo().Config.Replicas != 3 {
		t.Errorf("%v, %v", stream, err)
	}

	route, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", ports[0]), within)
	if err != nil {
		t.Fatal(err)
	}
	defer route.Close()
	_ = route.SetDeadline(time.Now().Add(within))
	fmt.Fprintf(route, "CONNECT {\"name\":\"stranger\",\"cluster\":\"crivo\"}\r\nPING\r\n")
	if said, err := io.ReadAll(route); err != nil || !strings.Contains(string(said), "Authorization Violation") {
		t.Errorf("a server without the password: %v, %s", err, said)
	}
}

func leader(servers []*server.Server) bool {
	for _, s := range servers {
		if s.JetStreamIsLeader() {
			return true
		}
	}
	return false
}

var opsAddress = regexp.MustCompile(`"ops":"([^"]+)"`)

// run starts a service as its container does, on a broker and a database elsewhere, and returns its operations address.
func run(t *testing.T, name, broker string) string {
	t.Helper()
	s := load(t, nil, nil).Services[name]
	cmd := exec.Command(filepath.Join(built(t).bin, s.Command[0]), s.Command[1:]...)
	cmd.Env = append(environment(s, provisioned(t)), "CRIVO_OPS=127.0.0.1:0", "CRIVO_NATS_URL="+broker, "CRIVO_MONGO_URI=mongodb://127.0.0.1:1")
	said, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	lines, address := bufio.NewScanner(said), ""
	for address == "" && lines.Scan() {
		if found := opsAddress.FindStringSubmatch(lines.Text()); found != nil {
			address = found[1]
		}
	}
	var rest strings.Builder
	read := make(chan struct{})
	go func() {
		defer close(read)
		for lines.Scan() {
			rest.WriteString(lines.Text() + "\n")
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		<-read
		if err := cmd.Wait(); err != nil || t.Failed() {
			t.Errorf("%s: %v\n%s", name, err, rest.String())
		}
	})
	return address
}

// TestAServiceIsHealthyOnceTheStreamsAreThere runs the image's programs with what compose.yaml tells them: score waits until the
// keeper has made the streams, and the health check sees both.
func TestAServiceIsHealthyOnceTheStreamsAreThere(t *testing.T) {
	t.Parallel()
	broker := start(t, natsOptions(t, "nats.conf", provisioned(t)))
	p := load(t, nil, nil)
	check := func(service, address string) (string, error) {
		test := p.Services[service].HealthCheck.Test[1:]
		test = append([]string{filepath.Join(built(t).bin, test[0])}, test[1:]...)
		for i := range test {
			test[i] = strings.Replace(test[i], "127.0.0.1:8081", address, 1)
		}
		return command(t, ".", nil, test...)
	}
	score := run(t, "score", broker.ClientURL())
	if out, err := check("score", score); err == nil || !strings.Contains(out, "503") {
		t.Errorf("healthy without streams: %v, %s", err, out)
	}
	keeper := run(t, "keeper", broker.ClientURL())
	wait(t, "score is healthy", func() bool { _, err := check("score", score); return err == nil })
	wait(t, "the keeper misses its database", func() bool {
		out, err := check("keeper", keeper)
		return err != nil && strings.Contains(out, "the database")
	})
	asked := p.Services["nats"].HealthCheck.Test
	res, err := http.Get(strings.Replace(asked[len(asked)-1], "127.0.0.1:8222", broker.MonitorAddr().String(), 1))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		t.Errorf("the broker's own check: %s", res.Status)
	}
}
