package rules_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"crivo/pkg/txn"
	"crivo/services/rules"
	"crivo/streams/event"
)

var accepted = time.Date(2026, 11, 22, 23, 5, 12, 0, time.UTC)

// ago is the instant s seconds before acceptance.
func ago(s int) *txn.Time {
	t := txn.At(accepted.Add(-time.Duration(s) * time.Second))
	return &t
}

// minimal is the least that an accepted transaction holds.
func minimal() event.Validated {
	return event.Validated{Enriched: event.Enriched{Submitted: event.Submitted{Schema: 1, Tenant: "t", ID: "a", Run: 1, AcceptedAt: txn.At(accepted),
		Tx: txn.Sealed{ID: "a", Type: "pix", Amount: 13725, Currency: "BRL", CreatedAt: *ago(1)}}}}
}

// full has every member that a transaction can have, and features and checks of every kind.
func full() event.Validated {
	yes, no, asn, accuracy := true, false, int64(64500), 20.5
	v := minimal()
	v.Tx = txn.Sealed{ID: "a", Type: "pix", Direction: "outbound", Amount: 13725, Currency: "BRL", CreatedAt: *ago(1), Channel: "app",
		Payer: txn.SealedParty{CustomerID: "token", CreatedAt: ago(100), Document: &txn.SealedDocument{Token: "token", Type: "cpf", Valid: true},
			Account: &txn.SealedAccount{Token: "token", ISPB: "12345678", Type: "CACC", OpenedAt: ago(90)}},
		Payee: &txn.SealedParty{Document: &txn.SealedDocument{Token: "token", Type: "cnpj"}, Account: &txn.SealedAccount{Type: "TRAN", OpenedAt: ago(80)},
			PixKey:     &txn.SealedPixKey{Type: "email", Token: "token", OwnedSince: ago(70)},
			Statistics: &txn.Statistics{Settlements: map[string]int64{"d90": 4, "m12": 67}, MuleAccounts: map[string]int64{"d90": 1}, OtherFrauds: map[string]int64{"m60": 2}}},
		Merchant: &txn.Merchant{ID: "m-1", MCC: "5411", TerminalID: "t-9", Country: "BR"},
		Card:     &txn.SealedCard{Token: "token", BIN: "544731", Last4: "1881", EntryMode: "chip", ThreeDS: "Y"},
		Device:   &txn.SealedDevice{ID: "token", RegisteredAt: ago(60), OS: "android", AppVersion: "1.2", IsRooted: &no, IsEmulator: &yes},
		Network:  &txn.SealedNetwork{IP: "token", ASN: &asn, IsVPN: &no},
		Geo:      &txn.SealedGeo{Lat: -23.6, Lon: -46.6, AccuracyM: &accuracy},
		Session:  &txn.SealedSession{ID: "token", Authentication: "biometric", StartedAt: ago(50)}, Attributes: map[string]any{"segment": "retail", "n": 3.5}}
	v.Features = map[string]event.Value{"payer.count_5m": {Known: true, Number: 7}, "payer.sum_5m": {}, "terminal.count_5m": {Known: true, Number: 2}, "device.count_1h": {}}
	v.Checks = []txn.Check{{Name: "document", Status: txn.Hit}, {Name: "blocklist", Status: txn.Clear}, {Name: "serpro", Status: txn.Unknown}, {Name: "odd", Status: ""}}
	return v
}

func TestFactsOfAFullTransaction(t *testing.T) {
	got := rules.FactsOf(full(), time.FixedZone("-03", -3*3600))
	want := rules.Facts{
		Vars: map[string]any{
			"hour": int64(20), "weekday": int64(0),
			"tx":         map[string]any{"type": "pix", "direction": "outbound", "amount": int64(13725), "currency": "BRL", "channel": "app", "age_s": 1.0},
			"payer":      map[string]any{"document_type": "cpf", "account_type": "CACC", "account_age_s": 90.0, "age_s": 100.0, "count_5m": 7.0},
			"payee":      map[string]any{"document_type": "cnpj", "account_type": "TRAN", "account_age_s": 80.0, "pix_key_type": "email", "pix_key_age_s": 70.0, "settlements_d90": 4.0, "settlements_m12": 67.0, "mule_accounts_d90": 1.0, "other_frauds_m60": 2.0},
			"merchant":   map[string]any{"id": "m-1", "mcc": "5411", "country": "BR", "terminal_id": "t-9"},
			"card":       map[string]any{"bin": "544731", "last4": "1881", "entry_mode": "chip", "three_ds": "Y"},
			"device":     map[string]any{"os": "android", "app_version": "1.2", "is_rooted": false, "is_emulator": true, "age_s": 60.0},
			"network":    map[string]any{"asn": int64(64500), "is_vpn": false},
			"geo":        map[string]any{"lat": -23.6, "lon": -46.6, "accuracy_m": 20.5},
			"session":    map[string]any{"authentication": "biometric", "age_s": 50.0},
			"terminal":   map[string]any{"count_5m": 2.0},
			"attributes": map[string]any{"segment": "retail", "n": 3.5},
			"checks":     map[string]string{"document": "hit", "blocklist": "clear"},
		},
		Unknown: []string{"device.count_1h", "payer.sum_5m", "checks.serpro", "checks.odd"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestFactsOfTheLeastTransaction(t *testing.T) {
	empty := map[string]any{}
	want := rules.Facts{Vars: map[string]any{"hour": int64(23), "weekday": int64(0),
		"tx":    map[string]any{"type": "pix", "amount": int64(13725), "currency": "BRL", "age_s": 1.0},
		"payer": empty, "payee": empty, "merchant": empty, "card": empty, "device": empty, "network": empty, "geo": empty, "session": empty,
		"terminal": empty, "attributes": empty, "checks": map[string]string{}}}
	if diff := cmp.Diff(want, rules.FactsOf(minimal(), time.UTC)); diff != "" {
		t.Error(diff)
	}
}

// Whatever a condition may name exists in no other spelling in the facts of a full transaction.
func TestEveryFactCanBeNamed(t *testing.T) {
	for entity, fields := range rules.FactsOf(full(), time.UTC).Vars {
		fields, ok := fields.(map[string]any)
		if !ok || entity == "attributes" {
			continue
		}
		for field := range fields {
			set(t, `{id: a, when: 'has(`+entity+`.`+field+`)', points: 5, code: A, text: "{`+entity+`.`+field+`}"}`)
		}
	}
}

func TestATextShowsItsInputs(t *testing.T) {
	v := full()
	v.Tx.Amount = 9007199254740993
	v.Features["payer.sum_30d"] = event.Value{Known: true, Number: 1e15}
	for text, want := range map[string]string{
		"plain":                           "plain",
		"{payer.count_5m} payments":       "7 payments",
		"{tx.amount} of {payer.sum_30d}":  "9007199254740993 of 1000000000000000",
		"{attributes.n}, {geo.lat}":       "3.5, -23.6",
		"at {hour} on {weekday}":          "at 23 on 0",
		"{checks.document}":               "hit",
		"{device.is_rooted}":              "false",
		"{payer.sum_5m}, {checks.serpro}": "unknown, unknown",
		"{payee.count_5m}":                "unknown",
		"a } stays":                       "a } stays",
	} {
		s := set(t, `{id: a, when: tx.amount > 0, points: 5, code: A, text: "`+text+`"}`)
		if got := s.Evaluate(rules.FactsOf(v, time.UTC)).Reasons[0].Text; got != want {
			t.Errorf("%q gives %q, want %q", text, got, want)
		}
	}
}

func TestUnknownFactsAreInOrder(t *testing.T) {
	v := minimal()
	v.Features = map[string]event.Value{}
	for _, name := range []string{"e", "d", "c", "b", "a"} {
		v.Features["payer."+name] = event.Value{}
	}
	for range 20 {
		if got := rules.FactsOf(v, time.UTC).Unknown; !slices.IsSorted(got) || len(got) != 5 {
			t.Fatalf("got %v", got)
		}
	}
}
