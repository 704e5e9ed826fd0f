package cli_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// edge is an edge that answers as a test tells it: by the transaction's id and how often it has come.
type edge struct {
	*httptest.Server
	answer handler
	read   handler // of a GET

	mu     sync.Mutex
	posted []string // ids in order of arrival
	bodies []string
	asked  map[string]int
}

// handler answers the nth request about a transaction.
type handler func(w http.ResponseWriter, id string, nth int)

// newEdge listens; without a read, or with nil, it knows no transaction that it is asked for.
func newEdge(t *testing.T, answer handler, read ...handler) *edge {
	t.Helper()
	e := &edge{answer: answer, asked: map[string]int{}}
	if len(read) > 0 {
		e.read = read[0]
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/transactions", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+testKey || r.Header.Get("Content-Type") != "application/json" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		body, _ := io.ReadAll(r.Body)
		var t struct{ ID string }
		_ = json.Unmarshal(body, &t)
		e.mu.Lock()
		e.posted, e.bodies = append(e.posted, t.ID), append(e.bodies, string(body))
		nth := 0
		for _, id := range e.posted {
			if id == t.ID {
				nth++
			}
		}
		e.mu.Unlock()
		e.answer(w, t.ID, nth)
	})
	mux.HandleFunc("GET /v1/transactions/{id}", func(w http.ResponseWriter, r *http.Request) {
		e.mu.Lock()
		e.asked[r.PathValue("id")]++
		nth := e.asked[r.PathValue("id")]
		e.mu.Unlock()
		if e.read == nil {
			problem(w, http.StatusNotFound, "Not Found", "")
			return
		}
		e.read(w, r.PathValue("id"), nth)
	})
	e.Server = httptest.NewServer(mux)
	t.Cleanup(e.Close)
	return e
}

func (e *edge) ids() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.posted)
}

func (e *edge) sent() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.bodies)
}

func accept(w http.ResponseWriter, id string, _ int) {
	w.WriteHeader(http.StatusAccepted)
	fmt.Fprintf(w, `{"id":%q,"status":"processing"}`, id)
}

func decided(w http.ResponseWriter, id, decision string) {
	w.Header().Set("Idempotent-Replayed", "true")
	fmt.Fprintf(w, `{"id":%q,"status":"decided","decision":%q,"score":1,"reasons":[],"rule_set":{},"checks":[],"degraded":[]}`, id, decision)
}

func problem(w http.ResponseWriter, status int, title, rest string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"type":"urn:crivo:x","title":%q,"status":%d%s}`, title, status, rest)
}

// rows writes a file of n transactions, r-1 to r-n.
func rows(t *testing.T, n int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "rows.ndjson")
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `{"id":"r-%d","amount":%d}`+"\n", i+1, i)
	}
	save(t, path, b.String())
	return path
}

func save(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func submit(t *testing.T, e *edge, args ...string) result {
	t.Helper()
	return crivo(t, t.TempDir(), nil, append([]string{"submit", "--url", e.URL, "--json"}, args...)...)
}

// summary is the shape that scripts rely on, no member more and none less.
func summary(read, accepted, replayed, refused, failed int, decided ...int) map[string]any {
	d := map[string]any{"approve": 0.0, "review": 0.0, "decline": 0.0}
	for i, name := range []string{"approve", "review", "decline"} {
		if i < len(decided) {
			d[name] = float64(decided[i])
		}
	}
	return map[string]any{"read": float64(read), "accepted": float64(accepted), "replayed": float64(replayed), "refused": float64(refused),
		"failed": float64(failed), "decided": d, "seconds": 0.0}
}

// check compares exit status and summary, and tells whether a place was kept: "" for none, else its row.
func check(t *testing.T, got result, status int, want map[string]any, file, place string) {
	t.Helper()
	sum := decode[map[string]any](t, got.out)
	if seconds, ok := sum["seconds"].(float64); !ok || seconds <= 0 {
		t.Errorf("seconds: %v", sum["seconds"])
	}
	sum["seconds"] = 0.0
	if diff := cmp.Diff(want, sum); diff != "" || got.status != status {
		t.Errorf("status %d, want %d\n%s%s", got.status, status, diff, got.err)
	}
	kept, _ := os.ReadFile(file + ".crivo-resume")
	if row, _, _ := strings.Cut(string(kept), " "); row != place {
		t.Errorf("kept place %q, want %q", kept, place)
	}
}

func TestSubmitCountsWhatBecameOfEachRow(t *testing.T) {
	t.Parallel()
	verdicts := []string{"approve", "review", "decline", "approve"}
	refuse := func(w http.ResponseWriter, id string, nth int) {
		if id == "r-3" {
			accept(w, id, nth)
			return
		}
		problem(w, http.StatusUnprocessableEntity, "Unprocessable", `,"errors":[{"pointer":"/payer","code":"required","detail":"x"}]`)
	}
	for name, tc := range map[string]struct {
		answer handler
		read   handler
		n      int
		args   []string
		status int
		want   map[string]any
		place  string
		said   []string
	}{
		"all accepted": {accept, nil, 5, nil, 0, summary(5, 5, 0, 0, 0), "", nil},
		"all decided before": {func(w http.ResponseWriter, id string, _ int) { decided(w, id, verdicts[id[2]-'1']) }, nil, 4, nil, 0,
			summary(4, 4, 4, 0, 0, 2, 1, 1), "", nil},
		"some refused": {refuse, nil, 3, nil, 1, summary(3, 1, 0, 2, 0), "",
			[]string{"row 1: /payer x", "row 2: /payer x", "crivo: not all were accepted"}},
		"busy at first": {func(w http.ResponseWriter, id string, nth int) {
			if nth < 3 {
				w.Header().Set("Retry-After", "0")
				problem(w, http.StatusServiceUnavailable, "Overload", "")
				return
			}
			accept(w, id, nth)
		}, nil, 2, nil, 0, summary(2, 2, 0, 0, 0), "", nil},
		"busy for ever, but for the first two": {func(w http.ResponseWriter, id string, nth int) {
			if id <= "r-2" {
				accept(w, id, nth)
				return
			}
			problem(w, http.StatusServiceUnavailable, "Overload", "")
		}, nil, 4, []string{"--patience", "100ms"}, 1, summary(4, 2, 0, 0, 2), "2", []string{"row 3: ", "Overload", "settled up to row 2"}},
		"a rate that is used up counts as busy": {func(w http.ResponseWriter, id string, nth int) {
			if nth == 1 {
				problem(w, http.StatusTooManyRequests, "Rate", "")
				return
			}
			accept(w, id, nth)
		}, nil, 2, nil, 0, summary(2, 2, 0, 0, 0), "", nil},
		"waits until all are decided": {accept, func(w http.ResponseWriter, id string, nth int) {
			if nth == 1 {
				fmt.Fprintf(w, `{"id":%q,"status":"processing"}`, id)
				return
			}
			decided(w, id, verdicts[id[2]-'1'])
		}, 4, []string{"--wait"}, 0, summary(4, 4, 0, 0, 0, 2, 1, 1), "", nil},
		"one is never decided": {accept, func(w http.ResponseWriter, id string, _ int) {
			if id == "r-2" {
				fmt.Fprintf(w, `{"id":%q,"status":"processing"}`, id)
				return
			}
			decided(w, id, "approve")
		}, 3, []string{"--wait", "--patience", "100ms"}, 1, summary(3, 3, 0, 0, 0, 2), "1", []string{"row 2: accepted, but", "1 accepted ones are not decided yet"}},
		"a broken row among good ones": {accept, nil, 2, []string{"--set", "payer.name=n", "--map", "id=id", "--map", "payer=amount"}, 1, summary(2, 0, 0, 2, 0), "",
			[]string{"row 1: payer.name: is inside a field that is no object"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEdge(t, tc.answer, tc.read)
			file := rows(t, tc.n)
			got := submit(t, e, append(tc.args, file)...)
			check(t, got, tc.status, tc.want, file, tc.place)
			mustSay(t, got.err, tc.said...)
		})
	}
}

func TestSubmitExplainsTenRefusals(t *testing.T) {
	t.Parallel()
	e := newEdge(t, func(w http.ResponseWriter, _ string, _ int) {
		problem(w, http.StatusUnprocessableEntity, "Unprocessable", "")
	})
	file := rows(t, 25)
	got := submit(t, e, "--workers", "3", file)
	check(t, got, 1, summary(25, 0, 0, 25, 0), file, "")
	if n := strings.Count(got.err, "\nrow ") + strings.Count(got.err, "row "); n < 10 || strings.Count(got.err, "Unprocessable") != 10 || !strings.Contains(got.err, "and more") {
		t.Errorf("explained:\n%s", got.err)
	}
}

func TestSubmitStopsAtOnceWhereNoRowWouldFareBetter(t *testing.T) {
	t.Parallel()
	for _, status := range []int{http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusFound} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			t.Parallel()
			e := newEdge(t, func(w http.ResponseWriter, id string, nth int) {
				if id == "r-1" {
					accept(w, id, nth)
					return
				}
				w.Header().Set("Location", "/elsewhere")
				problem(w, status, "Not here", "")
			})
			file := rows(t, 50)
			got := submit(t, e, "--workers", "1", file)
			check(t, got, 1, summary(2, 1, 0, 0, 1), file, "1")
			mustSay(t, got.err, e.URL+": Not here")
			if ids := e.ids(); len(ids) != 2 {
				t.Errorf("sent %v", ids)
			}
		})
	}
}

func TestSubmitSaysEveryFaultBeforeTheFirstRow(t *testing.T) {
	t.Parallel()
	e := newEdge(t, accept)
	good := rows(t, 3)
	table := filepath.Join(t.TempDir(), "table.csv")
	save(t, table, "id,amount\nr-1,5\n")
	for name, tc := range map[string]struct {
		args []string
		want []string
	}{
		"what can be read only once": {[]string{good, "/dev/stdin"}, []string{"/dev/stdin is no regular file", "use -"}},
		"fields that no transaction has": {[]string{"--map", "payer.custmer_id=c", "--map", "amount.value=a", "--map", "a..b=c", "--set", "tpye=card", good},
			[]string{"map payer.custmer_id: no such field", "map amount.value: is inside a field that is no object", "map a..b: not a field", "set tpye: no such field"}},
		"constants that none may hold": {[]string{"--set", "type=crad", "--set", "currency=XYZ", "--set", "network.ip=here", good},
			[]string{"set type: must be one of pix", "set currency: ", "set network.ip: "}},
		"constants of the wrong kind": {[]string{"--set", "device.is_rooted=perhaps", good}, []string{"set: device.is_rooted: not true or false"}},
		"no pair":                     {[]string{"--map", "id", "--set", "=x", good}, []string{"map: ", `got "id"`, "set : not a field"}},
		"no column":                   {[]string{"--map", "id=", good}, []string{"map id: no column"}},
		"a column the table lacks":    {[]string{"--map", "id=number", good, table}, []string{table, `no column "number" for id`}},
		"a file that is not there":    {[]string{good, "nowhere.ndjson"}, []string{"nowhere.ndjson"}},
		"numbers out of range":        {[]string{"--workers", "0", "--rate=-1", "--limit=-1", "--patience=-1s", good}, []string{"workers: ", "rate: ", "limit: ", "patience: "}},
		"another unit":                {[]string{"--amount-unit", "cents", good}, []string{`"minor","major"`}},
	} {
		t.Run(name, func(t *testing.T) {
			got := submit(t, e, tc.args...)
			if got.status != 2 || got.out != "" {
				t.Errorf("%+v", got)
			}
			mustSay(t, got.err, tc.want...)
		})
	}
	if ids := e.ids(); len(ids) > 0 {
		t.Errorf("sent %v", ids)
	}
}

func TestSubmitWithoutAKeyIsAWrongCall(t *testing.T) {
	t.Parallel()
	e := newEdge(t, accept)
	got := crivo(t, t.TempDir(), []string{"CRIVO_API_KEY="}, "submit", "--url", e.URL, rows(t, 1))
	if got.status != 2 || !strings.Contains(got.err, "set CRIVO_API_KEY") || len(e.ids()) > 0 {
		t.Errorf("%+v, sent %v", got, e.ids())
	}
}

func TestTheKeyIsFoundWhereItIsKept(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "crivo-data"), 0o700); err != nil {
		t.Fatal(err)
	}
	save(t, filepath.Join(dir, "crivo-data", "api-key"), testKey+"\n")
	save(t, filepath.Join(dir, "key"), testKey+"\n")
	for name, env := range map[string][]string{
		"the data folder": {"CRIVO_API_KEY="}, "a file that is named": {"CRIVO_API_KEY=", "CRIVO_API_KEY_FILE=key"}, "the environment": nil,
	} {
		e := newEdge(t, accept)
		if got := crivo(t, dir, append(env, "CRIVO_URL="+e.URL), "submit", rows(t, 1)); got.status != 0 || len(e.ids()) != 1 {
			t.Errorf("%s: %+v", name, got)
		} else {
			mustSay(t, got.out, "read 1, accepted 1 (of these 0 sent before), refused 0, failed 0 in ")
		}
	}
}

func TestSubmitMapsATable(t *testing.T) {
	t.Parallel()
	e := newEdge(t, accept)
	path := filepath.Join(t.TempDir(), "table.csv.gz")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	z := gzip.NewWriter(f)
	_, _ = io.WriteString(z, "n,when,who,sum\n1,2026-01-02T03:04:05Z,c-1,12.34\n")
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	got := submit(t, e, path, "--map", "id=n", "--map", "created_at=when", "--map", "payer.customer_id=who", "--map", "amount=sum", "--amount-unit", "major",
		"--set", "type=card", "--set", "currency=BRL", "--set", "attributes.source=a=b")
	check(t, got, 0, summary(1, 1, 0, 0, 0), path, "")
	want := []string{`{"amount":1234,"attributes":{"source":"a=b"},"created_at":"2026-01-02T03:04:05Z","currency":"BRL","id":"1","payer":{"customer_id":"c-1"},"type":"card"}`}
	if diff := cmp.Diff(want, e.sent()); diff != "" {
		t.Error(diff)
	}
}

func TestARunThatCannotReadOnKeepsItsPlace(t *testing.T) {
	t.Parallel()
	e := newEdge(t, accept)
	path := filepath.Join(t.TempDir(), "table.csv")
	save(t, path, "id,amount\nr-1,5\n\"r-2,5\nr-3,5\n")
	got := submit(t, e, path)
	check(t, got, 1, summary(1, 1, 0, 0, 0), path, "1")
	mustSay(t, got.err, path+": after row 1: a quote in the row that begins on line 3 ", "settled up to row 1")
}

func TestARunThatDidWhatItWasAskedBeginsAgainAtRowOne(t *testing.T) {
	t.Parallel()
	e := newEdge(t, func(w http.ResponseWriter, id string, nth int) {
		if nth > 1 {
			w.Header().Set("Idempotent-Replayed", "true")
		}
		accept(w, id, nth)
	})
	file := rows(t, 5)
	check(t, submit(t, e, "--limit", "2", file), 0, summary(2, 2, 0, 0, 0), file, "")
	check(t, submit(t, e, "--limit", "4", file), 0, summary(4, 4, 2, 0, 0), file, "")
	check(t, submit(t, e, file), 0, summary(5, 5, 4, 0, 0), file, "")
}

// interrupt runs submit in order until row 4 is under way, then does as Ctrl-C does.
func interrupt(t *testing.T, file string, args ...string) *edge {
	t.Helper()
	reached := make(chan struct{})
	release := make(chan struct{})
	var once sync.Once
	e := newEdge(t, func(w http.ResponseWriter, id string, nth int) {
		if id == "r-4" && nth == 1 {
			once.Do(func() { close(reached) })
			<-release
			return
		}
		accept(w, id, nth)
	})
	t.Cleanup(func() { close(release) }) // before the server closes, which waits for its handlers
	cmd := command(t, t.TempDir(), nil, append([]string{"submit", "--url", e.URL, "--json", "--ordered", file}, args...)...)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-reached:
	case <-time.After(within):
		t.Error("row 4 was never sent")
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait()
	got := result{cmd.ProcessState.ExitCode(), out.String(), said.String()}
	check(t, got, 1, summary(4, 3, 0, 0, 1), file, "3")
	mustSay(t, got.err, "settled up to row 3; the same command goes on there", "crivo: interrupted")
	return e
}

func TestAnInterruptedRunGoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	file := rows(t, 6)
	e := interrupt(t, file)
	got := submit(t, e, "--ordered", file)
	check(t, got, 0, summary(3, 3, 0, 0, 0), file, "")
	mustSay(t, got.err, "going on after row 3")
	if diff := cmp.Diff([]string{"r-1", "r-2", "r-3", "r-4", "r-4", "r-5", "r-6"}, e.ids()); diff != "" {
		t.Error(diff)
	}
}

func TestAKeptPlaceIsOfOneServerAndOneRun(t *testing.T) {
	t.Parallel()
	file := rows(t, 6)
	e := interrupt(t, file, "--limit", "5")
	check(t, submit(t, e, "--limit", "2", file), 0, summary(0, 0, 0, 0, 0), file, "3")
	other := newEdge(t, accept)
	got := submit(t, other, file)
	check(t, got, 0, summary(6, 6, 0, 0, 0), file, "")
	mustSay(t, got.err, "is of another server, key, file or mapping: starting with row 1")

	save(t, file+".crivo-resume", "half of the fi")
	if got := submit(t, other, file); got.status != 1 || !strings.Contains(got.err, "delete it to start over") {
		t.Errorf("a damaged place: %+v", got)
	}
}

// What one tenant's key sent is not another tenant's.
func TestAKeptPlaceIsOfOneKey(t *testing.T) {
	t.Parallel()
	file := rows(t, 6)
	e := interrupt(t, file)
	got := crivo(t, t.TempDir(), []string{"CRIVO_API_KEY=another"}, "submit", "--url", e.URL, "--json", file)
	mustSay(t, got.err, "is of another server, key, file or mapping: starting with row 1")
}

func TestInOrderNothingOvertakesARowThatIsNotAccepted(t *testing.T) {
	t.Parallel()
	e := newEdge(t, func(w http.ResponseWriter, id string, nth int) {
		if id == "r-3" {
			problem(w, http.StatusServiceUnavailable, "Overload", "")
			return
		}
		accept(w, id, nth)
	})
	file := rows(t, 6)
	got := submit(t, e, "--ordered", "--patience", "80ms", file)
	check(t, got, 1, summary(3, 2, 0, 0, 1), file, "2")
	if ids := slices.Compact(e.ids()); !slices.Equal(ids, []string{"r-1", "r-2", "r-3"}) {
		t.Errorf("sent %v", ids)
	}
}

func TestAServerThatIsNotThereIsSaidOnce(t *testing.T) {
	t.Parallel()
	file := rows(t, 3)
	got := crivo(t, t.TempDir(), nil, "submit", "--url", "http://127.0.0.1:1", "--patience", "300ms", "--json", file)
	check(t, got, 1, summary(3, 0, 0, 0, 3), file, "")
	if n := strings.Count(got.err, "trying each transaction for 300ms"); n != 1 || !strings.Contains(got.err, "connection refused") {
		t.Errorf("said %d times:\n%s", n, got.err)
	}
}

func TestSubmitReadsItsInputFromAPipe(t *testing.T) {
	t.Parallel()
	e := newEdge(t, accept)
	cmd := command(t, t.TempDir(), nil, "submit", "--url", e.URL, "--json", "-")
	cmd.Stdin = strings.NewReader(`{"id":"a"}` + "\n" + `{"id":"b"}` + "\n")
	check(t, finish(t, cmd), 0, summary(2, 2, 0, 0, 0), "-", "")
}
