package broker_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"crivo/services/broker"
)

// within is how long a fact may take to show.
const within = 30 * time.Second

func start(t *testing.T, dir string) *broker.Server {
	t.Helper()
	s, err := broker.Start(broker.Options{Dir: filepath.Join(dir, "nats"), Keys: filepath.Join(dir, "nats-keys.json"), Host: "127.0.0.1", Port: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func as(t *testing.T, s *broker.Server, name string, publish, subscribe []string, opts ...nats.Option) *nats.Conn {
	t.Helper()
	who, err := s.As(name, publish, subscribe)
	if err != nil {
		t.Fatal(err)
	}
	nc, err := s.Connect(append(opts, who)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func operator(t *testing.T, s *broker.Server, dir string) *nats.Conn {
	t.Helper()
	path := filepath.Join(dir, "nats.creds")
	if err := s.OperatorCreds(path); err != nil {
		t.Fatal(err)
	}
	nc, err := nats.Connect(s.URL(), nats.UserCredentials(path))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func TestOnlyOwnCredentialsGetIn(t *testing.T) {
	dir := t.TempDir()
	s := start(t, dir)
	own := operator(t, s, dir)
	if err := own.FlushTimeout(within); err != nil {
		t.Fatal(err)
	}
	other := t.TempDir()
	path := filepath.Join(other, "nats.creds")
	if err := start(t, other).OperatorCreds(path); err != nil {
		t.Fatal(err)
	}
	key, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	public, _ := key.PublicKey()
	for name, opt := range map[string]nats.Option{
		"none":                              nats.Name("nobody"),
		"a password":                        nats.UserInfo("crivo", "crivo"),
		"a bare key":                        nats.Nkey(public, key.Sign),
		"another installation's operator's": nats.UserCredentials(path),
	} {
		if nc, err := nats.Connect(s.URL(), opt); !errors.Is(err, nats.ErrAuthorization) {
			t.Errorf("%s: got in: %v, %v", name, nc != nil, err)
		}
	}
}

func TestSecretsAreTheOwnersAlone(t *testing.T) {
	dir := t.TempDir()
	s := start(t, dir)
	operator(t, s, dir)
	for _, name := range []string{"nats.creds", "nats-keys.json"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "nats-keys.json"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := broker.Start(broker.Options{Dir: filepath.Join(dir, "other"), Keys: filepath.Join(dir, "nats-keys.json")}); err == nil {
		t.Error("keys that others can read were taken")
	}
}

func TestAServiceMayDoWhatItsTableSays(t *testing.T) {
	s := start(t, t.TempDir())
	denied := make(chan error, 4)
	nc := as(t, s, "score", []string{"tx.scored.*"}, []string{"_INBOX_score.>"},
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { denied <- err }))
	all := as(t, s, "all", []string{">"}, []string{">"})
	heard, err := all.SubscribeSync("tx.>")
	if err != nil || all.Flush() != nil {
		t.Fatal(err)
	}
	for _, subject := range []string{"tx.decided.a", "tx.scored.a"} {
		if err := nc.Publish(subject, nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := nc.SubscribeSync("tx.submitted.*"); err != nil || nc.Flush() != nil {
		t.Fatal(err)
	}
	for range 2 {
		select {
		case err := <-denied:
			if !errors.Is(err, nats.ErrPermissionViolation) {
				t.Error(err)
			}
		case <-time.After(within):
			t.Fatal("not denied")
		}
	}
	m, err := heard.NextMsg(within)
	if err != nil || m.Subject != "tx.scored.a" {
		t.Errorf("heard %v, %v", m, err)
	}
}

// echo answers intake requests of all tenants with the subject they came by, as the edge's user.
func echo(t *testing.T, s *broker.Server) {
	t.Helper()
	edge := as(t, s, "edge", []string{"tx.submitted.*"}, []string{"tx.intake.*"})
	if _, err := edge.QueueSubscribe("tx.intake.*", "edge", func(m *nats.Msg) { _ = m.Respond([]byte(m.Subject)) }); err != nil || edge.Flush() != nil {
		t.Fatal(err)
	}
}

func tenant(t *testing.T, s *broker.Server, name string, creds []byte) *nats.Conn {
	t.Helper()
	path := filepath.Join(t.TempDir(), name+".creds")
	if err := os.WriteFile(path, creds, 0o600); err != nil {
		t.Fatal(err)
	}
	nc, err := nats.Connect(s.URL(), nats.UserCredentials(path))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func TestATenantReachesItsOwnIntakeAndNothingElse(t *testing.T) {
	dir := t.TempDir()
	s := start(t, dir)
	echo(t, s)
	_, creds, err := s.TenantCreds("acme", time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	acme := tenant(t, s, "acme", creds)
	if m, err := acme.Request("tx.intake.acme", []byte("{}"), within); err != nil || string(m.Data) != "tx.intake.acme" {
		t.Fatalf("own intake: %v, %v", m, err)
	}
	spy, err := acme.SubscribeSync("_INBOX.>")
	if err != nil {
		t.Fatal(err)
	}
	all := operator(t, s, dir)
	heard, err := all.SubscribeSync("tx.>")
	if err != nil || all.Flush() != nil {
		t.Fatal(err)
	}
	for _, subject := range []string{"tx.intake.other", "tx.submitted.acme", "tx.decided.acme", "$JS.API.STREAM.NAMES"} {
		if m, err := acme.Request(subject, []byte("{}"), 100*time.Millisecond); err == nil {
			t.Errorf("%s answered %s", subject, m.Data)
		}
	}
	if m, err := all.Request("tx.intake.other", nil, within); err != nil || string(m.Data) != "tx.intake.other" {
		t.Fatalf("another's intake: %v, %v", m, err)
	}
	if m, err := heard.NextMsg(within); err != nil || m.Subject != "tx.intake.other" {
		t.Errorf("first heard in the pipeline's account: %v, %v", m, err)
	}
	if m, err := spy.NextMsg(100 * time.Millisecond); err == nil && string(m.Data) == "tx.intake.other" {
		t.Error("read another's answer")
	}
}

func TestARestartKeepsCredentialsAndStreams(t *testing.T) {
	dir := t.TempDir()
	s := start(t, dir)
	_, creds, err := s.TenantCreds("acme", time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*within)
	defer cancel()
	js, err := jetstream.New(operator(t, s, dir))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, MaxBytes: 1 << 40}); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(ctx, "s", []byte("x")); err != nil {
		t.Fatal(err)
	}
	before, _ := os.ReadFile(filepath.Join(dir, "nats.creds"))
	s.Close()

	s = start(t, dir)
	js, err = jetstream.New(operator(t, s, dir))
	if err != nil {
		t.Fatal(err)
	}
	if after, _ := os.ReadFile(filepath.Join(dir, "nats.creds")); string(after) != string(before) {
		t.Error("the operator's credential changed")
	}
	stream, err := js.Stream(ctx, "S")
	if err != nil || stream.CachedInfo().State.Msgs != 1 {
		t.Fatalf("%v, %v", stream, err)
	}
	echo(t, s)
	if _, err := tenant(t, s, "acme", creds).Request("tx.intake.acme", nil, within); err != nil {
		t.Errorf("the tenant's credential: %v", err)
	}
}

func TestLostKeysAreSaid(t *testing.T) {
	dir := t.TempDir()
	start(t, dir).Close()
	if err := os.Remove(filepath.Join(dir, "nats-keys.json")); err != nil {
		t.Fatal(err)
	}
	if _, err := broker.Start(broker.Options{Dir: filepath.Join(dir, "nats"), Keys: filepath.Join(dir, "nats-keys.json")}); err == nil {
		t.Error("started with an account that has no streams")
	}
}

func TestWithoutKeysAnyoneMayConnect(t *testing.T) {
	s, err := broker.Start(broker.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.URL() != "" {
		t.Errorf("listens at %s", s.URL())
	}
	nc, err := s.Connect()
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
	if err := s.OperatorCreds(filepath.Join(t.TempDir(), "c")); err == nil {
		t.Error("made a credential")
	}
}
