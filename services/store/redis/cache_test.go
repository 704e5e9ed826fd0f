package redis_test

import (
	"context"
	"testing"
	"time"

	"crivo/services/store/storetest"
	"crivo/services/validate"
)

func TestCache(t *testing.T) {
	address, _ := shared(t)
	storetest.Cache(t, func(t *testing.T) validate.Cache {
		_, prefix := shared(t)
		return open(t, address, prefix).Cache()
	})
}

func TestACacheBehindABlackHoleIsAnErrorSoon(t *testing.T) {
	address, prefix := shared(t)
	proxy, through := proxied(t, address)
	c := open(t, through, prefix).Cache()
	if err := c.Put(context.Background(), []validate.Entry{{Key: "t/x", Keep: time.Hour}}); err != nil {
		t.Fatal(err)
	}
	hurt(t, proxy, "timeout", `"timeout":0`)
	start := time.Now()
	got, err := c.Get(context.Background(), []string{"t/x", "t/y"})
	if took := time.Since(start); err == nil || len(got) > 0 || took > 600*time.Millisecond {
		t.Errorf("got %v, %v after %v", got, err, took)
	}
}

func TestAStrangeValueIsNoEntry(t *testing.T) {
	address, prefix := shared(t)
	rdb := plain(t, address)
	defer rdb.Close()
	if err := rdb.Set(context.Background(), prefix+"t/cache/x", "short", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if got, err := open(t, address, prefix).Cache().Get(context.Background(), []string{"t/x"}); err != nil || len(got) > 0 {
		t.Errorf("got %v, %v", got, err)
	}
}
