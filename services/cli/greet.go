package cli

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"crivo/services/config"
)

// url is where the API is for somebody on this machine.
func (u *upped) url() string {
	scheme := "http"
	if u.TLSCert != "" {
		scheme = "https"
	}
	return scheme + "://" + reachable(u.http)
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

// greet tells a newcomer where everything is and what to type next. The commands work as they stand: the curl line as often as
// one likes, the others in the folder that up was started in.
func (u *upped) greet(out io.Writer) {
	nats := "in this process only"
	if u.NATSURL != "" {
		nats = withoutPassword(u.NATSURL.Reveal())
	} else if at := u.broker.URL(); at != "" {
		nats = at + "   credential " + u.folder.file(credsFile)
	}
	insecure := ""
	if u.TLSCert != "" {
		insecure = "k"
	}
	place, word := u.keyHint()
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

`, Version, u.url(), place, reachable(addr(u.ops.Addr())), nats, u.folder.path, u.Durability, insecure, u.url(), word)
	u.greetWebhooks(out, invocation(executable(), os.Args[0], exists))
	fmt.Fprintln(out, "\nCtrl-C finishes what was accepted and ends.")
}

// keyHint tells where the API key is, and the word that stands for it inside double quotes of a shell.
func (u *upped) keyHint() (place, word string) {
	if u.keyPath != "" {
		return u.keyPath, "$(cat " + shellWord(u.keyPath) + ")"
	}
	env := config.Env(keyFile)
	if path := os.Getenv(env + "_FILE"); path != "" && os.Getenv(env) == "" {
		return path, "$(cat " + shellWord(path) + ")"
	}
	return env, "$" + env
}

func (u *upped) greetWebhooks(out io.Writer, crivo string) {
	command := crivo + " endpoints create http://127.0.0.1:9000/hook"
	if u.keyPath != "" && filepath.Clean(u.keyPath) != filepath.Join("crivo-data", keyFile) {
		command = config.Env(keyFile) + "_FILE=" + shellWord(u.keyPath) + " " + command
	}
	if u.url() != "http://127.0.0.1:8080" {
		command += " --url " + u.url()
	}
	if len(u.WebhookAllow) == 0 {
		fmt.Fprintln(out, "Hear of decisions on a receiver of your own: start with --webhook-allow 127.0.0.1/32, then")
	} else {
		fmt.Fprintf(out, "Hear of decisions on a receiver of your own (allowed: %v):\n", u.WebhookAllow)
	}
	fmt.Fprintf(out, "\n  %s\n", command)
}

// goRun is how the program is called from the source tree's root.
const goRun = "./services/cmd/crivo"

// built is the folder in which go run keeps what it built before: a hash, in Go's build cache.
var built = regexp.MustCompile(`^[0-9a-f]{64}-d$`)

// invocation is how to call this program once more, as it was called: go run leaves nothing on the PATH.
func invocation(executable, called string, exists func(string) bool) string {
	for dir := filepath.Dir(executable); ; dir = filepath.Dir(dir) {
		if name := filepath.Base(dir); built.MatchString(name) || strings.HasPrefix(name, "go-build") {
			if exists(goRun) {
				return "go run " + goRun
			}
			return "go run crivo/services/cmd/crivo" // from another folder of the workspace
		}
		if dir == filepath.Dir(dir) {
			return shellWord(called)
		}
	}
}

func executable() string {
	path, _ := os.Executable() // empty where the system does not tell
	return path
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// addr is an address that was printed already.
type addr string

// Network is tcp, always.
func (addr) Network() string  { return "tcp" }
func (a addr) String() string { return string(a) }

// shellWord quotes a path for a shell where it needs that.
func shellWord(path string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/.-_", r)
	}
	if strings.TrimFunc(path, plain) == "" {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}
