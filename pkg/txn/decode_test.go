package txn_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"

	"crivo/pkg/seal"
	"crivo/pkg/txn"
)

var now = time.Date(2026, 11, 22, 23, 5, 12, 0, time.UTC)

func full(t testing.TB) []byte {
	t.Helper()
	data, err := os.ReadFile("testdata/full.json")
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func decode(t testing.TB, body string) txn.Transaction {
	t.Helper()
	tx, err := txn.Decode([]byte(body), now)
	if err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	return tx
}

func box(t testing.TB) *seal.Box {
	t.Helper()
	k, err := seal.Open(filepath.Join(t.TempDir(), "k"), true)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Add("t"); err != nil {
		t.Fatal(err)
	}
	b, err := k.Box("t")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const small = `{"id":"a","type":"pix","amount":1,"currency":"BRL","created_at":"2026-11-22T23:05:11Z","payer":{"customer_id":"c"}%s}`

func with(members string) string { return fmt.Sprintf(small, members) }

func TestEveryFieldIsRead(t *testing.T) {
	tx := decode(t, string(full(t)))
	clear, err := tx.MarshalClear()
	if err != nil {
		t.Fatal(err)
	}
	var again, want map[string]any
	if err := json.Unmarshal(clear, &again); err != nil {
		t.Fatal(err)
	}
	body := strings.NewReplacer("2026-11-22T20:05:11.120-03:00", "2026-11-22T23:05:11.120Z", "529.982.247-25", "52998224725",
		"12.abc.345/01de-35", "12ABC34501DE35", `"document_type":"cpf",`, "", `"document_type":"cnpj",`, "", `"application_frauds":{},`, "").Replace(string(full(t)))
	for _, day := range []string{"02T03:04:05", "22T00:00:00", "22T23:00:00"} {
		body = strings.ReplaceAll(body, day+"Z", day+".000Z")
	}
	if err := json.Unmarshal([]byte(body), &want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, again); diff != "" {
		t.Error(diff)
	}
}

func TestMalformedBodies(t *testing.T) {
	for name, body := range map[string]string{
		"nothing":                    "",
		"broken":                     `{"id":`,
		"an array":                   `[]`,
		"a string":                   `"x"`,
		"a duplicate key":            with(`,"id":"b"`),
		"a duplicate key deep down":  with(`,"metadata":{"a":{"b":1,"b":2}}`),
		"a duplicate unknown key":    with(`,"x":{"b":1,"b":2}`),
		"trailing data":              with(``) + `{}`,
		"a trailing comma":           `{"id":"a",}`,
		"depth over 8":               with(`,"metadata":{"a":[[[[[[[[1]]]]]]]]}`),
		"bad UTF-8":                  with(",\"description\":\"\xff\""),
		"a lone surrogate":           with(`,"description":"\ud800"`),
		"a number with leading zero": `{"amount":01}`,
		"NaN":                        `{"amount":NaN}`,
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := txn.Decode([]byte(body), now); !errors.Is(err, txn.ErrMalformed) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestFaults(t *testing.T) {
	long := strings.Repeat("x", 200)
	for name, tc := range map[string]struct{ body, want string }{
		"nothing at all":                 {`{}`, "/id required, /type required, /amount required, /currency required, /created_at required, /payer required"},
		"null is absent":                 {`{"id":null}`, "/id required, /type required, /amount required, /currency required, /created_at required, /payer required"},
		"an unknown field":               {with(`,"x":1`), "/x unknown_field"},
		"an unknown field inside":        {with(`,"device":{"a/b~c":{"d":[1]}}`), "/device/a~1b~0c unknown_field"},
		"a float amount":                 {strings.Replace(with(``), `:1,`, `:1.0,`, 1), "/amount type"},
		"an amount with exponent":        {strings.Replace(with(``), `:1,`, `:1e3,`, 1), "/amount type"},
		"an amount beyond int64":         {strings.Replace(with(``), `:1,`, `:9223372036854775808,`, 1), "/amount range"},
		"a negative amount":              {strings.Replace(with(``), `:1,`, `:-1,`, 1), "/amount range"},
		"an amount as text":              {strings.Replace(with(``), `:1,`, `:"1",`, 1), "/amount type"},
		"a bad id":                       {strings.Replace(with(``), `"a"`, `"a/b"`, 1), "/id format"},
		"an empty id":                    {strings.Replace(with(``), `"a"`, `""`, 1), "/id format"},
		"a long id":                      {strings.Replace(with(``), `"a"`, `"`+long+`"`, 1), "/id too_long"},
		"no such currency":               {strings.Replace(with(``), `BRL`, `XXX`, 1), "/currency format"},
		"no such type":                   {strings.Replace(with(``), `"pix"`, `"cash"`, 1), "/type format"},
		"a time without zone":            {strings.Replace(with(``), `11Z`, `11`, 1), "/created_at format"},
		"a time 6 minutes ahead":         {strings.Replace(with(``), `23:05`, `23:11`, 1), "/created_at range"},
		"a document of wrong shape":      {with(`,"payee":{"document":"123"}`), "/payee/document format"},
		"document type of no document":   {with(`,"payee":{"customer_id":"c","document_type":"cnpj"}`), "/payee/document required"},
		"document type does not agree":   {with(`,"payee":{"document":"52998224725","document_type":"cnpj"}`), "/payee/document_type format"},
		"a long name":                    {with(`,"payee":{"name":"` + long + `"}`), "/payee/name too_long"},
		"an ISPB":                        {with(`,"payee":{"account":{"ispb":"1"}}`), "/payee/account/ispb format"},
		"a key type":                     {with(`,"payee":{"pix_key":{"type":"x"}}`), "/payee/pix_key/type format"},
		"a window":                       {with(`,"payee":{"statistics":{"settlements":{"d1":1}}}`), "/payee/statistics/settlements/d1 unknown_field"},
		"a counter":                      {with(`,"payee":{"statistics":{"settlements":{"d90":-1}}}`), "/payee/statistics/settlements/d90 range"},
		"an mcc and a country":           {with(`,"merchant":{"mcc":"54","country":"br"}`), "/merchant/mcc format, /merchant/country format"},
		"a card number as BIN":           {with(`,"card":{"bin":"5447310000001881"}`), "/card/bin too_long"},
		"half a position":                {with(`,"geo":{"lat":1}`), "/geo/lon required"},
		"a position beyond the pole":     {with(`,"geo":{"lat":91,"lon":0}`), "/geo/lat range"},
		"an address with a zone":         {with(`,"network":{"ip":"fe80::1%lo"}`), "/network/ip format"},
		"a flag that is none":            {with(`,"network":{"is_vpn":"no"}`), "/network/is_vpn type"},
		"a nested attribute":             {with(`,"attributes":{"a":{"b":1}}`), "/attributes/a type"},
		"a long attribute":               {with(`,"attributes":{"a":"` + long + `"}`), "/attributes/a too_long"},
		"a name of 65 characters":        {with(`,"attributes":{"` + strings.Repeat("é", 65) + `":1}`), "/attributes/" + strings.Repeat("é", 64) + "… too_long"},
		"a nameless attribute":           {with(`,"attributes":{"":1}`), "/attributes/ too_long"},
		"a number beyond float64":        {with(`,"attributes":{"a":1e400}`), "/attributes/a range"},
		"33 attributes":                  {with(`,"attributes":{` + many(33) + `}`), "/attributes too_long"},
		"metadata that is no object":     {with(`,"metadata":[1]`), "/metadata type"},
		"metadata over 4 KiB":            {with(`,"metadata":{"a":"` + strings.Repeat("x", 4096) + `"}`), "/metadata too_long"},
		"payer that is no object":        {strings.Replace(with(``), `{"customer_id":"c"}`, `7`, 1), "/payer type"},
		"payer with neither of the two":  {strings.Replace(with(``), `{"customer_id":"c"}`, `{"name":"n"}`, 1), "/payer required"},
		"an end-to-end id of 13th month": {with(`,"end_to_end_id":"E12345678202613222305abcdefghijk"`), "/end_to_end_id format"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := txn.Decode([]byte(tc.body), now)
			var faults txn.Faults
			if !errors.As(err, &faults) || faults.Error() != tc.want {
				t.Errorf("got %v, want %s", err, tc.want)
			}
		})
	}
}

// What float64 would round to a neighbour has its neighbour's digest: two bodies would be one, and the stored one neither.
func TestAnIntegerIsKeptOrRefused(t *testing.T) {
	for text, kept := range map[string]bool{
		"9007199254740991": true, "9007199254740992": true, "-9007199254740992": true, "9007199254740994": true, "9007199254740992.0": true,
		"9.007199254740992e15": true, "90071992547409920E-1": true, "1e23": true, "18446744073709552000": true, "-1.7976931348623157e308": true, "0.1": true,
		"9007199254740993": false, "-9007199254740993": false, "9007199254740993.0": false, "9.007199254740993e15": false, "90071992547409930e-1": false,
		"9007199254740992.5": false, "9223372036854775807": false, "18446744073709551616": false, "100000000000000000000001": false,
		"1" + strings.Repeat("0", 400) + "e-300": false,
	} {
		tx, err := txn.Decode([]byte(with(`,"attributes":{"a":`+text+`,"b":1}`)), now)
		var faults txn.Faults
		switch {
		case kept && (err != nil || len(tx.Attributes) != 2):
			t.Errorf("%s: %v, %v", text, tx.Attributes, err)
		case kept:
			shown, _ := json.Marshal(tx.Attributes["a"])
			if again, err := txn.Decode([]byte(with(`,"attributes":{"a":`+string(shown)+`}`)), now); err != nil || again.Attributes["a"] != tx.Attributes["a"] {
				t.Errorf("%s is shown as %s: %v", text, shown, err)
			}
		case !kept && (!errors.As(err, &faults) || faults.Error() != "/attributes/a range" || strings.Contains(faults[0].Detail, text)):
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestANameHas64Characters(t *testing.T) {
	name := strings.Repeat("é", 64)
	if tx := decode(t, with(`,"attributes":{"`+name+`":true}`)); tx.Attributes[name] != true {
		t.Errorf("got %v", tx.Attributes)
	}
}

func many(n int) string {
	parts := make([]string, n)
	for i := range parts {
		parts[i] = fmt.Sprintf(`"k%d":%d`, i, i)
	}
	return strings.Join(parts, ",")
}

func TestFaultsAreBounded(t *testing.T) {
	_, err := txn.Decode([]byte("{"+many(100)+"}"), now)
	var faults txn.Faults
	if !errors.As(err, &faults) || len(faults) != txn.MaxFaults {
		t.Errorf("%d faults", len(faults))
	}
}

func TestTheDigestSeesValuesAndNothingElse(t *testing.T) {
	b := box(t)
	base := decode(t, string(full(t)))
	digest, err := txn.Digest(b, base)
	if err != nil {
		t.Fatal(err)
	}
	var tree map[string]any
	if err := json.Unmarshal(full(t), &tree); err != nil {
		t.Fatal(err)
	}
	shuffled, err := json.Marshal(tree, json.Deterministic(true))
	if err != nil {
		t.Fatal(err)
	}
	same := map[string]string{
		"another order": strings.Replace(string(shuffled), "9007199254740992", "9007199254740993", 1),
		"punctuation":   strings.Replace(string(full(t)), "529.982.247-25", "52998224725", 1),
		"offset":        strings.Replace(string(full(t)), "20:05:11.120-03:00", "23:05:11.12Z", 1),
		"a null more":   strings.Replace(string(full(t)), `"channel":"app"`, `"channel":"app","x":null`, 1),
	}
	delete(same, "a null more") // an unknown null is fine too, see below
	same["null"] = strings.Replace(string(full(t)), `"name":"CANARY-payee"`, `"name":"CANARY-payee","customer_id":null`, 1)
	for name, body := range same {
		if ok, err := txn.SameDigest(b, digest, decode(t, body)); !ok || err != nil {
			t.Errorf("%s: %v, %v", name, ok, err)
		}
	}
	for name, change := range map[string][2]string{
		"amount": {"13725", "13726"}, "name": {"CANARY-payer", "CANARY-payes"}, "metadata": {"9007199254740993", "9007199254740992"},
		"position": {"-23.558765", "-23.558766"}, "attribute": {"3.5", "3.25"}, "flag": {`"is_rooted":false`, `"is_rooted":true`}, "time": {"11.120", "11.121"},
		"dropped": {`"asn":64500,`, ``},
	} {
		if ok, _ := txn.SameDigest(b, digest, decode(t, strings.Replace(string(full(t)), change[0], change[1], 1))); ok {
			t.Errorf("%s: a change does not show", name)
		}
	}
}

func TestNothingPersonalShows(t *testing.T) {
	tx := decode(t, string(full(t)))
	sealed, err := txn.Seal(box(t), "t", tx)
	if err != nil {
		t.Fatal(err)
	}
	wire, err := json.Marshal(&sealed)
	if err != nil {
		t.Fatal(err)
	}
	shy, err := json.Marshal(&tx)
	if err != nil {
		t.Fatal(err)
	}
	type hidden struct{ tx txn.Transaction }
	outputs := []string{string(wire), string(shy)}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		outputs = append(outputs, fmt.Sprintf(verb, tx), fmt.Sprintf(verb, &tx), fmt.Sprintf(verb, hidden{tx}), fmt.Sprintf(verb, tx.Payer))
	}
	for _, out := range outputs {
		for _, secret := range []string{"CANARY", "43414e415259", "5299822", "529.982", "12ABC345", "77310442", "7731", "203.0.113", "23.558", "46.638", "9007199"} {
			if strings.Contains(out, secret) {
				t.Errorf("%s shows in %.300s", secret, out)
			}
		}
	}
	if !strings.Contains(string(wire), `"lat":-23.6`) {
		t.Error("position is not rounded to a tenth")
	}
}

func TestSealedTransactionsOpenWhole(t *testing.T) {
	b := box(t)
	tx := decode(t, string(full(t)))
	sealed, err := txn.Seal(b, "t", tx)
	if err != nil {
		t.Fatal(err)
	}
	again, err := txn.Open(b, "t", sealed)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(tx, again); diff != "" {
		t.Error(diff)
	}
	sealed.ID = "other"
	if _, err := txn.Open(b, "t", sealed); err == nil {
		t.Error("opened under another id")
	}
}

func TestNetworks(t *testing.T) {
	for in, want := range map[string][3]string{
		"203.0.113.77":        {"203.0.113.77", "203.0.113.0/24", "203.0.0.0/16"},
		"::ffff:203.0.113.77": {"203.0.113.77", "203.0.113.0/24", "203.0.0.0/16"},
		"2001:DB8:1:2::5":     {"2001:db8:1:2::5", "2001:db8:1:2::/64", "2001:db8:1::/48"},
	} {
		ip, near, wide, ok := txn.Networks(in)
		if !ok || [3]string{ip, near, wide} != want {
			t.Errorf("%s: %s %s %s", in, ip, near, wide)
		}
	}
}

func TestMoney(t *testing.T) {
	brl := func(n int64) txn.Money { return txn.Money{Minor: n, Currency: "BRL"} }
	if sum, err := brl(5).Add(brl(-7)); err != nil || sum != brl(-2) {
		t.Error(sum, err)
	}
	if _, err := brl(1 << 62).Add(brl(1 << 62)); !errors.Is(err, txn.ErrOverflow) {
		t.Error(err)
	}
	if _, err := brl(0).Sub(brl(-1 << 63)); !errors.Is(err, txn.ErrOverflow) {
		t.Error(err)
	}
	if _, err := brl(1).Sub(txn.Money{Minor: 1, Currency: "USD"}); !errors.Is(err, txn.ErrCurrency) {
		t.Error(err)
	}
	for code, want := range map[string]int{"BRL": 2, "JPY": 0, "KWD": 3, "CLF": 4} {
		if got, ok := txn.Exponent(code); !ok || got != want {
			t.Errorf("%s: %d", code, got)
		}
	}
	for _, code := range []string{"", "XXX", "brl", " BR", "L B", "BRLA"} {
		if _, ok := txn.Exponent(code); ok {
			t.Errorf("%q is a currency", code)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(full(f))
	f.Add([]byte(with(``)))
	f.Add([]byte(`{"payer":{"document":"1"},"geo":{"lat":1e400},"attributes":{"a":1}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		tx, err := txn.Decode(body, now)
		if err != nil {
			var faults txn.Faults
			if !errors.Is(err, txn.ErrMalformed) && !errors.As(err, &faults) {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		clear, err := tx.MarshalClear()
		if err != nil {
			t.Fatal(err)
		}
		again, err := txn.Decode(clear, now)
		if err != nil {
			t.Fatalf("%s: %v", clear, err)
		}
		twice, _ := again.MarshalClear()
		if !bytes.Equal(clear, twice) {
			t.Fatalf("canonical form changes:\n%s\n%s", clear, twice)
		}
		var opened txn.Transaction
		if err := json.Unmarshal(clear, &opened); err != nil {
			t.Fatal(err)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	body := full(b)
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		if _, err := txn.Decode(body, now); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecodeSmall(b *testing.B) {
	body := []byte(with(``))
	for b.Loop() {
		_, _ = txn.Decode(body, now)
	}
}

func BenchmarkSeal(b *testing.B) {
	keys, tx := box(b), decode(b, string(full(b)))
	for b.Loop() {
		_, _ = txn.Seal(keys, "t", tx)
	}
}

func BenchmarkDigest(b *testing.B) {
	keys, tx := box(b), decode(b, string(full(b)))
	for b.Loop() {
		_, _ = txn.Digest(keys, tx)
	}
}
