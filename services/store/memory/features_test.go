package memory_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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
	f, err := memory.OpenFeatures(dir)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	batch := make([]enrich.Event, 1000)
	for i := range 300 {
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
	if got := apply(t, suddenly(t, dir), one("t/last", now)); got.Counts[0] != 300_001 || got.Sums[3] != 30_000_100 {
		t.Errorf("got %+v", got)
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
