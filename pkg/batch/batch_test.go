package batch_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"crivo/pkg/batch"
)

var (
	errFull  = errors.New("too many")
	errWrite = errors.New("disk full")
)

// book is a Write that waits for the test and notes what it got.
type book struct {
	mu     sync.Mutex
	groups [][]int
	turn   chan error // nil or the error of one write; closed: all go through
}

func (b *book) write(items []int) ([]int, error) {
	b.mu.Lock()
	b.groups = append(b.groups, slices.Clone(items))
	b.mu.Unlock()
	if err := <-b.turn; err != nil {
		return nil, err
	}
	out := make([]int, len(items))
	for i, item := range items {
		out[i] = 10 * item
	}
	return out, nil
}

func (b *book) written() [][]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.groups)
}

// answer is what one caller got.
type answer struct {
	Item, Value int
	Err         error
}

// call hands items in one after the other, each by a caller of its own, and returns once all of them wait.
func call(ctx context.Context, g *batch.Group[int, int], answers chan<- answer, items ...int) {
	for _, item := range items {
		go func() {
			v, err := g.Do(ctx, item, errFull)
			answers <- answer{item, v, err}
		}()
		synctest.Wait()
	}
}

func collect(answers <-chan answer, n int) []answer {
	out := make([]answer, n)
	for i := range out {
		out[i] = <-answers
	}
	slices.SortFunc(out, func(a, b answer) int { return a.Item - b.Item })
	return out
}

func TestWhatArrivesDuringAWriteIsWrittenTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &book{turn: make(chan error)}
		var sizes []int
		g := &batch.Group[int, int]{Most: 3, Write: b.write, Size: func(n int) { sizes = append(sizes, n) }}
		answers := make(chan answer, 10)
		call(t.Context(), g, answers, 1)
		if diff := cmp.Diff([][]int{{1}}, b.written()); diff != "" {
			t.Fatalf("an idle group does not write at once: %s", diff)
		}
		call(t.Context(), g, answers, 2, 3, 4, 5)
		close(b.turn)
		g.Close()
		if diff := cmp.Diff([][]int{{1}, {2, 3, 4}, {5}}, b.written()); diff != "" {
			t.Errorf("groups: %s", diff)
		}
		if diff := cmp.Diff([]int{1, 3, 1}, sizes); diff != "" {
			t.Errorf("sizes: %s", diff)
		}
		want := []answer{{1, 10, nil}, {2, 20, nil}, {3, 30, nil}, {4, 40, nil}, {5, 50, nil}}
		if diff := cmp.Diff(want, collect(answers, 5)); diff != "" {
			t.Errorf("answers: %s", diff)
		}
	})
}

func TestAnErrorIsEverybodysOfItsGroupAndNobodyElses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &book{turn: make(chan error)}
		g := &batch.Group[int, int]{Most: 2, Write: b.write}
		answers := make(chan answer, 10)
		call(t.Context(), g, answers, 1, 2, 3, 4)
		b.turn <- nil
		b.turn <- errWrite
		b.turn <- nil
		g.Close()
		got := collect(answers, 4)
		for i, err := range []error{nil, errWrite, errWrite, nil} {
			if !errors.Is(got[i].Err, err) {
				t.Errorf("%d got %v, want %v", got[i].Item, got[i].Err, err)
			}
		}
	})
}

func TestAWriteThatBreaksOffLeavesNobodyWaiting(t *testing.T) {
	for name, write := range map[string]func([]int) ([]int, error){
		"it panics":                        func([]int) ([]int, error) { panic("secret") },
		"it panics with a runtime error":   func(items []int) ([]int, error) { return items[5:], nil },
		"it gives no results and no error": func([]int) ([]int, error) { return nil, nil },
		"it gives fewer results":           func(items []int) ([]int, error) { return items[1:], nil },
		"it gives more results":            func(items []int) ([]int, error) { return append(items, 0), nil },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gate := make(chan struct{})
				var sound atomic.Bool
				g := &batch.Group[int, int]{Most: 2, Write: func(items []int) ([]int, error) {
					<-gate
					if sound.Load() {
						return items, nil
					}
					return write(items)
				}}
				answers := make(chan answer, 10)
				call(t.Context(), g, answers, 1, 2, 3)
				close(gate)
				for _, got := range collect(answers, 3) {
					if !errors.Is(got.Err, batch.ErrWrite) {
						t.Errorf("%d got %v", got.Item, got.Err)
					}
					if got.Err != nil && len(got.Err.Error()) > 200 || errors.Is(got.Err, errFull) {
						t.Errorf("%d got %v", got.Item, got.Err)
					}
				}
				sound.Store(true)
				if v, err := g.Do(t.Context(), 7, errFull); v != 7 || err != nil {
					t.Errorf("the group is stuck afterwards: %d, %v", v, err)
				}
				g.Close()
			})
		})
	}
}

func TestAPanicsTextStaysInside(t *testing.T) {
	g := &batch.Group[string, int]{Most: 1, Write: func(items []string) ([]int, error) { panic("cannot write " + items[0]) }}
	if _, err := g.Do(t.Context(), "529.982.247-25", errFull); !errors.Is(err, batch.ErrWrite) || err.Error() != batch.ErrWrite.Error() {
		t.Errorf("got %v", err)
	}
}

func TestWhoseContextEndsLeavesAndIsWrittenAllTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &book{turn: make(chan error)}
		g := &batch.Group[int, int]{Most: 4, Write: b.write}
		stay, leave := make(chan answer, 10), make(chan answer, 10)
		ctx, cancel := context.WithCancel(t.Context())
		call(t.Context(), g, stay, 1)
		call(ctx, g, leave, 2)
		call(t.Context(), g, stay, 3)
		cancel()
		if got := <-leave; !errors.Is(got.Err, context.Canceled) {
			t.Errorf("left with %v", got.Err)
		}
		close(b.turn)
		g.Close()
		if diff := cmp.Diff([]answer{{1, 10, nil}, {3, 30, nil}}, collect(stay, 2)); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff([][]int{{1}, {2, 3}}, b.written()); diff != "" {
			t.Error(diff)
		}
	})
}

func TestWithSkipWhoeverLeavesBeforeTheWriteIsNotWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &book{turn: make(chan error)}
		var sizes []int
		g := &batch.Group[int, int]{Most: 2, Write: b.write, Skip: true, Size: func(n int) { sizes = append(sizes, n) }}
		stay, leave := make(chan answer, 10), make(chan answer, 10)
		ctx, cancel := context.WithCancel(t.Context())
		call(ctx, g, leave, 1) // its write has begun
		call(ctx, g, leave, 2, 3)
		call(t.Context(), g, stay, 4)
		call(ctx, g, leave, 5)
		call(t.Context(), g, stay, 6)
		cancel()
		for _, got := range collect(leave, 4) {
			if !errors.Is(got.Err, context.Canceled) {
				t.Errorf("%d left with %v", got.Item, got.Err)
			}
		}
		b.turn <- nil
		synctest.Wait()
		call(t.Context(), g, stay, 7)
		close(b.turn)
		g.Close()
		if diff := cmp.Diff([]answer{{4, 40, nil}, {6, 60, nil}, {7, 70, nil}}, collect(stay, 3)); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff([][]int{{1}, {4, 6}, {7}}, b.written()); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff([]int{1, 2, 1}, sizes); diff != "" {
			t.Errorf("sizes: %s", diff)
		}
	})
}

func TestWithSkipAQueueOfThoseWhoLeftIsEmpty(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &book{turn: make(chan error)}
		g := &batch.Group[int, int]{Most: 1, Write: b.write, Skip: true}
		stay, leave := make(chan answer, 10), make(chan answer, 20)
		ctx, cancel := context.WithCancel(t.Context())
		for i := range 1 + 16 {
			call(ctx, g, leave, i)
		}
		if _, err := g.Do(t.Context(), 99, errFull); !errors.Is(err, errFull) {
			t.Errorf("one too many got %v", err)
		}
		cancel()
		call(t.Context(), g, stay, 100) // while the first is still being written
		b.turn <- nil
		close(b.turn)
		g.Close()
		if diff := cmp.Diff([]answer{{100, 1000, nil}}, collect(stay, 1)); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff([][]int{{0}, {100}}, b.written()); diff != "" {
			t.Error(diff)
		}
	})
}

func TestSixteenGroupsMayWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &book{turn: make(chan error)}
		g := &batch.Group[int, int]{Most: 2, Write: b.write}
		answers := make(chan answer, 40)
		for i := range 1 + 16*2 {
			call(t.Context(), g, answers, i) // the first is being written, the others wait
		}
		if _, err := g.Do(t.Context(), 99, errFull); !errors.Is(err, errFull) {
			t.Errorf("one too many got %v", err)
		}
		b.turn <- nil // makes room for a group
		synctest.Wait()
		call(t.Context(), g, answers, 100)
		close(b.turn)
		g.Close()
		for _, got := range collect(answers, 34) {
			if got.Err != nil {
				t.Errorf("%d got %v", got.Item, got.Err)
			}
		}
	})
}

func TestCloseWaitsForWhatWasHandedInAndTakesNothingMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &book{turn: make(chan error)}
		g := &batch.Group[int, int]{Most: 1, Write: b.write}
		answers := make(chan answer, 10)
		call(t.Context(), g, answers, 1, 2)
		closed := make(chan struct{})
		go func() { g.Close(); close(closed) }()
		synctest.Wait()
		select {
		case <-closed:
			t.Error("closed before all was written")
		default:
		}
		if _, err := g.Do(t.Context(), 3, errFull); !errors.Is(err, errFull) {
			t.Errorf("took one more: %v", err)
		}
		close(b.turn)
		<-closed
		if diff := cmp.Diff([][]int{{1}, {2}}, b.written()); diff != "" {
			t.Error(diff)
		}
		g.Close() // twice is once
	})
	(&batch.Group[int, int]{Most: 1}).Close() // one that was never used too
}

// TestManyAtOnce is for the race detector: every caller gets its own answer.
func TestManyAtOnce(t *testing.T) {
	g := &batch.Group[int, int]{Most: 32, Write: func(items []int) ([]int, error) {
		out := make([]int, len(items))
		for i, item := range items {
			out[i] = -item
		}
		return out, nil
	}}
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			for n := range 100 {
				if v, err := g.Do(t.Context(), 1000*i+n, errFull); v != -1000*i-n || err != nil {
					t.Errorf("%d: %d, %v", 1000*i+n, v, err)
				}
			}
		})
	}
	all.Wait()
	g.Close()
}

func BenchmarkGroup(b *testing.B) {
	g := &batch.Group[int, int]{Most: 128, Write: func(items []int) ([]int, error) { return items, nil }}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := g.Do(b.Context(), 1, errFull); err != nil {
			b.Fatal(err)
		}
	}
	g.Close()
}
