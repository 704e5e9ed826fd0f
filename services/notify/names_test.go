package notify_test

import (
	"context"
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"crivo/services/store"
)

// names answers every question for an address by DNS as it is told at the time; pace is what it takes for that.
type names struct {
	address atomic.Pointer[netip.Addr]
	pace    time.Duration
}

func (n *names) is(address string) {
	a := netip.MustParseAddr(address)
	n.address.Store(&a)
}

// resolver asks over a real socket.
func (n *names) resolver(t *testing.T) *net.Resolver {
	t.Helper()
	socket, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = socket.Close() })
	go func() {
		for question := make([]byte, 512); ; {
			size, from, err := socket.ReadFrom(question)
			if err != nil {
				return
			}
			time.Sleep(n.pace)
			_, _ = socket.WriteTo(n.answer(question[:size]), from)
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", socket.LocalAddr().String())
	}}
}

// answer is RFC 1035's: the header, the question again, and one address for whoever asks for IPv4.
func (n *names) answer(question []byte) []byte {
	end := 12
	for question[end] != 0 { // labels, each after its length
		end += int(question[end]) + 1
	}
	end += 5 // the root, type, class
	out := append([]byte{question[0], question[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, question[12:end]...)
	if kind := question[end-3]; kind == 1 {
		out[7] = 1
		a := n.address.Load().As4()
		out = append(out, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4) // the question's name, A, IN, for no time, four bytes
		out = append(out, a[:]...)
	}
	return out
}

// pair listens at the same port of two addresses of this host.
func pair(t *testing.T, a, b string) (one, other net.Listener, port string) {
	t.Helper()
	for give := time.Now().Add(within); ; {
		one, err := net.Listen("tcp", a+":0")
		if err != nil {
			t.Fatal(err)
		}
		_, port, _ := net.SplitHostPort(one.Addr().String())
		other, err := net.Listen("tcp", b+":"+port)
		if err == nil {
			return one, other, port
		}
		if _ = one.Close(); time.Now().After(give) {
			t.Fatal(err)
		}
	}
}

// listening is a receiver that ends each connection, so that every request looks its name up again.
func listening(t *testing.T, l net.Listener) *receiver {
	r := &receiver{}
	r.Server = &httptest.Server{Listener: l, Config: &http.Server{Handler: r.handler(nil), ErrorLog: log.New(io.Discard, "", 0), ReadHeaderTimeout: within}}
	r.Config.SetKeepAlivesEnabled(false)
	r.Start()
	t.Cleanup(r.Close)
	return r
}

// W13: a name that led where it may when the endpoint was made leads to this host now.
func TestW13ANameThatFlipsIsBlockedAtTheDial(t *testing.T) {
	w := newWorld(t)
	w.config.Schedule, w.config.Allow = []time.Duration{0}, []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")}
	var dns names
	dns.is("127.0.0.2")
	w.config.Resolver = dns.resolver(t)
	there, here, port := pair(t, "127.0.0.2", "127.0.0.1")
	honest, victim := listening(t, there), listening(t, here)
	for _, scheme := range []string{"http", "https"} {
		w.endpoint(scheme, scheme+"://flips.example:"+port+"/")
	}
	w.run()
	w.decide("before")
	w.ended("http", 1, store.Delivered)
	w.ended("https", 1, store.Exhausted) // no certificate there; but it was dialled
	if n := len(honest.all()); n != 1 {
		t.Errorf("%d requests before", n)
	}
	for _, address := range []string{"127.0.0.1", "169.254.169.254", "10.0.0.1"} {
		dns.is(address)
		w.decide(address)
		for _, scheme := range []string{"http", "https"} {
			var row store.Delivery
			w.until("an attempt to "+address, func() bool {
				rows := w.rows(scheme)
				row = rows[0]
				return row.TransactionID == address && row.Status == store.Exhausted
			})
			if a := row.Attempts[0]; a.Error != "blocked" || a.Status != 0 {
				t.Errorf("%s to %s: %+v", scheme, address, a)
			}
		}
	}
	if n := len(victim.all()) + len(honest.all()); n != 1 {
		t.Errorf("%d requests", n)
	}
}

// W25: where the time of an attempt went, through a name, a handshake and a receiver that take theirs.
func TestW25AnAttemptsTimesAreRecorded(t *testing.T) {
	const pace = 30 * time.Millisecond
	w := newWorld(t)
	dns := names{pace: pace}
	dns.is("127.0.0.1")
	w.config.Resolver = dns.resolver(t)
	r := &receiver{}
	r.Server = httptest.NewUnstartedServer(r.handler(func(rw http.ResponseWriter, _ *http.Request, _ int) { time.Sleep(pace) }))
	c := certificate(t, "named.example", time.Now().Add(time.Hour), false)
	r.TLS = &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		time.Sleep(pace)
		return &c, nil
	}}
	r.StartTLS()
	t.Cleanup(r.Close)
	_, port, _ := net.SplitHostPort(r.Listener.Addr().String())
	w.endpoint("e", "https://named.example:"+port+"/")
	w.run()
	w.decide("x")
	a := w.ended("e", 1, store.Delivered)[0].Attempts[0]
	least := pace.Milliseconds() - 1
	if a.DNSMS < least || a.TLSMS < least || a.FirstByteMS < least || a.ConnectMS < 0 || a.DurationMS < a.DNSMS+a.TLSMS+a.FirstByteMS-3 {
		t.Errorf("%+v", a)
	}
	t.Run("and an unknown name is a failed attempt like any other", func(t *testing.T) {
		w := newWorld(t)
		w.config.Schedule = []time.Duration{0}
		w.config.Resolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) { return nil, net.ErrClosed }}
		w.endpoint("e", strings.Replace(r.URL, "127.0.0.1", "nowhere.example", 1))
		w.run()
		w.decide("x")
		if a := w.ended("e", 1, store.Exhausted)[0].Attempts[0]; a.Error != "dns" || a.Status != 0 {
			t.Errorf("%+v", a)
		}
	})
}
