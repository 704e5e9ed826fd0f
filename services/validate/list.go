package validate

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"crivo/pkg/brdoc"
	"crivo/pkg/seal"
	"crivo/pkg/txn"
	"crivo/pkg/yaml"
)

// Keys gives a tenant's keys; list values are matched as tokens.
type Keys interface {
	Box(tenant string) (*seal.Box, error)
}

// entry is one line of the list's file. Values are clear text there, written by operators, and tokens from then on.
type entry struct {
	Kind      string     `yaml:"kind"` // document, document_root, account, pix_key, customer_id, device_id, card_token, ip, merchant_id, terminal_id
	Value     asWritten  `yaml:"value"`
	Tenant    string     `yaml:"tenant"` // empty: all
	Reason    string     `yaml:"reason"`
	AddedBy   string     `yaml:"added_by"`
	ExpiresAt *time.Time `yaml:"expires_at"`
}

// asWritten is a scalar's text as it stands in the file: 0042 is no number here.
type asWritten string

// UnmarshalYAML takes the text; quotes are YAML's own.
func (a *asWritten) UnmarshalYAML(text []byte) error {
	plain := strings.TrimSpace(string(text))
	if strings.HasPrefix(plain, `"`) || strings.HasPrefix(plain, "'") {
		return yaml.Read(text, (*string)(a))
	}
	*a = asWritten(plain)
	return nil
}

// rule is an entry that was understood; its value masks itself.
type rule struct {
	kind    string // a token kind, or merchant_id, terminal_id
	value   txn.Personal
	tenant  string
	expires time.Time // zero: never
}

// Snapshot is one version of the list.
type Snapshot struct {
	version string
	asOf    time.Time
	stale   string // why this is not the newest version, or no version at all; empty when it is
	none    bool   // there is no good version: every answer is unknown
	rules   []rule
	tenants sync.Map // tenant → map[string]time.Time, token or clear value by kind → expiry
}

// ParseList reads a YAML list of entries; the error names every bad one by position, never by value.
func ParseList(data []byte, asOf time.Time) (*Snapshot, error) {
	var entries []entry
	if err := yaml.Strict(data, &entries); err != nil {
		return nil, errors.New("not a YAML list of entries with kind, value, tenant, reason, added_by, expires_at")
	}
	sum := sha256.Sum256(data)
	s := &Snapshot{version: hex.EncodeToString(sum[:6]), asOf: asOf}
	var errs []error
	for i, e := range entries {
		r, err := e.understand()
		if err != nil {
			errs = append(errs, fmt.Errorf("entry %d: %w", i+1, err))
			continue
		}
		s.rules = append(s.rules, r)
	}
	return s, errors.Join(errs...)
}

func (e entry) understand() (rule, error) {
	r := rule{kind: e.Kind, tenant: e.Tenant, value: txn.Secretive(string(e.Value))}
	if e.ExpiresAt != nil {
		r.expires = *e.ExpiresAt
	}
	if e.Value == "" {
		return r, errors.New("value is missing")
	}
	switch e.Kind {
	case txn.KindDocument:
		d, err := txn.ParseDocument(string(e.Value))
		r.value = d.Personal
		return r, err
	case txn.KindDocumentRoot:
		d, err := brdoc.Parse(string(e.Value) + "000000")
		if err != nil || d.Root() == "" {
			return r, errors.New("a root is a CNPJ's first 8 characters")
		}
		r.value = txn.Secretive(d.Root())
	case txn.KindIP:
		return e.network(r)
	case txn.KindAccount, txn.KindPixKey, txn.KindCustomerID, txn.KindDeviceID, txn.KindCardToken, "merchant_id", "terminal_id":
	default:
		return r, errors.New("kind is unknown")
	}
	return r, nil
}

// network reads an address, or a network of one of the sizes that transactions carry tokens for.
func (e entry) network(r rule) (rule, error) {
	if ip, _, _, ok := txn.Networks(string(e.Value)); ok {
		r.value = txn.Secretive(ip)
		return r, nil
	}
	p, err := netip.ParsePrefix(string(e.Value))
	if err != nil {
		return r, errors.New("not an address or network")
	}
	near, wide := 24, 16
	if p.Addr().Is6() {
		near, wide = 64, 48
	}
	switch p.Bits() {
	case near:
		r.kind = txn.KindIPNear
	case wide:
		r.kind = txn.KindIPWide
	default:
		return r, errors.New("networks are /24 and /16, for IPv6 /64 and /48")
	}
	r.value = txn.Secretive(p.Masked().String())
	return r, nil
}

// check looks a transaction up.
func (s *Snapshot) check(tenant string, t txn.Sealed, keys Keys, now time.Time) txn.Check {
	asOf := txn.At(s.asOf)
	c := txn.Check{Name: CheckBlocklist, Status: txn.Clear, AsOf: &asOf, Version: s.version, Cache: "fresh", Error: s.stale}
	if s.stale != "" {
		c.Cache = "stale"
	}
	if s.none {
		c.Status, c.AsOf, c.Cache = txn.Unknown, nil, ""
		return c
	}
	if len(s.rules) == 0 {
		return c
	}
	known, err := s.tokens(tenant, keys)
	if err != nil {
		c.Status, c.Error = txn.Unknown, "keys"
		return c
	}
	for _, key := range keysOf(t) {
		if expires, ok := known[key]; ok && (expires.IsZero() || now.Before(expires)) {
			c.Status = txn.Hit
		}
	}
	return c
}

// tokens returns the list as one tenant's transactions show it, made once per tenant.
func (s *Snapshot) tokens(tenant string, keys Keys) (map[string]time.Time, error) {
	if m, ok := s.tenants.Load(tenant); ok {
		return m.(map[string]time.Time), nil
	}
	box, err := keys.Box(tenant)
	if err != nil {
		return nil, err
	}
	m := map[string]time.Time{}
	for _, r := range s.rules {
		if r.tenant != "" && r.tenant != tenant {
			continue
		}
		token := r.value.Reveal()
		if r.kind != "merchant_id" && r.kind != "terminal_id" {
			if token, err = box.Token(r.kind, token); err != nil {
				return nil, err
			}
		}
		key := r.kind + "/" + token
		if known, twice := m[key]; !twice || outlives(r.expires, known) {
			m[key] = r.expires
		}
	}
	s.tenants.Store(tenant, m)
	return m, nil
}

// outlives tells which of two entries for one value counts longer; zero never ends.
func outlives(a, b time.Time) bool { return !b.IsZero() && (a.IsZero() || a.After(b)) }

// keysOf lists what a transaction can be found by.
func keysOf(t txn.Sealed) []string {
	var out []string
	add := func(kind, token string) {
		if token != "" {
			out = append(out, kind+"/"+token)
		}
	}
	for _, p := range []*txn.SealedParty{&t.Payer, t.Payee} {
		if p == nil {
			continue
		}
		add(txn.KindCustomerID, p.CustomerID)
		if p.Document != nil {
			add(txn.KindDocument, p.Document.Token)
			add(txn.KindDocumentRoot, p.Document.Root)
		}
		if p.Account != nil {
			add(txn.KindAccount, p.Account.Token)
		}
		if p.PixKey != nil {
			add(txn.KindPixKey, p.PixKey.Token)
		}
	}
	if d := t.Device; d != nil {
		add(txn.KindDeviceID, d.ID)
	}
	if c := t.Card; c != nil {
		add(txn.KindCardToken, c.Token)
	}
	if n := t.Network; n != nil {
		add(txn.KindIP, n.IP)
		add(txn.KindIPNear, n.Near)
		add(txn.KindIPWide, n.Wide)
	}
	if m := t.Merchant; m != nil {
		add("merchant_id", m.ID)
		add("terminal_id", m.TerminalID)
	}
	return out
}

// list follows a file. A version that cannot be read leaves the last good one in use, as stale.
type list struct {
	path string
	now  func() time.Time
	log  zerolog.Logger

	size     int64
	modified time.Time
	snapshot atomic.Pointer[Snapshot]
}

func newList(path string, now func() time.Time, log zerolog.Logger) *list {
	l := &list{path: path, now: now, log: log}
	l.snapshot.Store(&Snapshot{version: "empty", asOf: now()})
	return l
}

func (l *list) current() *Snapshot { return l.snapshot.Load() }

// reload reads the file if it changed since it was last read, well or not. One that could not be read at all is tried again.
func (l *list) reload() {
	if l.path == "" {
		return
	}
	info, err := os.Stat(l.path)
	if err == nil && info.Size() == l.size && info.ModTime().Equal(l.modified) {
		return
	}
	l.size, l.modified = -1, time.Time{}
	var data []byte
	if err == nil {
		data, err = os.ReadFile(l.path)
	}
	if err != nil {
		l.spoil(err)
		return
	}
	l.size, l.modified = info.Size(), info.ModTime()
	next, err := ParseList(data, l.now())
	if err != nil {
		l.spoil(err)
		return
	}
	l.snapshot.Store(next)
	l.log.Info().Str("version", next.version).Int("entries", len(next.rules)).Msg("block list loaded")
}

// spoil marks what is in use as not the newest.
func (l *list) spoil(err error) {
	last := l.current()
	if last.stale != "" {
		return
	}
	l.log.Error().Err(err).Msg("block list cannot be read")
	l.snapshot.Store(&Snapshot{version: last.version, asOf: last.asOf, rules: last.rules, stale: "invalid", none: last.version == "empty"})
}
