package event_test

import (
	"bytes"
	"flag"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"

	"crivo/pkg/stage"
	"crivo/pkg/txn"
	"crivo/streams/event"
)

var update = flag.Bool("update", false, "write the golden files anew")

func at(ms int64) txn.Time { return txn.Millis(1_795_388_711_120 + ms) }

func to[T any](v T) *T { return &v }

// full has every member set; each event of it holds the one before.
func full() event.Decided {
	party := func(name string) txn.SealedParty {
		return txn.SealedParty{
			Document:   &txn.SealedDocument{Token: "t1." + name + "-document", Root: "t1." + name + "-root", Type: "cnpj", Valid: true},
			CustomerID: "t1." + name + "-customer", CreatedAt: to(at(-9000)),
			Account: &txn.SealedAccount{Token: "t1." + name + "-account", ISPB: "12345678", Type: "CACC", OpenedAt: to(at(-8000))},
			PixKey:  &txn.SealedPixKey{Type: "evp", Token: "t1." + name + "-key", OwnedSince: to(at(-7000))},
			Statistics: &txn.Statistics{Settlements: map[string]int64{"d90": 4, "m12": 40}, MuleAccounts: map[string]int64{"d90": 0},
				ScammerAccounts: map[string]int64{"m12": 1}, ApplicationFrauds: map[string]int64{"m60": 2}, OtherFrauds: map[string]int64{"d90": 3}, AsOf: to(at(-6000))},
		}
	}
	payee := party("payee")
	set := txn.RuleSet{Name: "default", Version: 7, Digest: "sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"}
	var d event.Decided
	d.Submitted = event.Submitted{Schema: 1, Tenant: "acme", ID: "ord-10023", Run: 2, ClaimedAt: at(0), AcceptedAt: at(5000), Deadline: at(7000), Digest: "d1:k1:9f86d081",
		Tx: txn.Sealed{ID: "ord-10023", Type: "pix", Direction: "outbound", Amount: math.MaxInt64, Currency: "BRL", CreatedAt: at(-1000), Channel: "app",
			EndToEndID: "E12345678202611222305abcdefghijk", Payer: party("payer"), Payee: &payee,
			Merchant:   &txn.Merchant{ID: "m-1", MCC: "5411", TerminalID: "pos-9", Country: "BR"},
			Card:       &txn.SealedCard{Token: "t1.card", BIN: "411111", Last4: "1111", EntryMode: "chip", ThreeDS: "frictionless"},
			Device:     &txn.SealedDevice{ID: "t1.device", RegisteredAt: to(at(-5000)), OS: "android 16", AppVersion: "8.1", IsRooted: to(false), IsEmulator: to(true)},
			Network:    &txn.SealedNetwork{IP: "t1.ip", Near: "t1.near", Wide: "t1.wide", ASN: to(int64(28573)), IsVPN: to(false)},
			Geo:        &txn.SealedGeo{Lat: -23.6, Lon: -46.6, AccuracyM: to(12.5)},
			Session:    &txn.SealedSession{ID: "t1.session", Authentication: "biometric", StartedAt: to(at(-4000))},
			Attributes: map[string]any{"basket": 3.0, "new_customer": true, "campaign": "verão <\"&\u2028>"},
			Blob:       []byte{0, 1, 2, 250, 251, 252, 253, 254, 255}}}
	d.Features = map[string]event.Value{"payer.count_5m": {Known: true, Number: 7}, "payer.avg_30d": {Known: true, Number: 137.25}, "pair.first_seen": {}}
	d.RuleSet = set
	d.Degraded = []string{"serpro: timeout", "features: unavailable"}
	d.Checks = []txn.Check{{Name: "ceis", Status: txn.Clear, AsOf: to(at(-3000)), LatencyMS: 12, Cache: "fresh", Version: "42"},
		{Name: "serpro", Status: txn.Unknown, LatencyMS: 400, Error: "timeout"}}
	d.Verdict = txn.Verdict{Decision: txn.Review, Score: 45, RiskBand: "medium", RuleSet: set, Reasons: []txn.Reason{{Code: "VELOCITY_PAYER_5M",
		Text: "7 payments in 5 minutes, 5 are usual at most", Rule: "velocity-payer-5m", Points: 25, Inputs: map[string]any{"payer.count_5m": 7.0}}}}
	d.Engine = "1.0.0"
	d.By, d.DecidedAt, d.Late = event.ByGuard, at(7001), true
	return d
}

// small has what every event must have, and nothing else.
func small() event.Decided {
	var d event.Decided
	d.Submitted = event.Submitted{Schema: 1, Tenant: "a", ID: "1", Run: 1, ClaimedAt: at(0), AcceptedAt: at(0), Deadline: at(2000), Digest: "d1:k1:0",
		Tx: txn.Sealed{ID: "1", Type: "ted", Currency: "BRL", CreatedAt: at(0), Payer: txn.SealedParty{CustomerID: "t1.c"}, Blob: []byte{0}}}
	d.Features, d.Degraded, d.Checks = map[string]event.Value{}, []string{}, []txn.Check{}
	d.Verdict = txn.Verdict{Decision: txn.Approve, RiskBand: "low", Reasons: []txn.Reason{}}
	d.By, d.DecidedAt = event.ByPipeline, at(9)
	return d
}

// kinds names every event with its golden files' encoder and decoder.
var kinds = []kind{
	{"submitted", encode(func(d event.Decided) event.Submitted { return d.Submitted }), decode[event.Submitted]},
	{"enriched", encode(func(d event.Decided) event.Enriched { return d.Enriched }), decode[event.Enriched]},
	{"validated", encode(func(d event.Decided) event.Validated { return d.Validated }), decode[event.Validated]},
	{"scored", encode(func(d event.Decided) event.Scored { return d.Scored }), decode[event.Scored]},
	{"decided", encode(func(d event.Decided) event.Decided { return d }), decode[event.Decided]},
}

type kind struct {
	name   string
	encode func(t testing.TB, d event.Decided) (data []byte, e any)
	decode func(data []byte) (any, error)
}

func encode[T event.Any](part func(event.Decided) T) func(testing.TB, event.Decided) ([]byte, any) {
	return func(t testing.TB, d event.Decided) ([]byte, any) {
		t.Helper()
		e := part(d)
		data, err := event.Encode(e)
		if err != nil {
			t.Fatal(err)
		}
		return data, e
	}
}

func decode[T event.Any](data []byte) (any, error) { return event.Decode[T](data) }

func TestTheWireIsAsItWas(t *testing.T) {
	for name, d := range map[string]event.Decided{"full": full(), "small": small()} {
		for _, k := range kinds {
			t.Run(k.name+" "+name, func(t *testing.T) {
				data, e := k.encode(t, d)
				golden(t, k.name+"-"+name+".json", data)
				back, err := k.decode(data)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(e, back); diff != "" {
					t.Errorf("reads otherwise: %s", diff)
				}
			})
		}
	}
}

// golden compares data with a file whose white space is for people.
func golden(t *testing.T, name string, data []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		pretty := jsontext.Value(bytes.Clone(data))
		if err := pretty.Indent(jsontext.WithIndent("  ")); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, append(pretty, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	flat := jsontext.Value(want)
	if err := flat.Compact(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(flat), string(data)); diff != "" {
		t.Errorf("the wire changed: %s", diff)
	}
}

func TestFullIsFull(t *testing.T) {
	data, _ := kinds[4].encode(t, full())
	var members map[string]any
	if err := json.Unmarshal(data, &members); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"tx.payee.statistics.as_of", "tx.device.is_emulator", "tx.network.asn", "tx.geo.accuracy_m", "tx.session.started_at",
		"tx.card.three_ds", "tx.merchant.terminal_id", "tx.payer.pix_key.owned_since", "tx.payer.account.opened_at", "tx.attributes.campaign"} {
		var at any = members
		for _, name := range strings.Split(path, ".") {
			m, _ := at.(map[string]any)
			at = m[name]
		}
		if at == nil {
			t.Errorf("no %s: the golden file does not pin it", path)
		}
	}
}

func TestEachEventReadsAsTheOnesItHolds(t *testing.T) {
	for i, outer := range kinds {
		data, _ := outer.encode(t, full())
		for j, inner := range kinds {
			_, want := inner.encode(t, full())
			got, err := inner.decode(data)
			if err != nil {
				t.Fatal(err)
			}
			switch diff := cmp.Diff(want, got); {
			case j <= i && diff != "":
				t.Errorf("%s as %s: %s", outer.name, inner.name, diff)
			case j > i && diff == "":
				t.Errorf("%s has all of %s", outer.name, inner.name)
			}
		}
	}
}

func TestEqualEventsGiveEqualBytes(t *testing.T) {
	first, _ := kinds[4].encode(t, full())
	for range 20 {
		if again, _ := kinds[4].encode(t, full()); !bytes.Equal(first, again) {
			t.Fatalf("%s\n%s", first, again)
		}
	}
}

func TestDecodeTellsWhatCannotBeRead(t *testing.T) {
	const canary = "52998224725"
	head := `"schema":1,"tenant":"a","id":"1","run":1`
	for name, tc := range map[string]struct {
		data string
		want func(error) bool // nil: it is read
	}{
		"the least":                            {`{` + head + `}`, nil},
		"unknown members":                      {`{` + head + `,"later":{"x":["` + canary + `"]},"tx":{"later":1}}`, nil},
		"a newer schema":                       {`{"schema":2,"tenant":"a","id":"1","run":1}`, stage.IsHold},
		"a newer schema without a head":        {`{"schema":2}`, stage.IsHold},
		"a newer schema of another shape":      {`{"schema":2,"tenant":{"name":"a"},"id":["` + canary + `"],"run":"x"}`, stage.IsHold},
		"a newer schema whose tx is a list":    {`{"schema":3,"tenant":"a","id":"1","run":1,"tx":[]}`, stage.IsHold},
		"a newer schema that comes last":       {`{"tx":[],"schema":9}`, stage.IsHold},
		"schema 0":                             {`{"schema":0,"tenant":"a","id":"1","run":1}`, stage.IsUndecodable},
		"a negative schema":                    {`{"schema":-1,"tenant":"a","id":"1","run":1}`, stage.IsUndecodable},
		"a schema that is text":                {`{"schema":"2","tenant":"a","id":"1","run":1}`, stage.IsUndecodable},
		"no schema":                            {`{"tenant":"a","id":"1","run":1}`, stage.IsUndecodable},
		"no tenant":                            {`{"schema":1,"id":"1","run":1}`, stage.IsUndecodable},
		"no id":                                {`{"schema":1,"tenant":"a","run":1}`, stage.IsUndecodable},
		"no run":                               {`{"schema":1,"tenant":"a","id":"1"}`, stage.IsUndecodable},
		"a negative run":                       {`{"schema":1,"tenant":"a","id":"1","run":-1}`, stage.IsUndecodable},
		"a member of another type":             {`{` + head + `,"digest":{"x":"` + canary + `"}}`, stage.IsUndecodable},
		"an amount with a fraction":            {`{` + head + `,"tx":{"amount":1.5}}`, stage.IsUndecodable},
		"an amount beyond int64":               {`{` + head + `,"tx":{"amount":9223372036854775808}}`, stage.IsUndecodable},
		"a time that is none":                  {`{` + head + `,"claimed_at":"` + canary + `"}`, stage.IsUndecodable},
		"a blob that is no base64":             {`{` + head + `,"tx":{"sealed":"` + canary + `!"}}`, stage.IsUndecodable},
		"a member twice":                       {`{` + head + `,"id":"` + canary + `"}`, stage.IsUndecodable},
		"a newer schema with a member twice":   {`{"schema":2,"id":"1","id":"2"}`, stage.IsUndecodable},
		"trailing data":                        {`{` + head + `} {"x":"` + canary + `"}`, stage.IsUndecodable},
		"half an event":                        {`{` + head + `,"digest":"` + canary, stage.IsUndecodable},
		"no JSON":                              {canary, stage.IsUndecodable},
		"a list":                               {`["` + canary + `"]`, stage.IsUndecodable},
		"null":                                 {`null`, stage.IsUndecodable},
		"nothing":                              {``, stage.IsUndecodable},
		"text that is not UTF-8":               {"{" + head + ",\"digest\":\"\xff" + canary + "\"}", stage.IsUndecodable},
		"very deep":                            {strings.Repeat("[", 100_000), stage.IsUndecodable},
		"a number as a schema that is too big": {`{"schema":1e99,"tenant":"a","id":"1","run":1}`, stage.IsUndecodable},
	} {
		t.Run(name, func(t *testing.T) {
			for _, k := range kinds {
				_, err := k.decode([]byte(tc.data))
				switch {
				case tc.want == nil && err != nil:
					t.Errorf("%s: %v", k.name, err)
				case tc.want != nil && (err == nil || !tc.want(err)):
					t.Errorf("%s: another error: %v", k.name, err)
				case err != nil && strings.Contains(err.Error(), canary):
					t.Errorf("%s quotes the data: %v", k.name, err)
				case err != nil && stage.IsHold(err) && stage.IsUndecodable(err):
					t.Errorf("%s is both: %v", k.name, err)
				}
			}
		})
	}
}

func TestAFeatureIsANumberOrUnknown(t *testing.T) {
	for name, tc := range map[string]struct {
		value event.Value
		wire  string
	}{
		"unknown":                     {event.Value{}, `null`},
		"zero is known":               {event.Value{Known: true}, `0`},
		"a count":                     {event.Value{Known: true, Number: 7}, `7`},
		"a fraction":                  {event.Value{Known: true, Number: 0.1}, `0.1`},
		"negative":                    {event.Value{Known: true, Number: -2.5}, `-2.5`},
		"the largest whole number":    {event.Value{Known: true, Number: 1 << 53}, `9007199254740992`},
		"beyond any integer":          {event.Value{Known: true, Number: 1e30}, `1000000000000000000000000000000`},
		"the smallest fraction":       {event.Value{Known: true, Number: math.SmallestNonzeroFloat64}, ""},
		"the largest number":          {event.Value{Known: true, Number: math.MaxFloat64}, ""},
		"one that needs every digit":  {event.Value{Known: true, Number: 1.0 / 3}, `0.3333333333333333`},
		"cents in a mean":             {event.Value{Known: true, Number: 13725.0 / 100}, `137.25`},
		"milliseconds since 1970":     {event.Value{Known: true, Number: 1_795_388_711_120}, `1795388711120`},
		"unknown forgets its numbers": {event.Value{Number: 3}, `null`},
	} {
		t.Run(name, func(t *testing.T) {
			data, err := json.Marshal(tc.value)
			if err != nil || tc.wire != "" && string(data) != tc.wire {
				t.Fatalf("%s, %v", data, err)
			}
			back := event.Value{Known: true, Number: 99}
			if err := json.Unmarshal(data, &back); err != nil {
				t.Fatal(err)
			}
			want := tc.value
			if !want.Known {
				want = event.Value{}
			}
			if back != want {
				t.Errorf("read back as %+v", back)
			}
		})
	}
	for _, number := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
		e := full().Enriched
		e.Features = map[string]event.Value{"x": {Known: true, Number: number}}
		if data, err := event.Encode(e); err == nil {
			t.Errorf("%g was written: %s", number, data)
		}
	}
	for _, wire := range []string{`"7"`, `true`, `{}`, `[]`, `1e999`, `NaN`, `0x10`, `1_000`} {
		var v event.Value
		if err := json.Unmarshal([]byte(wire), &v); err == nil {
			t.Errorf("%s was read as %+v", wire, v)
		}
	}
}

func TestThePublicAnswerHasEveryArray(t *testing.T) {
	for name, d := range map[string]event.Decided{"nothing set": {}, "small": small(), "full": full()} {
		got := d.Public()
		if got.Reasons == nil || got.Checks == nil || got.Degraded == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
	d := full()
	want := txn.Decision{ID: "ord-10023", Status: "decided", Verdict: d.Verdict, Checks: d.Checks, Degraded: d.Degraded, Engine: "1.0.0", Late: true,
		AcceptedAt: at(5000), DecidedAt: at(7001), LatencyMS: 2001}
	if diff := cmp.Diff(want, d.Public()); diff != "" {
		t.Error(diff)
	}
}

func fuzz[T event.Any](f *testing.F) {
	for _, k := range kinds {
		for _, d := range []event.Decided{full(), small()} {
			data, _ := k.encode(f, d)
			f.Add(data)
		}
	}
	for _, seed := range []string{``, `null`, `{}`, `[]`, `{"schema":2}`, `{"schema":1,"tenant":"a","id":"1","run":1,"features":{"x":null,"y":1e3}}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := event.Decode[T](data)
		if err != nil {
			if stage.IsHold(err) == stage.IsUndecodable(err) {
				t.Fatalf("neither held nor undecodable, or both: %v", err)
			}
			return
		}
		wire, err := event.Encode(e)
		if err != nil {
			t.Fatalf("read, but cannot be written: %v", err)
		}
		back, err := event.Decode[T](wire)
		if err != nil {
			t.Fatalf("%s: %v", wire, err)
		}
		if again, err := event.Encode(back); err != nil || !bytes.Equal(wire, again) {
			t.Fatalf("%v\n%s\n%s", err, wire, again)
		}
	})
}

func FuzzDecodeSubmitted(f *testing.F) { fuzz[event.Submitted](f) }
func FuzzDecodeEnriched(f *testing.F)  { fuzz[event.Enriched](f) }
func FuzzDecodeValidated(f *testing.F) { fuzz[event.Validated](f) }
func FuzzDecodeScored(f *testing.F)    { fuzz[event.Scored](f) }
func FuzzDecodeDecided(f *testing.F)   { fuzz[event.Decided](f) }

func BenchmarkEncodeDecided(b *testing.B) {
	d := full()
	data, _ := kinds[4].encode(b, d)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := event.Encode(d); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecodeDecided(b *testing.B) {
	data, _ := kinds[4].encode(b, full())
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := event.Decode[event.Decided](data); err != nil {
			b.Fatal(err)
		}
	}
}
