package e2e_test

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
)

// npmPackage is the library that receivers in JavaScript verify with.
const npmPackage = "standardwebhooks@1.1.1"

// javascript installs the library and returns a function that has it verify webhooks: true, or what it says against each.
func javascript(t *testing.T) func(secret string, hooks ...webhook) []string {
	t.Helper()
	for _, program := range []string{"node", "npm"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("no %s on this machine: %s does not verify (Debian: apt-get install nodejs npm)", program, npmPackage)
		}
	}
	dir := t.TempDir()
	install := exec.CommandContext(t.Context(), "npm", "install", "--prefix", dir, "--no-audit", "--no-fund", "--ignore-scripts", "--save-exact", npmPackage)
	install.Dir = dir
	if out, err := install.CombinedOutput(); err != nil {
		t.Skipf("npm cannot install %s: %v\n%s", npmPackage, err, out)
	}
	script, err := os.ReadFile(filepath.Join("testdata", "verify.js"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "verify.js"), script, 0o600); err != nil {
		t.Fatal(err)
	}
	return func(secret string, hooks ...webhook) []string {
		t.Helper()
		var in bytes.Buffer
		for _, h := range hooks {
			headers := map[string]string{}
			for _, name := range []string{"webhook-id", "webhook-timestamp", "webhook-signature"} {
				headers[name] = h.header.Get(name)
			}
			line, err := json.Marshal(map[string]any{"secret": secret, "headers": headers, "body": h.body})
			if err != nil {
				t.Fatal(err)
			}
			in.Write(append(line, '\n'))
		}
		cmd := exec.CommandContext(t.Context(), "node", "verify.js")
		cmd.Dir, cmd.Stdin = dir, &in
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v: %s", err, stderr.String())
		}
		said := strings.Split(strings.TrimSpace(string(out)), "\n")
		if len(said) != len(hooks) {
			t.Fatalf("%d webhooks, said %q", len(hooks), said)
		}
		return said
	}
}

func TestW02TheJavaScriptLibraryVerifiesADelivery(t *testing.T) {
	t.Parallel()
	verify := javascript(t)
	c := newTenant(t)
	thin, full := c.receive(t, ""), c.receive(t, `,"payload":"full"`)
	c.decided(t, payment(newID()))
	for name, r := range map[string]*receiver{"thin": thin, "full": full} {
		got := r.first(t)
		changed := []webhook{got}
		for i := range got.body {
			flipped := bytes.Clone(got.body)
			flipped[i] ^= 1
			changed = append(changed, webhook{got.header, flipped})
		}
		for _, part := range []string{"Webhook-Id", "Webhook-Timestamp", "Webhook-Signature"} {
			header := got.header.Clone()
			text := []byte(header.Get(part))
			text[len(text)-3] ^= 1
			header.Set(part, string(text))
			changed = append(changed, webhook{header, got.body})
		}
		for i, said := range verify(r.secret, changed...) {
			if (said == "true") != (i == 0) {
				t.Errorf("%s: of its change %d it says %q", name, i, said)
			}
		}
	}
	if said := verify(thin.secret, full.first(t)); said[0] == "true" {
		t.Error("another endpoint's secret verifies")
	}
	// While two secrets are in force, the receiver may have either.
	rotated := c.post(t, "/v1/webhook-endpoints/"+thin.id+"/rotate-secret", `{"grace_s":3600}`).want(t, http.StatusOK).text("secret")
	hook := c.signedBy(t, thin, 2)
	if said := fmt.Sprint(verify(thin.secret, hook), verify(rotated, hook)); said != "[true] [true]" {
		t.Errorf("with two signatures: %s", said)
	}
}
