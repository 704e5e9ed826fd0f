package edge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"

	"github.com/go-json-experiment/json/jsontext"

	"crivo/pkg/txn"
)

const (
	maxBatch = 4 << 20 // bytes, unpacked
	maxItems = 1000
	// batchesAtOnce bounds what bodies of batches hold in memory: 64 MiB, and what is made of them.
	batchesAtOnce = 16
	// itemsAtOnce of one batch are under way: while one group is claimed, the one before is published.
	itemsAtOnce = 2 * groupSize
)

// item says of one part of a batch what a single submission would have been answered.
type item struct {
	Index    int            `json:"index"`
	ID       string         `json:"id,omitzero"` // empty: it could not be read
	Status   int            `json:"status"`
	Location string         `json:"location,omitzero"`
	Replayed bool           `json:"idempotent_replayed,omitzero"`
	Body     jsontext.Value `json:"body,omitzero"` // the decision, with status 200
	Type     string         `json:"type,omitzero"` // from here on as in a problem document
	Detail   string         `json:"detail,omitzero"`
	Errors   txn.Faults     `json:"errors,omitzero"`
	Retry    int            `json:"retry_after,omitzero"` // seconds
}

// postBatch accepts many transactions, each as if it had been submitted alone. An error is of the batch as a whole: then none of
// it was looked at.
func (e *edge) postBatch(w http.ResponseWriter, r *http.Request, m *member) error {
	if err := e.admit(); err != nil {
		return err
	}
	if !e.batches.take(m.Tenant) {
		return errOverload
	}
	defer e.batches.leave(m.Tenant)
	bodies, err := readBatch(w, r)
	if err != nil {
		return err
	}
	items := e.acceptAll(r, m, bodies)
	m.limits(w.Header())
	return answer(w, http.StatusMultiStatus, map[string]any{"items": items})
}

// readBatch returns the items of a body, unread: the members of an array, or the lines of NDJSON that are not blank.
func readBatch(w http.ResponseWriter, r *http.Request) (items [][]byte, err error) {
	split := map[string]func([]byte) ([][]byte, error){"application/json": elements, "application/x-ndjson": lines}[mediaType(r)]
	if split == nil {
		return nil, errBatchType
	}
	body, err := readUpTo(w, r, maxBatch, errBatchLarge)
	if err != nil {
		return nil, err
	}
	return split(body)
}

func lines(body []byte) (items [][]byte, err error) {
	for line := range bytes.Lines(body) {
		if line = bytes.Trim(line, " \t\r\n"); len(line) == 0 {
			continue
		}
		if len(items) == maxItems {
			return nil, errBatchLarge
		}
		items = append(items, line)
	}
	return items, nil
}

// elements splits an array. What is wrong within an item, its own reader tells.
func elements(body []byte) (items [][]byte, err error) {
	d := jsontext.NewDecoder(bytes.NewReader(body), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if d.PeekKind() != '[' {
		return nil, fmt.Errorf("%w: not an array", txn.ErrMalformed)
	}
	_, err = d.ReadToken()
	for err == nil && d.PeekKind() != ']' {
		if len(items) == maxItems {
			return nil, errBatchLarge
		}
		var v jsontext.Value
		v, err = d.ReadValue()
		items = append(items, v.Clone())
	}
	if err == nil {
		_, err = d.ReadToken()
	}
	if err == nil {
		if _, err = d.ReadToken(); errors.Is(err, io.EOF) {
			return items, nil
		}
	}
	return nil, fmt.Errorf("%w: at byte %d", txn.ErrMalformed, d.InputOffset())
}

// acceptAll accepts many at once, so that they share commits. Those of one id go one after the other.
func (e *edge) acceptAll(r *http.Request, m *member, bodies [][]byte) []item {
	out := make([]item, len(bodies))
	room := make(chan struct{}, itemsAtOnce)
	last := map[string]chan struct{}{} // by id, closed once the newest is answered
	var all sync.WaitGroup
	for i, body := range bodies {
		tx, err := e.open(m, i, body)
		out[i].Index, out[i].ID = i, tx.ID
		if err != nil {
			e.settle(r.Context(), &out[i], acceptance{}, err)
			continue
		}
		before, done := last[tx.ID], make(chan struct{})
		last[tx.ID] = done
		room <- struct{}{}
		all.Go(func() {
			defer func() { close(done); <-room }()
			if before != nil {
				<-before
			}
			a, err := e.acceptOne(r, m, tx)
			e.settle(r.Context(), &out[i], a, err)
		})
	}
	all.Wait()
	return out
}

// open reads one item. The key's rate counts items; the request has paid for the first.
func (e *edge) open(m *member, i int, body []byte) (txn.Transaction, error) {
	if i > 0 {
		if err := m.allow(); err != nil {
			return txn.Transaction{}, err
		}
	}
	if len(body) > maxBody {
		return txn.Transaction{}, errTooLarge
	}
	return txn.Decode(body, e.Clock.Now())
}

// acceptOne accepts one item, also one that panics.
func (e *edge) acceptOne(r *http.Request, m *member, tx txn.Transaction) (a acceptance, err error) {
	defer func() {
		if recover() != nil {
			e.panicked(requestID(r.Context()))
			err = errPanic
		}
	}()
	if err := e.admit(); err != nil {
		return acceptance{}, err
	}
	return e.claim(r.Context(), m.tenant, tx, traceparent(r.Header.Get("Traceparent")))
}

// settle writes down what became of an item.
func (e *edge) settle(ctx context.Context, out *item, a acceptance, err error) {
	switch {
	case err == nil && a.event != nil:
		out.Status, out.Replayed = http.StatusOK, a.replayed
		out.Body, err = public(a.event)
	case err == nil:
		out.Status, out.Replayed, out.Location = http.StatusAccepted, a.replayed, location(a.key)
	}
	if err != nil {
		p := e.told(err, requestID(ctx))
		out.Status, out.Type, out.Detail, out.Errors, out.Retry = p.Status, p.Type, p.Detail, p.Errors, p.retry
	}
	e.metrics.counted("batch item", out.Status)
}
