package storetest

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"crivo/services/validate"
)

// Cache checks a cache of checks with room for some hundred entries; open must return an empty one.
func Cache(t *testing.T, open func(t *testing.T) validate.Cache) {
	for name, check := range map[string]func(t *testing.T, c validate.Cache){
		"what is put is got as it was": cachePut, "the last one counts": cacheOver, "tenants are apart": cacheTenants,
		"nothing is kept for ever": cacheExpiry, "nothing to do": cacheNothing, "many at once": cacheAtOnce,
	} {
		t.Run(name, func(t *testing.T) { check(t, open(t)) })
	}
}

func entry(key, value string) validate.Entry {
	return validate.Entry{Key: key, Value: []byte(value), StoredAt: time.UnixMilli(noon.UnixMilli() + 123), TTL: time.Minute, Keep: time.Hour}
}

func put(t *testing.T, c validate.Cache, entries ...validate.Entry) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := c.Put(ctx, entries); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, c validate.Cache, keys ...string) map[string]validate.Entry {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, err := c.Get(ctx, keys)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func cachePut(t *testing.T, c validate.Cache) {
	entries := map[string]validate.Entry{}
	for key, value := range map[string]string{"t/a": "x", "t/b/{1}": "", "t/c": "\x00\xff\r\n", "t/d/é": string(make([]byte, 4000))} {
		entries[key] = entry(key, value)
		put(t, c, entries[key])
	}
	keys := []string{"t/never"}
	for key := range entries {
		keys = append(keys, key)
	}
	if diff := cmp.Diff(entries, get(t, c, keys...)); diff != "" {
		t.Error(diff)
	}
	e := entries["t/a"]
	if !e.Fresh(e.StoredAt.Add(time.Minute-1)) || e.Fresh(e.StoredAt.Add(time.Minute)) {
		t.Error("fresh for another time than its TTL")
	}
}

func cacheOver(t *testing.T, c validate.Cache) {
	put(t, c, entry("t/a", "1"), entry("t/b", "1"))
	put(t, c, entry("t/a", "2"), entry("t/a", "3"))
	got := get(t, c, "t/a", "t/b", "t/a")
	if len(got) != 2 || string(got["t/a"].Value) != "3" || string(got["t/b"].Value) != "1" {
		t.Errorf("got %v", got)
	}
}

func cacheTenants(t *testing.T, c validate.Cache) {
	put(t, c, entry("a/x", "a"), entry("a-b/x", "ab"))
	if got := get(t, c, "a/x", "b/x", "a-b/x", "a/b/x"); len(got) != 2 || string(got["a/x"].Value) != "a" || string(got["a-b/x"].Value) != "ab" {
		t.Errorf("got %v", got)
	}
}

func cacheExpiry(t *testing.T, c validate.Cache) {
	short, never := entry("t/short", "x"), entry("t/never", "x")
	short.Keep, never.Keep = 50*time.Millisecond, 0
	put(t, c, entry("t/never", "y"), short, never, entry("t/long", "x"))
	if got := get(t, c, "t/never"); len(got) != 0 {
		t.Errorf("got %v", got)
	}
	for deadline := time.Now().Add(10 * time.Second); len(get(t, c, "t/short")) > 0; {
		if time.Now().After(deadline) {
			t.Fatal("still there")
		}
	}
	if got := get(t, c, "t/long"); len(got) != 1 {
		t.Errorf("got %v", got)
	}
}

func cacheNothing(t *testing.T, c validate.Cache) {
	put(t, c)
	if got := get(t, c); got == nil || len(got) != 0 {
		t.Errorf("got %v", got)
	}
}

func cacheAtOnce(t *testing.T, c validate.Cache) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var all sync.WaitGroup
	for worker := range 8 {
		all.Go(func() {
			for i := range 50 {
				key := fmt.Sprint("t/", (i+worker)%10)
				if err := c.Put(ctx, []validate.Entry{entry(key, key), entry(fmt.Sprint("t/own/", worker), key)}); err != nil {
					t.Error(err)
				}
				got, err := c.Get(ctx, []string{key})
				if err != nil || string(got[key].Value) != key {
					t.Errorf("got %v, %v", got, err)
				}
			}
		})
	}
	all.Wait()
}
