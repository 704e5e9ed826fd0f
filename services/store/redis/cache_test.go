package redis_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"crivo/services/store/redis"
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
	if err := c.Put(unhurried(t), []validate.Entry{{Key: "t/x", Keep: time.Hour}}); err != nil {
		t.Fatal(err)
	}
	hurt(t, proxy, "timeout", `"timeout":0`)
	const most = 600 * time.Millisecond
	took := fastest(tries, most, func() {
		if got, err := c.Get(context.Background(), []string{"t/x", "t/y"}); err == nil || len(got) > 0 || errors.Is(err, redis.ErrDown) {
			t.Errorf("got %v, %v", got, err)
		}
	})
	if took > most {
		t.Errorf("took %v", took)
	}
}

func TestAStrangeValueIsNoEntry(t *testing.T) {
	address, prefix := shared(t)
	rdb := plain(t, address)
	defer rdb.Close()
	if err := rdb.Set(context.Background(), prefix+"t/cache/x", "short", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if got, err := open(t, address, prefix).Cache().Get(unhurried(t), []string{"t/x"}); err != nil || len(got) > 0 {
		t.Errorf("got %v, %v", got, err)
	}
}
