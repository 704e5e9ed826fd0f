package memory

import (
	"container/list"
	"context"
	"sync"
	"time"

	"crivo/services/validate"
)

// Cache keeps checks' answers in this process: as many as fit into its room, those used last.
type Cache struct {
	room int
	now  func() time.Time

	mu    sync.Mutex
	used  int
	byKey map[string]*list.Element
	order *list.List // of cached, the last used first
}

type cached struct {
	validate.Entry
	until time.Time
}

// entryOverhead is about what an entry needs beside its key and value.
const entryOverhead = 256

// NewCache makes a cache of room bytes.
func NewCache(room int, now func() time.Time) *Cache {
	return &Cache{room: room, now: now, byKey: map[string]*list.Element{}, order: list.New()}
}

// Get returns the entries that are there.
func (c *Cache) Get(_ context.Context, keys []string) (map[string]validate.Entry, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	out, now := make(map[string]validate.Entry, len(keys)), c.now()
	for _, key := range keys {
		at, ok := c.byKey[key]
		if !ok {
			continue
		}
		e := at.Value.(cached)
		if !now.Before(e.until) {
			c.drop(at)
			continue
		}
		c.order.MoveToFront(at)
		out[key] = e.Entry
	}
	return out, nil
}

// Put stores entries and drops those not used for longest where they do not fit.
func (c *Cache) Put(_ context.Context, entries []validate.Entry) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	for _, e := range entries {
		if at, ok := c.byKey[e.Key]; ok {
			c.drop(at)
		}
		e.StoredAt = time.UnixMilli(e.StoredAt.UnixMilli())
		c.byKey[e.Key] = c.order.PushFront(cached{e, now.Add(e.Keep)})
		c.used += size(e)
		for c.used > c.room {
			c.drop(c.order.Back())
		}
	}
	return nil
}

func (c *Cache) drop(at *list.Element) {
	e := at.Value.(cached)
	c.order.Remove(at)
	delete(c.byKey, e.Key)
	c.used -= size(e.Entry)
}

func size(e validate.Entry) int { return len(e.Key) + len(e.Value) + entryOverhead }
