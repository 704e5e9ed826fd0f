package cli_test

import (
	"bufio"
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const reviewed = `{"id":"%s","status":"decided","decision":"review","score":45,"risk_band":"medium","reasons":[{"code":"VELOCITY_PAYER_5M",` +
	`"text":"7 payments in 5 minutes","rule":"velocity-payer-5m","points":25}],"checks":[],"degraded":["serpro: timeout"],` +
	`"rule_set":{"name":"default","version":1,"digest":"sha256:0"},"engine":"1.0.0","late":true,` +
	`"accepted_at":"2026-11-22T23:05:11.640Z","decided_at":"2026-11-22T23:05:11.649Z","latency_ms":9}`

// broken is a server of events that breaks off after each, loses the place after c, and is busy in between. It tells the ids
// that it was asked with.
func broken(t *testing.T) (url string, asked chan string) {
	t.Helper()
	asked = make(chan string, 100)
	busy := true
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := r.Header.Get("Last-Event-ID")
		asked <- id
		say := func(format string, args ...any) {
			fmt.Fprintf(w, format, args...)
			w.(http.Flusher).Flush()
		}
		switch {
		case r.URL.Path != "/v1/events" || r.Header.Get("Authorization") != "Bearer "+testKey:
			w.WriteHeader(http.StatusNotFound)
		case id == "" && busy:
			say(": hello\nretry: 5\nid: a\n\n")
		case id == "a":
			say("id: b\nevent: transaction.decided\ndata: "+reviewed+"\n\nid: never\ndata: {", "first")
		case id == "b" && busy:
			busy = false
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusServiceUnavailable)
		case id == "b":
			say("id: c\ndata: "+reviewed+"\n\n", "second")
		case id == "c":
			w.WriteHeader(http.StatusGone)
			say(`{"title":"Gone","status":410,"detail":"no longer kept"}`)
		default:
			say("id: d\ndata: %s\n\nid: e\ndata: "+reviewed+"\n\n: beat\nid: f\n\n", strings.Replace(fmt.Sprintf(reviewed, "third"), "review", "approve", 1), "fourth")
			<-r.Context().Done()
		}
	}))
	t.Cleanup(s.Close)
	return s.URL, asked
}

// tail runs the command until it has printed the last decision, then ends it as a person does.
func tail(t *testing.T, args ...string) result {
	t.Helper()
	cmd := command(t, t.TempDir(), nil, append([]string{"tail"}, args...)...)
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var printed string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		printed += lines.Text() + "\n"
		if strings.Contains(lines.Text(), "fourth") {
			if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = cmd.Wait()
	return result{cmd.ProcessState.ExitCode(), printed, complaints.String()}
}

func TestTailGoesOnWhereTheStreamBroke(t *testing.T) {
	t.Parallel()
	url, asked := broken(t)
	got := tail(t, "--json", "--url", url+"/")
	want := fmt.Sprintf(reviewed+"\n"+reviewed+"\n", "first", "second") +
		strings.Replace(fmt.Sprintf(reviewed, "third"), "review", "approve", 1) + "\n" + fmt.Sprintf(reviewed, "fourth") + "\n"
	if diff := cmp.Diff(want, got.out); diff != "" || got.status != 0 {
		t.Error(got.status, diff)
	}
	mustSay(t, got.err, "Service Unavailable; trying again\n", "decisions may be missing here\n", "--since ")
	var ids []string
	for len(asked) > 0 {
		ids = append(ids, <-asked)
	}
	if diff := cmp.Diff([]string{"", "a", "b", "b", "c", ""}, ids); diff != "" {
		t.Error(diff)
	}
}

func TestTailPrintsALineForEachDecisionThatIsWanted(t *testing.T) {
	t.Parallel()
	url, _ := broken(t)
	got := tail(t, "--decision", "review,decline", "--since", "a", "--url", url)
	line := regexp.MustCompile(`^\d\d:\d\d:11\.649  review    45  first +9 ms  VELOCITY_PAYER_5M \(7 payments in 5 minutes\)  late  without serpro: timeout\n`)
	if !line.MatchString(got.out) || strings.Contains(got.out, "third") || strings.Count(got.out, "\n") != 3 || got.status != 0 {
		t.Errorf("%+v", got)
	}
}

func TestTailGoesOnFromWhatItCouldPrint(t *testing.T) {
	t.Parallel()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer full.Close()
	url, _ := broken(t)
	cmd := command(t, t.TempDir(), nil, "tail", "--since", "a", "--url", url)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = full, &said
	if err := cmd.Run(); cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("%v", err)
	}
	mustSay(t, said.String(), "no space left on device", "go on from here with --since a\n")
}

func TestTailSaysWhatTheServerWillNotHave(t *testing.T) {
	t.Parallel()
	url, _ := broken(t)
	if got := crivo(t, t.TempDir(), nil, "tail", "--since", "c", "--url", url); got.status != 1 || !strings.Contains(got.err, "crivo: Gone: no longer kept\n") {
		t.Errorf("%+v", got)
	}
	if got := crivo(t, t.TempDir(), nil, "tail", "--url", url+"/elsewhere"); got.status != 1 || !strings.Contains(got.err, "404 Not Found") {
		t.Errorf("%+v", got)
	}
}

func TestADemoShowsAllThatItSentAndLeavesNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	got := crivo(t, dir, []string{"TMPDIR=" + dir}, "demo", "--rate", "20", "--duration", "6s")
	if got.status != 0 {
		t.Fatalf("%+v", got)
	}
	mustSay(t, got.out, "export CRIVO_API_KEY=demo-", "tail --decision review,decline", "\n   5 s  accepted ", "to webhook p50 ")
	n := regexp.MustCompile(`accepted (\d+), decided (\d+), told by verified webhook (\d+), refused \d+\n`).FindStringSubmatch(got.out)
	if n == nil || n[1] == "0" || n[1] != n[2] || n[1] != n[3] {
		t.Errorf("came to\n%s", got.out)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
}
