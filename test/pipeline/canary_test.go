// Package pipeline_test runs transactions through the whole system and looks at what it leaves behind.
package pipeline_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"

	"crivo/pkg/brdoc"
	"crivo/test/system"
)

func TestMain(m *testing.M) { system.Main(m) }

// mark stands in every personal text of the canary transactions and nowhere else in the world.
const mark = "Zq7Canary"

// canary is one transaction with marked values in every field that must be sealed; n makes them different.
func canary(n int) (id, body string) {
	id = fmt.Sprintf("canary-%d", n)
	return id, fmt.Sprintf(`{"id":%q,"type":"pix","direction":"outbound","amount":%d,"currency":"BRL","created_at":%q,"channel":"app",
"description":"%[4]s description %[5]d",
"payer":{"document":%[6]q,"name":"%[4]s Payer","customer_id":"%[4]s-c%[5]d",
  "account":{"ispb":"12345678","branch":"Zq7Can","number":"%[4]s-%[5]d","type":"CACC"}},
"payee":{"document":%[7]q,"name":"%[4]s Payee","customer_id":"%[4]s-p%[5]d","account":{"ispb":"60701190","branch":"Zq7Can","number":"%[4]s-p%[5]d"},
  "pix_key":{"type":"email","value":"%[4]s%[5]d@example.com"}},
"merchant":{"id":"m-1","name":"%[4]s Shop","mcc":"5411","terminal_id":"t-1"},
"card":{"token":"%[4]s-card%[5]d"},"device":{"id":"%[4]s-d%[5]d"},"network":{"ip":%[8]q},
"geo":{"lat":-23.5517429,"lon":-46.6331871},"session":{"id":"%[4]s-s%[5]d"},
"metadata":{"note":"%[4]s note","nested":{"who":"%[4]s"}}}`,
		id, 100+n, time.Now().UTC().Format(time.RFC3339), mark, n, document(n), company(n), address(n))
}

func document(n int) string { return fmt.Sprintf("73915%06d", n*7919%1_000_000) }
func company(n int) string  { return fmt.Sprintf("ZQ7CAN%02dYR%02d%02d", n%100, n/100%100, n%97) }
func address(n int) string  { return fmt.Sprintf("2001:db8:7391:5e2a::%x", n+1) }

// documents are the CPFs of the canaries, which no text of anything else looks like.
var documents = regexp.MustCompile(`73915\d{6}`)

// needles are the texts that may stand nowhere, in the clear or in the usual disguises.
var needles = func() (out [][]byte) {
	for _, c := range []string{mark, "Zq7Can", "ZQ7CAN", "-23.5517", "-46.6331", "2001:db8:7391:5e2a"} {
		out = append(out, []byte(c))
	}
	for _, c := range []string{mark, "73915", "2001:db8:7391"} {
		out = append(out, []byte(hex.EncodeToString([]byte(c))))
	}
	for shift := range 3 { // base64 at its three alignments, without the characters that neighbours share
		text := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", shift) + mark))
		out = append(out, []byte(strings.TrimRight(text, "=")[shift*4/3+1:len(strings.TrimRight(text, "="))-1]))
	}
	return out
}()

// leaks returns where something personal stands in data.
func leaks(data []byte) (at []int) {
	if where := documents.FindIndex(data); where != nil {
		at = append(at, where[0])
	}
	for _, needle := range needles {
		if i := bytes.Index(data, needle); i >= 0 {
			at = append(at, i)
		}
	}
	return at
}

func TestNothingPersonalIsLeftInTheClear(t *testing.T) {
	const n = 1000
	said := &system.Transcript{}
	s := system.New(t, system.Options{NATS: true, Log: said, Args: []string{"--log-level", "debug"}})
	r, err := s.Receive(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	nc, _ := s.Connect(t)
	rejected, err := nc.SubscribeSync("tx.rejected.default")
	if err != nil {
		t.Fatal(err)
	}
	outputs := map[string]string{}
	for i := range n {
		if i%2 == 0 {
			acceptHTTP(t, s, i)
		} else {
			acceptNATS(t, nc, i)
		}
	}
	if !r.Await(t.Context(), n, 20*time.Second) {
		t.Fatalf("%d of %d decided", len(r.Verdicts()), n)
	}
	outputs["refusal"], outputs["list"] = refuse(t, s, nc), block(t, s)
	m, err := rejected.NextMsg(30 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	outputs["tx.rejected"] = string(m.Data)
	outputs["metrics"] = get(t, s.Ops+"/metrics")
	a, err := s.Ask(t.Context(), http.MethodGet, "/v1/deliveries?limit=500", nil)
	if err != nil {
		t.Fatal(err)
	}
	outputs["deliveries"] = string(a.Body)
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	outputs["log"] = said.String()
	scan(t, s.Data, outputs)
}

func acceptHTTP(t *testing.T, s *system.System, i int) {
	t.Helper()
	_, body := canary(i)
	if a, err := s.Ask(t.Context(), http.MethodPost, "/v1/transactions", []byte(body)); err != nil || a.Status/100 != 2 {
		t.Fatalf("%d %s %v", a.Status, a.Body, err)
	}
}

func acceptNATS(t *testing.T, nc *nats.Conn, i int) {
	t.Helper()
	id, body := canary(i)
	for give := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		m, err := nc.Request("tx.intake.default", []byte(body), 30*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		var reply struct {
			Status   int    `json:"status"`
			Location string `json:"location"`
		}
		if err := json.Unmarshal(m.Data, &reply); err != nil {
			t.Fatal(err)
		}
		if reply.Status/100 == 2 && (reply.Status == http.StatusOK || reply.Location == "/v1/transactions/"+id) {
			return
		}
		if reply.Status != http.StatusServiceUnavailable || time.Now().After(give) {
			t.Fatalf("%s", m.Data)
		}
	}
}

// refuse sends what cannot be accepted, with marked values in the fields at fault, by HTTP and by NATS without a reply subject.
func refuse(t *testing.T, s *system.System, nc *nats.Conn) string {
	t.Helper()
	body := []byte(fmt.Sprintf(`{"id":"bad %[1]s","type":"%[1]s","amount":"%[1]s","currency":"%[1]s","created_at":"%[1]s","payer":{"document":"%[1]s"}}`, mark))
	a, err := s.Ask(t.Context(), http.MethodPost, "/v1/transactions", body)
	if err != nil || a.Status != http.StatusUnprocessableEntity {
		t.Fatalf("%d %s %v", a.Status, a.Body, err)
	}
	if err := nc.Publish("tx.intake.default", body); err != nil {
		t.Fatal(err)
	}
	broken, err := s.Ask(t.Context(), http.MethodPost, "/v1/transactions", []byte(`{"id":"`+mark+`","payer":{"name":"`+mark+`" oops`))
	if err != nil || broken.Status != http.StatusBadRequest {
		t.Fatalf("%d %s %v", broken.Status, broken.Body, err)
	}
	return string(a.Body) + string(broken.Body)
}

// block puts a marked document on the block list and waits until a transaction of it is found there.
func block(t *testing.T, s *system.System) string {
	t.Helper()
	const n = 7777 // nobody else's
	made, err := s.Ask(t.Context(), http.MethodPost, "/v1/lists/block/entries", fmt.Appendf(nil, `{"kind":"document","value":%q}`, document(n)))
	if err != nil || made.Status != http.StatusCreated {
		t.Fatalf("%d %s %v", made.Status, made.Body, err)
	}
	id, body := canary(n)
	for k, give := 0, time.Now().Add(20*time.Second); ; k++ {
		a, err := s.Ask(t.Context(), http.MethodPost, "/v1/transactions", []byte(strings.Replace(body, id, fmt.Sprint(id, "-", k), 1)), "Prefer", "wait=10")
		if err == nil && bytes.Contains(a.Body, []byte(`{"name":"blocklist","status":"hit"`)) {
			return string(made.Body)
		}
		if err != nil || time.Now().After(give) {
			t.Fatalf("not found on the list: %d %s %v", a.Status, a.Body, err)
		}
	}
}

func get(t *testing.T, url string) string {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var out bytes.Buffer
	if _, err := out.ReadFrom(res.Body); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// scan looks for leaks in every file of the folder and in every output.
func scan(t *testing.T, folder string, outputs map[string]string) {
	t.Helper()
	files, size := 0, 0
	find := func(where string, data []byte) {
		for _, i := range leaks(data) {
			t.Errorf("%s: stands in the clear: …%q…", where, data[max(0, i-40):min(len(data), i+60)])
		}
	}
	err := filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		files, size = files+1, size+len(data)
		find(path, data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 10 || size < 1<<20 {
		t.Errorf("%d files with %d bytes: too few to prove anything", files, size)
	}
	for where, text := range outputs {
		if text == "" {
			t.Errorf("%s is empty", where)
		}
		find(where, []byte(text))
	}
}

// The scan itself must find what it looks for, and the documents must be read as such.
func TestTheScanFinds(t *testing.T) {
	for _, c := range []struct{ name, text string }{
		{"clear", "x " + mark}, {"hex", hex.EncodeToString([]byte("x" + mark))},
		{"base64", base64.StdEncoding.EncodeToString([]byte("x" + mark + "y"))}, {"base64 two in", base64.StdEncoding.EncodeToString([]byte("xx" + mark + "y"))},
		{"document", "1" + document(7)}, {"company", "1" + company(7)}, {"address", address(3)},
	} {
		if len(leaks([]byte(c.text))) == 0 {
			t.Errorf("%s is not found", c.name)
		}
	}
	for _, text := range []string{document(5), company(5)} {
		if _, err := brdoc.Parse(text); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
}
