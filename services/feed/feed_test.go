package feed_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

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
		"a yen has no decimals": {`{"id":"a","amount":12,"currency":"JPY"}`, feed.Mapping{Major: true}, []string{`{"amount":12,"currency":"JPY","id":"a"}`}},
		"ids rewritten":         {`{"id":"a"}`, feed.Mapping{ID: func(id string) string { return "r-" + id }}, []string{`{"id":"r-a"}`}},
		"nothing":               {" \n", feed.Mapping{}, nil},
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

func TestAMissingColumnIsSaidBeforeAnythingIsSent(t *testing.T) {
	_, err := feed.NewReader(strings.NewReader(card), feed.Mapping{Columns: map[string]string{"id": "nope", "type": "gone"}})
	if err == nil || !strings.Contains(err.Error(), `no column "nope" for id`) || !strings.Contains(err.Error(), `"gone"`) {
		t.Errorf("got %v", err)
	}
}

func FuzzReader(f *testing.F) {
	f.Add([]byte(card))
	f.Add([]byte(`{"id":"a"}`))
	f.Add([]byte(zipped(card)))
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

func readAll(t *testing.T, in string, m feed.Mapping) []string {
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
