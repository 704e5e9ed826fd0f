package feed_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"crivo/pkg/txn"
	"crivo/services/feed"
)

const card = "id,at,customer,amount\n7,2018-04-01T00:00:31Z,596,57.1\n8,2018-04-01T00:02:10Z,,0.00\n"

func TestRowsBecomeTransactions(t *testing.T) {
	cardMap := feed.Mapping{Major: true,
		Columns: map[string]string{"id": "id", "created_at": "at", "payer.customer_id": "customer", "amount": "amount"},
		Set:     map[string]string{"type": "card", "currency": "BRL", "network.is_vpn": "false", "attributes.n": "3", "attributes.s": "x"}}
	for name, tc := range map[string]struct {
		in      string
		mapping feed.Mapping
		want    []string
	}{
		"a table with mapped columns, constants and major units": {card, cardMap, []string{
			`{"amount":5710,"attributes":{"n":3,"s":"x"},"created_at":"2018-04-01T00:00:31Z","currency":"BRL","id":"7","network":{"is_vpn":false},"payer":{"customer_id":"596"},"type":"card"}`,
			`{"amount":0,"attributes":{"n":3,"s":"x"},"created_at":"2018-04-01T00:02:10Z","currency":"BRL","id":"8","network":{"is_vpn":false},"type":"card"}`}},
		"a table whose columns are fields": {"id,payer.customer_id,amount\na,c,12\n", feed.Mapping{}, []string{
			`{"amount":12,"id":"a","payer":{"customer_id":"c"}}`}},
		"objects pass through with constants laid over": {`{"id":"a","amount":9007199254740993,"payer":{"name":"x"}}` + "\n" + `{"id":"b"}`,
			feed.Mapping{Set: map[string]string{"payer.customer_id": "c"}}, []string{
				`{"amount":9007199254740993,"id":"a","payer":{"customer_id":"c","name":"x"}}`, `{"id":"b","payer":{"customer_id":"c"}}`}},
		"objects with mapped keys": {`{"n":5,"who":"c","x":null}`, feed.Mapping{Columns: map[string]string{"id": "n", "payer.customer_id": "who", "channel": "x"}},
			[]string{`{"id":"5","payer":{"customer_id":"c"}}`}},
		"a yen has no decimals":          {`{"id":"a","amount":12,"currency":"JPY"}`, feed.Mapping{Major: true}, []string{`{"amount":12,"currency":"JPY","id":"a"}`}},
		"ids rewritten":                  {`{"id":"a"}`, feed.Mapping{ID: func(id string) string { return "r-" + id }}, []string{`{"id":"r-a"}`}},
		"nothing":                        {" \n", feed.Mapping{}, nil},
		"a table of no rows":             {"id,amount\n", feed.Mapping{}, nil},
		"a table with a byte order mark": {"\ufeffid,amount\na,12\n", feed.Mapping{}, []string{`{"amount":12,"id":"a"}`}},
		"and a quoted header":            {"\ufeff\"id\",amount\na,12\n", feed.Mapping{Columns: map[string]string{"id": "id"}}, []string{`{"id":"a"}`}},
		"objects with a byte order mark": {"\ufeff{\"id\":\"a\"}\n", feed.Mapping{}, []string{`{"id":"a"}`}},
		"line ends of other systems":     {"id,amount\r\na,12\r\nb,13", feed.Mapping{}, []string{`{"amount":12,"id":"a"}`, `{"amount":13,"id":"b"}`}},
		"objects between empty lines":    {"\n{\"id\":\"a\"}\r\n\n  \n{\"id\":\"b\"}", feed.Mapping{}, []string{`{"id":"a"}`, `{"id":"b"}`}},
		"cells with line ends, commas and quotes": {"id,payer.name\na,\"first\nsecond, \"\"third\"\"\"\nb,plain\n", feed.Mapping{}, []string{
			`{"id":"a","payer":{"name":"first\nsecond, \"third\""}}`, `{"id":"b","payer":{"name":"plain"}}`}},
		"constants deep inside": {"id\na\n", feed.Mapping{Set: map[string]string{"payer.account.branch": "0001", "payer.account.number": "7", "payer.document": "52998224725",
			"payee.statistics.settlements.d90": "4", "payee.statistics.as_of": "2026-01-01T00:00:00Z", "geo.lat": "-23.5", "device.is_rooted": "true"}}, []string{
			`{"device":{"is_rooted":true},"geo":{"lat":-23.5},"id":"a","payee":{"statistics":{"as_of":"2026-01-01T00:00:00Z","settlements":{"d90":4}}},` +
				`"payer":{"account":{"branch":"0001","number":"7"},"document":"52998224725"}}`}},
		"a constant beside what an object has": {`{"id":"a","payer":{"account":{"number":7.50}}}`, feed.Mapping{Set: map[string]string{"payer.account.branch": "1"}}, []string{
			`{"id":"a","payer":{"account":{"branch":"1","number":7.50}}}`}},
		"a constant over a column": {"id,type\na,card\n", feed.Mapping{Set: map[string]string{"type": "pix"}}, []string{`{"id":"a","type":"pix"}`}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, in := range []string{tc.in, zipped(tc.in)} {
				if diff := cmp.Diff(tc.want, readAll(t, in, tc.mapping)); diff != "" {
					t.Error(diff)
				}
			}
		})
	}
}

func TestABadRowIsNamedAndTheRestGoesOn(t *testing.T) {
	for name, tc := range map[string]struct {
		in   string
		want string
	}{
		"too many decimals":   {"id,amount,currency\na,1.234,BRL\nb,1.5,BRL\n", "row 1: amount: more than 2 decimals"},
		"no number":           {"id,amount,currency\na,x,BRL\nb,1.5,BRL\n", "row 1: amount: not a number"},
		"an unknown currency": {"id,amount,currency\na,1,ZZZ\nb,1.5,BRL\n", "row 1: amount: major units need a known currency"},
		"a missing cell":      {"id,amount,currency\na,1\nb,1.5,BRL\n", "row 1: wrong number of fields"},
		"too many cells":      {"id,amount,currency\na,1,BRL,x\nb,1.5,BRL\n", "row 1: wrong number of fields"},
		"a stray quote":       {"id,amount,currency\na\",1,BRL\nb,1.5,BRL\n", `row 1: bare " in non-quoted-field`},
		"a broken object":     {`{"id":"a","amount":}` + "\n" + `{"id":"b","amount":1.50,"currency":"BRL"}`, "row 1: not a JSON object on a line of its own"},
		"an open object":      {`{"id":"a","payer":{` + "\n" + `{"id":"b","amount":1.50,"currency":"BRL"}`, "row 1: not a JSON object on a line of its own"},
		"a name twice":        {`{"id":"a","id":"c"}` + "\n" + `{"id":"b","amount":1.50,"currency":"BRL"}`, "row 1: not a JSON object on a line of its own"},
		"a name twice inside": {`{"id":"a","payer":{"x":1,"x":2}}` + "\n" + `{"id":"b","amount":1.50,"currency":"BRL"}`, "row 1: not a JSON object on a line of its own"},
		"no object":           {`{"id":"x","payer":1}` + "\n" + `{"id":"b","amount":1.50,"currency":"BRL"}`, "row 1: payer.name: is inside a field that is no object"},
	} {
		t.Run(name, func(t *testing.T) {
			m := feed.Mapping{Major: true, Set: map[string]string{"payer.name": "n"}}
			r, err := feed.NewReader(strings.NewReader(tc.in), m)
			if err != nil {
				t.Fatal(err)
			}
			_, err = r.Next()
			var bad *feed.RowError
			if !errors.As(err, &bad) || err.Error() != tc.want {
				t.Errorf("got %v, want %s", err, tc.want)
			}
			row, err := r.Next()
			if err != nil || row.ID != "b" || row.Number != 2 {
				t.Errorf("got %+v, %v, want row 2", row, err)
			}
		})
	}
}

// A quote that is not closed on its line takes in the rows after it: they are no one refused row.
func TestAQuoteThatTakesInRowsEndsTheReading(t *testing.T) {
	for name, tc := range map[string]struct{ rest, want string }{
		"to the end":              {"\"b,2\nc,3\nd,4\n", "after row 1: a quote in the row that begins on line 3 takes in all up to line 5: "},
		"to the next quoted cell": {"\"b,2\nc,3\n\"d\",4\ne,5\n", "after row 1: a quote in the row that begins on line 3 takes in all up to line 5: "},
	} {
		r, err := feed.NewReader(strings.NewReader("id,amount\na,1\n"+tc.rest), feed.Mapping{})
		if err != nil {
			t.Fatal(err)
		}
		if row, err := r.Next(); err != nil || row.ID != "a" {
			t.Errorf("%s: %+v, %v", name, row, err)
		}
		var bad *feed.RowError
		if _, err := r.Next(); err == nil || errors.As(err, &bad) || !strings.HasPrefix(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNoObjectInTheMiddle(t *testing.T) {
	for _, line := range []string{"1", `"text"`, "null", "[]", "}", `{"id":"x"} {"id":"y"}`} {
		r, err := feed.NewReader(strings.NewReader(`{"id":"a"}`+"\n"+line+"\n"+`{"id":"c"}`), feed.Mapping{})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for {
			row, err := r.Next()
			var bad *feed.RowError
			if errors.Is(err, io.EOF) {
				break
			}
			got = append(got, row.ID)
			if (row.Number == 2) != errors.As(err, &bad) {
				t.Errorf("%s: row %d: %v", line, row.Number, err)
			}
		}
		if diff := cmp.Diff([]string{"a", "", "c"}, got); diff != "" {
			t.Errorf("%s: %s", line, diff)
		}
	}
}

// What is read before a cut is whole; the cut itself is an error, never the end of the file and never a shorter row.
func TestACutFileIsNoWholeOne(t *testing.T) {
	lines := func(format string) string {
		var out strings.Builder
		for i := range 5000 {
			fmt.Fprintf(&out, format, i, i)
		}
		return out.String()
	}
	for name, whole := range map[string]string{
		"CSV": "id,amount\n" + lines("id-%d,%05d\n"), "quoted CSV": "id,amount\n" + lines("\"id-%d\",\"%05d\"\n"), "NDJSON": lines(`{"id":"id-%d","amount":"%05d"}` + "\n"),
	} {
		packed := zipped(whole)
		for _, cut := range []int{5, 12, len(packed) / 3, len(packed) / 2, len(packed) - 9, len(packed) - 1} {
			n, err := 0, error(nil)
			r, err := feed.NewReader(strings.NewReader(packed[:cut]), feed.Mapping{Set: map[string]string{"type": "pix"}})
			for tries := 0; err == nil && tries < 6000; tries++ {
				var row feed.Row
				var bad *feed.RowError
				if row, err = r.Next(); errors.As(err, &bad) {
					err = nil // the row in which the cut is
				} else if err == nil {
					if n++; row.ID != fmt.Sprint("id-", n-1) {
						t.Fatalf("%s cut at %d: row %d is %q", name, cut, n, row.ID)
					}
				}
			}
			if errors.Is(err, io.EOF) || !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%s cut at %d ends after %d rows with %v", name, cut, n, err)
			}
		}
	}
}

func TestWhatIsNoFeedIsSaidAtOnce(t *testing.T) {
	for name, tc := range map[string]struct{ in, want string }{
		"a JSON array":        {` [{"id":"a"}]`, "JSON array"},
		"gzip of another age": {"\x1f\x8bxxxxxxxxxxxx", "gzip: "},
		"an open header":      {"\"id,amount\n", "header: "},
	} {
		if _, err := feed.NewReader(strings.NewReader(tc.in), feed.Mapping{}); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestALineWithoutEndIsCut(t *testing.T) {
	r, err := feed.NewReader(io.MultiReader(strings.NewReader(`{"id":"`), endless{}), feed.Mapping{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Next(); err == nil || !strings.Contains(err.Error(), "4 MiB") {
		t.Errorf("got %v", err)
	}
}

// endless gives the letter a for ever.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'a'
	}
	return len(p), nil
}

// A constant that stands where another needs an object is a mistake, whatever order maps have.
func TestConstantsThatExcludeEachOther(t *testing.T) {
	for range 20 {
		r, err := feed.NewReader(strings.NewReader("id\na\n"), feed.Mapping{Set: map[string]string{"payer": "x", "payer.name": "n", "payer.name.first": "f"}})
		if err != nil {
			t.Fatal(err)
		}
		_, err = r.Next()
		want := "row 1: payer.name: is inside a field that is no object\npayer.name.first: is inside a field that is no object"
		if err == nil || err.Error() != want {
			t.Fatalf("got %v", err)
		}
	}
}

func TestAMissingColumnIsSaidBeforeAnythingIsSent(t *testing.T) {
	_, err := feed.NewReader(strings.NewReader(card), feed.Mapping{Columns: map[string]string{"id": "nope", "type": "gone"}})
	if err == nil || !strings.Contains(err.Error(), `no column "nope" for id`) || !strings.Contains(err.Error(), `"gone"`) {
		t.Errorf("got %v", err)
	}
}

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "rows.txt")
	if err := os.WriteFile(path, []byte(zipped(card)), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := feed.Open(path, feed.Mapping{})
	if err != nil {
		t.Fatal(err)
	}
	if row, err := r.Next(); err != nil || row.ID != "7" || row.Number != 1 {
		t.Errorf("got %+v, %v", row, err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if _, err := feed.Open(filepath.Join(dir, "none"), feed.Mapping{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if _, err := feed.Open(path, feed.Mapping{Columns: map[string]string{"id": "none"}}); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v", err)
	}
}

func TestSyntheticTrafficIsAcceptedAndRepeatable(t *testing.T) {
	now := time.Date(2026, 11, 22, 23, 5, 12, 0, time.UTC)
	one, same, other := feed.NewSynthetic("r", 1), feed.NewSynthetic("r", 1), feed.NewSynthetic("r", 2)
	kinds, differ := map[string]int{}, false
	for i := range 200 {
		a, b, c := one.Next(now), same.Next(now), other.Next(now)
		if diff := cmp.Diff(a, b); diff != "" {
			t.Fatal(diff)
		}
		differ = differ || !bytes.Equal(a.Body, c.Body)
		tx, err := txn.Decode(a.Body, now)
		if err != nil || tx.ID != a.ID || a.ID != fmt.Sprint("r-", i+1) || a.Number != i+1 {
			t.Fatalf("row %d: %+v, %v", i, a, err)
		}
		kinds[tx.Type]++
	}
	if !differ || kinds["card"] < 100 || kinds["pix"] < 20 {
		t.Errorf("differ %v, kinds %v", differ, kinds)
	}
}

func FuzzReader(f *testing.F) {
	f.Add([]byte(card))
	f.Add([]byte(`{"id":"a"}`))
	f.Add([]byte(zipped(card)))
	f.Add([]byte("\ufeff{\"id\":1}\n\n{"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r, err := feed.NewReader(bytes.NewReader(in), feed.Mapping{Major: true, Set: map[string]string{"payer.name": "n"}})
		for err == nil {
			_, err = r.Next()
			var bad *feed.RowError
			if errors.As(err, &bad) {
				err = nil
			}
		}
	})
}

func BenchmarkReader(b *testing.B) {
	for name, in := range map[string]string{"CSV": "id,payer.customer_id,amount\n" + strings.Repeat("a,c,12\n", 1000), "NDJSON": strings.Repeat(`{"id":"a","payer":{"customer_id":"c"},"amount":12}`+"\n", 1000)} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				readAll(b, in, feed.Mapping{Set: map[string]string{"type": "card"}})
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*1000), "ns/row")
		})
	}
}

func readAll(t testing.TB, in string, m feed.Mapping) []string {
	t.Helper()
	r, err := feed.NewReader(strings.NewReader(in), m)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for {
		row, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, string(row.Body))
	}
}

func zipped(s string) string {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = z.Write([]byte(s))
	_ = z.Close()
	return b.String()
}

func TestLivelyTrafficIsWellFormedAndHasTroubleInIt(t *testing.T) {
	t.Parallel()
	now := time.Now()
	made, wrong, marked := feed.NewLively("l", 1), 0, 0
	for range 2000 {
		row := made.Next(now)
		tx, err := txn.Decode(row.Body, now)
		if err != nil || tx.ID != row.ID {
			t.Fatalf("%s: %v", row.Body, err)
		}
		if bytes.Contains(row.Body, []byte(`"mule_accounts"`)) {
			marked++
		}
		if d := tx.Payer.Document; d.Kind != "" && !d.Valid {
			wrong++
		}
	}
	if wrong < 20 || wrong > 120 || marked < 20 || marked > 120 {
		t.Errorf("%d wrong documents and %d mules in 2000", wrong, marked)
	}
}
