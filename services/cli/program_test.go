package cli_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"

	"crivo/services/broker"
	"crivo/services/cli"
)

// asProgram makes the test binary be crivo itself, so that what a person types is what is tested.
const asProgram = "BE_CRIVO"

// within is how long a fact may take to show.
const within = 20 * time.Second

// program is a copy of the test binary under the name that people call.
var program string

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		os.Exit(cli.Main(os.Args[1:]))
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "crivo-cli-test-")
	if err == nil {
		defer os.RemoveAll(dir)
		program = filepath.Join(dir, "crivo")
		err = copySelf(program)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

func copySelf(to string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if os.Link(self, to) == nil {
		return nil
	}
	data, err := os.ReadFile(self)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o700)
}

// testKey is what CRIVO_API_KEY says in every test.
const testKey = "a-key-of-the-tests"

// command prepares crivo with args in dir, with nothing of this process's own environment but where programs are.
func command(t *testing.T, dir string, env []string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Args[0] = "crivo"
	cmd.Dir = dir
	cmd.Env = append([]string{asProgram + "=1", "PATH=" + filepath.Dir(program) + ":" + os.Getenv("PATH"), "HOME=" + dir, "CRIVO_API_KEY=" + testKey}, env...)
	return cmd
}

// result is what a command came to.
type result struct {
	status   int
	out, err string
}

func crivo(t *testing.T, dir string, env []string, args ...string) result {
	t.Helper()
	return finish(t, command(t, dir, env, args...))
}

func finish(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var out, err bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &err
	failed := cmd.Run()
	var exit *exec.ExitError
	if failed != nil && !errors.As(failed, &exit) {
		t.Fatal(failed)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), err.String()}
}

// mustSay fails unless every text is in what was printed.
func mustSay(t *testing.T, printed string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if !strings.Contains(printed, text) {
			t.Errorf("no %q in\n%s", text, printed)
		}
	}
}

func decode[T any](t *testing.T, text string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
	return v
}

func TestVersion(t *testing.T) {
	t.Parallel()
	got := crivo(t, t.TempDir(), nil, "version", "--json")
	want := map[string]string{"version": cli.Version, "revision": "", "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH}
	v := decode[map[string]string](t, got.out)
	v["revision"] = ""
	if diff := cmp.Diff(want, v); diff != "" || got.status != 0 {
		t.Error(got.status, diff)
	}
	mustSay(t, crivo(t, t.TempDir(), nil, "version").out, "crivo "+cli.Version)
}

func TestConfigShowsWhatIsInForceWithoutSecrets(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "crivo.yaml"), []byte("durability: interval\nmax_in_flight: 77\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := crivo(t, dir, []string{"CRIVO_STREAM_BYTES=1GiB"}, "config", "--json", "--config", "crivo.yaml", "--ops", "127.0.0.1:0")
	list := decode[struct {
		Settings []struct{ Name, Value, Source string } `json:"settings"`
	}](t, strings.NewReplacer(`"name"`, `"Name"`, `"value"`, `"Value"`, `"source"`, `"Source"`).Replace(got.out))
	seen := map[string][2]string{}
	for _, s := range list.Settings {
		seen[s.Name] = [2]string{s.Value, s.Source}
	}
	for name, want := range map[string][2]string{
		"api-key": {"********", "CRIVO_API_KEY"}, "durability": {"interval", "crivo.yaml"}, "max-in-flight": {"77", "crivo.yaml"},
		"stream-bytes": {"1GiB", "CRIVO_STREAM_BYTES"}, "ops": {"127.0.0.1:0", "--ops"}, "http": {"127.0.0.1:8080", "default"},
		"webhook-schedule": {"0s,5s,5m,30m,2h,5h,10h,14h,20h,24h", "default"},
	} {
		if seen[name] != want {
			t.Errorf("%s: got %v, want %v", name, seen[name], want)
		}
	}
	if strings.Contains(got.out+got.err, testKey) || got.status != 0 {
		t.Errorf("status %d, or the key is shown:\n%s%s", got.status, got.out, got.err)
	}
	mustSay(t, crivo(t, dir, nil, "config").out, "durability", "fsync", "default")
}

func TestNoAddressIsShownWithItsPassword(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"nats://who:hush@10.0.0.5:4222, who:hush@10.0.0.6:4222": "NATS at nats://10.0.0.5:4222,10.0.0.6:4222",
		"hush@10.0.0.5":               "NATS at 10.0.0.5",
		"nats://who:hush%zz@10.0.0.5": "NATS at (not an address)",
		"nats://who:12/hush@10.0.0.5": "NATS at (not an address)",
	} {
		for _, how := range [][]string{{"config"}, {"config", "--json"}} {
			got := crivo(t, t.TempDir(), []string{"CRIVO_NATS_URL=" + address}, how...)
			if got.status != 0 || strings.Contains(got.out+got.err, "hush") {
				t.Errorf("%s: %+v", address, got)
			}
			mustSay(t, got.out, want, "CRIVO_NATS_URL")
		}
	}
	for _, wrong := range []string{"nats://who:hush@10.0.0.5:x", "nats://who:hush%zz@10.0.0.5"} {
		for _, how := range [][]string{{"up"}, {"streams", "show"}} {
			if got := crivo(t, t.TempDir(), []string{"CRIVO_NATS_URL=" + wrong}, how...); got.status != 1 || strings.Contains(got.out+got.err, "hush") {
				t.Errorf("%s of %s: %+v", how, wrong, got)
			}
		}
	}
}

func TestWithoutACommandHelpIsPrinted(t *testing.T) {
	t.Parallel()
	got := crivo(t, t.TempDir(), nil)
	if got.status != 0 || got.err != "" {
		t.Errorf("%+v", got)
	}
	mustSay(t, got.out, "up ", "submit ", "streams ", "bench ", "config ")
}

func TestAWrongCallIsStatusTwoAndNamesEveryFault(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		args []string
		want []string
	}{
		"no such command": {[]string{"fly"}, []string{"unexpected argument fly"}},
		"up": {[]string{"up", "--http", "here", "--ops", "8081", "--nats", "x", "--durability", "maybe", "--log-level", "loud", "--stream-bytes", "1KiB",
			"--max-in-flight", "0", "--webhook-schedule=-1s", "--webhook-timeout", "2m", "--grace=-1s", "--data=", "--blocklist", "nowhere.yaml",
			"--tls-cert", "c.pem", "--api-key", "short"},
			[]string{"http: ", "ops: ", "nats: ", "durability: ", "log-level: ", "stream-bytes: ", "max-in-flight: ", "webhook-schedule: ", "webhook-timeout: ",
				"grace: ", "data: ", "blocklist: ", "tls-cert: ", "api-key: "}},
		"E28 an open door without TLS": {[]string{"up", "--http", "0.0.0.0:8080"}, []string{"reachable from other machines", "--insecure-http"}},
		"a certificate that is none":   {[]string{"up", "--tls-cert", "c.pem", "--tls-key", "k.pem"}, []string{"tls-cert: open c.pem"}},
		"bench": {[]string{"bench", "--rate", "0", "--duration", "0s", "--connections", "0", "--ops", "ftp://there", "--url", "here", "--set", "a=b"},
			[]string{"rate: ", "duration: ", "connections: ", "ops: ", "url: ", "set a: no such field"}},
		"tail":                         {[]string{"tail", "--decision", "approve,maybe", "--url", "here"}, []string{`decision: "maybe"`, "url: "}},
		"demo":                         {[]string{"demo", "--rate", "0", "--duration=-1s"}, []string{"rate: ", "duration: "}},
		"a client":                     {[]string{"keys", "list", "--url", "localhost:8080"}, []string{`url: "localhost:8080" is no address such as`}},
		"a client by another protocol": {[]string{"keys", "list", "--url", "ftp://127.0.0.1"}, []string{"url: "}},
		"streams":                      {[]string{"streams", "diff", "--replicas", "2", "--stream-bytes", "1"}, []string{"replicas: 2: 1, 3 or 5", "stream-bytes: "}},
		"a missing creds":              {[]string{"streams", "show", "--nats-creds", "nowhere.creds"}, []string{"--nats-creds: stat nowhere.creds"}},
		"a missing file":               {[]string{"submit", "nowhere.csv", "neither.csv"}, []string{"nowhere.csv", "neither.csv"}},
		"bench's own file":             {[]string{"bench", "--file", "nowhere.csv"}, []string{"nowhere.csv"}},
		"a list":                       {[]string{"lists", "add", "ip", "--value", "x", "--expires-in=-1h", "--url", "here"}, []string{"url: ", "expires-in: "}},
		"a missing argument":           {[]string{"endpoints", "create"}, []string{`expected "<receiver>"`}},
		"no change":                    {[]string{"endpoints", "update", "ep_x"}, []string{"nothing to change"}},
		"changes that contradict":      {[]string{"endpoints", "update", "ep_x", "--events", "a", "--all-events", "--header", "A=b", "--no-headers"}, []string{"all-events: ", "no-headers: "}},
		"a grace of parts":             {[]string{"endpoints", "rotate-secret", "ep_x", "--grace", "10ms"}, []string{"grace: "}},
		"a replay of nothing":          {[]string{"endpoints", "replay", "ep_x"}, []string{"from: must be given"}},
		"a replay of rubbish":          {[]string{"endpoints", "replay", "ep_x", "--from", "now", "--to", "then", "--show"}, []string{"from: ", "to: ", "show: "}},
		"deliveries":                   {[]string{"deliveries", "list", "--limit", "501"}, []string{"limit: "}},
		"a tenant's deadline":          {[]string{"tenants", "create", "x", "--deadline", "6s"}, []string{"deadline: "}},
		"a NATS key of nobody":         {[]string{"keys", "create", "--nats", "--rate", "2"}, []string{"rate: "}},
		"a NATS key with roles":        {[]string{"keys", "create", "--nats", "--tenant", "acme", "--roles", "submit,read"}, []string{"roles: "}},
		"a NATS key for all":           {[]string{"keys", "create", "--nats", "--tenant", "*"}, []string{"tenant: "}},
		"a file for an API key":        {[]string{"keys", "create", "--out", "x"}, []string{"nats: "}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := crivo(t, t.TempDir(), nil, tc.args...)
			if got.status != 2 || got.out != "" {
				t.Errorf("status %d, printed %q", got.status, got.out)
			}
			mustSay(t, got.err, tc.want...)
			if strings.Contains(got.err, "short") {
				t.Error("a secret is in the message")
			}
		})
	}
}

// upped is a running crivo up.
type upped struct {
	t        *testing.T
	cmd      *exec.Cmd
	greeting string
	url      string
	nats     string
	log      *bytes.Buffer
}

var (
	apiLine  = regexp.MustCompile(`API +(http://\S+)`)
	natsLine = regexp.MustCompile(`NATS +(nats://\S+)`)
)

// start runs up in dir on free ports and returns once it has greeted.
func start(t *testing.T, dir string, args ...string) *upped {
	t.Helper()
	u := &upped{t: t, log: &bytes.Buffer{}}
	u.cmd = command(t, dir, nil, append([]string{"up", "--http", "127.0.0.1:0", "--ops", "127.0.0.1:0", "--nats", "127.0.0.1:0", "--durability", "interval"}, args...)...)
	u.cmd.Env = append(u.cmd.Env, "CRIVO_API_KEY=") // the folder's own
	u.cmd.Stderr = u.log
	out, err := u.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := u.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = u.cmd.Process.Kill(); _ = u.cmd.Wait() })
	give := time.AfterFunc(within, func() { _ = u.cmd.Process.Kill() })
	defer give.Stop()
	for lines := bufio.NewScanner(out); lines.Scan(); {
		u.greeting += lines.Text() + "\n"
		if strings.HasPrefix(lines.Text(), "Ctrl-C") {
			break
		}
	}
	api, nats := apiLine.FindStringSubmatch(u.greeting), natsLine.FindStringSubmatch(u.greeting)
	if api == nil || nats == nil {
		t.Fatalf("greeted %q, logged %s", u.greeting, u.log)
	}
	u.url, u.nats = api[1], nats[1]
	return u
}

// stop ends it as a person does and returns its exit status.
func (u *upped) stop() int {
	u.t.Helper()
	if err := u.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		u.t.Fatal(err)
	}
	give := time.AfterFunc(within, func() { _ = u.cmd.Process.Kill() })
	defer give.Stop()
	_ = u.cmd.Wait()
	return u.cmd.ProcessState.ExitCode()
}

// ask sends one request with the key that up keeps in its folder, again while up is too busy for it: every one may be repeated.
func (u *upped) ask(method, path, body string) (status int, answer string) {
	u.t.Helper()
	for give := time.Now().Add(within); ; time.Sleep(100 * time.Millisecond) {
		if status, answer = u.askOnce(method, path, body); status != http.StatusServiceUnavailable || time.Now().After(give) {
			return status, answer
		}
	}
}

func (u *upped) askOnce(method, path, body string) (int, string) {
	u.t.Helper()
	key, err := os.ReadFile(filepath.Join(u.cmd.Dir, "crivo-data", "api-key"))
	if err != nil {
		u.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(u.t.Context(), method, u.url+path, strings.NewReader(body))
	if err != nil {
		u.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(key)))
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Prefer", "wait=5")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		u.t.Fatal(err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		u.t.Fatal(err)
	}
	return res.StatusCode, string(data)
}

func TestTheWholeSystemStartsDecidesIsLookedAtAndStartsAgain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	u := start(t, dir, "--webhook-allow", "127.0.0.1/32")
	mustSay(t, u.greeting, "crivo-data/api-key", "credential crivo-data/nats.creds", "durability interval")
	status, decision := u.ask(http.MethodPost, "/v1/transactions",
		`{"id":"a-1","type":"pix","amount":13725,"currency":"BRL","created_at":"2026-01-02T03:04:05Z","payer":{"document":"529.982.247-25"}}`)
	if status != http.StatusOK || !strings.Contains(decision, `"status":"decided"`) {
		t.Fatalf("%d %s", status, decision)
	}
	lookedAt(t, dir, u.nats)
	secondRefused(t, dir, u.cmd.Process.Pid)
	followUp(t, u)
	operated(t, u)
	if code := u.stop(); code != 0 {
		t.Fatalf("status %d, logged\n%s", code, u.log)
	}

	if err := os.Chmod(filepath.Join(dir, "crivo-data"), 0o755); err != nil {
		t.Fatal(err)
	}
	u = start(t, dir)
	if status, again := u.ask(http.MethodGet, "/v1/transactions/a-1", ""); status != http.StatusOK || again != decision {
		t.Errorf("after a restart %d %s, before %s", status, again, decision)
	}
	if code := u.stop(); code != 0 {
		t.Errorf("status %d, logged\n%s", code, u.log)
	}
	mustSay(t, u.log.String(), "others may enter the data folder")
}

// lookedAt runs the streams commands beside up, with the credential that they find by themselves.
func lookedAt(t *testing.T, dir, nats string) {
	t.Helper()
	at := []string{"CRIVO_NATS_URL=" + nats}
	shown := decode[struct {
		Streams []struct {
			Name     string   `json:"name"`
			Messages int      `json:"messages"`
			Budget   *int64   `json:"max_bytes"`
			Used     *float64 `json:"used"`
			FirstAt  *string  `json:"first_at"`
		} `json:"streams"`
		Consumers []struct {
			Name    string `json:"name"`
			Pending int    `json:"pending"`
		} `json:"consumers"`
		Missing []string `json:"missing"`
	}](t, crivo(t, dir, at, "streams", "show", "--json").out)
	if len(shown.Streams) != 10 || len(shown.Consumers) != 5 || len(shown.Missing) != 0 {
		t.Fatalf("shown: %+v", shown)
	}
	if s := shown.Streams[0]; s.Name != "TX_SUBMITTED" || s.Messages != 1 || s.Budget == nil || *s.Budget != 2<<30 || s.Used == nil || *s.Used <= 0 || s.FirstAt == nil {
		t.Errorf("first stream: %+v", s)
	}
	mustSay(t, crivo(t, dir, at, "streams", "show").out, "TX_DECIDED", "6GiB", "CONSUMER", "persist")
	if got := crivo(t, dir, at, "streams", "diff"); got.status != 0 || got.out != "nothing to change\n" {
		t.Errorf("diff: %+v", got)
	}
	if got := crivo(t, dir, at, "streams", "diff", "--stream-bytes", "1GiB", "--json"); got.status != 1 || !strings.Contains(got.out, `{"changes":["update stream TX_SUBMITTED`) {
		t.Errorf("diff to another size: %+v", got)
	}
	if got := crivo(t, dir, at, "streams", "apply"); got.status != 0 || got.out != "nothing to change\n" {
		t.Errorf("apply: %+v", got)
	}
	if got := crivo(t, t.TempDir(), at, "streams", "show"); got.status != 1 || !strings.Contains(got.err, "asks for a credential") {
		t.Errorf("without a credential: %+v", got)
	}
}

func secondRefused(t *testing.T, dir string, pid int) {
	t.Helper()
	got := crivo(t, dir, nil, "up", "--http", "127.0.0.1:0", "--ops", "127.0.0.1:0", "--nats", "none")
	if got.status != 1 || !strings.Contains(got.err, fmt.Sprintf("in use by process %d", pid)) {
		t.Errorf("a second one: %+v", got)
	}
}

// followUp types the command that the greeting says to type next.
func followUp(t *testing.T, u *upped) {
	t.Helper()
	_, line, found := strings.Cut(u.greeting, "(allowed: [127.0.0.1/32]):\n\n  ")
	if line, _, _ = strings.Cut(line, "\n"); !found || !strings.HasPrefix(line, "crivo endpoints create http") {
		t.Fatalf("no command in\n%s", u.greeting)
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-c", line)
	cmd.Dir, cmd.Env = u.cmd.Dir, append(u.cmd.Env, "CRIVO_URL=http://127.0.0.1:1") // flags win
	if got := finish(t, cmd); got.status != 0 || !strings.Contains(got.out, "whsec_") {
		t.Errorf("%s: %+v", line, got)
	}
	if status, list := u.ask(http.MethodGet, "/v1/webhook-endpoints", ""); status != http.StatusOK || !strings.Contains(list, "http://127.0.0.1:9000/hook") {
		t.Errorf("%d %s", status, list)
	}
}

func TestStreamsAreProvisionedByHand(t *testing.T) {
	t.Parallel()
	s, err := broker.Start(broker.Options{Dir: t.TempDir(), Host: "127.0.0.1", Port: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	dir, at := t.TempDir(), []string{"CRIVO_NATS_URL=" + s.URL()}
	mustSay(t, crivo(t, dir, at, "streams", "show").out, "TX_SUBMITTED  missing", "KV_ATTEMPTS", "KV_LEASES")
	first := crivo(t, dir, at, "streams", "apply", "--stream-bytes", "64MiB")
	mustSay(t, first.out, "create stream TX_SUBMITTED\n", "create stream CONTROL\n", "create consumer notify\n", "create bucket ATTEMPTS\n", "create bucket LEASES\n")
	if lines := strings.Count(first.out, "\n"); first.status != 0 || lines != 15 {
		t.Errorf("%d lines, %+v", lines, first)
	}
	if got := crivo(t, dir, at, "streams", "diff", "--stream-bytes", "64MiB", "--json"); got.status != 0 || got.out != `{"changes":[]}`+"\n" {
		t.Errorf("after: %+v", got)
	}
	if got := crivo(t, dir, at, "streams", "diff", "--stream-bytes", "32MiB"); got.status != 1 || !strings.HasPrefix(got.out, "update stream TX_SUBMITTED\n") {
		t.Errorf("another size: %+v", got)
	}
	if got := crivo(t, dir, at, "streams", "apply", "--stream-bytes", "32MiB"); got.status != 0 || !strings.HasPrefix(got.out, "update stream TX_SUBMITTED\n") {
		t.Errorf("made so: %+v", got)
	}
	if got := crivo(t, dir, at, "streams", "apply", "--stream-bytes", "32MiB"); got.out != "nothing to change\n" {
		t.Errorf("once more: %+v", got)
	}
}

func TestABrokerThatIsNotThereIsSaidWithoutItsPassword(t *testing.T) {
	t.Parallel()
	got := crivo(t, t.TempDir(), nil, "streams", "show", "--nats-url", "nats://who:hush@127.0.0.1:1")
	if got.status != 1 || strings.Contains(got.err, "hush") {
		t.Errorf("%+v", got)
	}
	mustSay(t, got.err, "no broker at nats://127.0.0.1:1")
}

func TestBenchMeasuresASystemOfItsOwn(t *testing.T) {
	t.Parallel()
	// Its own system stands alone, whatever the caller's settings say.
	elsewhere := []string{"CRIVO_NATS_URL=nats://127.0.0.1:1", "CRIVO_MONGO_URI=mongodb://127.0.0.1:1", "CRIVO_KEYSET_FILE=nowhere"}
	got := crivo(t, t.TempDir(), elsewhere, "bench", "--rate", "80", "--duration", "500ms", "--durability", "interval", "--json")
	if got.status != 0 {
		t.Fatalf("%+v", got)
	}
	f := decode[map[string]any](t, got.out)
	for _, name := range []string{"accept_ms", "decide_ms", "deliver_ms", "accept_to_deliver_ms"} {
		least := 0.001
		if name == "accept_to_deliver_ms" {
			least = 0 // the webhook may come before the answer
		}
		if p, ok := f[name].(map[string]any); !ok || len(p) != 3 || !(p["p50"].(float64) >= least && p["p50"].(float64) <= p["p99"].(float64) && p["p99"].(float64) <= p["p999"].(float64)) {
			t.Errorf("%s: %v", name, f[name])
		}
		delete(f, name)
	}
	for _, name := range []string{"offered_per_s", "decided_per_s", "delivered_per_s", "within_2s", "cpu_ms_per_tx", "rss_mb"} {
		if v, ok := f[name].(float64); !ok || v <= 0 {
			t.Errorf("%s: %v", name, f[name])
		}
		delete(f, name)
	}
	accepted, _ := f["accepted"].(float64)
	refused, _ := f["refused"].(float64)
	if accepted+refused != 40 { // a busy machine refuses, and has to say so
		t.Errorf("%g accepted and %g refused of 40", accepted, refused)
	}
	want := map[string]any{"accepted": accepted, "refused": refused, "lost": 0.0, "undelivered": 0.0, "double": 0.0, "failed": 0.0,
		"repeated": f["repeated"], "durability": "interval"} // a busy machine may answer a webhook too late
	if diff := cmp.Diff(want, f); diff != "" {
		t.Error(diff)
	}
}
