package compose_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dop251/goja"
	"github.com/google/go-cmp/cmp"
)

// TestRedisRunsAsItIsConfigured starts the real one and asks it.
func TestRedisRunsAsItIsConfigured(t *testing.T) {
	t.Parallel()
	s := load(t, nil, nil).Services["redis"]
	program, err := exec.LookPath(s.Command[0])
	if err != nil {
		t.Skip("no redis-server on this machine")
	}
	conf := filepath.Join(root, "services/deploy/redis.conf")
	if want := []string{"redis-server", "/etc/redis.conf"}; !slices.Equal(s.Command, want) || s.Configs[0].Target != want[1] {
		t.Errorf("runs %v", s.Command)
	}
	port := fmt.Sprint(freePorts(t, 1)[0])
	cmd := exec.CommandContext(t.Context(), program, conf, "--port", port, "--bind", "127.0.0.1", "--dir", t.TempDir())
	var said strings.Builder
	cmd.Stdout = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Signal(os.Interrupt)
		if err := cmd.Wait(); err != nil || t.Failed() {
			t.Errorf("%v: %s", err, said.String())
		}
	}()
	wait(t, "redis answers", func() bool { return strings.HasPrefix(redis(t, port, "PING"), "+PONG") })
	for name, want := range map[string]string{"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction", "maxmemory": "1073741824",
		"save": "", "protected-mode": "no"} {
		if got := redis(t, port, "CONFIG GET "+name); !strings.Contains(got, "\r\n"+want+"\r\n") {
			t.Errorf("%s: %q", name, got)
		}
	}
	if got := redis(t, port, "SET k v"); got != "+OK\r\n" {
		t.Errorf("a write: %q", got)
	}
}

// redis sends one command and returns the answer; nothing when there is no server.
func redis(t *testing.T, port, command string) string {
	t.Helper()
	conn, err := net.Dial("tcp", "127.0.0.1:"+port)
	if err != nil {
		return ""
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(within))
	fmt.Fprintf(conn, "%s\r\nQUIT\r\n", command)
	answer, err := io.ReadAll(conn)
	if err != nil {
		t.Error(err)
	}
	return strings.TrimSuffix(string(answer), "+OK\r\n") // to QUIT
}

// TestMongoHealthMakesTheSetOnceAndOnlyThere runs the script with a shell's words that remember.
func TestMongoHealthMakesTheSetOnceAndOnlyThere(t *testing.T) {
	t.Parallel()
	script := string(must(os.ReadFile(filepath.Join(root, "services/deploy/mongo-health.js"))))
	fresh, three := map[string]any{"isreplicaset": true}, "mongo:27017,mongo-2:27017,mongo-3:27017"
	member := func(i int, host string) map[string]any { return map[string]any{"_id": int64(i), "host": host} }
	for name, tc := range map[string]struct {
		hello   map[string]any
		members string
		made    []any // members of the set
		status  int
	}{
		"first start, one":            {fresh, "mongo:27017", []any{member(0, "mongo:27017")}, 1},
		"first start, three":          {fresh, three, []any{member(0, "mongo:27017"), member(1, "mongo-2:27017"), member(2, "mongo-3:27017")}, 1},
		"first start of another":      {fresh, "", nil, 1},
		"primary":                     {map[string]any{"isWritablePrimary": true, "setName": "crivo"}, three, nil, 0},
		"secondary":                   {map[string]any{"secondary": true, "setName": "crivo"}, "", nil, 0},
		"recovering, or no primary":   {map[string]any{"setName": "crivo"}, three, nil, 1},
		"the first as one of several": {map[string]any{"secondary": true, "setName": "crivo"}, three, nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			vm, status := goja.New(), -1
			var made map[string]any
			env := map[string]any{}
			if tc.members != "" {
				env["MEMBERS"] = tc.members
			}
			for word, value := range map[string]any{
				"db":      map[string]any{"hello": func() map[string]any { return tc.hello }},
				"rs":      map[string]any{"initiate": func(config map[string]any) { made = config }},
				"process": map[string]any{"env": env},
				"quit":    func(code int) { status = code },
			} {
				if err := vm.Set(word, value); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := vm.RunString(script); err != nil {
				t.Fatal(err)
			}
			if status != tc.status {
				t.Errorf("status %d, want %d", status, tc.status)
			}
			var want map[string]any
			if tc.made != nil {
				want = map[string]any{"_id": "crivo", "members": tc.made}
			}
			if diff := cmp.Diff(want, made); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// The set's name is said in three places.
func TestMongoIsASetOfTheNameThatClientsAskFor(t *testing.T) {
	t.Parallel()
	p := load(t, sizes["cluster"], nil)
	for _, name := range []string{"mongo", "mongo-2", "mongo-3"} {
		s := p.Services[name]
		want := []string{"mongod", "--replSet", "crivo", "--bind_ip_all", "--wiredTigerCacheSizeGB", "1"}
		if diff := cmp.Diff(want, []string(s.Command)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if _, makes := s.Environment["MEMBERS"]; makes != (name == "mongo") || !strings.HasPrefix(s.Image, "mongo:8.") {
			t.Errorf("%s makes the set: %v; %s", name, makes, s.Image)
		}
		if check := s.HealthCheck.Test; check[len(check)-1] != s.Configs[0].Target || s.Configs[0].Source != "mongo-health.js" {
			t.Errorf("%s: %v", name, check)
		}
	}
}

// TestTheTaskUsesWhatIsThere reads task test-compose, which needs Docker, and checks each name in it.
func TestTheTaskUsesWhatIsThere(t *testing.T) {
	t.Parallel()
	p := load(t, nil, nil, "services/deploy/test.yaml")
	taskfile := string(must(os.ReadFile(filepath.Join(root, "Taskfile.yml"))))
	_, task, found := strings.Cut(taskfile, "\n  test-compose:\n")
	if !found {
		t.Fatal("no task test-compose")
	}
	task, _, _ = strings.Cut(task, "\n\n")
	asked := regexp.MustCompile(`compose port (\S+) (\d+)`).FindAllStringSubmatch(task, -1)
	if len(asked) != 3 {
		t.Errorf("asks for %v", asked)
	}
	for _, a := range asked {
		s := p.Services[a[1]]
		open := slices.ContainsFunc(p.NetworkNames(), func(name string) bool { _, on := s.Networks[name]; return on && !p.Networks[name].Internal })
		if len(s.Ports) != 1 || fmt.Sprint(s.Ports[0].Target) != a[2] || s.Ports[0].HostIP != "127.0.0.1" || s.Ports[0].Published != "" || !open {
			t.Errorf("%s publishes %v; on a network that may: %v", a[1], s.Ports, open)
		}
	}
	variables := regexp.MustCompile(`CRIVO_TEST_\w+`).FindAllString(task, -1)
	for _, name := range variables {
		if out, err := runIn(context.Background(), root, os.Environ(), "grep", "-rl", "--include=*_test.go", `"`+name+`"`, "services/store", "test/pipeline"); err != nil {
			t.Errorf("no test reads %s: %s", name, out)
		}
	}
	if len(variables) < 2 || !strings.Contains(task, "./services/store/... ./test/pipeline/...") {
		t.Errorf("runs with %v", variables)
	}
}
