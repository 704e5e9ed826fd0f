package cli_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const oneFound = `{"items":[{"id":"ord-1","accepted_at":"2026-01-02T03:04:05.000Z","decision":"review","score":45,"reasons":[{"code":"A"},{"code":"B"}],` +
	`"transaction":{"type":"pix","amount":13725,"currency":"BRL"}}],"next_cursor":"x.y"}`

// searched answers every search alike and keeps what the last one asked.
func searched(t *testing.T, answer string) (url string, asked func() (path, accept, body string)) {
	t.Helper()
	var path, accept, body string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		data, _ := io.ReadAll(r.Body)
		path, accept, body = r.Method+" "+r.URL.String(), r.Header.Get("Accept"), string(data)
		fmt.Fprint(w, answer)
	}))
	t.Cleanup(s.Close)
	return s.URL, func() (string, string, string) { s.Close(); return path, accept, body }
}

func TestSearch(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		args                   []string
		stdin, answer          string
		accept, body, out, err string
		status                 int
	}{
		"the queue, for a person": {[]string{"--open", "--oldest"}, "", oneFound, "application/json", `{"disposition":"open","order":"oldest"}`,
			"ID     ACCEPTED_AT               DECISION  SCORE  AMOUNT  CURRENCY  DISPOSITION  REASONS\n" +
				"ord-1  2026-01-02T03:04:05.000Z  review    45     13725   BRL       -            A,B\n\nmore with --cursor x.y\n", "", 0},
		"a document from stdin, for a script": {[]string{"--document", "-", "--limit", "7", "--json"}, "529.982.247-25\r\n", oneFound, "application/json",
			`{"document":"529.982.247-25","limit":7}`, oneFound + "\n", "", 0},
		"an account, as a file": {[]string{"--account", "12345678/0001/10/44266", "--decision", "decline", "--csv"}, "", "id,…\r\n", "text/csv",
			`{"account":{"branch":"0001","ispb":"12345678","number":"10/44266"},"decision":"decline"}`, "id,…\r\n", "", 0},
		"lines": {[]string{"--reason", "A", "--from", "2026-01-02T03:04:05Z", "--ndjson"}, "", "{}\n{}\n", "application/x-ndjson",
			`{"from":"2026-01-02T03:04:05Z","reason":"A"}`, "{}\n{}\n", "", 0},
		"nothing on stdin":       {[]string{"--document", "-"}, "\n", "", "", "", "", "crivo: stdin is empty\n", 2},
		"an account that is not": {[]string{"--account", "-"}, "1/2", "", "", "", "", "crivo: an account is ISPB/BRANCH/NUMBER\n", 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url, asked := searched(t, tc.answer)
			cmd := command(t, t.TempDir(), nil, append([]string{"search", "--url", url}, tc.args...)...)
			cmd.Stdin = strings.NewReader(tc.stdin)
			if diff := cmp.Diff(result{tc.status, tc.out, tc.err}, finish(t, cmd), cmp.AllowUnexported(result{})); diff != "" {
				t.Error(diff)
			}
			path, accept, body := asked()
			if tc.body == "" {
				if path != "" {
					t.Errorf("asked %s: %s", path, body)
				}
				return
			}
			if diff := cmp.Diff(decode[map[string]any](t, tc.body), decode[map[string]any](t, body)); diff != "" || accept != tc.accept || path != "POST /v1/transactions/search" {
				t.Errorf("%s for %s: %s", path, accept, diff)
			}
		})
	}
}

func TestASearchThatCannotBeIsNotSent(t *testing.T) {
	t.Parallel()
	got := crivo(t, t.TempDir(), nil, "search", "--account", "CANARY", "--from", "noon", "--limit=-1", "--json", "--csv")
	if got.status != 2 || got.out != "" || strings.Contains(got.err, "CANARY") {
		t.Errorf("%+v", got)
	}
	mustSay(t, got.err, "  account: ", "  from: ", "  limit: ", "  json: ")
}

// An export that the server breaks off ends with an error, whatever was printed by then.
func TestAnExportThatIsBrokenOffIsAnError(t *testing.T) {
	t.Parallel()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "id,…\r\n")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}))
	t.Cleanup(s.Close)
	got := crivo(t, t.TempDir(), nil, "search", "--csv", "--url", s.URL)
	if got.status != 1 || got.out != "id,…\r\n" {
		t.Errorf("%+v", got)
	}
	mustSay(t, got.err, "broken off")
	refusing, _ := admin(t, "POST /v1/transactions/search", `{"title":"x","detail":"y","errors":[{"pointer":"/document","code":"format","detail":"is none"}]}`, 422)
	if got := crivo(t, t.TempDir(), nil, "search", "--csv", "--document", "CANARY", "--url", refusing); got.status != 1 || got.err != "crivo: /document is none\n" || got.out != "" {
		t.Errorf("%+v", got)
	}
}
