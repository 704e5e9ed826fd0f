package broker_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

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
