package rules

import (
	"sync"

	"crivo/pkg/txn"
)

// Live holds the set that new transactions are pinned to, and every version that is still referred to.
type Live struct {
	mu       sync.RWMutex
	current  *Set
	versions map[txn.RuleSet]*Set
}

// NewLive starts with one set.
func NewLive(s *Set) *Live {
	return &Live{current: s, versions: map[txn.RuleSet]*Set{s.Ref(): s}}
}

// Current returns the set that is pinned to new transactions.
func (l *Live) Current() *Set {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.current
}

// Version returns the set that a transaction was pinned to.
func (l *Live) Version(ref txn.RuleSet) (*Set, bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	s, ok := l.versions[ref]
	return s, ok
}

// Publish makes s the set for new transactions; older versions stay for those pinned to them.
func (l *Live) Publish(s *Set) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.current, l.versions[s.Ref()] = s, s
}
