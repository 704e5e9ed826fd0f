package compose_test

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/google/go-cmp/cmp"

	"crivo/streams"
)

// provisioned is a folder of secrets, made once by secrets.sh for all tests that only read it.
func provisioned(t *testing.T) string {
	t.Helper()
	built(t)
	provisionOnce.Do(func() { provisionErr = provision(t, filepath.Join(scratch, "secrets")) })
	if provisionErr != nil {
		t.Fatal(provisionErr)
	}
	return filepath.Join(scratch, "secrets")
}

var (
	provisionOnce sync.Once
	provisionErr  error
)

// provision runs secrets.sh; its go run is the image's crivo, which need not be compiled again.
func provision(t *testing.T, dir string) error {
	t.Helper()
	tools := t.TempDir()
	fake := "#!/bin/sh\n[ \"$1 $2\" = 'run ./services/cmd/crivo' ] || exit 9\nshift 2\nexec " + filepath.Join(built(t).bin, "crivo") + " \"$@\"\n"
	if err := os.WriteFile(filepath.Join(tools, "go"), []byte(fake), 0o700); err != nil {
		return err
	}
	out, err := command(t, "/", []string{"PATH=" + tools + ":" + os.Getenv("PATH")}, "sh", filepath.Join(root, "services/deploy/secrets.sh"), dir)
	if err != nil {
		return fmt.Errorf("secrets.sh: %w: %s", err, out)
	}
	return nil
}

// files are all below dir, by name, with what is in them.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		out[strings.TrimPrefix(path, dir+"/")] = string(data)
		if info := must(entry.Info()); info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %o", path, info.Mode().Perm())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestEveryFileThatIsMountedIsThere(t *testing.T) {
	t.Parallel()
	secrets := provisioned(t)
	p := load(t, sizes["cluster"], nil)
	for name, secret := range p.Secrets {
		inside, ok := strings.CutPrefix(secret.File, filepath.Join(root, "secrets")+"/")
		if info, err := os.Stat(filepath.Join(secrets, inside)); !ok || err != nil || info.Size() == 0 {
			t.Errorf("secret %s: %s, %v", name, secret.File, err)
		}
	}
	for name, file := range p.Configs {
		if _, err := os.Stat(file.File); err != nil {
			t.Errorf("config %s: %v", name, err)
		}
	}
	if _, err := os.Stat(filepath.Join(secrets, "keyset/keyset.json")); err != nil {
		t.Error(err)
	}
}

// What a service has it must need: its own credential, and the sealing keys where personal data is sealed or opened.
func TestEachServiceHasItsOwnSecretsAlone(t *testing.T) {
	t.Parallel()
	eachService(t, func(t *testing.T, _ *types.Project, s types.ServiceConfig) {
		want := map[string][]string{"nats": {"nats-auth.conf", "nats-routes.conf"}, "edge": {"edge.creds", "api-key"}}[kind(s)]
		if ours(s) && want == nil {
			want = []string{kind(s) + ".creds"}
		}
		var got []string
		for _, secret := range s.Secrets {
			got = append(got, secret.Source)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		keys := map[string]string{"edge": "written", "validate": "read", "notify": "read"}[kind(s)]
		had := ""
		for _, v := range s.Volumes {
			if v.Type != types.VolumeTypeBind {
				continue
			}
			if had = "written"; v.ReadOnly {
				had = "read"
			}
			if v.Source != filepath.Join(root, "secrets/keyset") || bool(v.Bind.CreateHostPath) {
				t.Errorf("mounts %s", v.Source)
			}
		}
		if had != keys {
			t.Errorf("sealing keys: %q, want %q", had, keys)
		}
		if owner := "1000:1000"; s.Secrets != nil && s.User != owner { // as CRIVO_UID and CRIVO_GID are without .env
			t.Errorf("user %s may not read what is %s's", s.User, owner)
		}
	})
}

func TestSecretsAreMadeOnce(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "secrets")
	if err := provision(t, dir); err != nil {
		t.Fatal(err)
	}
	first := files(t, dir)
	want := []string{"api-key", "keyset/keyset.json", "nats-auth.conf", "nats-keys.json", "nats-routes.conf", "operator.creds"}
	for _, service := range streams.Services {
		want = append(want, service+".creds")
	}
	slices.Sort(want)
	var names []string
	for _, name := range slices.Sorted(maps.Keys(first)) {
		if !strings.HasSuffix(name, ".lock") {
			names = append(names, name)
		}
	}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Error(diff)
	}
	settings := string(must(os.ReadFile(filepath.Join(dir, "../.env"))))
	uid, gid := os.Getuid(), os.Getgid()
	if uid == 0 {
		uid, gid = 65532, 65532
	}
	if want := fmt.Sprintf("CRIVO_UID=%d\nCRIVO_GID=%d\n", uid, gid); settings != want {
		t.Errorf(".env is %q", settings)
	}
	if err := provision(t, dir); err != nil {
		t.Fatal(err)
	}
	second := files(t, dir)
	delete(first, "nats-auth.conf") // signed anew by the same keys
	delete(second, "nats-auth.conf")
	if diff := cmp.Diff(first, second); diff != "" {
		t.Error(diff)
	}
	if again := string(must(os.ReadFile(filepath.Join(dir, "../.env")))); again != settings {
		t.Errorf(".env is %q", again)
	}
}

func TestSecretsRefuseTwoSetsOfSealingKeys(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "secrets")
	if err := provision(t, dir); err != nil {
		t.Fatal(err)
	}
	before := files(t, dir)
	before["keyset.json"] = "a backup that somebody put there"
	if err := os.WriteFile(filepath.Join(dir, "keyset.json"), []byte(before["keyset.json"]), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := provision(t, dir); err == nil || !strings.Contains(err.Error(), "two sets of sealing keys") {
		t.Error(err)
	}
	if diff := cmp.Diff(before, files(t, dir)); diff != "" {
		t.Error(diff)
	}
}
