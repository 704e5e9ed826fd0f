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
	for _, err := range []error{f.Check(context.Background()), f.Mend(context.Background(), enrich.Source{}, nothing)} {
		if !errors.Is(err, redis.ErrEvicts) || !strings.Contains(err.Error(), "allkeys-lru") {
			t.Errorf("got %v", err)
		}
	}
	s.cli(t, "config", "set", "maxmemory-policy", "noeviction")
	if err := f.Mend(context.Background(), enrich.Source{}, nothing); err != nil {
		t.Error(err)
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
			if err := c.Check(context.Background()); err != nil {
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
