package streams

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"
)

// Decisions reads TX_DECIDED without a consumer: the broker keeps nothing of it and can send nothing anywhere else.
type Decisions struct{ JS jetstream.JetStream }

// Extent is what a stream holds: sequences First to Last, none where First is past Last. Created tells it from one that had
// its name before.
type Extent struct {
	Created     time.Time
	First, Last uint64
}

// Announced is one announcement of a decision. A transaction may have several, with the same bytes.
type Announced struct {
	Sequence uint64
	Data     []byte // event.Decided
}

const (
	pageMost  = 256
	pageBytes = 256 << 10 // beyond its last message: the client holds it
	pageTime  = 5 * time.Second
)

// Extent asks the stream's leader.
func (d Decisions) Extent(ctx context.Context) (Extent, error) {
	ctx, cancel := context.WithTimeout(ctx, pageTime)
	defer cancel()
	stream, err := d.JS.Stream(ctx, Decided)
	if err != nil {
		return Extent{}, fmt.Errorf("%s: %w", Decided, err)
	}
	info := stream.CachedInfo()
	return Extent{info.Created, max(1, info.State.FirstSeq), info.State.LastSeq}, nil
}

var errLost = errors.New("a message was lost on the way")

// After returns a tenant's next announcements after a sequence, a page at most, in order and with none left out. It asks
// any replica: one that lags does not have the newest yet.
func (d Decisions) After(ctx context.Context, tenant string, sequence uint64) ([]Announced, error) {
	ctx, cancel := context.WithTimeout(ctx, pageTime)
	defer cancel()
	batch, err := GetBatch(ctx, d.JS, Decided, pageMost, jetstreamext.GetBatchSeq(sequence+1),
		jetstreamext.GetBatchSubject(Subject(EventDecided, tenant)), jetstreamext.GetBatchMaxBytes(pageBytes))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", Decided, err)
	}
	var page []Announced
	before := uint64(0) // what the server says that it sent last, in this page
	for m, err := range batch {
		switch {
		case errors.Is(err, jetstreamext.ErrNoMessages):
			return nil, nil
		case err == nil && m.Header.Get(jetstream.LastSequenceHeader) != strconv.FormatUint(before, 10):
			err = errLost
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", Decided, err)
		}
		page = append(page, Announced{m.Sequence, m.Data})
		before = m.Sequence
	}
	if len(page) == 0 {
		return nil, fmt.Errorf("%s: %w", Decided, errSilent)
	}
	return page, nil
}

// Quiet tells, by the leader's word, that a tenant has no announcement after a sequence.
func (d Decisions) Quiet(ctx context.Context, tenant string, sequence uint64) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, pageTime)
	defer cancel()
	question := fmt.Appendf(nil, `{"seq":%d,"next_by_subj":%q}`, sequence+1, Subject(EventDecided, tenant))
	m, err := d.JS.Conn().RequestWithContext(ctx, "$JS.API.STREAM.MSG.GET."+Decided, question)
	if err != nil {
		return false, fmt.Errorf("%s: %w", Decided, err)
	}
	var said struct {
		Error *jetstream.APIError `json:"error"`
	}
	switch err := json.Unmarshal(m.Data, &said); {
	case err != nil:
		return false, fmt.Errorf("%s: %w", Decided, err)
	case said.Error == nil:
		return false, nil
	case said.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return true, nil
	}
	return false, fmt.Errorf("%s: %w", Decided, said.Error)
}
