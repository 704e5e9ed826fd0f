package broker_test

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"crivo/services/broker"
)

func TestSecretsOfAClusterAreMadeOnceAndMendedAfterwards(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "secrets")
	first, err := broker.Provision(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"edge.creds", "enrich.creds", "keeper.creds", "nats-auth.conf", "notify.creds", "operator.creds", "persist.creds", "score.creds", "validate.creds"}
	if diff := cmp.Diff(want, first); diff != "" {
		t.Error(diff)
	}
	for _, name := range append(want, "nats-keys.json") {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	key := operatorKey(t, dir)
	edge, err := os.ReadFile(filepath.Join(dir, "edge.creds"))
	if err != nil {
		t.Fatal(err)
	}
	// As after an upgrade that gave a service other rights, and a lost file.
	if err := os.WriteFile(filepath.Join(dir, "score.creds"), edge, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "notify.creds")); err != nil {
		t.Fatal(err)
	}
	again, err := broker.Provision(dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"nats-auth.conf", "notify.creds", "score.creds"}, again); diff != "" {
		t.Error(diff)
	}
	if after, _ := os.ReadFile(filepath.Join(dir, "edge.creds")); string(after) != string(edge) || operatorKey(t, dir) != key {
		t.Error("what was good was made anew")
	}
}

// operatorKey is the account's name in the servers' configuration: credentials of another would not be known.
func operatorKey(t *testing.T, dir string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, broker.AuthFile))
	if err != nil {
		t.Fatal(err)
	}
	_, preload, ok := strings.Cut(string(text), "resolver_preload")
	if !ok {
		t.Fatalf("no accounts in %s", text)
	}
	var names []string
	for line := range strings.Lines(preload) {
		if name, _, ok := strings.Cut(strings.TrimSpace(line), ": "); ok && len(name) == 56 {
			names = append(names, name)
		}
	}
	return strings.Join(names, " ")
}

// A server of a cluster of one's own learns of a tenant by reading its configuration again, and keeps what runs.
func TestAClusterLearnsOfATenant(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "secrets")
	if _, _, err := broker.ClusterTenant(dir, "acme", time.Time{}); err == nil || !strings.Contains(err.Error(), "no secrets") {
		t.Errorf("without secrets: %v", err)
	}
	if _, err := broker.Provision(dir); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "nats.conf")
	text := "listen: \"127.0.0.1:-1\"\njetstream { store_dir: " + strconv.Quote(t.TempDir()) + " }\ninclude nats-auth.conf\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	o, err := server.ProcessConfigFile(config)
	if err != nil {
		t.Fatal(err)
	}
	o.NoSigs, o.NoLog = true, true
	s, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(within) {
		t.Fatal("not ready")
	}
	edge, err := nats.Connect(s.ClientURL(), nats.UserCredentials(filepath.Join(dir, "edge.creds")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(edge.Close)
	if _, err := edge.Subscribe("tx.intake.*", func(m *nats.Msg) { _ = m.Respond([]byte(m.Subject)) }); err != nil || edge.Flush() != nil {
		t.Fatal(err)
	}
	second := time.Now().Unix()
	for time.Now().Unix() == second { // tokens are made with a time in seconds: one of another second is another
		<-time.After(10 * time.Millisecond)
	}
	for _, tenant := range []string{"acme", "other"} { // the second one's must not make the first one's unknown
		id, creds, err := broker.ClusterTenant(dir, tenant, time.Time{})
		if err != nil || !strings.HasPrefix(id, "U") {
			t.Fatal(id, err)
		}
		if err := os.WriteFile(filepath.Join(dir, tenant+".creds"), creds, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := s.Reload(); err != nil {
			t.Fatal(err)
		}
	}
	for _, tenant := range []string{"acme", "other"} {
		refused := make(chan error, 8)
		nc, err := nats.Connect(s.ClientURL(), nats.UserCredentials(filepath.Join(dir, tenant+".creds")),
			nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { refused <- err }))
		if err != nil {
			t.Fatal(tenant, err)
		}
		defer nc.Close()
		if m, err := nc.Request("tx.intake."+tenant, nil, within); err != nil || string(m.Data) != "tx.intake."+tenant {
			t.Errorf("%s: %v, %v", tenant, m, err)
		}
		for _, subject := range []string{"tx.intake.third", "tx.submitted." + tenant, "$JS.API.STREAM.NAMES"} {
			if err := nc.Publish(subject, nil); err != nil {
				t.Fatal(err)
			}
			if err := <-refused; !errors.Is(err, nats.ErrPermissionViolation) {
				t.Errorf("%s: %v", subject, err)
			}
		}
	}
	if _, err := broker.Provision(dir); err != nil { // as after an upgrade
		t.Fatal(err)
	}
	if err := s.Reload(); err != nil {
		t.Fatal(err)
	}
	if nc, err := nats.Connect(s.ClientURL(), nats.UserCredentials(filepath.Join(dir, "acme.creds"))); err != nil {
		t.Errorf("after an upgrade: %v", err)
	} else {
		nc.Close()
	}
}

func TestACredentialEndsWhenItShould(t *testing.T) {
	s := start(t, t.TempDir())
	_, creds, err := s.TenantCreds("acme", time.Now().Add(-time.Second))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "c")
	if err := os.WriteFile(path, creds, 0o600); err != nil {
		t.Fatal(err)
	}
	if nc, err := nats.Connect(s.URL(), nats.UserCredentials(path)); err == nil {
		nc.Close()
		t.Error("an expired credential is good")
	}
}
