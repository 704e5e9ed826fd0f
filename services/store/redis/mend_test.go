package redis_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"crivo/services/enrich"
	"crivo/services/store/redis"
)

// fresh is a store that has the whole stream and trusts itself.
func fresh(t testing.TB, s stream) (f *redis.Features, address, prefix string) {
	t.Helper()
	address, prefix = shared(t)
	f = whole(t, address, prefix)
	if _, err := patiently(f, s); err != nil {
		t.Fatal(err)
	}
	if _, err := s.mend(f); err != nil {
		t.Fatal(err)
	}
	return f, address, prefix
}

func want(t testing.TB, what string, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s: %s", what, diff)
	}
}

func TestNothingIsKnownUntilTheStoreIsMended(t *testing.T) {
	address, prefix := shared(t)
	s := payments(40)
	f := open(t, address, prefix).Features()
	want(t, "before", s.counts(t, f), []int64{-1, -1})
	replayed, err := s.mend(f)
	if err != nil {
		t.Fatal(err)
	}
	want(t, "replayed", replayed, []uint64{0})
	want(t, "after", s.counts(t, f), []int64{5, 40})
	replayed, err = s.mend(f)
	want(t, "replayed again", replayed, []uint64(nil))
	want(t, "again", err, nil)
}

func TestAStartReplaysTheMarginOnly(t *testing.T) {
	s := payments(5000)
	address, prefix := shared(t)
	first := open(t, address, prefix).Features()
	if _, err := s.mend(first); err != nil {
		t.Fatal(err)
	}
	second := open(t, address, prefix).Features()
	want(t, "before", s.counts(t, second), []int64{-1, -1})
	replayed, err := s.mend(second)
	if err != nil {
		t.Fatal(err)
	}
	want(t, "replayed", replayed, []uint64{5000 - 4096})
	want(t, "after", s.counts(t, second), []int64{625, 5000})
	want(t, "the other", s.counts(t, first), []int64{625, 5000})
}

func TestALostBucketIsUnknownAndTheOthersAreNot(t *testing.T) {
	s := payments(40)
	f, address, prefix := fresh(t, s)
	other := open(t, address, prefix).Features()
	if _, err := s.mend(other); err != nil {
		t.Fatal(err)
	}
	rdb := plain(t, address)
	defer rdb.Close()
	keys := rdb.Keys(context.Background(), prefix+"t/*/terminal/9:t").Val()
	if len(keys) != 1 {
		t.Fatalf("keys %v", keys)
	}
	tag := keys[0][strings.Index(keys[0], "{"):][:len("{f00}")]
	tag = tag[:strings.Index(tag, "}")+1]
	lost := rdb.Keys(context.Background(), prefix+"*"+tag+"*").Val()
	if err := rdb.Del(context.Background(), lost...).Err(); err != nil {
		t.Fatal(err)
	}
	want(t, "lost", s.counts(t, f), []int64{5, -1})
	replayed, err := s.mend(f)
	if err != nil {
		t.Fatal(err)
	}
	want(t, "replayed", replayed, []uint64{0})
	want(t, "rebuilt", s.counts(t, f), []int64{5, 40})
	want(t, "the other, before it has looked", s.counts(t, other), []int64{-1, -1})
	if _, err := s.mend(other); err != nil {
		t.Fatal(err)
	}
	want(t, "the other", s.counts(t, other), []int64{5, 40})
}

func TestOneKeyOfTwoIsAsGoodAsNone(t *testing.T) {
	for _, end := range []string{":t", ":s"} {
		s := payments(40)
		f, address, prefix := fresh(t, s)
		forget(t, address, prefix+"t/*/terminal/9"+end)
		want(t, "lost", s.counts(t, f), []int64{5, -1})
		if _, err := s.mend(f); err != nil {
			t.Fatal(err)
		}
		want(t, "rebuilt", s.counts(t, f), []int64{5, 40})
	}
}

func TestOneRebuildsAndTheNextTakesOverWhenItDies(t *testing.T) {
	address, prefix := shared(t)
	s := payments(40)
	first, second := open(t, address, prefix).Features(), open(t, address, prefix).Features()
	ctx, die := context.WithCancel(unhurried(t))
	begun, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- first.Mend(ctx, s.source(), func(ctx context.Context, _ uint64) error {
			close(begun)
			<-ctx.Done()
			return ctx.Err()
		})
	}()
	select {
	case <-begun:
	case err := <-done:
		t.Fatal(err)
	}
	if _, err := s.mend(second); !errors.Is(err, enrich.ErrElsewhere) {
		t.Errorf("got %v", err)
	}
	want(t, "meanwhile", s.counts(t, second), []int64{-1, -1})
	die()
	if err := <-done; err == nil {
		t.Error("the first one is done")
	}
	if _, err := s.mend(second); err != nil {
		t.Fatal(err)
	}
	want(t, "then", s.counts(t, second), []int64{5, 40})
	if _, err := s.mend(first); err != nil {
		t.Fatal(err)
	}
	want(t, "the first one", s.counts(t, first), []int64{5, 40})
}

func TestARebuildThatIsDisturbedIsNotDone(t *testing.T) {
	s := payments(40)
	for name, disturb := range map[string]func(t *testing.T, address, prefix string){
		"all is lost once more": func(t *testing.T, address, prefix string) { forget(t, address, prefix) },
		"one bucket is lost": func(t *testing.T, address, prefix string) {
			forget(t, address, prefix+"crivo:features/{f7}")
			forget(t, address, prefix+"t/{f7}")
		},
		"another process takes over": func(t *testing.T, address, prefix string) {
			forget(t, address, prefix+"crivo:features/lease")
			if err := open(t, address, prefix).Features().Mend(unhurried(t), s.source(), nothing); err != nil {
				t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			address, prefix := shared(t)
			f := open(t, address, prefix).Features()
			var replayed []uint64
			replay := s.replay(f, &replayed)
			err := f.Mend(unhurried(t), s.source(), func(ctx context.Context, after uint64) error {
				err := replay(ctx, after)
				disturb(t, address, prefix)
				return err
			})
			if err == nil {
				t.Error("it is done")
			}
			if got := s.counts(t, f); !slices.Equal(got, []int64{-1, -1}) {
				t.Errorf("known: %v", got)
			}
			if _, err := s.mend(f); err != nil {
				t.Fatal(err)
			}
			want(t, "then", s.counts(t, f), []int64{5, 40})
		})
	}
}

func TestWhatTheStreamHasLostIsNotTakenForNothing(t *testing.T) {
	s := payments(40)
	address, prefix := shared(t)
	f := open(t, address, prefix).Features()
	source := s.source()
	source.First, source.Since = 11, created.Add(30*time.Second)
	var replayed []uint64
	if err := f.Mend(unhurried(t), source, s.replay(f, &replayed)); err != nil {
		t.Fatal(err)
	}
	for _, h := range s.histories(t, f) {
		if !h.Known || !h.Since.Equal(source.Since) {
			t.Errorf("got %+v", h)
		}
	}
	forget(t, address, prefix+"crivo:features/{f7}")
	source.Since = created.Add(35 * time.Second)
	if err := f.Mend(unhurried(t), source, s.replay(f, &replayed)); err != nil {
		t.Fatal(err)
	}
	for _, h := range s.histories(t, f) {
		if !h.Known || !h.Since.Equal(created.Add(30*time.Second)) {
			t.Errorf("a bucket that was not lost begins anew: %+v", h)
		}
	}
}

func TestAStreamMadeAnewIsReplayedAndNothingForgotten(t *testing.T) {
	s := payments(40)
	f, _, _ := fresh(t, s)
	again := payments(42)[38:]
	for i := range again {
		again[i].Sequence = uint64(i + 1)
	}
	source := again.source()
	source.Created = created.Add(time.Hour)
	var replayed []uint64
	if err := f.Mend(unhurried(t), source, again.replay(f, &replayed)); err != nil {
		t.Fatal(err)
	}
	want(t, "replayed", replayed, []uint64{0})
	want(t, "known", again.counts(t, f), []int64{6, 42})
	if h := again.histories(t, f)[1]; !h.Since.IsZero() {
		t.Errorf("got %+v", h)
	}
}

func TestWhatFailedIsOwedAndMadeUpFor(t *testing.T) {
	s := payments(60)
	address, prefix := shared(t)
	proxy, through := proxied(t, address)
	f := whole(t, through, prefix)
	if _, err := patiently(f, s[:50]); err != nil {
		t.Fatal(err)
	}
	proxy.Stop()
	for i := 50; i < 58; i++ {
		if _, err := patiently(f, s[i:i+1]); err == nil {
			t.Error("applied by nobody")
		}
	}
	if err := proxy.Start(); err != nil {
		t.Fatal(err)
	}
	var got [][]enrich.History
	until(t, "it is tried again", func() (ok bool) {
		var err error
		got, err = patiently(f, s[58:59])
		return err == nil
	})
	for _, h := range got[0] {
		if h.Known {
			t.Errorf("known with events missing: %+v", h)
		}
	}
	replayed, err := s.mend(f)
	if err != nil {
		t.Fatal(err)
	}
	want(t, "replayed", replayed, []uint64{50})
	want(t, "whole", s.counts(t, f), []int64{8, 60})
	if replayed, err = s.mend(f); err != nil || len(replayed) > 0 {
		t.Errorf("replayed %v, %v", replayed, err)
	}
}

func TestWhatThePurgedStreamOwesForEverBeginsAnew(t *testing.T) {
	s := payments(60)
	address, prefix := shared(t)
	proxy, through := proxied(t, address)
	f := whole(t, through, prefix)
	if _, err := patiently(f, s[:50]); err != nil {
		t.Fatal(err)
	}
	proxy.Stop()
	if _, err := patiently(f, s[50:52]); err == nil {
		t.Error("applied by nobody")
	}
	if err := proxy.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.mend(whole(t, address, prefix)); err != nil { // another process notes all as applied
		t.Fatal(err)
	}
	source := s.source()
	source.First, source.Since = 53, created.Add(70*time.Second)
	var replayed []uint64
	until(t, "it mends", func() bool {
		return f.Mend(unhurried(t), source, s[:].replay(f, &replayed)) == nil
	})
	for _, h := range s.histories(t, f) {
		if !h.Since.Equal(source.Since) {
			t.Errorf("two events are gone and nobody says so: %+v", h)
		}
	}
}

func TestWhatFailedAndIsNotYetToldAsDeliveredStaysOwed(t *testing.T) {
	s := payments(60)
	address, prefix := shared(t)
	proxy, through := proxied(t, address)
	f := whole(t, through, prefix)
	if _, err := patiently(f, s[:30]); err != nil {
		t.Fatal(err)
	}
	proxy.Stop()
	if _, err := f.Apply(context.Background(), s[30:60]); err == nil {
		t.Error("applied by nobody")
	}
	if err := proxy.Start(); err != nil {
		t.Fatal(err)
	}
	forget(t, address, prefix) // the first mending is a rebuild
	for _, delivered := range []int{30, 40} {
		if _, err := s[:delivered].mend(f); err != nil {
			t.Fatal(err)
		}
		want(t, "known", s[:delivered].counts(t, f), []int64{-1, -1})
	}
	replayed, err := s.mend(f)
	if err != nil {
		t.Fatal(err)
	}
	want(t, "replayed", replayed, []uint64{40})
	want(t, "whole", s.counts(t, f), []int64{8, 60})
}

func TestAStartAfterThePurgeOfWhatWasNotAppliedBeginsAnew(t *testing.T) {
	s := payments(60)
	_, address, prefix := fresh(t, s[:40])
	f := open(t, address, prefix).Features()
	source := s.source()
	source.First, source.Since = 51, created.Add(40*time.Second)
	var replayed []uint64
	if err := f.Mend(unhurried(t), source, s.replay(f, &replayed)); err != nil {
		t.Fatal(err)
	}
	for _, h := range s.histories(t, f) {
		if !h.Known || !h.Since.Equal(source.Since) {
			t.Errorf("got %+v", h)
		}
	}
}

func TestWhatIsOwedOfAStreamThatIsGoneIsForgiven(t *testing.T) {
	s := payments(60)
	address, prefix := shared(t)
	proxy, through := proxied(t, address)
	f := whole(t, through, prefix)
	proxy.Stop()
	if _, err := f.Apply(context.Background(), s[30:60]); err == nil {
		t.Error("applied by nobody")
	}
	if err := proxy.Start(); err != nil {
		t.Fatal(err)
	}
	source := s[:5].source()
	source.Created = created.Add(time.Hour)
	var replayed []uint64
	if err := f.Mend(unhurried(t), source, s[:5].replay(f, &replayed)); err != nil {
		t.Fatal(err)
	}
	want(t, "known", s[:5].counts(t, f), []int64{1, 5})
}

func TestWhatComesTooLateIsSaidToBeUnknown(t *testing.T) {
	address, prefix := shared(t)
	f := whole(t, address, prefix)
	const day = 24 * time.Hour
	for _, tc := range []struct {
		name string
		at   time.Duration
		want []int64 // counts, -1 unknown
	}{
		{"the first", 0, []int64{1, 1, 1, 1}},
		{"70 days after", 70 * day, []int64{1, 1, 1, 1}},
		{"75 days after", 75 * day, []int64{1, 1, 1, 2}}, // the first one is forgotten by now
		{"65 days before that", 10 * day, []int64{-1, -1, -1, -1}},
		{"40 days before that", 35 * day, []int64{1, 1, 1, -1}},
		{"29 days before that", 46 * day, []int64{1, 1, 1, 2}},
		{"as late as the latest", 75 * day, []int64{2, 2, 2, 4}},
	} {
		got, err := patiently(f, []enrich.Event{{Key: "t/" + tc.name, At: created.Add(tc.at), Amount: 1, Entities: []enrich.Entity{{Role: "payer", Key: "t/payer/x"}}}})
		if err != nil {
			t.Fatal(err)
		}
		h := got[0][0]
		for w, window := range enrich.Windows {
			if !h.Known || created.Add(tc.at-window.Span).Before(h.Since) {
				h.Counts[w] = -1
			}
		}
		want(t, tc.name, h.Counts, tc.want)
	}
}

func TestWhatComesTooLateMovesNoSumThatIsKept(t *testing.T) {
	address, prefix := shared(t)
	f := whole(t, address, prefix)
	const day = 24 * time.Hour
	var s stream
	at := func(after time.Duration) {
		s = append(s, enrich.Event{Key: fmt.Sprint("t/", len(s)), At: created.Add(after), Amount: 7, Entities: []enrich.Entity{{Role: "payer", Key: "t/payer/x"}}})
	}
	for i := range 150 {
		at(time.Minute + time.Duration(i)*time.Second)
	}
	at(61 * day) // forgets 100 of them, and 50 with the next one
	at(time.Minute + 2*time.Second)
	at(62 * day)
	at(75 * day)
	got, err := patiently(f, s)
	if err != nil {
		t.Fatal(err)
	}
	h := got[len(got)-1][0]
	want(t, "counts", h.Counts, []int64{1, 1, 1, 3})
	want(t, "sums", h.Sums, []int64{7, 7, 7, 21})
}

func TestARebuildWhoseServerLosesItsEndBeginsAgain(t *testing.T) {
	server, s := serve(t), payments(60)
	f := open(t, server.url(), "").Features()
	var replayed []uint64
	err := f.Mend(unhurried(t), s.source(), func(ctx context.Context, _ uint64) error {
		err := s[:30].replay(f, &replayed)(ctx, 0)
		server.cli(t, "save")
		err = errors.Join(err, s.replay(f, &replayed)(ctx, 30))
		server.kill()
		server.start(t)
		return err
	})
	if err == nil {
		t.Error("half of it is whole")
	}
	until(t, "it is rebuilt", func() bool { _, err := s.mend(f); return err == nil })
	want(t, "whole", s.counts(t, f), []int64{8, 60})
}

// A server that keeps a snapshot and loses what came after it is one whose append-only file lost its end.
func TestALostEndIsNoticedAndMadeUpFor(t *testing.T) {
	for name, meanwhile := range map[string]func(t *testing.T, s *server){
		"nobody was faster":                    func(*testing.T, *server) {},
		"others wrote more than what was lost": func(t *testing.T, s *server) { raise(t, s, "writes", 1000) },
		"others noted what was lost as done":   func(t *testing.T, s *server) { raise(t, s, "floor", 30) },
	} {
		t.Run(name, func(t *testing.T) {
			server, s := serve(t), payments(60)
			f := whole(t, server.url(), "")
			if _, err := patiently(f, s[:30]); err != nil {
				t.Fatal(err)
			}
			if _, err := s[:30].mend(f); err != nil {
				t.Fatal(err)
			}
			server.cli(t, "save")
			if _, err := patiently(f, s[30:]); err != nil {
				t.Fatal(err)
			}
			server.kill()
			server.start(t)
			meanwhile(t, server)
			var replayed []uint64
			until(t, "it mends", func() (ok bool) {
				var err error
				replayed, err = s.mend(f)
				return err == nil
			})
			want(t, "replayed", replayed, []uint64{0}) // the floor less the margin
			want(t, "after", s.counts(t, f), []int64{8, 60})
		})
	}
}

// raise adds to a field of every marker.
func raise(t *testing.T, s *server, field string, by int64) {
	t.Helper()
	rdb := plain(t, s.url())
	defer rdb.Close()
	for b := range 64 {
		if err := rdb.HIncrBy(context.Background(), fmt.Sprintf("crivo:features/{f%d}", b), field, by).Err(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestALostEndIsUnknownToTheVeryNextEvent(t *testing.T) {
	server, s := serve(t), payments(60)
	f := whole(t, server.url(), "")
	server.cli(t, "save")
	if _, err := patiently(f, s); err != nil {
		t.Fatal(err)
	}
	server.kill()
	server.start(t)
	want(t, "known", s.counts(t, f), []int64{-1, -1})
}

func TestAllIsLostWhileTheFlowGoesOn(t *testing.T) {
	s := payments(400)
	f, address, prefix := fresh(t, s[:200])
	live := make(chan error, 1)
	var replayed []uint64
	forget(t, address, prefix)
	source := s[:210].source() // ten were under way
	err := f.Mend(unhurried(t), source, func(ctx context.Context, after uint64) error {
		go func() {
			for i := 210; i < 400; i++ {
				got, err := patiently(f, s[i:i+1])
				if err != nil || got[0][0].Known {
					live <- fmt.Errorf("event %d: %v, %w", i, got, err)
					return
				}
			}
			live <- nil
		}()
		err := s[:210].replay(f, &replayed)(ctx, after)
		return errors.Join(err, <-live)
	})
	if err != nil {
		t.Fatal(err)
	}
	want(t, "whole", s.counts(t, f), []int64{50, 400})
}

func TestWhatIsOldIsForgottenAndTheRestInTime(t *testing.T) {
	address, prefix := shared(t)
	f := whole(t, address, prefix)
	s := payments(400)
	for i := range s {
		s[i].At = created.Add(time.Duration(i) * 12 * time.Hour)
		s[i].Entities = s[i].Entities[1:]
		if _, err := patiently(f, s[i:i+1]); err != nil {
			t.Fatal(err)
		}
	}
	rdb := plain(t, address)
	defer rdb.Close()
	ctx := context.Background()
	for end, size := range map[string]func(key string) int64{
		":t": func(key string) int64 { return rdb.ZCard(ctx, key).Val() },
		":s": func(key string) int64 { return rdb.HLen(ctx, key).Val()/2 - 1 }, // two fields an event, base and first
	} {
		keys := rdb.Keys(ctx, prefix+"t/*/terminal/9"+end).Val()
		if len(keys) != 1 {
			t.Fatalf("keys %v", keys)
		}
		if n := size(keys[0]); n < 120 || n > 122 {
			t.Errorf("%s: %d events kept, want those of 60 days at two a day", keys[0], n)
		}
		if ttl := rdb.TTL(ctx, keys[0]).Val(); ttl < 59*24*time.Hour || ttl > 60*24*time.Hour {
			t.Errorf("%s goes in %v", keys[0], ttl)
		}
	}
	last := s[399:]
	last[0].Key, last[0].At = "t/last", last[0].At.Add(45*24*time.Hour)
	if _, err := patiently(f, last); err != nil {
		t.Fatal(err)
	}
	for _, key := range rdb.Keys(ctx, prefix+"t/*/terminal/9:s").Val() {
		if n := rdb.HLen(ctx, key).Val(); n != 2*32+2 {
			t.Errorf("%d fields kept, want an hour's and an event's of 15 days at two a day, and of the last", n)
		}
	}
	for b := range 64 {
		if ttl := rdb.TTL(ctx, fmt.Sprintf("%scrivo:features/{f%d}", prefix, b)).Val(); ttl != -1 {
			t.Errorf("the marker of bucket %d goes in %v", b, ttl)
		}
	}
}
