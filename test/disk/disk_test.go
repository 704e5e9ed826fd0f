package disk_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"crivo/test/disk"
)

func mount(t *testing.T) *disk.Disk {
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
	return d
}

func all(int) int { return 0 }

func TestWhatWasNotSyncedIsForgotten(t *testing.T) {
	d := mount(t)
	path := filepath.Join(d.Dir, "a")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	says := func(want string) {
		t.Helper()
		got, err := os.ReadFile(path)
		if must(err); string(got) != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	f, err := os.Create(path)
	must(err)
	_, err = f.WriteString("one two")
	must(err)
	must(f.Sync())
	_, err = f.WriteAt([]byte("ONE and more"), 0)
	must(err)
	must(f.Truncate(5))
	_, err = f.WriteAt([]byte("!"), 9)
	must(err)
	must(f.Close())
	says("ONE a\x00\x00\x00\x00!")
	must(os.Rename(path, path+"2"))
	must(os.Rename(path+"2", path))
	n, err := d.Reset(all)
	if must(err); n == 0 {
		t.Error("nothing was forgotten")
	}
	says("one two")

	must(os.WriteFile(path, []byte("never synced"), 0o600))
	_, err = d.Reset(func(n int) int { return n })
	must(err)
	says("never synced") // this disk had written it all
	must(os.WriteFile(path, []byte("again"), 0o600))
	_, err = d.Reset(all)
	must(err)
	says("never synced")
	f, err = os.OpenFile(path, os.O_WRONLY|os.O_SYNC|os.O_APPEND, 0)
	must(err)
	_, err = f.WriteString(", now it is")
	must(err)
	must(f.Close())
	_, err = d.Reset(all)
	must(err)
	says("never synced, now it is")
}
