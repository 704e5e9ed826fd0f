package memory_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"crivo/services/store/memory"
	"crivo/services/store/storetest"
	"crivo/services/validate"
)

func TestCache(t *testing.T) {
	storetest.Cache(t, func(*testing.T) validate.Cache { return memory.NewCache(1<<20, time.Now) })
}

func TestACacheKeepsWhatWasUsedLastAndItsRoom(t *testing.T) {
	ctx := context.Background()
	c := memory.NewCache(100*(1000+3+256), time.Now)
	for i := range 300 {
		e := validate.Entry{Key: fmt.Sprintf("%03d", i), Value: make([]byte, 1000), TTL: time.Hour, Keep: time.Hour}
		if err := c.Put(ctx, []validate.Entry{e}); err != nil {
			t.Fatal(err)
		}
		if got, _ := c.Get(ctx, []string{"000"}); len(got) != 1 {
			t.Fatalf("after %d: the one that is used is gone", i)
		}
	}
	var keys []string
	for i := range 300 {
		keys = append(keys, fmt.Sprintf("%03d", i))
	}
	if got, _ := c.Get(ctx, keys); len(got) != 100 || got["299"].Key == "" || got["201"].Key == "" {
		t.Errorf("%d kept", len(got))
	}
	big := validate.Entry{Key: "big", Value: make([]byte, 1<<20), Keep: time.Hour}
	if err := c.Put(ctx, []validate.Entry{big}); err != nil {
		t.Fatal(err)
	}
	if got, _ := c.Get(ctx, append(keys, "big")); len(got) != 0 {
		t.Errorf("%d kept beside, or with, one that does not fit", len(got))
	}
}
