package validate_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crivo/pkg/seal"
	"crivo/pkg/stage"
	"crivo/pkg/txn"
	"crivo/pkg/yaml"
	"crivo/services/validate"
	"crivo/streams"
	"crivo/streams/event"
)

var now = time.Date(2026, 11, 22, 23, 5, 12, 0, time.UTC)

const body = `{"id":"a","type":"pix","amount":1,"currency":"BRL","created_at":"2026-11-22T23:05:11Z",
 "payer":{"document":"529.982.247-25","customer_id":"c-1","account":{"ispb":"12345678","branch":"1","number":"2"}},
 "payee":{"document":"12.ABC.345/01DE-35","pix_key":{"type":"email","value":"k@example.com"}},
 "device":{"id":"d-1"},"card":{"token":"tok"},"network":{"ip":"203.0.113.77"},"merchant":{"id":"m-1","terminal_id":"t-1"}}`

func keyring(t testing.TB) *seal.Keyring {
	t.Helper()
	k, err := seal.Open(filepath.Join(t.TempDir(), "k"), true)
	if err != nil {
		t.Fatal(err)
	}
	for _, tenant := range []string{"t", "u"} {
		if err := k.Add(tenant); err != nil {
			t.Fatal(err)
		}
	}
	return k
}

func enriched(t testing.TB, k *seal.Keyring, text string) event.Enriched {
	t.Helper()
	tx, err := txn.Decode([]byte(text), now)
	if err != nil {
		t.Fatal(err)
	}
	box, err := k.Box("t")
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := txn.Seal(box, "t", tx)
	if err != nil {
		t.Fatal(err)
	}
	return event.Enriched{Submitted: event.Submitted{Schema: 1, Tenant: "t", ID: "a", Run: 1, Tx: sealed}}
}

func TestTheBlockListFindsWhatItNames(t *testing.T) {
	k := keyring(t)
	in := enriched(t, k, body)
	for name, tc := range map[string]struct{ entry, want string }{
		"a CPF with mask":           {"{kind: document, value: 529.982.247-25}", txn.Hit},
		"an alphanumeric CNPJ":      {"{kind: document, value: 12abc34501de35}", txn.Hit},
		"a company by its root":     {"{kind: document_root, value: 12ABC345}", txn.Hit},
		"a root with mask":          {"{kind: document_root, value: 12.abc.345}", txn.Hit},
		"another root":              {"{kind: document_root, value: 12ABC346}", txn.Clear},
		"a person by a root":        {"{kind: document_root, value: '52998224'}", txn.Clear},
		"another branch":            {"{kind: document, value: 12.ABC.345/0001-00}", txn.Clear},
		"another CPF":               {"{kind: document, value: 111.444.777-35}", txn.Clear},
		"an account":                {"{kind: account, value: 12345678/1/2}", txn.Hit},
		"a Pix key":                 {"{kind: pix_key, value: k@example.com}", txn.Hit},
		"a Pix key in capitals":     {"{kind: pix_key, value: K@EXAMPLE.com}", txn.Hit},
		"a customer":                {"{kind: customer_id, value: c-1}", txn.Hit},
		"a device":                  {"{kind: device_id, value: d-1}", txn.Hit},
		"the device's id as a card": {"{kind: card_token, value: d-1}", txn.Clear},
		"an address":                {"{kind: ip, value: 203.0.113.77}", txn.Hit},
		"a /24":                     {"{kind: ip, value: 203.0.113.0/24}", txn.Hit},
		"a /16":                     {"{kind: ip, value: 203.0.0.0/16}", txn.Hit},
		"another /24":               {"{kind: ip, value: 203.0.114.0/24}", txn.Clear},
		"a merchant":                {"{kind: merchant_id, value: m-1}", txn.Hit},
		"a terminal":                {"{kind: terminal_id, value: t-1}", txn.Hit},
		"this tenant's entry":       {"{kind: device_id, value: d-1, tenant: t}", txn.Hit},
		"another tenant's entry":    {"{kind: device_id, value: d-1, tenant: u}", txn.Clear},
		"an entry that expired":     {"{kind: device_id, value: d-1, expires_at: 2026-11-22T23:05:00Z}", txn.Clear},
		"an entry that will expire": {"{kind: device_id, value: d-1, expires_at: 2026-11-22T23:06:00Z}", txn.Hit},
		"an entry that expires now": {"{kind: device_id, value: d-1, expires_at: 2026-11-22T23:05:12Z}", txn.Clear},
		"an IPv6 /64 for another":   {"{kind: ip, value: '2001:db8:0:1::/64'}", txn.Clear},
		"an expired one after one that holds": {`{kind: device_id, value: d-1}
- {kind: device_id, value: d-1, tenant: t, expires_at: 2026-11-22T23:05:00Z}`, txn.Hit},
		"one that holds after an expired one": {`{kind: device_id, value: d-1, expires_at: 2026-11-22T23:05:00Z}
- {kind: device_id, value: d-1}`, txn.Hit},
		"the later of two ends": {`{kind: device_id, value: d-1, expires_at: 2026-11-22T23:06:00Z}
- {kind: device_id, value: d-1, expires_at: 2026-11-22T23:05:00Z}`, txn.Hit},
	} {
		t.Run(name, func(t *testing.T) {
			list, err := validate.ParseList([]byte("- "+tc.entry), now)
			if err != nil {
				t.Fatal(err)
			}
			s := validate.Stage{List: func() *validate.Snapshot { return list }, Keys: k, Now: func() time.Time { return now }}
			out, err := s.Handle(context.Background(), in)
			if err != nil || out.Checks[1].Status != tc.want || out.Checks[1].Version == "" {
				t.Errorf("got %+v, %v", out.Checks, err)
			}
		})
	}
}

// A value is text, whatever YAML would make of it: 0042 is not 34, and 1.10 is not 1.1.
func TestValuesAreTakenAsTheyStand(t *testing.T) {
	k := keyring(t)
	for _, id := range []string{"0042", "1_000", "1.10", "0x10", "true", "2026-11-22", "1e3", "12345678901234567890"} {
		in := enriched(t, k, strings.Replace(body, `"terminal_id":"t-1"`, `"terminal_id":"`+id+`"`, 1))
		for _, text := range []string{id, `"` + id + `"`, "'" + id + "'"} {
			for _, form := range []string{"- {kind: terminal_id, value: %s}", "- kind: terminal_id\n  value: %s\n  reason: x\n", "- {kind: terminal_id, value: %s, reason: x} # y"} {
				list, err := validate.ParseList(fmt.Appendf(nil, form, text), now)
				if err != nil {
					t.Errorf("%s: %v", fmt.Sprintf(form, text), err)
					continue
				}
				s := validate.Stage{List: func() *validate.Snapshot { return list }, Keys: k, Now: func() time.Time { return now }}
				if out, err := s.Handle(context.Background(), in); err != nil || out.Checks[1].Status != txn.Hit {
					t.Errorf("%s: %+v, %v", fmt.Sprintf(form, text), out.Checks, err)
				}
			}
		}
	}
}

// A block that should end must not become one without an end, or one that ends at another zone's time.
func TestAnEndIsATimeWithItsZone(t *testing.T) {
	for text, ok := range map[string]bool{"2026-12-31T23:59:59-03:00": true, `"2026-12-31T23:59:59Z"`: true, "null": true, "~": true, `""`: true,
		"2026-12-31": false, "31/12/2026": false, "2026-12-31T18:00:00": false, "2026-12-31 18:00:00": false, "tomorrow": false, "1798761599": false} {
		_, err := validate.ParseList(fmt.Appendf(nil, "- {kind: device_id, value: d-1}\n- kind: device_id\n  value: d-2\n  expires_at: %s\n", text), now)
		if (err == nil) != ok || err != nil && !strings.Contains(err.Error(), "entry 2: expires_at is a time") {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// What stands in quotes is a value whatever it begins with; what stands there without them is a value's own text or a fault.
func TestAValueThatIsNotItsTextIsRefused(t *testing.T) {
	for _, text := range []string{"!!str 0042", "&a !!str 0042", ">-\n    c-77", "|\n    c-77", "c-77\n    c-78", "[c-77]", "{c: 77}", "\n    c: 77", "\n    - c-77"} {
		for _, form := range []string{"kind: device_id\n  value: %s\n", "kind: device_id\n  value: d-1\n  tenant: %s\n"} {
			_, err := validate.ParseList(fmt.Appendf(nil, "- {kind: device_id, value: d-1}\n- "+form, text), now)
			if err == nil || !strings.Contains(err.Error(), "entry 2: ") || strings.Contains(err.Error(), "77") || strings.Contains(err.Error(), "42") {
				t.Errorf("%q: %v", text, err)
			}
		}
	}
	k := keyring(t)
	for _, id := range []string{"!x", "& x", "*x", "|", ">-", "[x]", "- x", "x: y", "# x", "c-77"} {
		in := enriched(t, k, strings.Replace(body, `"id":"d-1"`, `"id":"`+id+`"`, 1))
		for _, form := range []string{"- {kind: device_id, value: '%s'}", "- kind: device_id\n  value: \"%s\" # x\n  tenant: t\n", "- {kind: device_id, value: &a '%s'}"} {
			list, err := validate.ParseList(fmt.Appendf(nil, form, id), now)
			if err != nil {
				t.Errorf("%q: %v", id, err)
				continue
			}
			s := validate.Stage{List: func() *validate.Snapshot { return list }, Keys: k, Now: func() time.Time { return now }}
			if out, err := s.Handle(context.Background(), in); err != nil || out.Checks[1].Status != txn.Hit {
				t.Errorf("%q: %+v, %v", id, out.Checks, err)
			}
		}
	}
}

// A tenant's name may be digits.
func TestATenantIsTakenAsItStands(t *testing.T) {
	k := keyring(t)
	if err := k.Add("0042"); err != nil {
		t.Fatal(err)
	}
	list, err := validate.ParseList([]byte("- {kind: merchant_id, value: m-1, tenant: 0042}"), now)
	if err != nil {
		t.Fatal(err)
	}
	in := enriched(t, k, body)
	in.Tenant = "0042"
	s := validate.Stage{List: func() *validate.Snapshot { return list }, Keys: k, Now: func() time.Time { return now }}
	if out, err := s.Handle(context.Background(), in); err != nil || out.Checks[1].Status != txn.Hit {
		t.Errorf("%+v, %v", out.Checks, err)
	}
}

// Whoever stands in a second document would be cleared.
func TestTheListIsOneDocument(t *testing.T) {
	for _, text := range []string{blocked + "\n---\n" + others, "---\n---\n" + blocked} {
		if _, err := validate.ParseList([]byte(text), now); !errors.Is(err, yaml.ErrDocuments) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestBadEntriesAreNamedWithoutTheirValues(t *testing.T) {
	_, err := validate.ParseList([]byte("- {kind: document, value: '12345'}\n- {kind: what, value: secret}\n- {kind: device_id}\n- {kind: ip, value: 10.0.0.0/8}\n"+
		"- {kind: document_root, value: '12345'}\n- {kind: document_root, value: 12ABC34501DE35}\n- {kind: ip, value: host.example}"), now)
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"entry 1", "entry 2", "entry 3", "entry 4", "entry 5", "entry 6", "entry 7"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v lacks %s", err, want)
		}
	}
	if strings.Contains(err.Error(), "12345") || strings.Contains(err.Error(), "secret") {
		t.Errorf("%v tells values", err)
	}
}

func TestCheckDigits(t *testing.T) {
	k := keyring(t)
	for text, want := range map[string]string{
		body: txn.Clear,
		strings.Replace(body, "247-25", "247-26", 1):   txn.Hit,
		strings.Replace(body, "01DE-35", "01DE-36", 1): txn.Hit,
	} {
		if got := validate.Document(enriched(t, k, text).Tx); got.Status != want {
			t.Errorf("got %+v, want %s", got, want)
		}
	}
}

func FuzzParseList(f *testing.F) {
	f.Add([]byte("- {kind: ip, value: 10.0.0.0/24}"))
	f.Add([]byte("! {0000000000}")) // the YAML library panics
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = validate.ParseList(data, now)
	})
}

// enrichedMessage is an enriched event as the broker delivers it.
func enrichedMessage(t testing.TB, e event.Enriched) stage.Message {
	t.Helper()
	data, err := event.Encode(e)
	if err != nil {
		t.Fatal(err)
	}
	return stage.Message{Header: streams.Ident{Tenant: e.Tenant, ID: e.ID, Run: e.Run}.Header(), Data: data, Sequence: 1, Deliveries: 1}
}

func BenchmarkStep(b *testing.B) {
	k := keyring(b)
	var text strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&text, "- {kind: device_id, value: x-%d}\n", i)
	}
	list, err := validate.ParseList([]byte(text.String()), now)
	if err != nil {
		b.Fatal(err)
	}
	s := validate.Stage{List: func() *validate.Snapshot { return list }, Keys: k, Now: func() time.Time { return now }}
	step := streams.Step(streams.EventValidated, 1, s.Handle)
	batch := []stage.Message{enrichedMessage(b, enriched(b, k, body))}
	b.ReportAllocs()
	for b.Loop() {
		if got := step(context.Background(), batch)[0]; got.Err != nil {
			b.Fatal(got.Err)
		}
	}
}
