package validate

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"crivo/pkg/app"
	"crivo/pkg/seal"
	"crivo/pkg/txn"
	"crivo/pkg/yaml"
	"crivo/services/lists"
	"crivo/services/store"
)

// Keys gives a tenant's keys; list values are matched as tokens.
type Keys interface {
	Box(tenant string) (*seal.Box, error)
}

// Lists is where lists are kept that operators change by the API.
type Lists interface {
	// ListEntries returns every entry of every tenant, in an order that changes with them only.
	ListEntries(ctx context.Context) ([]store.ListEntry, error)
}

// entry is one line of the list's file. Values are clear text there, written by operators, and tokens from then on.
type entry struct {
	Kind      string    `yaml:"kind"` // see package lists
	Value     asWritten `yaml:"value"`
	Tenant    asWritten `yaml:"tenant"` // empty: all
	Reason    string    `yaml:"reason"`
	AddedBy   string    `yaml:"added_by"`
	ExpiresAt asWritten `yaml:"expires_at"` // empty: never
}

// asWritten is a scalar's text as it stands in the file: 0042 is no number here.
type asWritten struct {
	text string
	odd  bool // it is neither in quotes nor plain on one line: what it stands for is not what stands there
}

// UnmarshalYAML takes the text; quotes are YAML's own.
func (a *asWritten) UnmarshalYAML(text []byte) error {
	err := yaml.Read(text, &a.text)
	if plain := strings.TrimSpace(string(text)); !strings.HasPrefix(plain, `"`) && !strings.HasPrefix(plain, "'") {
		a.text, a.odd = plain, err != nil || strings.Contains(plain, "\n") || plain != strings.TrimLeft(plain, "!&*|>")
	}
	return nil
}

// errOdd is the fault of a text that is odd.
var errOdd = errors.New("value, tenant and expires_at are plain text on one line, or in quotes: no tag, alias, block or list")

var errEnd = errors.New("expires_at is a time such as 2026-12-31T23:59:59-03:00, with its zone")

// end is the time that a text stands for, zero for an empty one.
func (a asWritten) end() (time.Time, error) {
	if a.text == "" || a.text == "null" || a.text == "~" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339Nano, a.text)
	if err != nil {
		return time.Time{}, errEnd
	}
	return t, nil
}

// rule is an entry of the file that was understood; its value masks itself.
type rule struct {
	kind    string
	value   lists.Value
	tenant  string    // empty: all
	expires time.Time // zero: never
}

// marks are what transactions are found by, with the end of each; zero never ends.
type marks map[lists.Mark]time.Time

// add keeps the later of two ends.
func (m marks) add(mark lists.Mark, expires time.Time) {
	if known, twice := m[mark]; !twice || outlives(expires, known) {
		m[mark] = expires
	}
}

// part is what one of the two places of the list says: the file, or the store.
type part struct {
	digest [sha256.Size]byte
	asOf   time.Time
	stale  string // why this is not the newest version, or no version at all; empty when it is
	none   bool   // there is no good version yet
	rules  []rule
	stored map[string]marks // by tenant
}

// Snapshot is one version of the list.
type Snapshot struct {
	part             // of both places together
	version string   // of what both say
	tenants sync.Map // tenant → marks
}

// both is the snapshot of what the two places say.
func both(file, stored part) *Snapshot {
	s := &Snapshot{part: part{asOf: file.asOf, stale: file.stale, none: file.none || stored.none, rules: file.rules, stored: stored.stored}}
	if stored.asOf.After(s.asOf) {
		s.asOf = stored.asOf
	}
	if s.stale == "" {
		s.stale = stored.stale
	}
	s.digest = sha256.Sum256(append(file.digest[:], stored.digest[:]...))
	s.version = hex.EncodeToString(s.digest[:6])
	return s
}

// ParseList reads a YAML list of entries; the error names every bad one by position, never by value.
func ParseList(data []byte, asOf time.Time) (*Snapshot, error) {
	file, err := parse(data, asOf)
	return both(file, part{}), err
}

func parse(data []byte, asOf time.Time) (part, error) {
	var entries []entry
	if err := yaml.Strict(data, &entries); errors.Is(err, yaml.ErrDocuments) {
		return part{}, err
	} else if err != nil {
		return part{}, errors.New("not a YAML list of entries with kind, value, tenant, reason, added_by, expires_at")
	}
	p := part{digest: sha256.Sum256(data), asOf: asOf}
	var errs []error
	for i, e := range entries {
		value, err := lists.Understand(e.Kind, e.Value.text)
		if e.Value.odd || e.Tenant.odd || e.ExpiresAt.odd {
			err = errOdd
		}
		expires, endErr := e.ExpiresAt.end()
		err = errors.Join(err, endErr)
		if err != nil {
			errs = append(errs, fmt.Errorf("entry %d: %w", i+1, err))
			continue
		}
		r := rule{kind: e.Kind, value: value, tenant: e.Tenant.text, expires: expires}
		p.rules = append(p.rules, r)
	}
	return p, errors.Join(errs...)
}

// collect is the block list among stored entries.
func collect(entries []store.ListEntry, asOf time.Time) part {
	p := part{asOf: asOf, stored: map[string]marks{}}
	sum := sha256.New()
	for _, e := range entries {
		if e.List != lists.Block {
			continue
		}
		var expires time.Time
		if e.ExpiresAt != nil {
			expires = e.ExpiresAt.Time
		}
		if p.stored[e.Tenant] == nil {
			p.stored[e.Tenant] = marks{}
		}
		p.stored[e.Tenant].add(lists.Mark{Kind: e.Kind, Shown: e.Value}, expires)
		fmt.Fprintf(sum, "%q %q %q %d\n", e.Tenant, e.Kind, e.Value, expires.UnixMilli())
	}
	sum.Sum(p.digest[:0])
	return p
}

// check looks a transaction up. What is found in one place is a hit whatever has become of the other.
func (s *Snapshot) check(tenant string, t txn.Sealed, keys Keys, now time.Time) txn.Check {
	asOf := txn.At(s.asOf)
	c := txn.Check{Name: CheckBlocklist, Status: txn.Clear, AsOf: &asOf, Version: s.version, Cache: "fresh", Error: s.stale}
	if s.stale != "" {
		c.Cache = "stale"
	}
	known, err := s.marks(tenant, keys)
	if err != nil {
		c.Status, c.Error = txn.Unknown, "keys"
		return c
	}
	for _, mark := range lists.Marks(t) {
		if expires, ok := known[mark]; ok && (expires.IsZero() || now.Before(expires)) {
			c.Status = txn.Hit
		}
	}
	if s.none && c.Status == txn.Clear {
		c.Status, c.AsOf, c.Cache = txn.Unknown, nil, ""
	}
	return c
}

// marks returns the list as one tenant's transactions show it, made once per tenant.
func (s *Snapshot) marks(tenant string, keys Keys) (marks, error) {
	if len(s.rules) == 0 {
		return s.stored[tenant], nil
	}
	if m, ok := s.tenants.Load(tenant); ok {
		return m.(marks), nil
	}
	box, err := keys.Box(tenant)
	if err != nil {
		return nil, err
	}
	m := marks{}
	maps.Copy(m, s.stored[tenant])
	for _, r := range s.rules {
		if r.tenant != "" && r.tenant != tenant {
			continue
		}
		shown, err := r.value.Shown(box)
		if err != nil {
			return nil, err
		}
		m.add(lists.Mark{Kind: r.kind, Shown: shown}, r.expires)
	}
	s.tenants.Store(tenant, m)
	return m, nil
}

// outlives tells which of two entries for one value counts longer; zero never ends.
func outlives(a, b time.Time) bool { return !b.IsZero() && (a.IsZero() || a.After(b)) }

// list follows its two places. A version that cannot be read leaves the last good one in use, as stale.
type list struct {
	path   string // empty: no file
	stored Lists  // nil: nothing is stored
	now    func() time.Time
	log    zerolog.Logger
	health *app.Health // told while an older version is in use
	part   string      // of the health: a process may have more than one reader

	size     int64
	modified time.Time
	mu       sync.Mutex
	parts    struct{ file, stored part }
	snapshot atomic.Pointer[Snapshot]
}

func newList(cfg Config) *list {
	l := &list{path: cfg.Blocklist, stored: cfg.Lists, now: cfg.Clock.Now, log: cfg.Log, health: cfg.Health, part: strings.TrimSpace(cfg.Name + " " + CheckBlocklist)}
	l.parts.file = part{asOf: l.now(), none: l.path != ""}
	if l.stored != nil {
		l.parts.stored = part{none: true, stale: unavailable}
	}
	l.snapshot.Store(both(l.parts.file, l.parts.stored))
	return l
}

func (l *list) current() *Snapshot { return l.snapshot.Load() }

// use puts what change makes of a part in its place. A part that says what it said is left, with all that was made of it.
func (l *list) use(p *part, change func(part) part) (changed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	next := change(*p)
	if next.digest == p.digest && next.stale == p.stale && next.none == p.none {
		return false
	}
	*p = next
	l.snapshot.Store(both(l.parts.file, l.parts.stored))
	l.health.Degrade(l.part, l.missed())
	return true
}

// missed says what of the list cannot be read. A start that waits for the stored part is not ready and says that itself.
func (l *list) missed() string {
	var out []string
	if l.parts.file.stale != "" {
		out = append(out, "its file cannot be read")
	}
	if l.parts.stored.stale != "" && !l.parts.stored.none {
		out = append(out, "what is stored cannot be read")
	}
	return strings.Join(out, ", ")
}

func replaced(by part) func(part) part { return func(part) part { return by } }

// Why a part is not the newest.
const (
	invalid     = "invalid"
	unavailable = "unavailable"
)

func spoiled(why string) func(part) part {
	return func(p part) part {
		p.stale = why
		return p
	}
}

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
	var next part
	if err == nil {
		l.size, l.modified = info.Size(), info.ModTime()
		next, err = parse(data, l.now())
	}
	switch {
	case err != nil && l.use(&l.parts.file, spoiled(invalid)):
		l.log.Error().Err(err).Msg("block list cannot be read")
	case err == nil && l.use(&l.parts.file, replaced(next)):
		l.log.Info().Str("version", l.current().version).Int("entries", len(next.rules)).Msg("block list loaded")
	}
}

// load reads what is stored.
func (l *list) load(ctx context.Context) error {
	entries, err := l.stored.ListEntries(ctx)
	if err != nil {
		l.use(&l.parts.stored, spoiled(unavailable))
		return fmt.Errorf("stored lists: %w", err)
	}
	if l.use(&l.parts.stored, replaced(collect(entries, l.now()))) {
		l.log.Info().Str("version", l.current().version).Int("entries", len(entries)).Msg("stored lists loaded")
	}
	return nil
}
