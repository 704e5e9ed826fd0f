package memory_test

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"crivo/services/enrich"
	"crivo/services/store/memory"
	"crivo/services/store/storetest"
)

// suddenly opens dir as after a killed process: nothing of the former opener was closed, only its lock is gone.
func suddenly(t *testing.T, dir string) *memory.Features {
	t.Helper()
	copied := t.TempDir()
	if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	f, err := memory.OpenFeatures(copied)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestFeatures(t *testing.T) {
	dirs := map[string]string{}
	storetest.Features(t, func(t *testing.T) enrich.Features {
		last, ok := dirs[t.Name()]
		if !ok {
			last = t.TempDir()
		}
		copied := t.TempDir()
		if err := os.CopyFS(copied, os.DirFS(last)); err != nil {
			t.Fatal(err)
		}
		dirs[t.Name()] = copied
		f, err := memory.OpenFeatures(copied)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		f.Whole()
		return f
	}, func(_ *testing.T, f enrich.Features) enrich.Features { return f })
}

func one(key string, at time.Time) []enrich.Event {
	return []enrich.Event{{Key: key, At: at, Amount: 100, Entities: []enrich.Entity{{Role: "payer", Key: "t/payer/x"}}}}
}

func apply(t testing.TB, f *memory.Features, events []enrich.Event) enrich.History {
	t.Helper()
	got, err := f.Apply(context.Background(), events)
	if err != nil {
		t.Fatal(err)
	}
	return got[len(got)-1][0]
}

func TestATornTailLosesOnlyItsEnd(t *testing.T) {
	for name, tc := range map[string]struct {
		tear func(path string, size int64) error
		want int64 // of three events and a new one
	}{
		"cut":            {func(path string, size int64) error { return os.Truncate(path, size-5) }, 3},
		"zeros after it": {func(path string, size int64) error { return os.Truncate(path, size+4096) }, 4},
		"a few zeros":    {func(path string, size int64) error { return os.Truncate(path, size+3) }, 4},
		"zeros for its half": {func(path string, size int64) error {
			return errors.Join(os.Truncate(path, size-5), os.Truncate(path, size+100))
		}, 3},
	} {
		t.Run(name, func(t *testing.T) {
			dir, now := t.TempDir(), time.Now()
			f, err := memory.OpenFeatures(dir)
			if err != nil {
				t.Fatal(err)
			}
			for i := range 3 {
				apply(t, f, one(fmt.Sprint("t/", i), now))
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			tails, _ := filepath.Glob(dir + "/tail-*")
			info, err := os.Stat(tails[0])
			if err != nil {
				t.Fatal(err)
			}
			if err := tc.tear(tails[0], info.Size()); err != nil {
				t.Fatal(err)
			}
			if got := apply(t, suddenly(t, dir), one("t/9", now)); got.Counts[0] != tc.want {
				t.Errorf("%d events, want %d", got.Counts[0], tc.want)
			}
		})
	}
}

func TestAFullTailBecomesASnapshot(t *testing.T) {
	dir := t.TempDir()
	f, err := memory.Open(dir, 25_000)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	since := now.Add(-time.Hour).UTC()
	if err := f.Restart(enrich.Position{Created: now.UTC(), Sequence: 7}, since); err != nil {
		t.Fatal(err)
	}
	batch := make([]enrich.Event, 1000)
	for i := range 30 {
		for j := range batch {
			batch[j] = one(fmt.Sprintf("t/%d-%d", i, j), now)[0]
		}
		apply(t, f, batch)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir + "/snapshot"); err != nil {
		t.Fatal(err)
	}
	again := suddenly(t, dir)
	if at := again.Position(); !at.Created.Equal(now) || at.Sequence != 7 {
		t.Errorf("the position is %+v", at)
	}
	if got := apply(t, again, one("t/last", now)); got.Counts[0] != 30_001 || got.Sums[3] != 3_000_100 || !got.Since.Equal(since) {
		t.Errorf("got %+v", got)
	}
}

func tails(t *testing.T, dir string) int {
	t.Helper()
	names, err := filepath.Glob(dir + "/tail-*")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

func TestNothingWaitsForAFold(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	f, err := memory.Open(dir, 10)
	if err != nil {
		t.Fatal(err)
	}
	pipe := dir + "/snapshot" // who opens it to read waits for a writer
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	applied := make(chan error, 1)
	go func() {
		for i := range 50 {
			if _, err := f.Apply(context.Background(), one(fmt.Sprint("t/", i), now)); err != nil {
				applied <- err
				return
			}
		}
		applied <- nil
	}()
	var waited bool
	select {
	case err := <-applied:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(30 * time.Second):
		waited = true
	}
	if n := tails(t, dir); waited || n != 2 {
		t.Errorf("%d tails beside a fold; waited for it: %v", n, waited)
	}
	writer, err := os.OpenFile(pipe, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(gob.NewEncoder(writer).Encode(struct{ Newest int64 }{1}), writer.Close()); err != nil {
		t.Fatal(err)
	}
	if waited {
		t.FailNow()
	}
	for tails(t, dir) != 1 { // the next fold comes when that one is done
		if time.Since(now) > time.Minute {
			t.Fatalf("%d tails", tails(t, dir))
		}
		apply(t, f, one("t/0", now))
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if got := apply(t, suddenly(t, dir), one("t/last", now)); got.Counts[0] != 51 {
		t.Errorf("got %+v", got)
	}
}

func TestManyStartsLeaveFewFiles(t *testing.T) {
	dir, now, most := t.TempDir(), time.Now(), 0
	for start := range 20 {
		f, err := memory.Open(dir, 12)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			apply(t, f, one(fmt.Sprint("t/", start, "-", i), now))
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		most = max(most, tails(t, dir))
	}
	if most > 5 {
		t.Errorf("%d files of three events each, where twelve events are folded", most)
	}
	if got := apply(t, suddenly(t, dir), one("t/last", now)); got.Counts[0] != 61 {
		t.Errorf("got %+v", got)
	}
}

func TestStartsWithoutEventsLeaveFewFiles(t *testing.T) {
	dir := t.TempDir()
	for i := range 100 {
		if err := os.WriteFile(fmt.Sprintf("%s/tail-%010d", dir, i+1), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f, err := memory.OpenFeatures(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if n := tails(t, dir); n != 1 {
		t.Errorf("%d files", n)
	}
}

func TestATailThatCannotBeReadIsNotTakenForATornOne(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(dir+"/tail-0000000001", 0o700); err != nil {
		t.Fatal(err)
	}
	if f, err := memory.OpenFeatures(dir); err == nil {
		_ = f.Close()
		t.Error("opened without it")
	}
}

func TestOnlyOneOpener(t *testing.T) {
	dir := t.TempDir()
	f, err := memory.OpenFeatures(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if second, err := memory.OpenFeatures(dir); err == nil {
		_ = second.Close()
		t.Error("opened twice")
	}
}

func BenchmarkFeatures(b *testing.B) {
	f, err := memory.OpenFeatures(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	batch := make([]enrich.Event, 64)
	start := time.Now()
	for n := 0; b.Loop(); n++ {
		for j := range batch {
			i := n*len(batch) + j
			batch[j] = enrich.Event{Key: fmt.Sprint("t/", i), At: start.Add(time.Duration(i) * 9 * time.Second), Amount: 100, Entities: []enrich.Entity{
				{Role: "payer", Key: fmt.Sprint("t/payer/", i%5000)}, {Role: "terminal", Key: fmt.Sprint("t/terminal/", i*7919%10000)}}}
		}
		apply(b, f, batch)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(batch)), "ns/event")
}
