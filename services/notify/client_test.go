package notify_test

import (
	"bufio"
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
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"crivo/pkg/webhook"
	"crivo/services/notify"
	"crivo/services/store"
)

// authority signs the certificates of tests; it is the only one that this process trusts. proxied counts who came to the
// proxy that its environment names.
var (
	authority *ecdsa.PrivateKey
	root      *x509.Certificate
	proxied   atomic.Int64
)

// TestMain sets what a process reads once: its authorities, its proxy, and how often it looks for what is due.
func TestMain(m *testing.M) { os.Exit(around(m.Run)) }

func around(run func() int) int {
	dir, err := os.MkdirTemp("", "notify")
	if err != nil {
		return 1
	}
	defer os.RemoveAll(dir)
	proxy := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { proxied.Add(1) }))
	defer proxy.Close()
	authority, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	root = &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "tests"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, root, root, &authority.PublicKey, authority)
	file := filepath.Join(dir, "root.pem")
	if err != nil || os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600) != nil {
		return 1
	}
	for name, value := range map[string]string{"SSL_CERT_FILE": file, "SSL_CERT_DIR": dir, "HTTP_PROXY": proxy.URL, "HTTPS_PROXY": proxy.URL,
		"http_proxy": proxy.URL, "https_proxy": proxy.URL, "NO_PROXY": "", "no_proxy": ""} {
		_ = os.Setenv(name, value)
	}
	*notify.PollEvery = 20 * time.Millisecond
	return run()
}

// certificate is the authority's for host, or the host's own.
func certificate(t *testing.T, host string, until time.Time, selfSigned bool) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: until}
	if ip := net.ParseIP(host); ip != nil {
		c.IPAddresses = []net.IP{ip}
	} else {
		c.DNSNames = []string{host}
	}
	parent, signer := root, authority
	if selfSigned {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestW15OnlyAValidCertificateGetsTheWebhook(t *testing.T) {
	w := newWorld(t)
	w.config.Schedule = []time.Duration{0}
	later := time.Now().Add(time.Hour)
	receivers := map[string]*receiver{}
	for id, c := range map[string]tls.Certificate{
		"valid":       certificate(t, "127.0.0.1", later, false),
		"self-signed": certificate(t, "127.0.0.1", later, true),
		"wrong host":  certificate(t, "other.example", later, false),
		"expired":     certificate(t, "127.0.0.1", time.Now().Add(-time.Hour), false),
	} {
		r := &receiver{}
		r.Server = httptest.NewUnstartedServer(r.handler(nil))
		r.TLS = &tls.Config{Certificates: []tls.Certificate{c}}
		r.Config.ErrorLog = log.New(io.Discard, "", 0)
		r.StartTLS()
		t.Cleanup(r.Close)
		receivers[id] = r
		w.endpoint(id, r.URL)
	}
	plain := newReceiver(t, nil)
	w.endpoint("no TLS", strings.Replace(plain.URL, "http:", "https:", 1))
	w.run()
	w.decide("x")
	w.ended("valid", 1, store.Delivered)
	for id, r := range receivers {
		if id == "valid" {
			continue
		}
		row := w.ended(id, 1, store.Exhausted)[0]
		if a := row.Attempts[0]; a.Error != "tls" || a.Status != 0 || len(r.all()) != 0 {
			t.Errorf("%s: %+v, %d requests", id, a, len(r.all()))
		}
	}
	w.ended("no TLS", 1, store.Exhausted)
	if n := len(plain.all()); n != 0 {
		t.Errorf("%d requests without TLS", n)
	}
}

func TestW16TheEnvironmentsProxyIsIgnored(t *testing.T) {
	w := newWorld(t)
	w.config.Allow = append(w.config.Allow, netip.MustParsePrefix("0.0.0.0/32"))
	r := newReceiver(t, nil)
	// A proxy is never used for 127.0.0.1, but for this name of the same host.
	w.endpoint("e", strings.Replace(r.URL, "127.0.0.1", "0.0.0.0", 1))
	w.run()
	w.decide("x")
	w.ended("e", 1, store.Delivered)
	if len(r.all()) != 1 || proxied.Load() != 0 {
		t.Errorf("%d direct, %d by the proxy", len(r.all()), proxied.Load())
	}
}

// The table is asked of the guard itself, so that no mistake in it sends anything anywhere.
func TestW12WhereADialMayLead(t *testing.T) {
	allowed := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00:1::/32")}
	for name, c := range map[string]struct {
		address     string
		https, http bool // blocked
	}{
		"public":                       {"8.8.8.8:443", false, true},
		"public, another port":         {"8.8.8.8:8443", true, true},
		"public, plain":                {"8.8.8.8:80", true, true},
		"public v6":                    {"[2001:4860:4860::8888]:443", false, true},
		"loopback":                     {"127.0.0.1:443", true, true},
		"loopback's other end":         {"127.255.255.254:443", true, true},
		"loopback v6":                  {"[::1]:443", true, true},
		"private 10":                   {"10.0.0.1:443", true, true},
		"private 172.16":               {"172.16.0.1:443", true, true},
		"private 172.31":               {"172.31.255.255:443", true, true},
		"private 192.168":              {"192.168.1.1:443", true, true},
		"link-local":                   {"169.254.1.1:443", true, true},
		"metadata":                     {"169.254.169.254:443", true, true},
		"metadata v6":                  {"[fd00:ec2::254]:443", true, true},
		"CGNAT":                        {"100.64.0.1:443", true, true},
		"benchmarking":                 {"198.18.0.1:443", true, true},
		"documentation":                {"203.0.113.1:443", true, true},
		"multicast":                    {"224.0.0.1:443", true, true},
		"broadcast":                    {"255.255.255.255:443", true, true},
		"this host":                    {"0.0.0.0:443", true, true},
		"this host v6":                 {"[::]:443", true, true},
		"ULA":                          {"[fc00::1]:443", true, true},
		"link-local v6":                {"[fe80::1]:443", true, true},
		"zoned":                        {"[fe80::1%lo]:443", true, true},
		"zoned loopback":               {"[::1%lo]:443", true, true},
		"mapped loopback":              {"[::ffff:127.0.0.1]:443", true, true},
		"mapped private":               {"[::ffff:10.0.0.1]:443", true, true},
		"mapped metadata":              {"[::ffff:a9fe:a9fe]:443", true, true},
		"compatible":                   {"[::127.0.0.1]:443", true, true},
		"NAT64":                        {"[64:ff9b::7f00:1]:443", true, true},
		"local NAT64":                  {"[64:ff9b:1::7f00:1]:443", true, true},
		"6to4":                         {"[2002:7f00:1::]:443", true, true},
		"Teredo":                       {"[2001::1]:443", true, true},
		"documentation v6":             {"[2001:db8::1]:443", true, true},
		"new documentation v6":         {"[3fff::1]:443", true, true},
		"segment routing":              {"[5f00::1]:443", true, true},
		"site-local":                   {"[fec0::1]:443", true, true},
		"multicast v6":                 {"[ff02::1]:443", true, true},
		"no address":                   {"localhost:443", true, true},
		"the operator's own":           {"10.1.2.3:443", false, false},
		"the operator's, any port":     {"10.1.2.3:22", false, false},
		"the operator's, mapped":       {"[::ffff:10.1.2.3]:80", false, false},
		"the operator's v6":            {"[fd00:1::1]:8080", false, false},
		"beside the operator's own":    {"10.2.0.1:443", true, true},
		"mapped beside the operator's": {"[::ffff:10.2.0.1]:443", true, true},
	} {
		if https, http := notify.Blocked(allowed, c.address); https != c.https || http != c.http {
			t.Errorf("%s, %s: blocked by https %v, by http %v", name, c.address, https, http)
		}
	}
}

func TestW12NoConnectionToWhatIsNotAllowed(t *testing.T) {
	w := newWorld(t)
	w.config.Schedule, w.config.Allow = []time.Duration{0}, nil
	connected := &counter{}
	port := connected.listen(t)
	hosts := []string{"127.0.0.1", "127.1.2.3", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "[::]", "localhost", "①②⑦.⓪.⓪.①"}
	for i, host := range hosts {
		for _, scheme := range []string{"http", "https"} {
			w.endpoint(fmt.Sprint(scheme, i), fmt.Sprintf("%s://%s:%s/", scheme, host, port))
		}
	}
	w.run()
	w.decide("x")
	for i, host := range hosts {
		for _, scheme := range []string{"http", "https"} {
			a := w.ended(fmt.Sprint(scheme, i), 1, store.Exhausted)[0].Attempts[0]
			if a.Status != 0 || a.Error != "blocked" {
				t.Errorf("%s://%s: %+v", scheme, host, a)
			}
		}
	}
	if n := connected.Load(); n != 0 {
		t.Errorf("%d connections", n)
	}
}

// counter counts who connects.
type counter struct{ atomic.Int64 }

// listen takes connections on every address of this host until the test ends.
func (c *counter) listen(t *testing.T) (port string) {
	t.Helper()
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			c.Add(1)
			_ = conn.Close()
		}
	}()
	_, port, _ = net.SplitHostPort(l.Addr().String())
	return port
}

func TestPausesAreJitteredAndAtLeastWhatWasAsked(t *testing.T) {
	least, most := time.Hour, time.Duration(0)
	for range 1000 {
		p := notify.Pause(time.Minute, 0)
		least, most = min(least, p), max(most, p)
	}
	if least < 48*time.Second || most > 72*time.Second || most-least < 12*time.Second {
		t.Errorf("%v to %v", least, most)
	}
	if p := notify.Pause(time.Minute, time.Hour); p != time.Hour {
		t.Errorf("%v", p)
	}
	if p := notify.Pause(time.Minute, time.Second); p < 48*time.Second {
		t.Errorf("%v", p)
	}
}

func TestW08ReceiversThatAskForTimeGetIt(t *testing.T) {
	w := newWorld(t)
	w.freeze()
	w.config.Schedule = []time.Duration{0, time.Millisecond}
	inTwoHours := w.config.Clock.Now().Add(2 * time.Hour)
	asked := map[string]string{"seconds": "7200", "date": inTwoHours.UTC().Format(http.TimeFormat), "rubbish": "a while"}
	r := newReceiver(t, func(rw http.ResponseWriter, req *http.Request, _ int) {
		rw.Header().Set("Retry-After", asked[req.URL.Path[1:]])
		rw.WriteHeader(http.StatusServiceUnavailable)
	})
	for id := range asked {
		w.endpoint(id, r.URL+"/"+id)
	}
	w.run()
	w.decide("x")
	for id := range asked {
		w.until("a first try of "+id, func() bool { rows := w.rows(id); return len(rows) == 1 && len(rows[0].Attempts) == 1 })
	}
	w.later(time.Second)
	w.ended("rubbish", 1, store.Exhausted)
	for _, id := range []string{"seconds", "date"} {
		row := w.rows(id)[0]
		if off := row.NextAttemptAt.Sub(inTwoHours).Abs(); off > time.Second || !row.Attempts[0].NextAttemptAt.Equal(row.NextAttemptAt) {
			t.Errorf("%s: next try %v, asked for %v", id, row.NextAttemptAt, inTwoHours)
		}
	}
	for _, g := range r.all() {
		if g.header.Get(webhook.HeaderID) == "" {
			t.Error("no id")
		}
	}
}

// After a 101 the answer's body is the bare connection, which no deadline ends.
func TestW10AReceiverThatSwitchesProtocolsIsCut(t *testing.T) {
	w := newWorld(t)
	w.config.Schedule = []time.Duration{0}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	w.must(err)
	cut := make(chan error, 1)
	go func() { cut <- switchAndHold(l) }()
	w.endpoint("e", "http://"+l.Addr().String())
	stop := w.run()
	w.Cleanup(func() { _ = l.Close() })
	w.decide("x")
	a := w.ended("e", 1, store.Exhausted)[0].Attempts[0]
	if a.Status != http.StatusSwitchingProtocols || a.Error != "status" || a.Response != "" {
		t.Errorf("%+v", a)
	}
	if err := <-cut; !errors.Is(err, io.EOF) {
		t.Errorf("the connection was left: %v", err)
	}
	stop()
}

// switchAndHold takes a request, answers 101, and returns how the silence after it ended.
func switchAndHold(l net.Listener) error {
	conn, err := l.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(2 * within)) // whatever the sender does, the test ends
	in := bufio.NewReader(conn)
	req, err := http.ReadRequest(in)
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, req.Body); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"); err != nil {
		return err
	}
	_, err = in.ReadByte()
	return err
}

// An answer may spell what it quotes in JSON, and be cut amid it; up to seven bytes of a word tell nothing.
func TestW25NoSpellingOfACredentialIsKept(t *testing.T) {
	const basic, key = "Basic YWJj/ZGVmZw==", "client-0 client-0:0123456789"
	pad := func(n int) string { return strings.Repeat(".", n) }
	cases := map[string]struct{ header, answer, want string }{
		"as it is":                       {basic, basic, "Basic ***"},
		"JSON":                           {`aaa"bbb\ccc/ddd`, `"aaa\"bbb\\ccc/ddd"`, `"***"`},
		"JSON of PHP":                    {basic, `{"got":"Basic YWJj\/ZGVmZw=="}`, `{"got":"Basic ***"}`},
		"JSON of Go":                     {`a<b>c&d"efgh`, `"a\u003cb\u003ec\u0026d\"efgh"`, `"***"`},
		"one byte cut":                   {basic, pad(4096-18) + basic, pad(4096-18) + "Basic ***"},
		"much cut":                       {basic, pad(4096-14) + basic, pad(4096-14) + "Basic ***"},
		"most cut":                       {basic, pad(4096-13) + basic, pad(4096-13) + "Basic YWJj/ZG"},
		"JSON of PHP, cut":               {basic, pad(4096-16) + `Basic YWJj\/ZGVmZw==`, pad(4096-16) + "Basic ***"},
		"often, then cut":                {basic, pad(14) + strings.Repeat(basic, 300), pad(14) + strings.Repeat("Basic ***", 215)},
		"a word that begins another":     {key, "client-0:0123456789 client-0!", "*** ***!"},
		"a word that begins one cut":     {key, pad(4096-12) + "client-0:0123456789", pad(4096-12) + "***"},
		"a word that begins one at last": {key, "client-0:0123456789", "***"},
	}
	w := newWorld(t)
	r := newReceiver(t, func(rw http.ResponseWriter, req *http.Request, _ int) {
		_, _ = io.WriteString(rw, cases[req.URL.Query().Get("case")].answer)
	})
	for name, c := range cases {
		w.endpoint(name, r.URL+"/?case="+url.QueryEscape(name), func(e *store.Endpoint) { e.Headers = map[string]string{"X-Key": c.header} })
	}
	w.run()
	w.decide("x")
	for name, c := range cases {
		if got := w.ended(name, 1, store.Delivered)[0].Attempts[0].Response; got != c.want {
			t.Errorf("%s: %d bytes, %q, want %q", name, len(got), strings.TrimLeft(got, "."), strings.TrimLeft(c.want, "."))
		}
	}
}
