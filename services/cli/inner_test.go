package cli

import (
	"bytes"
	"errors"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alecthomas/kong"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"crivo/services/config"
	"crivo/services/feed"
)

func TestEveryCommandHasAnExampleAndJSON(t *testing.T) {
	parser, err := kong.New(new(root), kong.Name("crivo"))
	if err != nil {
		t.Fatal(err)
	}
	for _, command := range parser.Model.Leaves(false) {
		if name := command.Path(); !strings.Contains(command.Detail, "Example") || !strings.Contains(command.Detail, "crivo "+name) {
			t.Errorf("%s: no example of it in %q", name, command.Detail)
		} else if people := []string{"up", "demo", "health"}; !slices.Contains(people, name) && !slices.ContainsFunc(command.Flags, func(f *kong.Flag) bool { return f.Name == "json" }) {
			t.Errorf("%s: no --json", name)
		}
	}
}

func TestAPlaceIsTheUnbrokenRunFromTheStart(t *testing.T) {
	const url = "http://127.0.0.1:8080"
	for name, tc := range map[string]struct {
		kept string // before, "" for nothing
		url  string
		done []int
		left string // afterwards, when not complete
		from int
	}{
		"in order":                        {"", url, []int{1, 2, 3}, "3 " + url + "\n", 0},
		"out of order":                    {"", url, []int{3, 1, 5, 2}, "3 " + url + "\n", 0},
		"nothing settled":                 {"", url, nil, "", 0},
		"only later ones":                 {"", url, []int{2, 3}, "", 0},
		"going on":                        {"7 " + url + "\n", url, []int{9, 8, 11}, "9 " + url + "\n", 7},
		"going on, and nothing more":      {"7 " + url, url, nil, "7 " + url + "\n", 7},
		"kept for another server":         {"7 http://elsewhere\n", url, []int{1}, "1 " + url + "\n", 0},
		"kept for another server, unused": {"7 http://elsewhere\n", url, nil, "7 http://elsewhere\n", 0},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "rows")
			keep(t, file+".crivo-resume", tc.kept)
			p, err := openPlace(file, tc.url)
			if err != nil || p.from != tc.from {
				t.Fatalf("from %d, %v, want %d", p.from, err, tc.from)
			}
			for _, row := range tc.done {
				p.done(row)
			}
			if err := p.close(false); err != nil {
				t.Fatal(err)
			}
			if left, _ := os.ReadFile(file + ".crivo-resume"); string(left) != tc.left {
				t.Errorf("kept %q, want %q", left, tc.left)
			}
			if err := p.close(true); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(file + ".crivo-resume"); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("a complete file leaves a place: %v", err)
			}
		})
	}
}

func keep(t *testing.T, path, text string) {
	t.Helper()
	if text == "" {
		return
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestADamagedPlaceIsSaid(t *testing.T) {
	for _, text := range []string{"x", "7", "-1 http://a", "7.5 http://a", "\n"} {
		file := filepath.Join(t.TempDir(), "rows")
		keep(t, file+".crivo-resume", text)
		if _, err := openPlace(file, "http://a"); err == nil || !strings.Contains(err.Error(), "delete it to start over") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestADataFolderIsOnesOwn(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	f, err := openFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 || f.shared {
		t.Errorf("mode %v, shared %v, %v", info.Mode(), f.shared, err)
	}
	if _, err := openFolder(dir); err == nil || !strings.Contains(err.Error(), "in use by process "+strconv.Itoa(os.Getpid())) {
		t.Errorf("a second one: %v", err)
	}
	f.close()
	if err := os.Chmod(dir, 0o750); err != nil { // one that is there is somebody's
		t.Fatal(err)
	}
	again, err := openFolder(dir)
	if err != nil {
		t.Fatalf("after the first has gone: %v", err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o750 || !again.shared {
		t.Errorf("mode %v, shared %v, %v", info.Mode(), again.shared, err)
	}
	again.close()
}

func TestTheFirstKeyIsMadeOnceAndNobodyElsesToRead(t *testing.T) {
	f, err := openFolder(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	key, path, err := f.apiKey("")
	if err != nil || len(key) < 16 || path != f.file("api-key") {
		t.Fatalf("%q at %q, %v", key, path, err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if again, _, err := f.apiKey(""); err != nil || again != key {
		t.Errorf("another key %q, %v", again, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if given, path, err := f.apiKey("given by somebody"); err != nil || given != "given by somebody" || path != "" {
		t.Errorf("%q at %q, %v", given, path, err)
	}
	keep(t, path, " \n")
	keep(t, f.file("api-key"), "\n")
	if made, _, err := f.apiKey(""); err != nil || made == "" || made == key {
		t.Errorf("from an empty file %q, %v", made, err)
	}
}

func TestAWordForAShellIsOneWord(t *testing.T) {
	for _, word := range []string{"crivo-data/api-key", "/a b/api-key", "it's", "$HOME/`x`", "a\"b", "", "ação"} {
		out, err := exec.CommandContext(t.Context(), "sh", "-c", "printf %s "+shellWord(word)+"x").Output()
		if err != nil || string(out) != word+"x" {
			t.Errorf("%q becomes %q, %v", word, out, err)
		}
	}
	if got := shellWord("./crivo-data/api-key"); got != "./crivo-data/api-key" {
		t.Errorf("quoted without need: %s", got)
	}
}

func TestAnAddressThatAClientHereCanUse(t *testing.T) {
	for listen, want := range map[string]string{"0.0.0.0:80": "127.0.0.1:80", "[::]:80": "127.0.0.1:80", "127.0.0.1:80": "127.0.0.1:80",
		"192.0.2.7:80": "192.0.2.7:80", "[::1]:80": "[::1]:80", "somewhere": "somewhere"} {
		if got := reachable(addr(listen)); got != want {
			t.Errorf("%s: got %s, want %s", listen, got, want)
		}
	}
}

func TestAnAddressIsShownWithoutItsOptions(t *testing.T) {
	for address, want := range map[string]string{
		"mongodb://a:hush@b:1,c:2/?tlsCertificateKeyFilePassword=hush,hush": "mongodb://b:1,c:2/",
		"redis://b:1/0#hush":         "redis://b:1/0",
		"nats://who:12?hush@b":       "(not an address)",
		"nats://who:12#hush@b":       "(not an address)",
		"mongodb://a:hush?hush@b/db": "(not an address)",
	} {
		if got := withoutPassword(address); got != want {
			t.Errorf("%s: got %s, want %s", address, got, want)
		}
	}
}

func TestTheProgramIsCalledAsItWasCalled(t *testing.T) {
	hash := strings.Repeat("0123abcd", 8)
	for name, tc := range map[string]struct {
		executable, called string
		root               bool
		want               string
	}{
		"installed":                        {"/usr/local/bin/crivo", "crivo", false, "crivo"},
		"by its path":                      {"/home/a b/crivo", "/home/a b/crivo", false, "'/home/a b/crivo'"},
		"go run, first time":               {"/tmp/go-build123/b001/exe/crivo", "/tmp/go-build123/b001/exe/crivo", true, "go run ./services/cmd/crivo"},
		"go run, from the cache":           {"/root/.cache/x/ab/" + hash + "-d/crivo", "/root/.cache/x", true, "go run ./services/cmd/crivo"},
		"go run in a folder below":         {"/tmp/go-build123/b001/exe/crivo", "x", false, "go run crivo/services/cmd/crivo"},
		"the system does not tell":         {"", "./crivo", true, "./crivo"},
		"a folder that looks a little so":  {"/opt/cargo-build/crivo", "crivo", true, "crivo"},
		"a binary built beside the source": {"/src/crivo", "./crivo", true, "./crivo"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := invocation(tc.executable, tc.called, func(path string) bool { return tc.root && path == goRun }); got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}

func TestTheNextCommandFitsTheSettings(t *testing.T) {
	for name, tc := range map[string]struct {
		address string
		keyPath string
		tls     string
		allow   bool
		want    string
	}{
		"as delivered":         {"127.0.0.1:8080", "crivo-data/api-key", "", false, "start with --webhook-allow 127.0.0.1/32, then\n\n  crivo endpoints create http://127.0.0.1:9000/hook\n"},
		"another port":         {"127.0.0.1:9999", "crivo-data/api-key", "", false, "  crivo endpoints create http://127.0.0.1:9000/hook --url http://127.0.0.1:9999\n"},
		"another folder":       {"127.0.0.1:8080", "/a b/api-key", "", false, "  CRIVO_API_KEY_FILE='/a b/api-key' crivo endpoints create http://127.0.0.1:9000/hook\n"},
		"a key that was given": {"127.0.0.1:8080", "", "", false, "  crivo endpoints create http://127.0.0.1:9000/hook\n"},
		"with TLS":             {"0.0.0.0:8443", "./crivo-data/api-key", "c.pem", false, " create http://127.0.0.1:9000/hook --url https://127.0.0.1:8443\n"},
		"receivers allowed":    {"127.0.0.1:8080", "", "", true, "own (allowed: [127.0.0.0/8]):\n\n  crivo endpoints"},
	} {
		t.Run(name, func(t *testing.T) {
			u := &upped{keyPath: tc.keyPath, http: addr(tc.address)}
			u.TLSCert = tc.tls
			if tc.allow {
				u.WebhookAllow = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
			}
			var out bytes.Buffer
			u.greetWebhooks(&out, "crivo")
			if !strings.Contains(out.String(), tc.want) {
				t.Errorf("got\n%s\nwant\n%s", out.String(), tc.want)
			}
		})
	}
}

func TestTheKeyIsHintedAtAndNeverShown(t *testing.T) {
	for name, tc := range map[string]struct {
		keyPath, env, file string
		place, word        string
	}{
		"made by up":         {"crivo-data/api-key", "", "", "crivo-data/api-key", "$(cat crivo-data/api-key)"},
		"in the environment": {"", "a-key-that-is-secret", "", "CRIVO_API_KEY", "$CRIVO_API_KEY"},
		"in a file":          {"", "", "/run/secrets/a key", "/run/secrets/a key", "$(cat '/run/secrets/a key')"},
		"in both":            {"", "a-key-that-is-secret", "/run/secrets/key", "CRIVO_API_KEY", "$CRIVO_API_KEY"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("CRIVO_API_KEY", tc.env)
			t.Setenv("CRIVO_API_KEY_FILE", tc.file)
			if place, word := (&upped{keyPath: tc.keyPath}).keyHint(); place != tc.place || word != tc.word {
				t.Errorf("got %s and %s", place, word)
			}
		})
	}
}

// TestThePaceIsExactWhereTimersAreNot lets a sender wake late, as timers do, and counts what it may send in ten seconds.
func TestThePaceIsExactWhereTimersAreNot(t *testing.T) {
	for name, tc := range map[string]struct {
		perSecond float64
		wake      time.Duration
		want      int
	}{
		"one a second":                  {1, time.Millisecond, 10},
		"five thousand, woken on time":  {5000, 100 * time.Microsecond, 50_000},
		"five thousand, woken late":     {5000, 17 * time.Millisecond, 50_000},
		"half of one a second":          {0.5, 250 * time.Millisecond, 5},
		"a hundred thousand, very late": {100_000, 43 * time.Millisecond, 1_000_000},
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Unix(1_700_000_000, 0)
			l := pace(tc.perSecond, start)
			got := 0
			for at := start; at.Before(start.Add(10 * time.Second)); at = at.Add(tc.wake) {
				for l.AllowN(at, 1) {
					got++
				}
			}
			if math.Abs(float64(got-tc.want)) > math.Max(1, tc.perSecond*tc.wake.Seconds()) {
				t.Errorf("sent %d, want %d", got, tc.want)
			}
		})
	}
	if pace(0, time.Now()) != nil {
		t.Error("no rate is a rate")
	}
}

// wire answers requests without a network, so that time can be a test's own.
type wire func(n int) (status int, header http.Header, err error)

type roundTripper struct {
	wire wire
	at   []time.Duration // of each request, since start
	from time.Time
}

func (r *roundTripper) RoundTrip(req *http.Request) (*http.Response, error) {
	r.at = append(r.at, time.Since(r.from))
	status, header, err := r.wire(len(r.at))
	if err != nil {
		return nil, err
	}
	w := httptest.NewRecorder()
	for name, values := range header {
		w.Header()[name] = values
	}
	w.WriteHeader(status)
	_, _ = w.WriteString(`{"title":"said"}`)
	res := w.Result()
	res.Request = req
	return res, nil
}

func after(seconds string) http.Header { return http.Header{"Retry-After": {seconds}} }

func TestSendingAgainObeysTheServerAndEnds(t *testing.T) {
	refused := errors.New("connection refused")
	for name, tc := range map[string]struct {
		wire    wire
		gaps    []time.Duration // the least time before each repeat
		most    time.Duration   // what any repeat may take beyond its gap
		status  int
		fails   bool
		trouble int
	}{
		"accepted at once": {func(int) (int, http.Header, error) { return 202, nil, nil }, nil, 0, 202, false, 0},
		"refused at once":  {func(int) (int, http.Header, error) { return 422, after("9"), nil }, nil, 0, 422, false, 0},
		"after as long as it says": {func(n int) (int, http.Header, error) {
			return []int{503, 429, 202}[n-1], after([]string{"7", "3", ""}[n-1]), nil
		},
			[]time.Duration{7 * time.Second, 3 * time.Second}, 0, 202, false, 0},
		"a minute at most": {func(n int) (int, http.Header, error) { return []int{503, 202}[n-1], after("86400"), nil }, []time.Duration{time.Minute}, 0, 202, false, 0},
		"soon where it says nothing": {func(n int) (int, http.Header, error) { return []int{500, 502, 202}[n-1], after("soon"), nil },
			[]time.Duration{25 * time.Millisecond, 50 * time.Millisecond}, 125 * time.Millisecond, 202, false, 0},
		"a connection that fails": {func(n int) (int, http.Header, error) { return 202, nil, []error{refused, refused, nil}[n-1] },
			[]time.Duration{25 * time.Millisecond, 50 * time.Millisecond}, 125 * time.Millisecond, 202, false, 2},
		"never": {func(int) (int, http.Header, error) { return 503, after("50"), nil }, []time.Duration{50 * time.Second, 50 * time.Second}, 0, 503, true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &roundTripper{wire: tc.wire, from: time.Now()}
				trouble := 0
				s := &sender{url: "http://edge", http: &http.Client{Transport: r}, trouble: func(error) { trouble++ }}
				a, err := s.persistently(t.Context(), []byte("{}"), 0, 2*time.Minute)
				if a.status != tc.status || (err != nil) != tc.fails || trouble != tc.trouble {
					t.Errorf("status %d, %v, %d troubles", a.status, err, trouble)
				}
				if tc.fails && (!errors.Is(err, errGaveUp) || !strings.Contains(err.Error(), "said")) {
					t.Errorf("gave up with %v", err)
				}
				if len(r.at) != len(tc.gaps)+1 {
					t.Fatalf("requests at %v", r.at)
				}
				for i, gap := range tc.gaps {
					if took := r.at[i+1] - r.at[i]; took < gap || took > gap+tc.most {
						t.Errorf("repeat %d after %s, want %s", i+1, took, gap)
					}
				}
			})
		})
	}
}

var due = time.Unix(1_700_000_000, 0)

func ms(n int) time.Duration { return time.Duration(n) * time.Millisecond }

func near(t *testing.T, name string, got, want float64) {
	t.Helper()
	if math.Abs(got-want) > 0.0015*want+0.001 { // three digits are kept
		t.Errorf("%s: got %g, want %g", name, got, want)
	}
}

// TestFiguresCountFromWhenATransactionWasDue has a thousand trips of known length, one a millisecond.
func TestFiguresCountFromWhenATransactionWasDue(t *testing.T) {
	trips := newTrips()
	for i := range 1000 {
		id, at := strings.Repeat("i", i+1), due.Add(ms(i))
		trips.sent(id, at)
		trips.answered(id, answer{status: 202}, nil, at.Add(ms(i+1)))
		trips.delivered(id, "v", "msg_1", int64(10), at.Add(ms(i+1)+ms(30)))
	}
	f := trips.figures(due, time.Second)
	for name, x := range map[string][2]float64{
		"accept p50": {f.Accept.P50, 500}, "accept p99": {f.Accept.P99, 990}, "accept p99.9": {f.Accept.P999, 999},
		"decide p50": {f.Decide.P50, 510}, "decide p99.9": {f.Decide.P999, 1009}, "deliver p50": {f.Deliver.P50, 530}, "deliver p99": {f.Deliver.P99, 1020},
		"offered": {f.OfferedPerS, 1000}, "within 2 s": {f.Within2s, 1},
		"decided": {f.DecidedPerS, 1000 / 2.009}, // the last was due at 0.999 s and decided 1.010 s later
	} {
		near(t, name, x[0], x[1])
	}
	if f.Accepted != 1000 || f.Refused+f.Failed+f.Double+f.Undelivered != 0 {
		t.Errorf("%+v", f)
	}
}

func TestFiguresTellApartWhatBecameOfATransaction(t *testing.T) {
	ok, busy := answer{status: 202}, answer{status: 503}
	for name, tc := range map[string]struct {
		run  func(*trips)
		want Figures
	}{
		"nothing": {func(*trips) {}, Figures{}},
		"refused, and decided all the same": {func(x *trips) {
			x.answered("a", busy, nil, due.Add(ms(5)))
			x.delivered("a", "v", "msg_1", 1, due.Add(ms(9000)))
		}, Figures{Refused: 1}},
		"no answer": {func(x *trips) { x.answered("a", answer{}, errors.New("time-out"), due.Add(ms(30000))) }, Figures{Failed: 1}},
		"the webhook came before the answer": {func(x *trips) {
			x.delivered("a", "v", "msg_1", 3, due.Add(ms(4)))
			x.answered("a", ok, nil, due.Add(ms(8)))
		}, Figures{Accepted: 1, Within2s: 1, Accept: at(8), Decide: at(4), Deliver: at(4)}},
		"two verdicts, one of them twice": {func(x *trips) {
			x.answered("a", ok, nil, due.Add(ms(8)))
			for _, v := range []string{"v", "v", "w"} {
				x.delivered("a", v, "msg_1", 3, due.Add(ms(20)))
			}
		}, Figures{Accepted: 1, Within2s: 1, Double: 1, Repeated: 1, Accept: at(8), Decide: at(11), Deliver: at(20), Notify: at(12)}},
		"one verdict, told a second time under another id": {func(x *trips) {
			x.answered("a", ok, nil, due.Add(ms(8)))
			x.delivered("a", "v", "msg_1", 3, due.Add(ms(20)))
			x.delivered("a", "v", "msg_2", 3, due.Add(ms(20)))
		}, Figures{Accepted: 1, Within2s: 1, Double: 1, Accept: at(8), Decide: at(11), Deliver: at(20), Notify: at(12)}},
		"late": {func(x *trips) {
			x.answered("a", ok, nil, due.Add(ms(8)))
			x.delivered("a", "v", "msg_1", 2001, due.Add(ms(4000)))
		}, Figures{Accepted: 1, Accept: at(8), Decide: at(2009), Deliver: at(4000), Notify: at(3992)}},
		"just in time, late from when it was due": {func(x *trips) {
			x.answered("a", ok, nil, due.Add(ms(500)))
			x.delivered("a", "v", "msg_1", 2000, due.Add(ms(4000)))
		}, Figures{Accepted: 1, Within2s: 1, Accept: at(500), Decide: at(2500), Deliver: at(4000), Notify: at(3500)}},
		"not delivered":           {func(x *trips) { x.answered("a", ok, nil, due.Add(ms(8))) }, Figures{Accepted: 1, Undelivered: 1, Accept: at(8)}},
		"one of another run":      {func(x *trips) { x.delivered("z", "v", "msg_1", 1, due) }, Figures{}},
		"longer than ten minutes": {func(x *trips) { x.answered("a", ok, nil, due.Add(time.Hour)) }, Figures{Accepted: 1, Undelivered: 1, Accept: at(600_000)}},
	} {
		t.Run(name, func(t *testing.T) {
			trips := newTrips()
			if !trips.sent("a", due) || trips.sent("a", due.Add(ms(1))) {
				t.Fatal("an id is sent once")
			}
			tc.run(trips)
			got := trips.figures(due, time.Second)
			got.OfferedPerS, got.DecidedPerS, got.DeliveredPerS = 0, 0, 0
			if diff := cmp.Diff(tc.want, got, cmpopts.EquateApprox(0.0015, 0.001)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// at is what the percentiles of a single measurement are.
func at(ms float64) Percentiles { return Percentiles{ms, ms, ms} }

func TestWhatWasNotDeliveredIsAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		trips := newTrips()
		for _, id := range []string{"decided", "lost", "delivered"} {
			trips.sent(id, time.Now())
			trips.answered(id, answer{status: 202}, nil, time.Now().Add(ms(10)))
		}
		trips.delivered("delivered", "v", "msg_1", 5, time.Now().Add(ms(20)))
		s := &sender{url: "http://edge", http: &http.Client{Transport: reads(func(path string) string {
			if strings.HasSuffix(path, "/decided") {
				return `{"id":"decided","status":"decided","decision":"approve","latency_ms":1500}`
			}
			return `{"id":"lost","status":"processing"}`
		})}}
		time.Sleep(time.Minute) // the answers to the last requests took that long
		began := time.Now()
		trips.settle(t.Context(), 15*time.Second)
		if waited := time.Since(began); waited < 15*time.Second || waited > 16*time.Second {
			t.Errorf("waited %s for webhooks", waited)
		}
		if lost := trips.askForRest(t.Context(), s, 5*time.Second); lost != 1 {
			t.Errorf("%d lost", lost)
		}
		f := trips.figures(began, time.Second)
		if f.Undelivered != 2 || f.Accepted != 3 {
			t.Errorf("%+v", f)
		}
		near(t, "within 2 s", f.Within2s, 2.0/3)
		near(t, "decide p99", f.Decide.P99, 1510)
	})
}

// TestASilentServerIsAskedNoLongerThanPatienceLasts has one that answers about the first hundred, each in its time, and then hangs.
func TestASilentServerIsAskedNoLongerThanPatienceLasts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began, trips := time.Now(), newTrips()
		for i := range 200 {
			id := strconv.Itoa(i)
			trips.sent(id, began)
			trips.answered(id, answer{status: 202}, nil, began)
		}
		left := hangs(100)
		s := &sender{url: "http://edge", http: &http.Client{Timeout: 30 * time.Second, Transport: &left}}
		if lost := trips.askForRest(t.Context(), s, patience); lost != 100 || time.Since(began) > 20*time.Second+patience+time.Second {
			t.Errorf("%d lost, known after %s", lost, time.Since(began))
		}
	})
}

// hangs answers so many requests, one in 200 ms, and no other.
type hangs int

func (h *hangs) RoundTrip(req *http.Request) (*http.Response, error) {
	if *h--; *h < 0 {
		<-req.Context().Done()
		return nil, req.Context().Err()
	}
	time.Sleep(ms(200))
	return reads(func(string) string { return `{"status":"decided","decision":"approve"}` }).RoundTrip(req)
}

// TestAnExportThatFallsSilentIsAnError has a server that is silent for nearly as long as it may be and then for ever, and a printer that
// takes longer than that.
func TestAnExportThatFallsSilentIsAnError(t *testing.T) {
	for name, tc := range map[string]struct {
		rows  []string // nothing: not even headers
		takes time.Duration
		said  string
	}{
		"at once":       {nil, silence, "the server said nothing for 45s"},
		"amid its rows": {[]string{"ro", "ws"}, silence - time.Second + 2*time.Hour + silence, "broken off, what was printed is not all: the server said nothing for 45s"},
	} {
		synctest.Test(t, func(t *testing.T) {
			began, out := time.Now(), slow{}
			err := pour(t.Context(), &http.Client{Transport: falls(tc.rows)}, "http://edge", "key", nil, "text/csv", &out)
			if err == nil || err.Error() != tc.said || time.Since(began) != tc.takes || out.String() != strings.Join(tc.rows, "") {
				t.Errorf("%s: %q after %s, %v", name, out.String(), time.Since(began), err)
			}
		})
	}
}

// falls answers with rows, each after nearly as long as silence, and then falls silent.
type falls []string

func (f falls) RoundTrip(req *http.Request) (*http.Response, error) {
	if f == nil {
		<-req.Context().Done()
		return nil, req.Context().Err()
	}
	body, rows := io.Pipe()
	go func() {
		for _, row := range f {
			time.Sleep(silence - time.Second)
			_, _ = io.WriteString(rows, row)
		}
		<-req.Context().Done()
		_ = rows.CloseWithError(req.Context().Err())
	}()
	return &http.Response{StatusCode: http.StatusOK, Body: body}, nil
}

// slow takes an hour over each part.
type slow struct{ strings.Builder }

func (s *slow) Write(p []byte) (int, error) {
	time.Sleep(time.Hour)
	return s.Builder.Write(p)
}

type reads func(path string) string

func (r reads) RoundTrip(req *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	_, _ = w.WriteString(r(req.URL.Path))
	return w.Result(), nil
}

// TestAStallOfTheServerIsInTheFigures has a server that answers nothing for the first second, then at once.
func TestAStallOfTheServerIsInTheFigures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		s := &sender{url: "http://edge", http: &http.Client{Transport: reads(func(string) string {
			time.Sleep(time.Until(began.Add(time.Second)))
			return `{"status":"processing"}`
		})}}
		c := &BenchCmd{Rate: 100, Duration: 2 * time.Second}
		made := feed.NewSynthetic("b", 1)
		trips := newTrips()
		sending, err := c.load(t.Context(), &target{send: s}, trips, func() (feed.Row, error) { return made.Next(time.Now()), nil })
		if err != nil || sending != 2*time.Second {
			t.Fatalf("sent for %s, %v", sending, err)
		}
		f := trips.figures(began, sending)
		if f.Accepted != 200 {
			t.Errorf("%d accepted", f.Accepted)
		}
		near(t, "offered", f.OfferedPerS, 100)
		near(t, "accept p99", f.Accept.P99, 980) // the third of 200: due at 20 ms
		if f.Accept.P50 > 20 {
			t.Errorf("p50 %g: half of them were due after the stall", f.Accept.P50)
		}
	})
}

func TestAServersOwnFiguresAreRead(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/metrics" {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		_, _ = w.Write([]byte("# HELP x\nprocess_cpu_seconds_total 12.5\nprocess_resident_memory_bytes 1.048576e+08\nother 3\n"))
	}))
	defer server.Close()
	for name, tc := range map[string]struct {
		ops   string
		want  resources
		fails bool
	}{
		"a server": {server.URL + "/", resources{12.5, 1.048576e8}, false}, "none": {"", resources{}, false}, "something else": {server.URL + "/x", resources{}, true},
	} {
		got, err := (&target{ops: tc.ops}).usage(t.Context())
		if got != tc.want || (err != nil) != tc.fails {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestConstantsAndColumnsAreCheckedAgainstTheTransaction(t *testing.T) {
	for name, tc := range map[string]struct {
		mapping feed.Mapping
		want    []string
	}{
		"every kind of field": {feed.Mapping{Columns: map[string]string{"id": "a", "payer.account.number": "b", "payee.statistics.settlements.d90": "c", "geo.lat": "d",
			"device.is_rooted": "e", "attributes.anything": "f", "metadata.anything": "g", "payer": "h", "created_at": "i"},
			Set: map[string]string{"type": "card", "amount": "12", "geo.lon": "1.5", "network.is_vpn": "false", "attributes.n": "3"}}, nil},
		"major units are judged by each row": {feed.Mapping{Set: map[string]string{"amount": "12.34"}, Major: true}, nil},
		"minor units are whole":              {feed.Mapping{Set: map[string]string{"amount": "12.34"}}, []string{"set amount"}},
		"nothing inside an attribute":        {feed.Mapping{Columns: map[string]string{"attributes.a.b": "x"}}, []string{"map attributes.a.b"}},
		"far too deep":                       {feed.Mapping{Columns: map[string]string{"metadata.b.c.d.e.f.g.h.i": "x"}}, []string{"map metadata.b.c.d.e.f.g.h.i"}},
		"no text":                            {feed.Mapping{Columns: map[string]string{"\xff": "x"}}, []string{"map \xff"}},
	} {
		t.Run(name, func(t *testing.T) {
			var f config.Faults
			checkMapping(&f, tc.mapping)
			var got []string
			for _, fault := range f {
				got = append(got, fault.Name)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff, f)
			}
		})
	}
}
