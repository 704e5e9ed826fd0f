// Package e2e_test asks the real program over real sockets, one behaviour of the contract a test, and holds every answer
// against the document that the program serves.
package e2e_test

import (
	"context"
	"crypto/rand"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"crivo/streams"
	"crivo/test/system"
)

// within is how long a fact may take to show.
const within = 20 * time.Second

// The one system that the tests share, each with a tenant of its own, and what it served and said.
var (
	crivo    *system.System
	document *contract
	said     system.Transcript
)

func TestMain(m *testing.M) {
	system.IfChild()
	flag.Parse()
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "crivo-e2e-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	if crivo, err = system.Start(context.Background(), system.Options{Data: filepath.Join(dir, "data"), NATS: true, Log: &said}); err != nil {
		return 1, fmt.Errorf("%w\n%s", err, said.String())
	}
	defer func() {
		if stopErr := crivo.Stop(); stopErr != nil {
			code, err = 1, stopErr
		}
	}()
	if document, err = readContract(crivo.URL); err != nil {
		return 1, err
	}
	if code = m.Run(); code == 0 && flag.Lookup("test.run").Value.String() == "" {
		if unseen := document.unseen(); len(unseen) > 0 {
			return 1, fmt.Errorf("described, and by no test seen to succeed: %s", strings.Join(unseen, ", "))
		}
	}
	return code, nil
}

// await polls for a fact.
func await(t *testing.T, what string, fact func() bool) {
	t.Helper()
	for give := time.Now().Add(within); !fact(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(give) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// operator is who may do everything.
func operator() client { return client{url: crivo.URL, key: crivo.Key, tenant: "default"} }

// newTenant makes a tenant and a client of it that may submit, read and administer.
func newTenant(t *testing.T) client {
	t.Helper()
	c := client{url: crivo.URL, tenant: strings.ToLower(rand.Text())}
	operator().post(t, "/v1/tenants", fmt.Sprintf(`{"id":%q}`, c.tenant)).want(t, http.StatusCreated)
	c.key = operator().newKey(t, c.tenant, "", "submit", "read", "admin")
	return c
}

// newKey makes a key; more are further members of the wish.
func (c client) newKey(t *testing.T, tenant, more string, roles ...string) string {
	t.Helper()
	body := fmt.Sprintf(`{"tenant":%q,"roles":["%s"]%s}`, tenant, strings.Join(roles, `","`), more)
	return c.post(t, "/v1/keys", body).want(t, http.StatusCreated).text("key")
}

// as is the same client with another key.
func (c client) as(key string) client {
	c.key = key
	return c
}

// newID is one that no other test uses.
func newID() string { return "e2e-" + rand.Text() }

var now = time.Now().UTC().Truncate(time.Millisecond)

// payment is a valid body that is decided approve; the same id gives the same body.
func payment(id string) string {
	return fmt.Sprintf(`{"id":%q,"type":"pix","amount":13725,"currency":"BRL","created_at":%q,"payer":{"document":"529.982.247-25"}}`,
		id, now.Format("2006-01-02T15:04:05.000Z"))
}

// with puts more members into a body.
func with(body, members string) string {
	return strings.TrimSuffix(body, "}") + "," + members + "}"
}

// connect is the operator's own connection to the broker.
func connect(t *testing.T) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(crivo.NATS, nats.UserCredentials(filepath.Join(crivo.Data, "nats.creds")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// messages counts what a stream holds for a tenant.
func messages(t *testing.T, stream, event, tenant string) uint64 {
	t.Helper()
	nc := connect(t)
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	s, err := js.Stream(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	subject := streams.Subject(event, tenant)
	info, err := s.Info(t.Context(), jetstream.WithSubjectFilter(subject))
	if err != nil {
		t.Fatal(err)
	}
	return info.State.Subjects[subject]
}

// submitted counts what TX_SUBMITTED holds for a tenant, but for other runs of what was promised for an earlier time: on a slow
// machine a repeat is rightly one, and the sweep makes some.
func submitted(t *testing.T, tenant string) (n int) {
	t.Helper()
	nc := connect(t)
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	promised := map[string]time.Time{}
	err = system.Read(t.Context(), js, streams.Submitted, tenant, true, func(m jetstream.Msg) error {
		i, err := streams.ReadIdent(m.Headers())
		if err != nil {
			return err
		}
		meta, err := m.Metadata()
		if err != nil {
			return err
		}
		end, again := promised[i.ID]
		if !again {
			promised[i.ID] = i.Deadline
		}
		if !again || !meta.Timestamp.After(end) {
			n++
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// announced waits until n transactions of the tenant are submitted and announced, and checks that no more are: a client may hear
// of a decision a moment before the streams do.
func (c client) announced(t *testing.T, n int) {
	t.Helper()
	var s, d int
	await(t, fmt.Sprint(n, " announcements"), func() bool {
		d = int(messages(t, streams.Decided, streams.EventDecided, c.tenant))
		if d >= n {
			s = submitted(t, c.tenant)
		}
		return s >= n
	})
	if s != n || d != n {
		t.Errorf("%d submitted, %d decided, want %d", s, d, n)
	}
}

// decode reads an answer into out.
func (a answer) decode(t *testing.T, out any) {
	t.Helper()
	if err := json.Unmarshal(a.body, out); err != nil {
		t.Fatalf("%s: %v", a.body, err)
	}
}
