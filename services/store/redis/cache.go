package redis

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"crivo/services/validate"
)

// Cache keeps checks' answers for all processes; the server forgets each when its time has come.
type Cache struct{ *Client }

// Cache returns a handle on the cache.
func (c *Client) Cache() *Cache { return &Cache{c} }

// Get returns the entries that are there, in one round trip.
func (c *Cache) Get(ctx context.Context, keys []string) (map[string]validate.Entry, error) {
	out := make(map[string]validate.Entry, len(keys))
	answers := make([]*goredis.StringCmd, len(keys))
	err := c.each(ctx, len(keys), func(pipe goredis.Pipeliner, i int) { answers[i] = pipe.Get(ctx, c.key("cache", keys[i])) })
	if err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	for i, a := range answers {
		if e, ok := unpack(a.Val()); ok {
			e.Key = keys[i]
			out[keys[i]] = e
		}
	}
	return out, nil
}

// Put stores entries in one round trip.
func (c *Cache) Put(ctx context.Context, entries []validate.Entry) error {
	err := c.each(ctx, len(entries), func(pipe goredis.Pipeliner, i int) {
		e := entries[i]
		key := c.key("cache", e.Key)
		if e.Keep < time.Millisecond { // the server knows nothing shorter
			pipe.Del(ctx, key)
			return
		}
		pipe.Set(ctx, key, pack(e), e.Keep)
	})
	if err != nil {
		return fmt.Errorf("cache: %w", err)
	}
	return nil
}

// each sends one command per index at once: keys of many slots need no common one so. A key that is absent is no failure.
func (c *Cache) each(ctx context.Context, n int, add func(pipe goredis.Pipeliner, i int)) error {
	if n == 0 {
		return nil
	}
	return c.call(ctx, func(ctx context.Context) error {
		answers, _ := c.rdb.Pipelined(ctx, func(pipe goredis.Pipeliner) error {
			for i := range n {
				add(pipe, i)
			}
			return nil
		})
		for _, a := range answers {
			if err := a.Err(); err != nil && !errors.Is(err, goredis.Nil) {
				return err
			}
		}
		return nil
	})
}

// An entry is stored as three numbers of 8 bytes, stored-at, TTL and keep in milliseconds, and the value.
const head = 24

func pack(e validate.Entry) []byte {
	out := make([]byte, 0, head+len(e.Value))
	for _, ms := range []int64{e.StoredAt.UnixMilli(), e.TTL.Milliseconds(), e.Keep.Milliseconds()} {
		out = binary.BigEndian.AppendUint64(out, uint64(ms))
	}
	return append(out, e.Value...)
}

func unpack(stored string) (validate.Entry, bool) {
	if len(stored) < head {
		return validate.Entry{}, false
	}
	ms := func(i int) int64 { return int64(binary.BigEndian.Uint64([]byte(stored[8*i:]))) }
	return validate.Entry{Value: []byte(stored[head:]), StoredAt: time.UnixMilli(ms(0)), TTL: time.Duration(ms(1)) * time.Millisecond,
		Keep: time.Duration(ms(2)) * time.Millisecond}, true
}
