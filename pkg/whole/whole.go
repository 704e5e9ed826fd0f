// Package whole replaces files so that a crash leaves the old one or the new one, never a part.
package whole

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Write puts data at path, mode 0600, and returns once the disk has it. A file that is replaced keeps its owner and group: whoever
// read the old one reads the new one.
func Write(path string, data []byte) error {
	next := path + ".new"
	f, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, bequeath(path, f), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(next, path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// bequeath gives f the owner and group of what is at path, if anything is. Only root may give a file away; others go on without.
func bequeath(path string, f *os.File) error {
	old, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	owner, ok := old.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	err = f.Chown(int(owner.Uid), int(owner.Gid))
	if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
		return nil
	}
	return err
}
