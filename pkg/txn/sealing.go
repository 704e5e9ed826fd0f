package txn

import (
	"fmt"
	"math"
	"net/netip"
	"regexp"
	"strings"

	"github.com/go-json-experiment/json"
)

// Token kinds: equal values of different kinds have different tokens.
const (
	KindDocument     = "document"
	KindDocumentRoot = "document_root"
	KindAccount      = "account"
	KindPixKey       = "pix_key"
	KindCustomerID   = "customer_id"
	KindDeviceID     = "device_id"
	KindCardToken    = "card_token"
	KindSessionID    = "session_id"
	KindIP           = "ip"
	KindIPNear       = "ip_near"
	KindIPWide       = "ip_wide"
	KindDigest       = "digest"
)

// canonicalVersion starts the canonical form, so that a later form can never be mistaken for this one.
const canonicalVersion = "crivo/1\n"

// Canonical returns the form whose keyed digest tells a repeat from another transaction under the same id: document
// punctuation, time offsets, member order, white space and nulls do not show in it, any value does.
func (t Transaction) Canonical() ([]byte, error) {
	clear, err := t.MarshalClear()
	if err != nil {
		return nil, fmt.Errorf("canonical form: %w", err)
	}
	return append([]byte(canonicalVersion), clear...), nil
}

// Digest returns the keyed digest of t; compare another transaction with [SameDigest].
func Digest(s Sealer, t Transaction) (string, error) {
	c, err := t.Canonical()
	if err != nil {
		return "", err
	}
	return s.Token(KindDigest, string(c))
}

// SameDigest tells whether t gave digest, under the key that the digest names.
func SameDigest(s Sealer, digest string, t Transaction) (bool, error) {
	c, err := t.Canonical()
	if err != nil {
		return false, err
	}
	return s.Matches(digest, KindDigest, string(c))
}

// Seal returns t with its personal fields as tokens and ciphertext under s, bound to tenant and id.
func Seal(s Sealer, tenant string, t Transaction) (Sealed, error) {
	clear, err := t.MarshalClear()
	if err != nil {
		return Sealed{}, fmt.Errorf("seal: %w", err)
	}
	k := &tokens{sealer: s}
	out := Sealed{ID: t.ID, Type: t.Type, Direction: t.Direction, Amount: t.Amount, Currency: t.Currency, CreatedAt: t.CreatedAt,
		Channel: t.Channel, EndToEndID: t.EndToEndID, Payer: k.party(t.Payer), Attributes: t.Attributes}
	if t.Payee != nil {
		payee := k.party(*t.Payee)
		out.Payee = &payee
	}
	if t.Merchant != nil {
		out.Merchant = &t.Merchant.Merchant
	}
	k.around(t, &out)
	if k.err != nil {
		return Sealed{}, fmt.Errorf("seal: %w", k.err)
	}
	out.Blob, err = s.Seal(clear, []byte(tenant+"/"+t.ID))
	if err != nil {
		return Sealed{}, fmt.Errorf("seal: %w", err)
	}
	return out, nil
}

// Open returns the transaction that was sealed; it fails under another tenant's keys or for another id.
func Open(s Sealer, tenant string, sealed Sealed) (Transaction, error) {
	clear, err := s.Open(sealed.Blob, []byte(tenant+"/"+sealed.ID))
	if err != nil {
		return Transaction{}, fmt.Errorf("open: %w", err)
	}
	var t Transaction
	if err := json.Unmarshal(clear, &t); err != nil {
		return Transaction{}, fmt.Errorf("open: sealed body unreadable")
	}
	return t, nil
}

// tokens makes tokens and keeps the first error.
type tokens struct {
	sealer Sealer
	err    error
}

func (k *tokens) of(kind, value string) string {
	if value == "" || k.err != nil {
		return ""
	}
	var token string
	token, k.err = k.sealer.Token(kind, value)
	return token
}

func (k *tokens) party(p Party) SealedParty {
	out := SealedParty{CustomerID: k.of(KindCustomerID, p.CustomerID.Reveal()), CreatedAt: p.CreatedAt, Statistics: p.Statistics}
	if d := p.Document; !d.IsZero() {
		out.Document = &SealedDocument{Token: k.of(KindDocument, d.Reveal()), Root: k.of(KindDocumentRoot, d.Root()), Type: d.Kind, Valid: d.Valid}
	}
	if a := p.Account; a != nil {
		out.Account = &SealedAccount{Token: k.of(KindAccount, AccountKey(a.ISPB, a.Branch.Reveal(), a.Number.Reveal())),
			ISPB: a.ISPB, Type: a.Type, OpenedAt: a.OpenedAt}
	}
	if x := p.PixKey; x != nil {
		out.PixKey = &SealedPixKey{Type: x.Type, Token: k.of(KindPixKey, PixKeyText(x.Value.Reveal())), OwnedSince: x.OwnedSince}
	}
	return out
}

// uuid is the form of a random Pix key.
var uuid = regexp.MustCompile(`^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$`)

// PixKeyText is the text that a Pix key's token is made from, as the DICT writes it: a document without its punctuation, e-mail and
// random keys in lower case, anything else as it is.
func PixKeyText(value string) string {
	if strings.Contains(value, "@") || uuid.MatchString(value) {
		return strings.ToLower(value)
	}
	if d, err := ParseDocument(value); err == nil {
		return d.Reveal()
	}
	return value
}

// AccountKey is the text that an account's token is made from; "" when there is no number.
func AccountKey(ispb, branch, number string) string {
	if number == "" {
		return ""
	}
	return ispb + "/" + branch + "/" + number
}

func (k *tokens) around(t Transaction, out *Sealed) {
	if c := t.Card; c != nil {
		out.Card = &SealedCard{Token: k.of(KindCardToken, c.Token.Reveal()), BIN: c.BIN, Last4: c.Last4, EntryMode: c.EntryMode, ThreeDS: c.ThreeDS}
	}
	if d := t.Device; d != nil {
		out.Device = &SealedDevice{ID: k.of(KindDeviceID, d.ID.Reveal()), RegisteredAt: d.RegisteredAt, OS: d.OS, AppVersion: d.AppVersion,
			IsRooted: d.IsRooted, IsEmulator: d.IsEmulator}
	}
	if n := t.Network; n != nil {
		out.Network = k.network(n)
	}
	if g := t.Geo; g != nil {
		out.Geo = &SealedGeo{Lat: tenth(g.Lat.Reveal()), Lon: tenth(g.Lon.Reveal()), AccuracyM: g.AccuracyM}
	}
	if s := t.Session; s != nil {
		out.Session = &SealedSession{ID: k.of(KindSessionID, s.ID.Reveal()), Authentication: s.Authentication, StartedAt: s.StartedAt}
	}
}

// tenth rounds to 0.1 degree, about 11 km.
func tenth(v float64) float64 { return math.Round(v*10) / 10 }

func (k *tokens) network(n *Network) *SealedNetwork {
	out := &SealedNetwork{ASN: n.ASN, IsVPN: n.IsVPN}
	ip, near, wide, ok := Networks(n.IP.Reveal())
	if ok {
		out.IP, out.Near, out.Wide = k.of(KindIP, ip), k.of(KindIPNear, near), k.of(KindIPWide, wide)
	}
	return out
}

// Networks returns the canonical texts of an address, its /24 and its /16 (IPv6: /64 and /48), from which tokens are made, so
// that block lists can hold networks. An IPv4 address mapped into IPv6 counts as IPv4.
func Networks(address string) (ip, near, wide string, ok bool) {
	a, err := netip.ParseAddr(address)
	if err != nil {
		return "", "", "", false
	}
	a = a.Unmap().WithZone("")
	nearBits, wideBits := 24, 16
	if a.Is6() {
		nearBits, wideBits = 64, 48
	}
	return a.String(), netip.PrefixFrom(a, nearBits).Masked().String(), netip.PrefixFrom(a, wideBits).Masked().String(), true
}
