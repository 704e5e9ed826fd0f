package cli_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// operated does by command what an operator does to endpoints, deliveries, tenants and keys of a running up.
func operated(t *testing.T, u *upped) {
	t.Helper()
	var fails atomic.Bool
	var heard atomic.Int32
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		heard.Add(1)
		if fails.Load() {
			w.WriteHeader(http.StatusTeapot)
		}
	}))
	defer receiver.Close()
	run := func(status int, args ...string) result {
		t.Helper()
		cmd := command(t, u.cmd.Dir, []string{"CRIVO_URL=" + u.url, "CRIVO_API_KEY=", "CRIVO_NATS=127.0.0.1:4222"}, args...)
		got := finish(t, cmd)
		if got.status != status {
			t.Fatalf("%s: %+v", strings.Join(args, " "), got)
		}
		return got
	}
	id := decode[map[string]any](t, run(0, "endpoints", "create", receiver.URL, "--header", "Authorization=Bearer hush-hush", "--json").out)["id"].(string)
	shown := run(0, "endpoints", "show", id).out
	mustSay(t, shown, "active", receiver.URL, "Authorization=********")
	if strings.Contains(shown, "hush") {
		t.Errorf("shown as\n%s", shown)
	}
	mustSay(t, run(0, "endpoints", "update", id, "--description", "mine", "--events", "transaction.decided").out, "mine", "transaction.decided")
	mustSay(t, run(0, "endpoints", "pause", id).out, "paused")
	mustSay(t, run(1, "endpoints", "test", id).err, "paused or disabled")
	mustSay(t, run(0, "endpoints", "resume", id).out, "active")
	mustSay(t, run(0, "endpoints", "rotate-secret", id, "--grace", "1h").out, "whsec_")
	mustSay(t, run(0, "endpoints", "test", id).out, "delivered", "endpoint.test", "200")
	fails.Store(true)
	mustSay(t, run(1, "endpoints", "test", id).out, "exhausted", "418")
	fails.Store(false)

	if status, said := u.ask(http.MethodPost, "/v1/transactions", `{"id":"o-1","type":"pix","amount":13725,"currency":"BRL","created_at":"2026-01-02T03:04:05Z","payer":{"document":"529.982.247-25"}}`); status != http.StatusOK {
		t.Fatalf("%d %s", status, said)
	}
	type listed struct {
		Items []struct{ ID, Status string } `json:"items"`
	}
	var all listed
	for give := time.Now().Add(within); len(all.Items) == 0 || all.Items[0].Status != "delivered"; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(give) {
			t.Fatalf("not delivered: %+v", all)
		}
		out := run(0, "deliveries", "list", "--transaction-id", "o-1", "--endpoint-id", id, "--json").out
		all = decode[listed](t, strings.NewReplacer(`"id"`, `"ID"`, `"status":"`, `"Status":"`).Replace(out))
	}
	delivery := all.Items[0].ID
	mustSay(t, run(0, "deliveries", "list", "--status", "delivered", "--limit", "1").out, "TRANSACTION_ID", "more with --cursor")
	before := heard.Load()
	mustSay(t, run(0, "deliveries", "resend", delivery).out, "manual", "delivered")
	mustSay(t, run(0, "deliveries", "show", delivery).out, "ATTEMPT", "auto", "manual", "200")
	if heard.Load() != before+1 {
		t.Errorf("%d requests for one resend", heard.Load()-before)
	}
	mustSay(t, run(0, "endpoints", "replay", id, "--from", "2026-01-01T00:00:00Z").out, "rpl_", "running")
	for give := time.Now().Add(within); !strings.Contains(run(0, "endpoints", "replay", id, "--show").out, "done"); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(give) {
			t.Fatal("the replay is not done")
		}
	}
	mustSay(t, run(1, "endpoints", "replay", id, "--cancel").err, "has ended")
	mustSay(t, run(0, "endpoints", "delete", id).out, "deleted "+id)
	mustSay(t, run(1, "deliveries", "resend", delivery).err, "was deleted")

	mustSay(t, run(0, "tenants", "create", "acme", "--deadline", "1500ms").out, "acme", "1500", "America/Sao_Paulo")
	mustSay(t, run(0, "tenants", "list").out, "acme", "default")
	mustSay(t, run(1, "keys", "create", "--nats", "--tenant", "nobody").err, "no such tenant")
	if _, err := os.Stat(filepath.Join(u.cmd.Dir, "nobody.creds")); !os.IsNotExist(err) {
		t.Errorf("a file of nothing: %v", err)
	}
	mustSay(t, run(0, "keys", "create", "--nats", "--tenant", "acme").out, "acme.creds")
	mustSay(t, run(1, "keys", "create", "--nats", "--tenant", "acme").err, "exists")
	reaches(t, u.nats, filepath.Join(u.cmd.Dir, "acme.creds"), "acme")
	key := decode[map[string]string](t, run(0, "keys", "create", "--tenant", "acme", "--roles", "read", "--json").out)
	mustSay(t, run(0, "keys", "list").out, key["id"])
	mustSay(t, run(0, "keys", "delete", key["id"]).out, "deleted")
}

// reaches proves that a credential may request its tenant's intake, where the edge answers, and nothing else.
func reaches(t *testing.T, url, creds, tenant string) {
	t.Helper()
	if info, err := os.Stat(creds); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	refused := make(chan error, 16)
	nc, err := nats.Connect(url, nats.UserCredentials(creds), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { refused <- err }))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	m, err := nc.Request("tx.intake."+tenant, []byte(`{"id":1}`), within)
	if err != nil || !strings.Contains(string(m.Data), `"status":422`) {
		t.Fatalf("%v, %v", m, err)
	}
	publishes := []string{"tx.intake.default", "tx.submitted." + tenant, "tx.decided." + tenant, "control.keys", "$JS.API.STREAM.NAMES", "$SRV.PING", "dlq.score.panic." + tenant}
	for _, subject := range publishes {
		if err := nc.Publish(subject, []byte(`{}`)); err != nil {
			t.Fatal(err)
		}
	}
	subscribes := []string{"tx.>", "tx.decided." + tenant, "_INBOX_edge.>", "$SYS.>", ">"}
	for _, subject := range subscribes {
		if _, err := nc.SubscribeSync(subject); err != nil {
			t.Fatal(err)
		}
	}
	for range len(publishes) + len(subscribes) {
		select {
		case err := <-refused:
			if !strings.Contains(strings.ToLower(err.Error()), "permissions violation") {
				t.Error(err)
			}
		case <-time.After(within):
			t.Fatal("something was not refused")
		}
	}
}
