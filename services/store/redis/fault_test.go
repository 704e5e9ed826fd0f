package redis_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"crivo/services/enrich"
	"crivo/services/store/redis"
)

// tries are the calls that find no answer before the client says so without asking.
const tries = 3

func TestABlackHoleCostsWhatTheCallerAllows(t *testing.T) {
	address, prefix := shared(t)
	for name, tc := range map[string]struct{ patience, want time.Duration }{
		"the step's patience":              {100 * time.Millisecond, 100 * time.Millisecond},
		"less":                             {20 * time.Millisecond, 20 * time.Millisecond},
		"a caller who names no deadline":   {0, 100 * time.Millisecond},
		"a caller who would wait for ever": {time.Hour, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			proxy, through := proxied(t, address)
			f := whole(t, through, prefix)
			hurt(t, proxy, "timeout", `"timeout":0`)
			// Half a second more is a busy machine's; without a deadline of the context it would be the whole second.
			most := tc.want + 500*time.Millisecond
			took := fastest(tries, most, func() {
				ctx := context.Background()
				if tc.patience > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, tc.patience)
					defer cancel()
				}
				if _, err := f.Apply(ctx, payments(64)); err == nil || errors.Is(err, redis.ErrDown) {
					t.Errorf("got %v", err)
				}
			})
			if took < tc.want || took > most {
				t.Errorf("took %v, want %v", took, tc.want)
			}
		})
	}
}

func TestAServerThatIsDownIsNotWaitedForAgainAndAgain(t *testing.T) {
	address, prefix := shared(t)
	proxy, through := proxied(t, address)
	f, s := whole(t, through, prefix), payments(64)
	hurt(t, proxy, "timeout", `"timeout":0`)
	start, slow, fast := time.Now(), 0, 0
	for time.Since(start) < 3*time.Second {
		_, err := f.Apply(context.Background(), s[:1])
		switch {
		case err == nil:
			t.Fatal("applied")
		case errors.Is(err, redis.ErrDown):
			fast++
		default:
			slow++
		}
	}
	if slow > 3+3 || fast < 100 {
		t.Errorf("%d calls waited, %d did not", slow, fast)
	}
	heal(proxy)
	until(t, "it recovers by itself", func() bool { _, err := patiently(f, s[:1]); return err == nil })
	if _, err := s.mend(f); err != nil {
		t.Fatal(err)
	}
	want(t, "whole", s.counts(t, f), []int64{8, 64})
}

func TestACallerThatGoesAwaySaysNothingOfTheServer(t *testing.T) {
	address, prefix := shared(t)
	proxy, through := proxied(t, address)
	f := whole(t, through, prefix)
	hurt(t, proxy, "latency", `"latency":20`)
	for range 10 {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := f.Apply(ctx, payments(1)); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	}
	if _, err := patiently(f, payments(1)); err != nil {
		t.Error(err)
	}
}

func TestABatchIsOneRoundTrip(t *testing.T) {
	address, prefix := shared(t)
	proxy, through := proxied(t, address)
	f, s := whole(t, through, prefix), payments(128)
	if _, err := patiently(f, s[:1]); err != nil { // the connection and the script are there
		t.Fatal(err)
	}
	hurt(t, proxy, "latency", `"latency":200`)
	const most = 380 * time.Millisecond
	took := fastest(5, most, func() {
		if _, err := patiently(f, s[64:]); err != nil {
			t.Fatal(err)
		}
	})
	if took < 200*time.Millisecond || took > most {
		t.Errorf("took %v, want one latency of 200 ms", took)
	}
}

func TestACutConnectionIsReplacedAtOnce(t *testing.T) {
	address, prefix := shared(t)
	proxy, through := proxied(t, address)
	f, s := whole(t, through, prefix), payments(64)
	if _, err := patiently(f, s); err != nil {
		t.Fatal(err)
	}
	found := 0
	for range 5 {
		proxy.Stop()
		if err := proxy.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := patiently(f, s); err == nil {
			found++
		} else { // the cut came to the client's ears while it wrote
			until(t, "it mends", func() bool { _, err := s.mend(f); return err == nil })
		}
	}
	if found == 0 {
		t.Error("no call after a cut found a new connection")
	}
	want(t, "nothing is owed", s.counts(t, f), []int64{8, 64})
}

func TestAScriptThatTheServerForgotIsLoadedAgain(t *testing.T) {
	server := serve(t)
	f, s := whole(t, server.url(), ""), payments(64)
	for range 3 {
		server.cli(t, "script", "flush")
		if _, err := patiently(f, s); err != nil {
			t.Fatal(err)
		}
	}
	want(t, "counted once", s.counts(t, f), []int64{8, 64})
}

func TestAFullServerLosesNothing(t *testing.T) {
	server := serve(t, "--maxmemory-policy", "noeviction")
	f, s := whole(t, server.url(), ""), payments(64)
	if _, err := patiently(f, s[:32]); err != nil {
		t.Fatal(err)
	}
	server.cli(t, "config", "set", "maxmemory", "1")
	if _, err := patiently(f, s[32:]); err == nil {
		t.Error("a full server took more")
	}
	server.cli(t, "config", "set", "maxmemory", "0")
	until(t, "it mends", func() bool { _, err := s.mend(f); return err == nil })
	want(t, "whole", s.counts(t, f), []int64{8, 64})
}

var _ enrich.Shared = (*redis.Features)(nil)
