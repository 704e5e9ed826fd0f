package edge

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"crivo/pkg/seal"
	"crivo/pkg/stage"
	"crivo/services/store"
	"crivo/streams"
)

// decisions is TX_DECIDED as its listeners need it: see [streams.Decisions].
type decisions interface {
	Extent(ctx context.Context) (streams.Extent, error)
	After(ctx context.Context, tenant string, sequence uint64) ([]streams.Announced, error)
	Quiet(ctx context.Context, tenant string, sequence uint64) (bool, error)
}

// place is where a listener is in the stream of decisions: it has heard all of its tenant's up to a sequence of the stream
// that was made then. A stream of the same name made anew counts from 1 again.
type place struct {
	created  int64 // Unix nanoseconds
	sequence uint64
}

// placeKind binds a sealed place to what it is for.
var placeKind = []byte("event id")

// id is a place as clients keep it: sealed, so that it is of one tenant, by any edge, and tells nobody how many others decide.
func (p place) id(box *seal.Box) (string, error) {
	plain := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, uint64(p.created)), p.sequence)
	sealed, err := box.Seal(plain, placeKind)
	return base64.RawURLEncoding.EncodeToString(sealed), err
}

func readPlace(box *seal.Box, id string) (place, error) {
	sealed, err := base64.RawURLEncoding.DecodeString(id)
	if err != nil {
		return place{}, errEventID
	}
	plain, err := box.Open(sealed, placeKind)
	if err != nil || len(plain) != 16 {
		return place{}, errEventID
	}
	return place{int64(binary.BigEndian.Uint64(plain)), binary.BigEndian.Uint64(plain[8:])}, nil
}

// within tells whether the stream still holds, or never had, whatever comes after p.
func (p place) within(x streams.Extent) error {
	if p.created != x.Created.UnixNano() || p.sequence > x.Last || p.sequence+1 < x.First {
		return errGone
	}
	return nil
}

// frame is one decision as it is sent.
type frame struct {
	sequence uint64
	text     []byte
}

const (
	framesMost = 1024    // that a broadcast keeps: two seconds of 500 a second
	framesSize = 2 << 20 // bytes of them
	groupMost  = 64      // that one listener holds at once
	// While decisions come they are read in groups, else looked for; one that is heard of on this edge is read at once.
	readEvery = 25 * time.Millisecond
	lookEvery = 500 * time.Millisecond
	// stillEvery is how often a tenant's place is moved on although it decided nothing, so that it stays in a stream that
	// forgets what others decided.
	stillEvery = 15 * time.Second
)

// broadcast is what all listeners of a tenant on this edge share: one reader, and the newest decisions ready to be sent. Who
// falls behind these reads the stream by himself, at his own pace: nothing piles up here for anybody.
type broadcast struct {
	*broadcasts
	tenant  string
	box     *seal.Box
	created int64
	poked   chan struct{}
	end     context.CancelFunc
	users   int // under the broadcasts' mutex

	mu     sync.Mutex
	start  uint64 // frames are all decisions after start
	frames []frame
	head   uint64 // up to here the stream is read
	size   int
	news   chan struct{} // closed when there is more, or an end
	err    error
}

var errBehind = errors.New("older than what is kept ready")

// after returns what follows a sequence and where that ends. With no frames news closes when it is worth to ask again.
func (b *broadcast) after(sequence uint64) (frames []frame, head uint64, news <-chan struct{}, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.err != nil:
		return nil, sequence, nil, b.err
	case sequence < b.start:
		return nil, sequence, nil, errBehind
	}
	i, _ := slices.BinarySearchFunc(b.frames, sequence+1, func(f frame, s uint64) int { return cmp.Compare(f.sequence, s) })
	if len(b.frames)-i > groupMost {
		frames = slices.Clone(b.frames[i : i+groupMost])
		return frames, frames[groupMost-1].sequence, nil, nil
	}
	return slices.Clone(b.frames[i:]), max(sequence, b.head), b.news, nil
}

// add has listeners hear frames, which may be none, up to head.
func (b *broadcast) add(frames []frame, head uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.head = head
	if len(frames) == 0 {
		return
	}
	b.frames = append(b.frames, frames...)
	for _, f := range frames {
		b.size += len(f.text)
	}
	for len(b.frames) > framesMost || b.size > framesSize {
		b.start, b.size = b.frames[0].sequence, b.size-len(b.frames[0].text)
		b.frames = b.frames[1:]
	}
	close(b.news)
	b.news = make(chan struct{})
}

// fail ends every listener; the next one begins another broadcast.
func (b *broadcast) fail(err error) {
	b.log.Warn().Err(err).Str("tenant", b.tenant).Msg("listeners to decisions must begin anew")
	b.broadcasts.mu.Lock()
	b.forget(b)
	b.broadcasts.mu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
	close(b.news)
}

// run reads the stream while anybody listens. A broker that is away is waited for.
func (b *broadcast) run(ctx context.Context) {
	last := b.head
	still := time.NewTicker(stillEvery)
	defer still.Stop()
	for pause := time.Duration(0); ; {
		frames, head, err := b.page(ctx, b.head)
		switch {
		case errors.Is(err, errGone), stage.IsHold(err):
			b.fail(err)
			return
		case err != nil:
			pause = lookEvery
		case head > b.head:
			b.add(frames, head)
			pause = 0
		default:
			pause = min(max(2*pause, readEvery), lookEvery)
		}
		select {
		case <-b.poked:
			pause = 0
		case <-still.C:
			b.stand(ctx, &last)
		case <-time.After(pause):
		case <-ctx.Done():
		}
		if stage.Sleep(ctx, readEvery) != nil {
			return
		}
	}
}

// stand moves the head on to where the stream ended when this was last done, if the tenant decided nothing meanwhile.
func (b *broadcast) stand(ctx context.Context, last *uint64) {
	x, err := b.source.Extent(ctx)
	if err != nil {
		return
	}
	if quiet, err := b.source.Quiet(ctx, b.tenant, b.head); err == nil && quiet && (place{b.created, b.head}).within(x) == nil {
		b.add(nil, max(b.head, *last))
	}
	*last = x.Last
}

// page reads what follows a sequence and makes frames of it, as many as one reading gives. The stream is looked at afterwards:
// what it has not forgotten by then was there to be read.
func (b *broadcast) page(ctx context.Context, sequence uint64) (frames []frame, head uint64, err error) {
	found, err := b.source.After(ctx, b.tenant, sequence)
	if err != nil {
		return nil, sequence, fmt.Errorf("%w: %w", errBroker, err)
	}
	x, err := b.source.Extent(ctx)
	if err != nil {
		return nil, sequence, fmt.Errorf("%w: %w", errBroker, err)
	}
	if err := (place{b.created, sequence}).within(x); err != nil {
		return nil, sequence, err
	}
	for _, a := range found {
		f, err := b.frame(a)
		switch {
		case stage.IsUndecodable(err): // notify has made a dead letter of it
		case err != nil:
			return nil, sequence, err
		default:
			frames = append(frames, f)
		}
		sequence = a.Sequence
	}
	return frames, sequence, nil
}

func (b *broadcast) frame(a streams.Announced) (frame, error) {
	decision, err := public(a.Data)
	if err != nil {
		return frame{}, err
	}
	id, err := place{b.created, a.Sequence}.id(b.box)
	return frame{a.Sequence, fmt.Appendf(nil, "id: %s\nevent: transaction.decided\ndata: %s\n\n", id, decision)}, err
}

// catchUp is page for a listener that is behind, of whom only some read at once. It returns nothing, and a place further on,
// where nothing was left out.
func (b *broadcast) catchUp(ctx context.Context, sequence uint64) (frames []frame, head uint64, err error) {
	select {
	case b.seats <- struct{}{}:
		defer func() { <-b.seats }()
	case <-ctx.Done():
		return nil, sequence, ctx.Err()
	}
	b.mu.Lock()
	start := b.start
	b.mu.Unlock()
	frames, head, err = b.page(ctx, sequence)
	if err != nil || head > sequence {
		return frames, head, err
	}
	quiet, err := b.source.Quiet(ctx, b.tenant, sequence)
	switch {
	case err != nil:
		return nil, sequence, fmt.Errorf("%w: %w", errBroker, err)
	case quiet:
		return nil, max(sequence, start), nil
	}
	return nil, sequence, stage.Sleep(ctx, readEvery) // the replica lags
}

const (
	listenersMost = 1000 // on one edge
	listenersKey  = 100  // of one key
	seatsMost     = 8    // that catch up at once
)

// broadcasts are those of all tenants that somebody listens to here.
type broadcasts struct {
	source decisions
	log    zerolog.Logger
	seats  chan struct{}

	mu       sync.Mutex
	byTenant map[string]*broadcast
	byKey    map[string]int
	count    int
	running  sync.WaitGroup
}

func newBroadcasts(source decisions, log zerolog.Logger) *broadcasts {
	return &broadcasts{source: source, log: log, seats: make(chan struct{}, seatsMost), byTenant: map[string]*broadcast{}, byKey: map[string]int{}}
}

// join adds one listener of key to its tenant's broadcast, which begins at x where it is the first; leave must be called.
func (s *broadcasts) join(ctx context.Context, key store.APIKey, box *seal.Box, x streams.Extent) (b *broadcast, leave func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.count >= listenersMost:
		return nil, nil, errOverload
	case s.byKey[key.ID] >= listenersKey:
		return nil, nil, errListeners
	}
	b = s.byTenant[key.Tenant]
	if b == nil || b.created != x.Created.UnixNano() {
		b = &broadcast{broadcasts: s, tenant: key.Tenant, box: box, created: x.Created.UnixNano(), poked: make(chan struct{}, 1),
			start: x.Last, head: x.Last, news: make(chan struct{})}
		ctx, b.end = context.WithCancel(ctx)
		s.byTenant[key.Tenant] = b
		s.running.Go(func() { b.run(ctx) })
	}
	b.users++
	s.count++
	s.byKey[key.ID]++
	return b, func() { s.leave(b, key.ID) }, nil
}

func (s *broadcasts) leave(b *broadcast, key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count--
	if s.byKey[key]--; s.byKey[key] == 0 {
		delete(s.byKey, key)
	}
	if b.users--; b.users > 0 {
		return
	}
	b.end()
	s.forget(b)
}

// forget is called under the mutex.
func (s *broadcasts) forget(b *broadcast) {
	if s.byTenant[b.tenant] == b {
		delete(s.byTenant, b.tenant)
	}
}

// poke has a tenant's listeners hear soon of what this edge knows to be decided.
func (s *broadcasts) poke(tenant string) {
	s.mu.Lock()
	b := s.byTenant[tenant]
	s.mu.Unlock()
	if b == nil {
		return
	}
	select {
	case b.poked <- struct{}{}:
	default:
	}
}
