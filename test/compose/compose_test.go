// Package compose_test holds compose.yaml true on a machine without Docker: the model is loaded by Compose's own library, the
// image's programs are built by the Dockerfile's own command, and every configuration file is run by the server it is for.
package compose_test

import (
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/google/go-cmp/cmp"

	"crivo/services/process"
	"crivo/streams"
)

// root is the repository's, where compose.yaml is.
var root = must(filepath.Abs("../.."))

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// sizes are the environments that select them.
var sizes = map[string][]string{"default": nil, "cluster": {"COMPOSE_PROFILES=cluster"}}

// load is what docker compose makes of files in an environment, and of profiles given as --profile.
func load(t *testing.T, env []string, profiles []string, files ...string) *types.Project {
	t.Helper()
	paths := []string{filepath.Join(root, "compose.yaml")}
	for _, file := range files {
		paths = append(paths, filepath.Join(root, file))
	}
	o, err := cli.NewProjectOptions(paths, cli.WithWorkingDirectory(root), cli.WithEnv(env), cli.WithDefaultProfiles(profiles...))
	if err != nil {
		t.Fatal(err)
	}
	p, err := o.LoadProject(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// eachService runs check on every service of both sizes.
func eachService(t *testing.T, check func(t *testing.T, p *types.Project, s types.ServiceConfig)) {
	t.Helper()
	for size, env := range sizes {
		p := load(t, env, nil)
		for _, name := range p.ServiceNames() {
			t.Run(size+"/"+name, func(t *testing.T) { check(t, p, p.Services[name]) })
		}
	}
}

// ours tells whether a service runs a program of this repository.
func ours(s types.ServiceConfig) bool { return s.Build != nil }

// kind is what a service is a copy of: edge of edge-2.
func kind(s types.ServiceConfig) string { return strings.TrimRight(s.Name, "-23") }

func TestTheTwoSizesAreWhatTheyShouldBe(t *testing.T) {
	t.Parallel()
	want := map[string]map[string]int{"default": {"nats": 1, "mongo": 1, "redis": 1}, "cluster": {"nats": 3, "mongo": 3, "redis": 1, "nginx": 1, "told": 1}}
	for _, name := range streams.Services {
		want["default"][name], want["cluster"][name] = 1, 2
	}
	want["cluster"]["keeper"] = 1
	for size, env := range sizes {
		got := map[string]int{}
		for _, s := range load(t, env, nil).Services {
			got[kind(s)]++
		}
		if diff := cmp.Diff(want[size], got); diff != "" {
			t.Errorf("%s: %s", size, diff)
		}
	}
}

// What is there in both sizes must be told which one it is.
func TestWhatIsInBothSizesKnowsWhich(t *testing.T) {
	t.Parallel()
	for size, want := range map[string]struct{ keeper, config, members, nats, mongo, port string }{
		"default": {"keeper", "/etc/nats/nats.conf", "mongo:27017", "nats://nats:4222", "mongodb://mongo:27017/?replicaSet=crivo", "8080"},
		"cluster": {"keeper --replicas 3", "/etc/nats/nats-cluster.conf", "mongo:27017,mongo-2:27017,mongo-3:27017",
			"nats://nats:4222,nats://nats-2:4222,nats://nats-3:4222", "mongodb://mongo:27017,mongo-2:27017,mongo-3:27017/?replicaSet=crivo", "18080"},
	} {
		p := load(t, sizes[size], nil)
		got := want
		got.keeper = strings.Join(p.Services["keeper"].Command, " ")
		got.config = p.Services["nats"].Command[2]
		got.members = *p.Services["mongo"].Environment["MEMBERS"]
		got.nats, got.mongo = *p.Services["keeper"].Environment["CRIVO_NATS_URL"], *p.Services["keeper"].Environment["CRIVO_MONGO_URI"]
		got.port = p.Services["edge"].Ports[0].Published
		if got != want {
			t.Errorf("%s: got %v", size, got)
		}
	}
}

func TestNoVolumeIsSharedByTheSizesOrByServices(t *testing.T) {
	t.Parallel()
	owner := map[string]string{}
	for size, env := range sizes {
		for _, s := range load(t, env, nil).Services {
			for _, v := range s.Volumes {
				if v.Type != types.VolumeTypeVolume {
					continue
				}
				if before, taken := owner[v.Source]; taken {
					t.Errorf("%s is of %s and of %s/%s", v.Source, before, size, s.Name)
				}
				owner[v.Source] = size + "/" + s.Name
			}
		}
	}
	declared := slices.Sorted(maps.Keys(load(t, nil, nil).Volumes))
	if diff := cmp.Diff(declared, slices.Sorted(maps.Keys(owner))); diff != "" {
		t.Error(diff)
	}
}

// --profile cluster reaches Compose and not the services that must know it, so then nothing may join them.
func TestTheProfileAloneAddsNothing(t *testing.T) {
	t.Parallel()
	small := load(t, nil, nil).Services
	for name, tc := range map[string]struct {
		env, profiles []string
		fails         bool
	}{
		"--profile cluster":        {nil, []string{"cluster"}, true},
		"COMPOSE_PROFILES=cluster": {sizes["cluster"], nil, false},
	} {
		p := load(t, tc.env, tc.profiles)
		told := p.Services["told"]
		out, err := command(t, ".", []string{"PROFILES=" + *told.Environment["PROFILES"]}, told.Command...)
		if (err != nil) != tc.fails || tc.fails && !strings.Contains(out, "COMPOSE_PROFILES=cluster") {
			t.Errorf("%s: %v, says %q", name, err, out)
		}
		for _, s := range p.Services {
			var want types.DependsOnConfig // services start in any order
			if _, always := small[s.Name]; !always && s.Name != "told" {
				want = types.DependsOnConfig{"told": {Condition: types.ServiceConditionCompletedSuccessfully, Required: true}}
			}
			if diff := cmp.Diff(want, s.DependsOn); diff != "" {
				t.Errorf("%s: %s waits for %s", name, s.Name, diff)
			}
		}
	}
}

var (
	exactTag = regexp.MustCompile(`^[a-z]+:[0-9]+\.[0-9]+\.[0-9]+(-[a-z0-9.]+)?$`)
	someUser = regexp.MustCompile(`^[1-9][0-9]*:[1-9][0-9]*$`)
)

func TestEveryContainerHasNoMoreThanItNeeds(t *testing.T) {
	t.Parallel()
	eachService(t, func(t *testing.T, p *types.Project, s types.ServiceConfig) {
		if !someUser.MatchString(s.User) || !s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"}) || s.CapAdd != nil || s.Privileged ||
			!slices.Equal(s.SecurityOpt, []string{"no-new-privileges:true"}) {
			t.Errorf("user %s, read-only %v, capabilities %v but %v, privileged %v, %v", s.User, s.ReadOnly, s.CapAdd, s.CapDrop, s.Privileged, s.SecurityOpt)
		}
		if !exactTag.MatchString(s.Image) {
			t.Errorf("image %s", s.Image)
		}
		if s.Name != "told" && (s.HealthCheck == nil || s.Restart != types.RestartPolicyUnlessStopped) {
			t.Errorf("restart %q, health check %v", s.Restart, s.HealthCheck)
		}
		for _, port := range s.Ports {
			if kind(s) != "edge" && s.Name != "nginx" || port.HostIP != "127.0.0.1" {
				t.Errorf("published on %s:%s", port.HostIP, port.Published)
			}
		}
		for name := range s.Networks {
			if !p.Networks[name].Internal && !slices.Contains([]string{"edge", "notify", "nginx"}, kind(s)) {
				t.Errorf("network %s leads out", name)
			}
		}
	})
}

func TestOurImageIsOfThisVersion(t *testing.T) {
	t.Parallel()
	eachService(t, func(t *testing.T, _ *types.Project, s types.ServiceConfig) {
		if ours(s) && s.Image != "crivo:"+process.Version {
			t.Errorf("%s, but the program is %s", s.Image, process.Version)
		}
	})
}

// TestWhomAServiceTalksTo checks each address that a service is given: the name, the port, and a network with both on it.
func TestWhomAServiceTalksTo(t *testing.T) {
	t.Parallel()
	listens := map[string]string{"nats": port(t, natsOptions(t, "nats.conf", provisioned(t)).Port), "mongo": "27017", "redis": "6379"}
	eachService(t, func(t *testing.T, p *types.Project, s types.ServiceConfig) {
		var asked []string
		for _, name := range slices.Sorted(maps.Keys(s.Environment)) {
			value := s.Environment[name]
			if value == nil || !strings.HasPrefix(name, "CRIVO_") || !strings.Contains(*value, "://") {
				continue
			}
			for _, host := range hosts(t, *value) {
				at, number, _ := strings.Cut(host, ":")
				peer, there := p.Services[at]
				if !there || number != listens[kind(peer)] || !meet(s, peer) {
					t.Errorf("%s: %s is not reached", name, host)
				}
				asked = append(asked, kind(peer))
			}
		}
		for _, peer := range p.Services {
			_, store := listens[kind(peer)]
			if needs := slices.Contains(asked, kind(peer)); ours(s) && store && meet(s, peer) != needs {
				t.Errorf("reaches %s: %v, needs it: %v", peer.Name, !needs, needs)
			}
		}
	})
}

// hosts are the host:port pairs of a URL, or of several with a comma between them, or between hosts.
func hosts(t *testing.T, urls string) []string {
	t.Helper()
	var out []string
	for _, part := range strings.Split(urls, ",") {
		if !strings.Contains(part, "://") {
			part = "mongodb://" + part
		}
		u, err := url.Parse(part)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, u.Host)
	}
	return out
}

// meet tells whether two services have a network in common.
func meet(a, b types.ServiceConfig) bool {
	for name := range a.Networks {
		if _, both := b.Networks[name]; both {
			return true
		}
	}
	return false
}

func port(t *testing.T, number int) string {
	t.Helper()
	if number <= 0 {
		t.Fatalf("port %d", number)
	}
	return strconv.Itoa(number)
}

var loopbackPort = regexp.MustCompile(`127\.0\.0\.1:(\d+)|-p (\d+)`)

func TestHealthChecksAskWhereSomethingListens(t *testing.T) {
	t.Parallel()
	nginx, err := os.ReadFile(filepath.Join(root, "services/deploy/nginx.conf"))
	if err != nil {
		t.Fatal(err)
	}
	listen := regexp.MustCompile(`listen (\d+);`).FindStringSubmatch(string(nginx))
	monitor := natsOptions(t, "nats.conf", provisioned(t)).HTTPPort
	eachService(t, func(t *testing.T, _ *types.Project, s types.ServiceConfig) {
		if s.HealthCheck == nil || kind(s) == "mongo" { // mongosh asks MongoDB's own port
			return
		}
		text := strings.Join(s.HealthCheck.Test, " ")
		asked := loopbackPort.FindStringSubmatch(text)
		if asked == nil {
			t.Fatalf("%s asks no port", text)
		}
		got := asked[1] + asked[2]
		want := map[string]string{"nats": port(t, monitor), "redis": "6379", "nginx": listen[1]}[kind(s)]
		if ours(s) {
			_, want, _ = strings.Cut(*s.Environment["CRIVO_OPS"], ":")
			if head := s.HealthCheck.Test[:3]; !slices.Equal(head, []string{"CMD", "crivo", "health"}) {
				t.Errorf("runs %v", head)
			}
		}
		if got != want {
			t.Errorf("asks port %s, and what listens is %s", got, want)
		}
	})
}

// What is published must be what the program listens on.
func TestPublishedPortsAreListenedOn(t *testing.T) {
	t.Parallel()
	p := load(t, sizes["cluster"], nil)
	_, api, _ := strings.Cut(*p.Services["edge"].Environment["CRIVO_HTTP"], ":")
	if got := fmt.Sprint(p.Services["edge"].Ports[0].Target); got != api {
		t.Errorf("edge publishes %s and listens on %s", got, api)
	}
	conf := string(must(os.ReadFile(filepath.Join(root, "services/deploy/nginx.conf"))))
	if want := fmt.Sprintf("listen %d;", p.Services["nginx"].Ports[0].Target); !strings.Contains(conf, want) {
		t.Errorf("nginx: no %q", want)
	}
	edges := string(must(os.ReadFile(filepath.Join(root, "services/deploy/nginx-edges.conf"))))
	for _, name := range []string{"edge", "edge-2"} {
		server := fmt.Sprintf("server %s:%s max_fails=0 resolve;", name, api)
		if !strings.Contains(edges, server) || !strings.Contains(edges, "resolver 127.0.0.11 ") || !meet(p.Services[name], p.Services["nginx"]) {
			t.Errorf("nginx does not reach %s", name)
		}
	}
}
