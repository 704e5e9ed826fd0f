package edge_test

import (
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"crivo/services/edge"
	"crivo/services/store"
)

func TestPreferWait(t *testing.T) {
	for _, c := range []struct {
		name    string
		headers []string
		want    int
	}{
		{"not asked", nil, 0},
		{"plain", []string{"wait=2"}, 2},
		{"any case, white space", []string{" Wait = 2 "}, 2},
		{"quoted", []string{`wait="3"`}, 3},
		{"ten at most", []string{"wait=60"}, 10},
		{"beyond any integer", []string{"wait=99999999999999999999"}, 10},
		{"none", []string{"wait=0"}, 0},
		{"negative", []string{"wait=-5"}, 0},
		{"signed", []string{"wait=+5"}, 0},
		{"a fraction", []string{"wait=2.5"}, 0},
		{"no value", []string{"wait"}, 0},
		{"empty", []string{"wait="}, 0},
		{"among others", []string{"respond-async, wait=4; foo=bar, handling=lenient"}, 4},
		{"in a second header line", []string{"respond-async", "wait=5"}, 5},
		{"the first one counts", []string{"wait=1, wait=9"}, 1},
		{"also when it is none", []string{"wait=0", "wait=9"}, 0},
		{"inside a quoted string it is text", []string{`foo="a, wait=5"`}, 0},
		{"after a quoted string with an escape", []string{`foo="a\", wait=5", wait=6`}, 6},
		{"a parameter is no preference", []string{"foo; wait=5"}, 0},
		{"another word", []string{"await=5, wait-more=5"}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := edge.PreferWait(c.headers); got != c.want {
				t.Errorf("%q gave %d, want %d", c.headers, got, c.want)
			}
		})
	}
}

func TestBearer(t *testing.T) {
	for header, want := range map[string]string{
		"Bearer abc": "abc", "bearer  abc ": "abc", "Bearer": "", "Bearer ": "", "Basic abc": "", "abc": "", "": "",
		"Bearer " + strings.Repeat("x", 257): "",
	} {
		got, ok := edge.Bearer(header)
		if ok != (want != "") || ok && got != want {
			t.Errorf("%q gave %q, %v", header, got, ok)
		}
	}
}

func TestTraceparentIsKeptOnlyWhenWellFormed(t *testing.T) {
	const good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	if got := edge.Traceparent(good); got != good {
		t.Errorf("changed to %s", got)
	}
	for _, bad := range []string{"", "x", good + "-more", strings.ToUpper(good), "00-00000000000000000000000000000000-b7ad6b7169203331-01",
		"00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", good + "\n"} {
		got := edge.Traceparent(bad)
		if got == bad || edge.Traceparent(got) != got {
			t.Errorf("%q became %q", bad, got)
		}
	}
}

func TestW14WhatAWebhookURLMayBe(t *testing.T) {
	own := netip.MustParsePrefix("127.0.0.0/8")
	for _, c := range []struct {
		name, url string
		allow     []netip.Prefix
		ok        bool
	}{
		{"https", "https://example.com/hook?x=1", nil, true},
		{"https with its port", "https://example.com:443/", nil, true},
		{"capital scheme", "HTTPS://example.com/", nil, true},
		{"another port", "https://example.com:8443/", nil, false},
		{"port zero", "https://example.com:0/", nil, false},
		{"http", "http://example.com/", nil, false},
		{"another scheme", "ftp://example.com/", nil, false},
		{"a file", "file:///etc/passwd", nil, false},
		{"no scheme", "//example.com/", nil, false},
		{"relative", "/hook", nil, false},
		{"empty", "", nil, false},
		{"no host", "https://", nil, false},
		{"a port and no host", "https://:443/", nil, false},
		{"opaque", "https:example.com", nil, false},
		{"user and password", "https://user:pass@example.com/", nil, false},
		{"an empty user", "https://@example.com/", nil, false},
		{"a fragment", "https://example.com/#x", nil, false},
		{"over 2048 characters", "https://example.com/" + strings.Repeat("x", 2048), nil, false},
		{"a control character", "https://example.com/\n", nil, false},
		{"loopback that nobody allowed", "http://127.0.0.1:9000/hook", nil, false},
		{"loopback that the operator allowed", "http://127.0.0.1:9000/hook", []netip.Prefix{own}, true},
		{"localhost that the operator allowed", "http://localhost:9000/hook", []netip.Prefix{own}, true},
		{"loopback as IPv6 sees it", "http://[::ffff:127.0.0.1]:9000/", []netip.Prefix{own}, true},
		{"a port beyond all", "http://127.0.0.1:65536/", []netip.Prefix{own}, false},
		{"another address than the allowed ones", "http://10.0.0.1/", []netip.Prefix{own}, false},
		{"a name that only starts like one", "http://127.0.0.1.example.com/", []netip.Prefix{own}, false},
		{"a user even there", "http://user@127.0.0.1/", []netip.Prefix{own}, false},
		{"another scheme even there", "ftp://127.0.0.1/", []netip.Prefix{own}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := edge.URLAllowed(c.url, c.allow...); (err == nil) != c.ok {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestEndpointFaultsAreToldTogether(t *testing.T) {
	for _, c := range []struct {
		name, body string
		want       []string // pointer and code
	}{
		{"nothing changed", `{}`, nil},
		{"all in order", `{"url":"https://example.com/","events":["transaction.decided","transaction.*"],"description":"x","payload":"full","headers":{"X-A":"b"},"paused":true}`, nil},
		{"null changes nothing", `{"url":null,"events":null,"paused":null}`, nil},
		{"every member wrong", `{"url":"ftp://x","events":["transaction.decide","transaction.decided","*"],"description":"` + strings.Repeat("x", 257) + `","payload":"fat","headers":{"Host":"x","Webhook-Id":"x","a b":"x","ok":"\u0001"}}`,
			[]string{"/url format", "/events/0 format", "/events/2 format", "/description too_long", "/payload format",
				"/headers/Host format", "/headers/Webhook-Id format", "/headers/a b format", "/headers/ok format"}},
		{"types and unknown names", `{"url":1,"events":["endpoint.*",2],"headers":{"a/b":3},"paused":"yes","x~/y":1}`,
			[]string{"/events/1 type", "/headers/a~1b type", "/paused type", "/url type", "/x~0~1y unknown_field"}},
		{"too many", `{"events":[` + strings.Repeat(`"a",`, 32) + `"a"],"headers":{` + headers(17) + `}}`, []string{"/events too_long", "/headers too_long"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			for _, f := range edge.Faults(edge.EndpointFaults(c.body)) {
				got = append(got, f.Pointer+" "+f.Code)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func headers(n int) string {
	var parts []string
	for i := range n {
		parts = append(parts, `"H`+string(rune('a'+i))+`":""`)
	}
	return strings.Join(parts, ",")
}

func TestFlights(t *testing.T) {
	noon := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	a, b := store.Key{Tenant: "t", ID: "a"}, store.Key{Tenant: "t", ID: "b"}

	t.Run("a repeat joins and hears the same", func(t *testing.T) {
		f := edge.NewFlights()
		_, first, fresh := f.Start(a, noon, noon.Add(2*time.Second))
		_, second, again := f.Start(a, noon, noon.Add(2*time.Second))
		done, other, _ := f.Start(b, noon, noon.Add(2*time.Second))
		f.Heard(a, []byte("event"), noon)
		if !fresh || again || string(first()) != "event" || string(second()) != "event" {
			t.Errorf("fresh %v, again %v, %s, %s", fresh, again, first(), second())
		}
		select {
		case <-done:
			t.Errorf("another one's ended with %s", other())
		default:
		}
	})
	t.Run("a decision of nobody here is nothing", func(t *testing.T) {
		f := edge.NewFlights()
		f.Heard(a, nil, noon)
		f.Heard(a, nil, noon)
		if n, _ := f.Load(); n != 0 {
			t.Errorf("%d under way", n)
		}
	})
	t.Run("what is lost is forgotten well after its deadline, a renewed one later", func(t *testing.T) {
		f := edge.NewFlights()
		f.Start(a, noon, noon.Add(2*time.Second))
		f.Start(b, noon, noon.Add(2*time.Second))
		f.Start(b, noon.Add(4*time.Second), noon.Add(6*time.Second))
		for _, at := range []struct {
			after time.Duration
			want  int
		}{{3 * time.Second, 2}, {8 * time.Second, 1}, {12 * time.Second, 0}} {
			f.Expire(noon.Add(at.after))
			if n, _ := f.Load(); n != at.want {
				t.Errorf("after %s %d under way, want %d", at.after, n, at.want)
			}
		}
	})
	t.Run("what is late goes by its own deadline", func(t *testing.T) {
		f := edge.NewFlights()
		f.Start(a, noon, noon.Add(2*time.Second))
		f.Start(b, noon, noon.Add(5*time.Second))
		for after, want := range map[time.Duration]int{time.Second: 0, 1100 * time.Millisecond: 1, 2500 * time.Millisecond: 1, 2600 * time.Millisecond: 2} {
			if n := f.Late(noon.Add(after)); n != want {
				t.Errorf("after %s %d are late, want %d", after, n, want)
			}
		}
	})
	t.Run("seats count like flights", func(t *testing.T) {
		f := edge.NewFlights()
		f.Start(a, noon, noon)
		if !f.Board(2) || f.Board(2) {
			t.Error("not exactly one seat was left")
		}
		if n, _ := f.Load(); n != 2 {
			t.Errorf("%d under way", n)
		}
		f.Leave()
		if !f.Board(2) {
			t.Error("the seat was not given back")
		}
	})
	t.Run("latency follows, and is nothing once all is quiet", func(t *testing.T) {
		f := edge.NewFlights()
		for range 100 {
			f.Start(a, noon, noon.Add(2*time.Second))
			f.Heard(a, nil, noon.Add(time.Second))
		}
		if _, d := f.Load(); d < 900*time.Millisecond || d > time.Second {
			t.Errorf("latency %s", d)
		}
		f.Expire(noon)
		if _, d := f.Load(); d != 0 {
			t.Errorf("latency %s", d)
		}
	})
}

func TestTheGateShutsAfterThreeFailuresInARowAndLetsOneProbeThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := edge.NewGate()
		admits := func(what string, wantOK, wantProbe bool) {
			t.Helper()
			if ok, probe := g.Admits(); ok != wantOK || probe != wantProbe {
				t.Errorf("%s: admitted %v, as a probe %v", what, ok, probe)
			}
		}
		g.Failed()
		g.Failed()
		g.Published()
		g.Failed()
		g.Failed()
		admits("never three in a row", true, false)
		g.Failed()
		admits("shut", false, false)
		time.Sleep(100 * time.Millisecond)
		admits("the first after 100 ms", true, true)
		admits("a second while the probe is out", false, false)
		g.Settle()
		admits("after a probe that published nothing", false, false)
		time.Sleep(100 * time.Millisecond)
		admits("100 ms later", true, true)
		g.Failed()
		g.Settle()
		admits("after a probe that failed", false, false)
		time.Sleep(100 * time.Millisecond)
		admits("100 ms later again", true, true)
		g.Published()
		g.Settle()
		admits("after a probe that worked", true, false)
		g.Failed()
		g.Failed()
		admits("the settled probe does not count as a failure", true, false)
	})
}

// Refusals that overlap, as those of batches do, leave a key's rate as it is: the next request comes when it would have come.
func TestARefusalTakesNothingOffTheRate(t *testing.T) {
	allow := edge.Allowance(0.001)
	if err := allow(); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 5000 {
				_ = allow()
			}
		})
	}
	all.Wait()
	if wait := edge.After(allow()); wait <= 0 || wait > 1000*time.Second {
		t.Errorf("wait %s at one request in 1000 s", wait)
	}
}

func TestTheWaitOfTheSmallestRateIsOneThatCanBeTold(t *testing.T) {
	allow := edge.Allowance(1e-300)
	if err := allow(); err != nil {
		t.Fatal(err)
	}
	if wait := edge.After(allow()); wait != 1e9*time.Second {
		t.Errorf("wait %s", wait)
	}
}
