// Package batch writes together what arrives while the last write runs: group commit without a timer.
package batch

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
)

// ErrWrite is what everybody of a group gets whose Write panicked or gave another number of results: the outcome is unknown.
var ErrWrite = errors.New("batch: the write broke off, its outcome is unknown")

// Group collects items while the last group is being written, and writes them together: one commit, one sync, for all. An
// idle group writes at once; nothing ever waits for a timer.
type Group[T, R any] struct {
	Most  int                    // items in one write
	Write func([]T) ([]R, error) // one result per item, in order; an error, or a panic, is everybody's
	Size  func(int)              // told of every write; nil is allowed
	Skip  bool                   // whose ctx ends before the write begins is not written

	mu     sync.Mutex
	queue  []waiting[T, R]
	closed bool
	busy   bool
	idle   sync.WaitGroup
}

type waiting[T, R any] struct {
	ctx  context.Context
	item T
	out  chan result[R]
}

type result[R any] struct {
	value R
	err   error
}

// Do hands item in and waits for its part of the outcome. When ctx ends first the outcome is unknown: the item is or will be
// written, or with Skip may never be. tooMany is returned at once when the queue is longer than sixteen groups.
func (g *Group[T, R]) Do(ctx context.Context, item T, tooMany error) (R, error) {
	w := waiting[T, R]{ctx, item, make(chan result[R], 1)}
	var none R
	g.mu.Lock()
	if len(g.queue) >= 16*g.Most {
		g.skip()
	}
	if g.closed || len(g.queue) >= 16*g.Most {
		g.mu.Unlock()
		return none, tooMany
	}
	g.queue = append(g.queue, w)
	if !g.busy {
		g.busy = true
		g.idle.Go(g.drain)
	}
	g.mu.Unlock()
	select {
	case r := <-w.out:
		return r.value, r.err
	case <-ctx.Done():
		return none, ctx.Err()
	}
}

// drain writes group after group until nothing waits.
func (g *Group[T, R]) drain() {
	for {
		batch := g.take()
		if batch == nil {
			return
		}
		items := make([]T, len(batch))
		for i, w := range batch {
			items[i] = w.item
		}
		if g.Size != nil {
			g.Size(len(batch))
		}
		values, err := g.write(items)
		for i, w := range batch {
			if err != nil {
				w.out <- result[R]{err: err}
				continue
			}
			w.out <- result[R]{value: values[i]}
		}
	}
}

// write calls Write so that whatever it does, everybody of the group gets an answer.
func (g *Group[T, R]) write(items []T) (values []R, err error) {
	defer func() {
		if p := recover(); p != nil {
			values, err = nil, broken(p)
		}
	}()
	values, err = g.Write(items)
	if err == nil && len(values) != len(items) {
		return nil, fmt.Errorf("%w: %d results for %d items", ErrWrite, len(values), len(items))
	}
	return values, err
}

// broken keeps a panic's text only where it is the runtime's own: another's may quote an item.
func broken(p any) error {
	if err, ok := p.(runtime.Error); ok {
		return fmt.Errorf("%w: %w", ErrWrite, err)
	}
	return ErrWrite
}

func (g *Group[T, R]) take() []waiting[T, R] {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.skip()
	if len(g.queue) == 0 {
		g.busy = false
		return nil
	}
	n := min(len(g.queue), g.Most)
	batch := g.queue[:n:n]
	g.queue = g.queue[n:]
	return batch
}

// skip forgets those who left, so that a slow write is not followed by groups that nobody waits for.
func (g *Group[T, R]) skip() {
	if g.Skip {
		g.queue = slices.DeleteFunc(g.queue, func(w waiting[T, R]) bool { return w.ctx.Err() != nil })
	}
}

// Close takes nothing more and waits until all is written.
func (g *Group[T, R]) Close() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.idle.Wait()
}
