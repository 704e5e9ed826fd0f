package e2e_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	api "crivo/pkg/client"
	"crivo/pkg/txn"
	"crivo/test/system"
)

// watched holds every answer that a client hears against the document. Streams are left as they are.
type watched struct {
	t     *testing.T
	after func(*http.Response, error) error // nil, or what becomes of an answer
}

// RoundTrip asks.
func (w watched) RoundTrip(r *http.Request) (*http.Response, error) {
	var sent []byte
	if r.Body != nil {
		var err error
		if sent, err = io.ReadAll(r.Body); err != nil {
			return nil, err
		}
		r = r.Clone(r.Context())
		r.Body = io.NopCloser(bytes.NewReader(sent))
	}
	res, err := sockets.Transport.RoundTrip(r)
	if err == nil && res.Header.Get("Content-Type") != "text/event-stream" {
		var body []byte
		body, err = io.ReadAll(res.Body)
		_ = res.Body.Close()
		res.Body = io.NopCloser(bytes.NewReader(body))
		if res.StatusCode == http.StatusMultiStatus {
			sent = []byte("[]") // some of it is wrong on purpose
		}
		if wrong := document.check(r.Method, r.URL.Path, string(sent), r.Header, answer{status: res.StatusCode, header: res.Header, body: body}); err == nil && wrong != nil {
			w.t.Errorf("%s %s: %d %s\nagainst the document: %v", r.Method, r.URL, res.StatusCode, body, wrong)
		}
	}
	if w.after != nil {
		err = w.after(res, err)
	}
	if err != nil {
		return nil, err
	}
	return res, nil
}

// integrator is the same key's client of pkg/client.
func (c client) integrator(t *testing.T) *api.Client {
	return &api.Client{URL: c.url, Key: c.key, HTTP: &http.Client{Transport: watched{t: t}}}
}

// due is a payment as an integrator describes it; it is decided approve.
func due(t *testing.T, id string) txn.Transaction {
	t.Helper()
	payer, err := txn.ParseDocument("529.982.247-25")
	if err != nil {
		t.Fatal(err)
	}
	return txn.Transaction{ID: id, Type: "pix", Amount: 13725, Currency: "BRL", CreatedAt: txn.At(now), Payer: txn.Party{Document: payer}}
}

func inTime(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), within)
	t.Cleanup(cancel)
	return ctx
}

func TestTheClientSubmitsWaitsAndGets(t *testing.T) {
	t.Parallel()
	c, id, ctx := newTenant(t), newID(), inTime(t)
	crivo := c.integrator(t)
	if s, err := crivo.Submit(ctx, due(t, id)); err != nil || s.ID != id {
		t.Fatalf("%+v, %v", s, err)
	}
	decision, err := crivo.Wait(ctx, id)
	if err != nil || decision.Decision != txn.Approve || decision.ID != id || decision.RuleSet.Version == 0 || decision.DecidedAt.IsZero() {
		t.Fatalf("%+v, %v", decision, err)
	}
	for name, ask := range map[string]func() (api.State, error){
		"get":    func() (api.State, error) { return crivo.Get(ctx, id) },
		"submit": func() (api.State, error) { return crivo.Submit(ctx, due(t, id)) },
	} {
		if s, err := ask(); err != nil || s.Decision == nil || s.Decision.DecidedAt != decision.DecidedAt || s.Replayed != (name == "submit") {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
	}
	if d, err := crivo.SubmitAndWait(ctx, due(t, newID())); err != nil || d.Decision != txn.Approve {
		t.Errorf("%+v, %v", d, err)
	}
}

func TestTheClientToldNo(t *testing.T) {
	t.Parallel()
	c, id, ctx := newTenant(t), newID(), inTime(t)
	crivo := c.integrator(t)
	if _, err := crivo.Submit(ctx, due(t, id)); err != nil {
		t.Fatal(err)
	}
	other := due(t, id)
	other.Amount++
	if _, err := crivo.Submit(ctx, other); !errors.Is(err, api.ErrConflict) {
		t.Errorf("another body: %v", err)
	}
	var faults txn.Faults
	if _, err := crivo.Submit(ctx, txn.Transaction{ID: "CANARY 1", Amount: -1}); !errors.Is(err, api.ErrRefused) || !errors.As(err, &faults) || len(faults) < 4 || strings.Contains(err.Error(), "CANARY") {
		t.Errorf("faults: %v", err)
	}
	if _, err := crivo.Get(ctx, newID()); !errors.Is(err, api.ErrNotFound) {
		t.Errorf("none: %v", err)
	}
	if _, err := c.as("wrong").integrator(t).Get(ctx, id); !errors.Is(err, api.ErrKey) {
		t.Errorf("a wrong key: %v", err)
	}
	if _, err := c.as(operator().newKey(t, c.tenant, "", "read")).integrator(t).Submit(ctx, due(t, id)); !errors.Is(err, api.ErrKey) {
		t.Errorf("a key that may only read: %v", err)
	}
	limited := c.as(operator().newKey(t, c.tenant, `,"rate":0.01`, "read")).integrator(t)
	for range 2 {
		_, err := limited.Get(ctx, id)
		if err != nil && !errors.Is(err, api.ErrRateLimited) {
			t.Error(err)
		}
	}
}

func TestE04TheClientRepeatsWhatItGotNoAnswerTo(t *testing.T) {
	t.Parallel()
	c, id, lost := newTenant(t), newID(), 0
	crivo := &api.Client{URL: c.url, Key: c.key, HTTP: &http.Client{Transport: watched{t: t, after: func(_ *http.Response, err error) error {
		if lost++; lost <= 2 {
			return io.ErrUnexpectedEOF // accepted, and nobody hears of it
		}
		return err
	}}}}
	if s, err := crivo.Submit(inTime(t), due(t, id)); err != nil || !s.Replayed || lost < 3 {
		t.Errorf("%+v, %v after %d answers", s, err, lost)
	}
	c.announced(t, 1)
}

func TestTheClientVerifiesWebhooks(t *testing.T) {
	t.Parallel()
	c, id := newTenant(t), newID()
	for name, r := range map[string]*receiver{"thin": c.receive(t, ""), "full": c.receive(t, `,"payload":"full"`)} {
		d, err := c.integrator(t).SubmitAndWait(inTime(t), due(t, id))
		if err != nil {
			t.Fatal(err)
		}
		got := r.first(t)
		event, err := api.VerifyWebhook(r.secret, got.header, got.body, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		told, err := event.Decision()
		if err != nil || told.ID != id || told.Decision != d.Decision || event.At != d.DecidedAt || (name == "full") != (told.LatencyMS == d.LatencyMS && told.RuleSet == d.RuleSet) {
			t.Errorf("%s: %+v, %v", name, told, err)
		}
		if _, err := api.VerifyWebhook(r.secret, got.header, bytes.Replace(got.body, []byte("approve"), []byte("decline"), 1), time.Now()); err == nil {
			t.Errorf("%s: it may be changed", name)
		}
	}
}

func TestE17TheClientSubmitsABatch(t *testing.T) {
	t.Parallel()
	c, ctx := newTenant(t), inTime(t)
	crivo := c.integrator(t)
	first, last, wrong := due(t, newID()), due(t, newID()), due(t, newID())
	wrong.Amount = -1
	out, err := crivo.Batch(ctx, []txn.Transaction{first, wrong, last})
	if err != nil || len(out) != 3 {
		t.Fatalf("%+v, %v", out, err)
	}
	var faults txn.Faults
	if out[0].ID != first.ID || out[0].Err != nil || out[2].ID != last.ID || out[2].Err != nil || !errors.Is(out[1].Err, api.ErrRefused) || !errors.As(out[1].Err, &faults) || faults[0].Pointer != "/amount" {
		t.Errorf("%+v", out)
	}
	for _, id := range []string{first.ID, last.ID} {
		if _, err := crivo.Wait(ctx, id); err != nil {
			t.Error(err)
		}
	}
	if _, err := crivo.Get(ctx, wrong.ID); !errors.Is(err, api.ErrNotFound) {
		t.Errorf("the wrong one: %v", err)
	}
}

func TestTheClientSearches(t *testing.T) {
	t.Parallel()
	c, ctx := newTenant(t), inTime(t)
	crivo := c.integrator(t)
	var want []string
	for range 3 {
		d, err := crivo.SubmitAndWait(ctx, due(t, newID()))
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, d.ID)
	}
	await(t, "the three in order, by pages of two", func() bool {
		var got []string
		for s, err := range crivo.Search(ctx, api.Query{Document: "529.982.247-25", Decision: txn.Approve, Order: "oldest", Limit: 2}) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, s.ID)
		}
		slices.Sort(got) // two may be accepted in one millisecond
		return slices.Equal(got, slices.Sorted(slices.Values(want)))
	})
	for s, err := range crivo.Search(ctx, api.Query{Decision: txn.Decline}) {
		t.Errorf("%+v, %v", s, err)
	}
	for _, err := range crivo.Search(ctx, api.Query{Decision: "perhaps"}) {
		if !errors.Is(err, api.ErrRefused) {
			t.Error(err)
		}
	}
}

func TestE29TheClientAsksWhatWouldBe(t *testing.T) {
	t.Parallel()
	c, id, ctx := newTenant(t), newID(), inTime(t)
	crivo := c.integrator(t)
	if d, err := crivo.DryRun(ctx, due(t, id)); err != nil || d.Decision != txn.Approve {
		t.Errorf("%+v, %v", d, err)
	}
	if _, err := crivo.Get(ctx, id); !errors.Is(err, api.ErrNotFound) {
		t.Errorf("it is there: %v", err)
	}
}

func TestTheClientHearsEventsAndGoesOnWhereItStopped(t *testing.T) {
	t.Parallel()
	c, ctx := newTenant(t), inTime(t)
	listening := make(chan struct{}, 1)
	crivo := &api.Client{URL: c.url, Key: c.key, HTTP: &http.Client{Transport: watched{t: t, after: func(res *http.Response, err error) error {
		if err == nil && res.StatusCode == http.StatusOK {
			listening <- struct{}{}
		}
		return err
	}}}}
	heard := make(chan api.Event)
	go func() {
		defer close(heard)
		for event, err := range crivo.Events(ctx, "") {
			if err != nil {
				t.Error(err)
				return
			}
			heard <- event
			return
		}
	}()
	<-listening
	first, second := due(t, newID()), due(t, newID())
	for i, tx := range []txn.Transaction{first, second} {
		if _, err := c.integrator(t).SubmitAndWait(ctx, tx); err != nil {
			t.Fatal(err)
		}
		c.announced(t, i+1) // in this order
	}
	event, ok := <-heard
	if !ok {
		t.FailNow()
	}
	if d, err := event.Decision(); err != nil || d.ID != first.ID || event.ID == "" {
		t.Fatalf("%+v %+v, %v", event, d, err)
	}
	for event, err := range crivo.Events(ctx, event.ID) {
		if err != nil {
			t.Fatal(err)
		}
		if d, err := event.Decision(); err != nil || d.ID != second.ID {
			t.Errorf("%+v %+v, %v", event, d, err)
		}
		break
	}
}

func TestTheReceiversInTheReadmeAreTheTestedOnes(t *testing.T) {
	t.Parallel()
	read := func(path ...string) string {
		data, err := os.ReadFile(filepath.Join(append([]string{"..", ".."}, path...)...))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	readme := read("README.md")
	for language, file := range map[string]string{"```js\n": "receiver.mjs", "```go\nhttp.HandleFunc": "main.go"} {
		_, shown, found := strings.Cut(readme, language)
		shown, _, _ = strings.Cut(shown, "\n```")
		tested := strings.ReplaceAll(read("test", "examples", "receiver", file), "\n\t", "\n")
		if !found || shown == "" || !strings.Contains(tested, shown) {
			t.Errorf("README shows another %s", file)
		}
	}
}

func TestW02TheReceiversToPasteTakeARealDelivery(t *testing.T) {
	t.Parallel()
	paste := filepath.Join("..", "examples", "receiver")
	binary := filepath.Join(t.TempDir(), "receiver")
	for name, command := range map[string]func(address string) []string{
		"go": func(address string) []string {
			if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "./"+paste).CombinedOutput(); err != nil {
				t.Fatalf("%v %s", err, out)
			}
			return []string{binary, address}
		},
		"node": func(address string) []string {
			if _, err := exec.LookPath("node"); err != nil {
				t.Skip(err)
			}
			_, port, _ := net.SplitHostPort(address)
			return []string{"node", filepath.Join(paste, "receiver.mjs"), port}
		},
	} {
		t.Run(name, func(t *testing.T) {
			addresses, err := system.Free(1)
			if err != nil {
				t.Fatal(err)
			}
			args, url := command(addresses[0]), "http://"+addresses[0]+"/hook"
			c, id := newTenant(t), newID()
			made := c.post(t, "/v1/webhook-endpoints", fmt.Sprintf(`{"url":%q}`, url)).want(t, http.StatusCreated)
			process := exec.CommandContext(t.Context(), args[0], args[1:]...)
			process.Env = append(os.Environ(), "WEBHOOK_SECRET="+made.text("secret"))
			var out system.Transcript
			process.Stdout, process.Stderr = &out, &out
			if err := process.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				_ = process.Process.Kill()
				_ = process.Wait()
				if t.Failed() {
					t.Log(out.String())
				}
			})
			hook := func(headers ...string) int {
				req, err := http.NewRequest(http.MethodPost, url, strings.NewReader(`{"type":"transaction.decided","data":{"id":"forged"}}`))
				if err != nil {
					t.Fatal(err)
				}
				for i := 0; i+1 < len(headers); i += 2 {
					req.Header.Set(headers[i], headers[i+1])
				}
				res, err := sockets.Do(req)
				if err != nil {
					return 0
				}
				_ = res.Body.Close()
				return res.StatusCode
			}
			await(t, "the receiver", func() bool { return hook() != 0 })
			c.decided(t, payment(id))
			await(t, "its delivery", func() bool { return strings.Contains(out.String(), id) })
			await(t, "what became of it", func() bool {
				return strings.Contains(string(c.get(t, "/v1/deliveries?transaction_id="+id).body), `"status":"delivered"`)
			})
			at := fmt.Sprint(time.Now().Unix())
			for _, headers := range [][]string{nil, {"Webhook-Id", "msg_1", "Webhook-Timestamp", at}, {"Webhook-Id", "msg_1", "Webhook-Timestamp", at, "Webhook-Signature", "v1,AAAA"}} {
				if status := hook(headers...); status != http.StatusUnauthorized {
					t.Errorf("forged with %v: %d", headers, status)
				}
			}
			large, err := http.Post(url, "application/json", strings.NewReader(strings.Repeat(" ", 2<<20)))
			if err == nil {
				if _ = large.Body.Close(); large.StatusCode != http.StatusBadRequest {
					t.Errorf("a body that it did not read whole: %d", large.StatusCode)
				}
			}
			broken, err := net.Dial("tcp", addresses[0])
			if err != nil {
				t.Fatal(err)
			}
			_, err = broken.Write([]byte("POST /hook HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"))
			if err = errors.Join(err, broken.Close()); err != nil {
				t.Fatal(err)
			}
			for range 50 { // it may take a moment to notice
				if status := hook(); status != http.StatusUnauthorized {
					t.Fatalf("after one that hung up: %d", status)
				}
			}
			if strings.Contains(out.String(), "forged") {
				t.Error("it believed a forged one")
			}
		})
	}
}

// certificate writes one for 127.0.0.1, signed by an authority of its own, and returns the flags for it and who trusts it.
func certificate(t *testing.T) (args []string, trust *x509.CertPool) {
	t.Helper()
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	ca, own, dir := key(), key(), t.TempDir()
	issuer := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: issuer.NotBefore, NotAfter: issuer.NotAfter, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	write := func(name, kind string, der []byte, err error) string {
		path := filepath.Join(dir, name)
		if err == nil {
			err = os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, issuer, &own.PublicKey, ca)
	cert := write("cert.pem", "CERTIFICATE", der, err)
	der, err = x509.MarshalPKCS8PrivateKey(own)
	args = []string{"--tls-cert", cert, "--tls-key", write("key.pem", "PRIVATE KEY", der, err)}
	der, err = x509.CreateCertificate(rand.Reader, issuer, issuer, &ca.PublicKey, ca)
	path := write("ca.pem", "CERTIFICATE", der, err)
	text, err := os.ReadFile(path)
	if trust = x509.NewCertPool(); err != nil || !trust.AppendCertsFromPEM(text) {
		t.Fatal(err)
	}
	return args, trust
}

func TestE28WithACertificateItSpeaksTLS(t *testing.T) {
	t.Parallel()
	args, trust := certificate(t)
	s := system.New(t, system.Options{Args: args})
	address, ctx := strings.TrimPrefix(s.URL, "http://"), inTime(t)
	ask := func(config *tls.Config) error {
		transport := &http.Transport{TLSClientConfig: config}
		defer transport.CloseIdleConnections()
		crivo := &api.Client{URL: "https://" + address, Key: s.Key, HTTP: &http.Client{Transport: transport}}
		_, err := crivo.SubmitAndWait(ctx, due(t, newID()))
		return err
	}
	for name, config := range map[string]*tls.Config{"as it is": {RootCAs: trust}, "TLS 1.2": {RootCAs: trust, MaxVersion: tls.VersionTLS12}} {
		if err := ask(config); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	var unknown x509.UnknownAuthorityError
	if err := ask(&tls.Config{RootCAs: x509.NewCertPool()}); !errors.As(err, &unknown) || errors.Is(err, api.ErrUnavailable) {
		t.Errorf("who does not know its authority: %v", err)
	}
	if conn, err := tls.Dial("tcp", address, &tls.Config{RootCAs: trust, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}); err == nil {
		_ = conn.Close()
		t.Error("TLS 1.1 is spoken")
	}
	if a, _, err := (client{url: s.URL, key: s.Key}).exchange(http.MethodGet, "/livez", nil); err == nil && a.status != http.StatusBadRequest {
		t.Errorf("plain http is answered with %d", a.status)
	}
}
