package memory_test

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"crivo/services/enrich"
	"crivo/services/store/memory"
)

// full has no file of this process grow beyond its size and a few bytes more, as on a disk that is full in the midst of a
// write, until the returned function is called.
func full(t *testing.T, dir string) (free func()) {
	t.Helper()
	tails, _ := filepath.Glob(dir + "/tail-*")
	info, err := os.Stat(tails[len(tails)-1])
	if err != nil {
		t.Fatal(err)
	}
	signal.Ignore(syscall.SIGXFSZ)
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
		t.Fatal(err)
	}
	limit := before
	limit.Cur = uint64(info.Size()) + 20
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	free = func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(free)
	return free
}

func refused(t *testing.T, f *memory.Features, events []enrich.Event) {
	t.Helper()
	if _, err := f.Apply(context.Background(), events); err == nil {
		t.Fatal("applied")
	}
}

func peek(t *testing.T, f *memory.Features, events []enrich.Event) enrich.History {
	t.Helper()
	got, err := f.Peek(context.Background(), events)
	if err != nil {
		t.Fatal(err)
	}
	return got[len(got)-1][0]
}

// numbered is the n-th message of the stream.
func numbered(n int, at time.Time) []enrich.Event {
	out := one(fmt.Sprint("t/", n), at)
	out[0].Sequence = uint64(n)
	return out
}

// emptied is a store on a folder of its own, and the time.
func emptied(t *testing.T) (f *memory.Features, dir string, now time.Time) {
	t.Helper()
	dir = t.TempDir()
	f, err := memory.OpenFeatures(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f, dir, time.Now()
}

// beyond is one event more than may be owed, from the second of the stream on.
func beyond(now time.Time) (out []enrich.Event) {
	for n := range 50_001 {
		out = append(out, numbered(n+2, now)...)
	}
	return out
}

func TestWhatCouldNotBeWrittenIsUnknownUntilItIs(t *testing.T) {
	f, dir, now := emptied(t)
	f.Whole()
	apply(t, f, numbered(1, now))
	free := full(t, dir)
	refused(t, f, numbered(2, now))
	refused(t, f, numbered(3, now))
	if got := peek(t, f, numbered(4, now)); got.Known {
		t.Errorf("two events are lacking, and %+v is known", got)
	}
	if at := f.Position(); at.Sequence != 1 {
		t.Errorf("position %d", at.Sequence)
	}
	free()
	if got := apply(t, f, numbered(4, now)); !got.Known || got.Counts[0] != 4 {
		t.Errorf("got %+v, want all four", got)
	}
	if got := peek(t, f, numbered(5, now)); !got.Known || got.Counts[0] != 5 {
		t.Errorf("peeked %+v", got)
	}
	again := suddenly(t, dir)
	if got := apply(t, again, numbered(5, now)); got.Counts[0] != 5 || again.Position().Sequence != 5 {
		t.Errorf("got %+v at %d after a start", got, again.Position().Sequence)
	}
}

func TestTooMuchThatCouldNotBeWrittenIsLeftToTheNextStart(t *testing.T) {
	f, dir, now := emptied(t)
	f.Whole()
	apply(t, f, numbered(1, now))
	free := full(t, dir)
	refused(t, f, beyond(now))
	free()
	refused(t, f, numbered(60_000, now))
	if got := peek(t, f, numbered(60_001, now)); got.Known || f.Position().Sequence != 1 {
		t.Errorf("got %+v at %d", got, f.Position().Sequence)
	}
	if at := suddenly(t, dir).Position(); at.Sequence != 1 {
		t.Errorf("a start goes on after %d", at.Sequence)
	}
}

func TestWhoCatchesUpComesAgainWithWhatCouldNotBeWritten(t *testing.T) {
	f, dir, now := emptied(t)
	apply(t, f, numbered(1, now))
	if got := peek(t, f, numbered(2, now)); got.Known {
		t.Errorf("%+v is known before all is there", got)
	}
	free := full(t, dir)
	many := beyond(now)
	refused(t, f, many)
	free()
	apply(t, f, many)
	f.Whole()
	if got := peek(t, f, numbered(2, now)); !got.Known || got.Counts[0] != 50_002 {
		t.Errorf("got %+v", got)
	}
}
