package fault_test

import (
	"errors"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"crivo/test/disk"
	"crivo/test/system"
)

// onDisk starts a system whose disk forgets at will what was not synced.
func onDisk(t *testing.T, durability string) (*system.System, *disk.Disk) {
	t.Helper()
	d, err := disk.Mount(t.TempDir())
	if errors.Is(err, disk.ErrUnavailable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Unmount(); err != nil {
			t.Error(err)
		}
	})
	return system.New(t, system.Options{Data: filepath.Join(d.Dir, "data"), NATS: true, Durability: durability}), d
}

// reset is what a power cut does: the process ends, and what the disk had not written is gone.
func reset(t *testing.T, s *system.System, d *disk.Disk, keep func(int) int) (forgotten int64) {
	t.Helper()
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	forgotten, err := d.Reset(keep)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	return forgotten
}

func TestF12ResetInMidStreamNothingThatWasAcceptedIsLost(t *testing.T) {
	s, d := onDisk(t, "fsync")
	l, r := witnessed(t, s)
	stop := l.under(t, 16)
	forgotten, resets := int64(0), min(kills(t, 3), 4) // each takes some seconds
	for n := range resets {
		l.await(t, 50+rand.IntN(100))
		keep := func(int) int { return 0 }
		if n%2 == 1 {
			keep = func(n int) int { return rand.IntN(n + 1) }
		}
		forgotten += reset(t, s, d, keep)
		l.repeat(t)
	}
	stop()
	l.repeat(t)
	t.Logf("%d resets, %d bytes forgotten, %s", resets, forgotten, l.judge(t, r))
}

// Without syncs a reset loses what was accepted, as the README says; this also shows that the disk forgets.
func TestAResetLosesWhatWasNotSynced(t *testing.T) {
	s, d := onDisk(t, "interval")
	l := newLedger(s, "default")
	stop := l.under(t, 8)
	l.await(t, 100)
	stop()
	if forgotten := reset(t, s, d, func(int) int { return 0 }); forgotten == 0 {
		t.Error("nothing was forgotten")
	}
	lost := 0
	for id := range l.accepted {
		a, err := s.Ask(t.Context(), http.MethodGet, "/v1/transactions/"+id, nil)
		if err != nil {
			t.Fatal(err)
		}
		if a.Status == http.StatusNotFound {
			lost++
		}
	}
	if lost == 0 {
		t.Error("nothing was lost: the disk does not forget")
	}
	t.Logf("%d of %d lost", lost, len(l.accepted))
}

// The disk is full for a while: what cannot be kept is refused, what was accepted is decided once there is room and the program
// was started again.
func TestF07AFullDiskIsRefusedAndLosesNothing(t *testing.T) {
	s, d := onDisk(t, "fsync")
	l, r := witnessed(t, s)
	stop := l.under(t, 8)
	l.await(t, 50)
	d.Fill(true)
	for give := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		row := l.next()
		a, err := s.Do(t.Context(), http.MethodPost, "/v1/transactions", row.Body)
		if err == nil && a.Status == http.StatusServiceUnavailable {
			break
		}
		if err == nil && a.Status/100 == 2 {
			l.settle(row.ID, a)
		}
		if time.Now().After(give) {
			t.Fatalf("never refused: %d %s %v", a.Status, a.Body, err)
		}
	}
	d.Fill(false)
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.await(t, 20)
	stop()
	l.repeat(t)
	l.judge(t, r)
}
