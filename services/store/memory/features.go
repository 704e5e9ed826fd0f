// Package memory keeps stores of one node in memory: features with a snapshot and a tail on disk, and the reference rooms
// that tests run on.
package memory

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"crivo/services/enrich"
)

const (
	rotateAfter = 250_000 // events in tails, before they are folded into the snapshot
	mostTails   = 64      // files, the same

	mostOwed = 50_000 // events, some 25 MB
	owedPart = 1000   // of them in one frame
)

// Features keeps entities' histories in memory, and on disk as a snapshot and the events applied since (the tail). A tail is
// written before an event counts, so a killed process loses nothing; after a machine's reset, what the tail lacks is read
// from the stream again (see enrich.Run).
type Features struct {
	dir   string
	limit int // events in tails
	lock  *os.File

	mu    sync.Mutex
	state *state
	tail  *tail
	whole bool           // caught up with the stream
	owed  []enrich.Event // their write failed: nothing is known until they are written and applied
	lost  bool           // more than owed failed

	folding sync.WaitGroup
	folds   bool  // now
	foldErr error // of the last time
}

// state is everything that applied events came to.
type state struct {
	Position enrich.Position
	Since    time.Time // what happened before may be lacking
	Entities map[string]*history
	Applied  map[[16]byte]struct{}
	Order    []stamp // applied ids by arrival, to forget them after the longest window
	Newest   int64   // event time, ms
}

type stamp struct {
	At int64
	ID [16]byte
}

// history is one entity's events of the longest window: times ascending, and the running sum up to each.
type history struct {
	First int64
	At    []int64
	Sum   []int64 // of all amounts up to and including the event
	Base  int64   // running sum before the first event kept
	Lost  int64   // time of the newest event that was forgotten, or came too late to be counted; 0: none was
}

func newState() *state {
	return &state{Entities: map[string]*history{}, Applied: map[[16]byte]struct{}{}}
}

// OpenFeatures reads what dir holds; one process at a time.
func OpenFeatures(dir string) (*Features, error) { return open(dir, rotateAfter) }

func open(dir string, limit int) (*Features, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("features: %w", err)
	}
	lock, err := os.OpenFile(dir+"/lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("features: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("features: another process has %s; features in memory allow one enrich only", dir)
	}
	f := &Features{dir: dir, limit: limit, lock: lock}
	if f.state, f.tail, err = load(dir, limit/mostTails); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("features: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rotate()
	return f, nil
}

// Position tells up to where the stream has been applied.
func (f *Features) Position() enrich.Position {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state.Position
}

// Restart sets the place in the stream, and what happened before since may be lacking; histories stay, ids make repeats harmless.
func (f *Features) Restart(at enrich.Position, since time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	news := frame{Created: &at.Created, Sequence: at.Sequence, Since: since}
	if err := f.tail.write(news); err != nil {
		return fmt.Errorf("features: %w", err)
	}
	f.state.restart(news)
	return nil
}

func (s *state) restart(f frame) {
	s.Position = enrich.Position{Created: *f.Created, Sequence: f.Sequence}
	if f.Since.After(s.Since) {
		s.Since = f.Since
	}
}

// Whole says that the stream's events up to here are all applied; before, Peek knows nothing.
func (f *Features) Whole() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.whole = true
}

// Apply adds each event once and returns the histories of its entities as of its own time. Events that cannot be written are
// kept for the next call, and what they belong to is not known before.
func (f *Features) Apply(_ context.Context, events []enrich.Event) ([][]enrich.History, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.write(events); err != nil {
		f.owe(events)
		return nil, fmt.Errorf("features: %w", err)
	}
	out := make([][]enrich.History, len(events))
	for i, e := range events {
		out[i] = f.state.apply(e)
	}
	f.rotate()
	return out, nil
}

// errLost ends what Apply does until the next start.
var errLost = errors.New("too many events could not be written; the next start reads them from the stream")

// write puts events into the tail, after those that are owed.
func (f *Features) write(events []enrich.Event) error {
	if f.lost {
		return errLost
	}
	for len(f.owed) > 0 {
		part := f.owed[:min(owedPart, len(f.owed))]
		if err := f.tail.append(part); err != nil {
			return err
		}
		for _, e := range part {
			f.state.apply(e)
		}
		f.owed = f.owed[len(part):]
	}
	f.owed = nil
	return f.tail.append(events)
}

// owe keeps events for the next write. When they are too many nothing is applied any more: Position stays before the first
// that is lacking, for the next start to go on from there. Who catches up comes with them again.
func (f *Features) owe(events []enrich.Event) {
	if !f.whole {
		return
	}
	if f.lost = f.lost || len(f.owed)+len(events) > mostOwed; f.lost {
		f.owed = nil
		return
	}
	f.owed = append(f.owed, events...)
}

// Peek returns what Apply would; nothing is known while events may be lacking.
func (f *Features) Peek(_ context.Context, events []enrich.Event) ([][]enrich.History, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([][]enrich.History, len(events))
	for i, e := range events {
		if !f.whole || f.lost || len(f.owed) > 0 {
			out[i] = make([]enrich.History, len(e.Entities))
			continue
		}
		out[i] = f.state.peek(e)
	}
	return out, nil
}

// Close ends the folding and closes the tail.
func (f *Features) Close() error {
	f.folding.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	return errors.Join(f.foldErr, f.tail.close(), f.lock.Close())
}

// apply counts an event unless it was counted before, and reads its entities' windows.
func (s *state) apply(e enrich.Event) []enrich.History {
	id := idOf(e.Key)
	_, before := s.Applied[id]
	at := e.At.UnixMilli()
	if !before {
		s.Applied[id] = struct{}{}
		s.Order = append(s.Order, stamp{at, id})
		s.Newest = max(s.Newest, at)
		s.forget()
	}
	s.Position.Sequence = max(s.Position.Sequence, e.Sequence)
	out := make([]enrich.History, len(e.Entities))
	for i, entity := range e.Entities {
		h := s.Entities[entity.Key]
		if h == nil {
			h = &history{First: at}
			s.Entities[entity.Key] = h
		}
		if !before {
			h.add(at, e.Amount)
		}
		out[i] = s.read(h, at)
	}
	return out
}

func (s *state) read(h *history, at int64) enrich.History {
	out := h.read(at)
	out.Since = s.Since
	if lost := time.UnixMilli(h.Lost); h.Lost != 0 && lost.After(s.Since) {
		out.Since = lost
	}
	return out
}

// peek reads the windows as if an event had been counted.
func (s *state) peek(e enrich.Event) []enrich.History {
	_, before := s.Applied[idOf(e.Key)]
	at := e.At.UnixMilli()
	out := make([]enrich.History, len(e.Entities))
	for i, entity := range e.Entities {
		h := s.Entities[entity.Key]
		if h == nil {
			h = &history{First: at}
		}
		if out[i] = s.read(h, at); !before {
			out[i].Count(e)
		}
	}
	return out
}

func idOf(key string) [16]byte {
	sum := sha256.Sum256([]byte(key))
	return [16]byte(sum[:16])
}

var longest = enrich.Windows[len(enrich.Windows)-1].Span.Milliseconds()

// forget drops applied ids that are older than the longest window, seen from the newest event.
func (s *state) forget() {
	n := 0
	for n < len(s.Order) && n < 4 && s.Order[n].At <= s.Newest-longest {
		delete(s.Applied, s.Order[n].ID)
		n++
	}
	s.Order = s.Order[n:]
}

// add puts an event in its place by time; a late one moves the sums after it.
func (h *history) add(at, amount int64) {
	h.First = min(h.First, at)
	if h.Lost != 0 && at <= h.Lost {
		return // those around it are gone
	}
	i := after(h.At, at)
	sum := h.Base
	if i > 0 {
		sum = h.Sum[i-1]
	}
	h.At = slices.Insert(h.At, i, at)
	h.Sum = slices.Insert(h.Sum, i, sum+amount)
	for j := i + 1; j < len(h.Sum); j++ {
		h.Sum[j] += amount
	}
	h.evict()
}

// evict forgets what is older than two longest windows, seen from the entity's newest event: a repeat or an event that is late
// still reads a whole window, one that is later reads that it is unknown. Room is given back when half of it is empty.
func (h *history) evict() {
	old := after(h.At, h.At[len(h.At)-1]-2*longest)
	if old*2 < len(h.At) || old == 0 {
		return
	}
	h.Base, h.Lost = h.Sum[old-1], h.At[old-1]
	h.At, h.Sum = slices.Clone(h.At[old:]), slices.Clone(h.Sum[old:])
}

// read returns the windows (at−W, at].
func (h *history) read(at int64) enrich.History {
	out := enrich.History{Known: true, Counts: make([]int64, len(enrich.Windows)), Sums: make([]int64, len(enrich.Windows)), First: time.UnixMilli(h.First)}
	end := after(h.At, at)
	for i, w := range enrich.Windows {
		start := after(h.At, at-w.Span.Milliseconds())
		out.Counts[i] = int64(end - start)
		out.Sums[i] = h.upTo(end) - h.upTo(start)
	}
	return out
}

func (h *history) upTo(n int) int64 {
	if n == 0 {
		return h.Base
	}
	return h.Sum[n-1]
}

// after returns how many times are ≤ at. Most events come in order, so the end is tried first.
func after(times []int64, at int64) int {
	if n := len(times); n == 0 || times[n-1] <= at {
		return n
	}
	i, _ := slices.BinarySearchFunc(times, at, func(t, at int64) int {
		if t <= at {
			return -1
		}
		return 1
	})
	return i
}
