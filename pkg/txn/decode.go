package txn

import (
	"bytes"
	"fmt"
	"math"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// Limits of a body.
const (
	MaxDepth    = 8
	MaxMetadata = 4 << 10 // bytes
	// MaxAmount is the largest amount in minor units: windows add up thousands of them in 64 bits, and every JSON reader
	// keeps it exactly.
	MaxAmount    = 1_000_000_000_000_000
	maxAttribute = 64 // characters of a name or a string
	maxAhead     = 5 * time.Minute
)

// Decode reads and checks a transaction at the time now. A body that is no JSON object gives an error that wraps
// [ErrMalformed]; fields at fault give [Faults], all of them at once and never a value, and beside them the id alone, where it
// is a good one.
func Decode(data []byte, now time.Time) (Transaction, error) {
	r := &reader{dec: jsontext.NewDecoder(bytes.NewBuffer(data))}
	if depth(data) > MaxDepth {
		return Transaction{}, fmt.Errorf("%w: nested too deep", ErrMalformed)
	}
	if kind := r.dec.PeekKind(); kind != '{' && kind != 0 {
		return Transaction{}, fmt.Errorf("%w: not an object", ErrMalformed)
	}
	t := r.transaction(now)
	r.end()
	if r.err != nil {
		return Transaction{}, r.err
	}
	if len(r.faults) > 0 {
		return Transaction{ID: t.ID}, r.faults
	}
	return t, nil
}

func oneOf(words ...string) shape {
	return shape{limit: 64, ok: func(v string) bool { return slices.Contains(words, v) }, want: "one of " + strings.Join(words, ", ")}
}

func pattern(limit int, expr, want string) shape {
	return shape{limit: limit, ok: regexp.MustCompile(`^(?:` + expr + `)$`).MatchString, want: want}
}

// The shapes of what is not free text. Sources: ISO 4217, ISO 3166, ISO 18245, Banco Central do Brasil for Pix and SPI.
var (
	idShape     = pattern(64, `[A-Za-z0-9._:-]{1,64}`, "1 to 64 of A-Z a-z 0-9 . _ : -")
	types       = oneOf("pix", "card", "ted", "boleto", "book_transfer", "other")
	directions  = oneOf("outbound", "inbound")
	channels    = oneOf("app", "web", "api", "pos", "atm", "branch", "call_center")
	currency    = shape{limit: 3, ok: func(v string) bool { _, ok := Exponent(v); return ok }, want: "an active ISO 4217 code"}
	endToEnd    = pattern(32, `E[0-9]{8}[0-9]{4}(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])([01][0-9]|2[0-3])[0-5][0-9][a-zA-Z0-9]{11}`, "E, ISPB, yyyyMMddHHmm in UTC and 11 alphanumerics")
	documentOf  = oneOf("cpf", "cnpj")
	ispb        = pattern(8, `[0-9A-Z]{8}`, "the 8 characters of an ISPB")
	accountType = oneOf("CACC", "SLRY", "SVGS", "TRAN")
	pixKeyType  = oneOf("cpf", "cnpj", "email", "phone", "evp")
	mcc         = pattern(4, `[0-9]{4}`, "4 digits")
	country     = pattern(2, `[A-Z]{2}`, "two capital letters (ISO 3166)")
	bin         = pattern(8, `[0-9]{6,8}`, "6 to 8 digits")
	last4       = pattern(4, `[0-9]{4}`, "4 digits")
	entryMode   = oneOf("chip", "contactless", "cnp", "magstripe", "manual")
	authMeans   = oneOf("none", "password", "biometric", "mfa")
	plainID     = shape{limit: 64}
	address     = shape{limit: 64, ok: func(v string) bool { a, err := netip.ParseAddr(v); return err == nil && a.Zone() == "" }, want: "an IPv4 or IPv6 address"}
)

func (r *reader) transaction(now time.Time) Transaction {
	var t Transaction
	var amount *int64
	var created *Time
	r.object("", func(name, at string) bool {
		switch name {
		case "id":
			t.ID = r.text(at, idShape)
		case "type":
			t.Type = r.text(at, types)
		case "direction":
			t.Direction = r.text(at, directions)
		case "amount":
			amount = r.integer(at, 0, MaxAmount)
		case "currency":
			t.Currency = r.text(at, currency)
		case "created_at":
			created = r.instant(at)
		case "channel":
			t.Channel = r.text(at, channels)
		case "end_to_end_id":
			t.EndToEndID = r.text(at, endToEnd)
		case "description":
			t.Description = r.personal(at, 140)
		case "payer":
			t.Payer = r.party(at)
		case "payee":
			p := r.party(at)
			t.Payee = &p
		case "attributes":
			t.Attributes = r.attributes(at)
		case "metadata":
			t.Metadata = r.metadata(at)
		default:
			return r.around(&t, name, at)
		}
		return true
	})
	r.required(&t, amount, created)
	if created != nil && created.After(now.Add(maxAhead)) {
		r.fault("/created_at", OutOfRange, "must not be more than 5 minutes ahead")
	}
	return t
}

// around reads what surrounds a payment: merchant, card, device, network, position, session.
func (r *reader) around(t *Transaction, name, at string) bool {
	switch name {
	case "merchant":
		t.Merchant = r.merchant(at)
	case "card":
		t.Card = r.card(at)
	case "device":
		t.Device = r.device(at)
	case "network":
		t.Network = r.network(at)
	case "geo":
		t.Geo = r.geo(at)
	case "session":
		t.Session = r.session(at)
	default:
		return false
	}
	return true
}

// required adds a fault for each required field that is absent and not already at fault.
func (r *reader) required(t *Transaction, amount *int64, created *Time) {
	if amount != nil {
		t.Amount = *amount
	}
	if created != nil {
		t.CreatedAt = *created
	}
	for _, f := range []struct {
		pointer string
		absent  bool
	}{
		{"/id", t.ID == ""}, {"/type", t.Type == ""}, {"/amount", amount == nil}, {"/currency", t.Currency == ""}, {"/created_at", created == nil},
	} {
		if f.absent && !r.faulty(f.pointer) {
			r.fault(f.pointer, Required, "is required")
		}
	}
	if t.Payer.Document.IsZero() && t.Payer.CustomerID.IsZero() && !r.faulty("/payer/document") && !r.faulty("/payer/customer_id") && !r.faulty("/payer") {
		r.fault("/payer", Required, "document or customer_id is required")
	}
}

func (r *reader) faulty(pointer string) bool {
	return slices.ContainsFunc(r.faults, func(f Fault) bool { return f.Pointer == pointer })
}

func (r *reader) party(at string) Party {
	var p Party
	kind := ""
	r.object(at, func(name, at string) bool {
		switch name {
		case "document":
			p.Document = r.document(at)
		case "document_type":
			kind = r.text(at, documentOf)
		case "name":
			p.Name = r.personal(at, 140)
		case "customer_id":
			p.CustomerID = r.personal(at, 64)
		case "created_at":
			p.CreatedAt = r.instant(at)
		case "account":
			p.Account = r.account(at)
		case "pix_key":
			p.PixKey = r.pixKey(at)
		case "statistics":
			p.Statistics = r.statistics(at)
		default:
			return false
		}
		return true
	})
	switch {
	case kind == "":
	case p.Document.IsZero() && !r.faulty(at+"/document"):
		r.fault(at+"/document", Required, "is required where document_type is given")
	case !p.Document.IsZero() && kind != p.Document.Kind:
		r.fault(at+"/document_type", WrongFormat, "does not agree with the document")
	}
	return p
}

func (r *reader) document(at string) Document {
	text := r.text(at, shape{limit: 32})
	if text == "" {
		return Document{}
	}
	d, err := ParseDocument(text)
	if err != nil {
		r.fault(at, WrongFormat, "must be a CPF (11 digits) or a CNPJ (14 characters), with or without punctuation")
	}
	return d
}

func (r *reader) account(at string) *Account {
	var a Account
	r.object(at, func(name, at string) bool {
		switch name {
		case "ispb":
			a.ISPB = r.text(at, ispb)
		case "branch":
			a.Branch = r.personal(at, 10)
		case "number":
			a.Number = r.personal(at, 24)
		case "type":
			a.Type = r.text(at, accountType)
		case "opened_at":
			a.OpenedAt = r.instant(at)
		default:
			return false
		}
		return true
	})
	return &a
}

func (r *reader) pixKey(at string) *PixKey {
	var k PixKey
	r.object(at, func(name, at string) bool {
		switch name {
		case "type":
			k.Type = r.text(at, pixKeyType)
		case "value":
			k.Value = r.personal(at, 77)
		case "owned_since":
			k.OwnedSince = r.instant(at)
		default:
			return false
		}
		return true
	})
	return &k
}

func (r *reader) statistics(at string) *Statistics {
	var s Statistics
	counters := map[string]*map[string]int64{"settlements": &s.Settlements, "mule_accounts": &s.MuleAccounts,
		"scammer_accounts": &s.ScammerAccounts, "application_frauds": &s.ApplicationFrauds, "other_frauds": &s.OtherFrauds}
	r.object(at, func(name, at string) bool {
		if name == "as_of" {
			s.AsOf = r.instant(at)
			return true
		}
		into, ok := counters[name]
		if ok {
			*into = r.windows(at)
		}
		return ok
	})
	return &s
}

func (r *reader) windows(at string) map[string]int64 {
	out := map[string]int64{}
	r.object(at, func(name, at string) bool {
		if name != "d90" && name != "m12" && name != "m60" {
			return false
		}
		if n := r.integer(at, 0, math.MaxInt64); n != nil {
			out[name] = *n
		}
		return true
	})
	if len(out) == 0 {
		return nil
	}
	return out
}

func (r *reader) merchant(at string) *Shop {
	var m Shop
	r.object(at, func(name, at string) bool {
		switch name {
		case "id":
			m.ID = r.text(at, plainID)
		case "name":
			m.Name = r.personal(at, 140)
		case "mcc":
			m.MCC = r.text(at, mcc)
		case "terminal_id":
			m.TerminalID = r.text(at, plainID)
		case "country":
			m.Country = r.text(at, country)
		default:
			return false
		}
		return true
	})
	return &m
}

func (r *reader) card(at string) *Card {
	var c Card
	r.object(at, func(name, at string) bool {
		switch name {
		case "token":
			c.Token = r.personal(at, 64)
		case "bin":
			c.BIN = r.text(at, bin)
		case "last4":
			c.Last4 = r.text(at, last4)
		case "entry_mode":
			c.EntryMode = r.text(at, entryMode)
		case "three_ds":
			c.ThreeDS = r.text(at, plainID)
		default:
			return false
		}
		return true
	})
	return &c
}

func (r *reader) device(at string) *Device {
	var d Device
	r.object(at, func(name, at string) bool {
		switch name {
		case "id":
			d.ID = r.personal(at, 128)
		case "registered_at":
			d.RegisteredAt = r.instant(at)
		case "os":
			d.OS = r.text(at, plainID)
		case "app_version":
			d.AppVersion = r.text(at, plainID)
		case "is_rooted":
			d.IsRooted = r.flag(at)
		case "is_emulator":
			d.IsEmulator = r.flag(at)
		default:
			return false
		}
		return true
	})
	return &d
}

func (r *reader) network(at string) *Network {
	var n Network
	r.object(at, func(name, at string) bool {
		switch name {
		case "ip":
			n.IP = Secretive(r.text(at, address))
		case "asn":
			n.ASN = r.integer(at, 0, math.MaxUint32)
		case "is_vpn":
			n.IsVPN = r.flag(at)
		default:
			return false
		}
		return true
	})
	return &n
}

func (r *reader) geo(at string) *Geo {
	var g Geo
	var lat, lon *float64
	if !r.object(at, func(name, at string) bool {
		switch name {
		case "lat":
			lat = r.number(at, -90, 90)
		case "lon":
			lon = r.number(at, -180, 180)
		case "accuracy_m":
			g.AccuracyM = r.number(at, 0, 1e6)
		default:
			return false
		}
		return true
	}) {
		return nil
	}
	if lat == nil && !r.faulty(at+"/lat") {
		r.fault(at+"/lat", Required, "is required in a position")
	}
	if lon == nil && !r.faulty(at+"/lon") {
		r.fault(at+"/lon", Required, "is required in a position")
	}
	if lat != nil && lon != nil {
		g.Lat, g.Lon = Degrees{lat}, Degrees{lon}
	}
	return &g
}

func (r *reader) session(at string) *Session {
	var s Session
	r.object(at, func(name, at string) bool {
		switch name {
		case "id":
			s.ID = r.personal(at, 128)
		case "authentication":
			s.Authentication = r.text(at, authMeans)
		case "started_at":
			s.StartedAt = r.instant(at)
		default:
			return false
		}
		return true
	})
	return &s
}

// attributes reads a flat object of strings, numbers and booleans.
func (r *reader) attributes(at string) map[string]any {
	out := map[string]any{}
	r.object(at, func(name, at string) bool {
		if name == "" || utf8.RuneCountInString(name) > maxAttribute {
			r.fault(at, TooLong, "names have 1 to %d characters", maxAttribute)
			r.skip()
			return true
		}
		switch r.dec.PeekKind() {
		case '"':
			out[name] = r.text(at, shape{limit: maxAttribute})
		case '0':
			if n := r.number(at, -math.MaxFloat64, math.MaxFloat64); n != nil {
				out[name] = *n
			}
		case 't', 'f':
			out[name] = *r.flag(at)
		default:
			r.fault(at, WrongType, "must be a string, a number or a boolean")
			r.skip()
		}
		return true
	})
	if len(out) > 32 {
		r.fault(at, TooLong, "at most 32 attributes")
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

func (r *reader) metadata(at string) Metadata {
	if !r.expect(at, '{', "an object") {
		return Metadata{}
	}
	raw, err := r.dec.ReadValue()
	if err != nil {
		r.broken(err)
		return Metadata{}
	}
	if len(raw) > MaxMetadata {
		r.fault(at, TooLong, "at most %d bytes", MaxMetadata)
		return Metadata{}
	}
	v := raw.Clone()
	// Numbers keep their text: canonical JSON would round large ones, and they are the client's.
	if err := v.Canonicalize(jsontext.CanonicalizeRawInts(false), jsontext.CanonicalizeRawFloats(false)); err != nil {
		r.broken(err)
	}
	return Metadata{&v}
}
