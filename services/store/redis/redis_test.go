package redis_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"crivo/services/enrich"
	"crivo/services/store/redis"
	"crivo/services/store/storetest"
)

func TestFeatures(t *testing.T) {
	address, _ := shared(t)
	prefixes := map[string]string{}
	storetest.Features(t, func(t *testing.T) enrich.Features {
		if prefixes[t.Name()] == "" {
			_, prefixes[t.Name()] = shared(t)
		}
		return whole(t, address, prefixes[t.Name()])
	}, func(t *testing.T, _ enrich.Features) enrich.Features { return whole(t, address, prefixes[t.Name()]) })
}

func TestWhatIsNoURLIsSaidWithoutThePassword(t *testing.T) {
	for name, address := range map[string]string{
		"nothing":             "",
		"no scheme":           "127.0.0.1:6379",
		"another scheme":      "http://u:hunter2@127.0.0.1:6379",
		"a bad port":          "redis://u:hunter2@127.0.0.1:http",
		"a bad escape":        "redis://u:hunter2%zz@127.0.0.1:6379",
		"a space":             "redis://u:hunter2 @127.0.0.1:6379",
		"no host":             "redis://u:hunter2@/0",
		"a database by name":  "redis://u:hunter2@127.0.0.1:6379/x",
		"an unknown option":   "redis://u:hunter2@127.0.0.1:6379?hunter2=1",
		"a cluster's, broken": "redis://u:hunter2@127.0.0.1:6379?addr=b:6379&hunter2=1",
	} {
		t.Run(name, func(t *testing.T) {
			c, err := redis.Open(redis.Options{URL: address})
			if err == nil {
				_ = c.Close()
				t.Fatal("opened")
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Error(err)
			}
		})
	}
}

func TestOpenWaitsForNobody(t *testing.T) {
	for _, address := range []string{"redis://127.0.0.1:1", "rediss://u:p@127.0.0.1:1/3", "redis://127.0.0.1:1?addr=127.0.0.1:2"} {
		f := open(t, address, "").Features()
		if _, err := f.Apply(context.Background(), payments(1)); err == nil {
			t.Errorf("%s: applied", address)
		}
		if err := f.Mend(context.Background(), enrich.Source{}, nothing); err == nil {
			t.Errorf("%s: mended", address)
		}
	}
}

func TestAServerThatEvictsIsRefused(t *testing.T) {
	s := serve(t, "--maxmemory-policy", "allkeys-lru")
	f := open(t, s.url(), "").Features()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	for _, err := range []error{f.Check(ctx), f.Mend(ctx, enrich.Source{}, nothing)} {
		if !errors.Is(err, redis.ErrEvicts) || !strings.Contains(err.Error(), "allkeys-lru") {
			t.Errorf("got %v", err)
		}
	}
	s.cli(t, "config", "set", "maxmemory-policy", "noeviction")
	if err := f.Mend(ctx, enrich.Source{}, nothing); err != nil {
		t.Error(err)
	}
}

// What is evicted leaves no trace, and the markers stay: they have no time to live, and volatile-lru takes what has one.
func TestAServerThatBeginsToEvictIsRebuilt(t *testing.T) {
	for name, tc := range map[string]struct {
		meanwhile, then func(t *testing.T, s *server)
		back            func(t *testing.T, s *server, f *redis.Features) *redis.Features // who mends then
	}{
		"seen by the same process": {back: func(_ *testing.T, _ *server, f *redis.Features) *redis.Features { return f }},
		"seen by the next process": {back: func(t *testing.T, s *server, _ *redis.Features) *redis.Features {
			return open(t, s.url(), "").Features()
		}},
		"it could not be written down at once": {
			meanwhile: func(t *testing.T, s *server) { s.cli(t, "acl", "setuser", "default", "-hdel") },
			then:      func(t *testing.T, s *server) { s.cli(t, "acl", "setuser", "default", "+hdel") },
			back:      func(_ *testing.T, _ *server, f *redis.Features) *redis.Features { return f },
		},
	} {
		t.Run(name, func(t *testing.T) {
			server, s := serve(t, "--maxmemory-policy", "noeviction"), payments(5000) // more than the margin
			f := whole(t, server.url(), "")
			ctx, cancel := context.WithTimeout(t.Context(), within)
			defer cancel()
			if err := s.replay(f, new([]uint64))(ctx, 0); err != nil {
				t.Fatal(err)
			}
			if _, err := s.mend(f); err != nil {
				t.Fatal(err)
			}
			if tc.meanwhile != nil {
				tc.meanwhile(t, server)
			}
			server.cli(t, "config", "set", "maxmemory-policy", "volatile-lru")
			forget(t, server.url(), "t/") // as if it were full
			if _, err := s.mend(f); !errors.Is(err, redis.ErrEvicts) {
				t.Fatalf("got %v", err)
			}
			want(t, "while it evicts", s.counts(t, f), []int64{-1, -1})
			if tc.meanwhile == nil {
				peeked, err := open(t, server.url(), "").Features().Peek(ctx, s[4999:])
				if err != nil || peeked[0][1].Known {
					t.Errorf("another process, which does not mend: %+v, %v", peeked, err)
				}
			}
			server.cli(t, "config", "set", "maxmemory-policy", "noeviction")
			want(t, "before it is rebuilt", s.counts(t, f), []int64{-1, -1})
			if tc.then != nil {
				tc.then(t, server)
			}
			f = tc.back(t, server, f)
			replayed, err := s.mend(f)
			if err != nil {
				t.Fatal(err)
			}
			want(t, "replayed", replayed, []uint64{0})
			want(t, "whole", s.counts(t, f), []int64{625, 5000})
		})
	}
}

// A rebuild that goes on while the server evicts makes nothing whole, whoever sees it.
func TestARebuildOnAServerThatBeginsToEvictIsNotDone(t *testing.T) {
	for name, back := range map[string]bool{"it still evicts": false, "it is over, and another process saw it": true} {
		t.Run(name, func(t *testing.T) {
			server, s := serve(t, "--maxmemory-policy", "noeviction"), payments(40)
			f, other := open(t, server.url(), "").Features(), open(t, server.url(), "").Features()
			ctx, cancel := context.WithTimeout(t.Context(), within)
			defer cancel()
			var replayed []uint64
			err := f.Mend(ctx, s.source(), func(ctx context.Context, after uint64) error {
				server.cli(t, "config", "set", "maxmemory-policy", "allkeys-lru")
				if back {
					if _, err := s.mend(other); !errors.Is(err, redis.ErrEvicts) {
						t.Errorf("got %v", err)
					}
					server.cli(t, "config", "set", "maxmemory-policy", "noeviction")
				}
				return s.replay(f, &replayed)(ctx, after)
			})
			if err == nil || errors.Is(err, redis.ErrEvicts) == back {
				t.Errorf("got %v", err)
			}
			want(t, "known", s.counts(t, f), []int64{-1, -1})
		})
	}
}

func TestThePolicyIsReadWhereTheConfigurationIsForbidden(t *testing.T) {
	for name, tc := range map[string]struct {
		rights []string
		policy string
		want   string // in the error or the log
	}{
		"told by the configuration": {[]string{"+@all"}, "volatile-ttl", "it is volatile-ttl"},
		"told by the memory report": {[]string{"+@all", "-config"}, "volatile-ttl", "it is volatile-ttl"},
		"good by the memory report": {[]string{"+@all", "-config"}, "noeviction", ""},
		"told by nobody":            {[]string{"+@all", "-config", "-info"}, "volatile-ttl", "does not tell its maxmemory-policy"},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, "--maxmemory-policy", tc.policy)
			s.cli(t, append([]string{"acl", "setuser", "limited", "on", ">hunter2", "~*", "&*"}, tc.rights...)...)
			var log bytes.Buffer
			c, err := redis.Open(redis.Options{URL: "redis://limited:hunter2@" + s.addr(), Log: zerolog.New(&log)})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			said := log.String
			if err := c.Check(unhurried(t)); err != nil {
				said = err.Error
			}
			if got := said(); (tc.want == "") != (got == "") || !strings.Contains(got, tc.want) {
				t.Errorf("said %q, want %q", got, tc.want)
			}
		})
	}
}

func TestAWrongPasswordIsAnErrorThatDoesNotSayIt(t *testing.T) {
	s := serve(t, "--requirepass", "right")
	for _, address := range []string{"redis://:hunter2@" + s.addr(), s.url()} {
		_, err := open(t, address, "").Features().Apply(context.Background(), payments(1))
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", address, err)
		}
	}
}
