package edge

import "sync"

// seats are for requests that hold much, for as long as their clients take. One tenant gets three in four of them at most, so
// that its slow clients are in nobody else's way.
type seats struct {
	most int

	mu    sync.Mutex
	taken int
	of    map[string]int // by tenant
}

func newSeats(most int) *seats { return &seats{most: most, of: map[string]int{}} }

// take takes a seat for a tenant, which leave gives back; false: none is left for it.
func (s *seats) take(tenant string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken >= s.most || s.of[tenant] >= s.most-s.most/4 {
		return false
	}
	s.taken++
	s.of[tenant]++
	return true
}

func (s *seats) leave(tenant string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken--
	if s.of[tenant]--; s.of[tenant] == 0 {
		delete(s.of, tenant)
	}
}
