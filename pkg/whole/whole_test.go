package whole_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"crivo/pkg/whole"
)

func TestWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for _, text := range []string{"a longer first text", "second"} {
		if err := whole.Write(path, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); string(got) != text {
			t.Errorf("%q, %v", got, err)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if left, _ := filepath.Glob(path + ".*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := whole.Write(filepath.Join(path, "x"), nil); err == nil {
		t.Error("wrote below a file")
	}
}

// A server that runs as another user goes on reading what root replaces.
func TestOwnerAndGroupSurvive(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root gives files away")
	}
	path := filepath.Join(t.TempDir(), "f")
	if err := whole.Write(path, []byte("first")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(path, 65532, 65533); err != nil {
		t.Skip(err)
	}
	if err := whole.Write(path, []byte("second")); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if owner := info.Sys().(*syscall.Stat_t); owner.Uid != 65532 || owner.Gid != 65533 || info.Mode().Perm() != 0o600 {
		t.Errorf("%d:%d, %v", owner.Uid, owner.Gid, info.Mode())
	}
}
