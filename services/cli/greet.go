package cli

import (
	"fmt"
	"io"
	"net"
	"path/filepath"
)

// url is where the API is for somebody on this machine.
func (u *upped) url() string {
	scheme := "http"
	if u.TLSCert != "" {
		scheme = "https"
	}
	return scheme + "://" + reachable(u.http.Addr())
}

// reachable turns an address of all interfaces into one that a client here can use.
func reachable(a net.Addr) string {
	host, port, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}

// greet tells a newcomer where everything is and what to type next. The curl line works as it stands, as often as one likes.
func (u *upped) greet(out io.Writer) {
	key := "$CRIVO_API_KEY"
	keyPlace := "CRIVO_API_KEY"
	if u.keyPath != "" {
		keyPlace = u.keyPath
		key = "$(cat " + shellWord(u.keyPath) + ")"
	}
	nats := "in this process only"
	if at := u.broker.URL(); at != "" {
		nats = at + "   credential " + u.folder.file("nats.creds")
	}
	insecure := ""
	if u.TLSCert != "" {
		insecure = "k"
	}
	fmt.Fprintf(out, `crivo %s is up.

  API         %s
  API key     %s
  operations  http://%s   /readyz /metrics
  NATS        %s
  data        %s   durability %s

Send a payment and wait for its decision:

  curl -s%s %s/v1/transactions -H "Authorization: Bearer %s" \
    -H 'Content-Type: application/json' -H 'Prefer: wait=2' \
    -d '{"id":"try-'$(date +%%s)'","type":"pix","amount":13725,"currency":"BRL","created_at":"'$(date -u +%%Y-%%m-%%dT%%H:%%M:%%SZ)'","payer":{"document":"529.982.247-25"}}'

`, Version, u.url(), keyPlace, reachable(addr(u.ops.Addr())), nats, u.folder.path, u.Durability, insecure, u.url(), key)
	u.greetWebhooks(out)
	fmt.Fprintln(out, "\nCtrl-C finishes what was accepted and ends.")
}

func (u *upped) greetWebhooks(out io.Writer) {
	call := ""
	if u.url() != "http://127.0.0.1:8080" {
		call = " --url " + u.url()
	}
	if u.keyPath != "" && filepath.Clean(u.keyPath) != filepath.Join("crivo-data", keyFile) {
		call += "   (with CRIVO_API_KEY_FILE=" + u.keyPath + ")"
	}
	if len(u.WebhookAllow) == 0 {
		fmt.Fprintln(out, "Hear of decisions on a receiver of your own: start with --webhook-allow 127.0.0.1/32, then")
	} else {
		fmt.Fprintf(out, "Hear of decisions on a receiver of your own (allowed: %v):\n", u.WebhookAllow)
	}
	fmt.Fprintf(out, "\n  crivo endpoints create http://127.0.0.1:9000/hook%s\n", call)
}

// addr is an address that was printed already.
type addr string

// Network is tcp, always.
func (addr) Network() string  { return "tcp" }
func (a addr) String() string { return string(a) }

// shellWord quotes a path for a shell where it needs that.
func shellWord(path string) string {
	for _, r := range path {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '/' || r == '.' || r == '-' || r == '_') {
			return "'" + path + "'"
		}
	}
	return path
}
