// Package disk is a pass-through file system that forgets at will what was not synced, as a machine's reset does. Data written
// and not synced is taken back; names (files made, renamed, removed) are kept, as a journal of metadata keeps them.
package disk

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// Disk is a mounted one. A process that uses it must be dead before [Disk.Reset].
type Disk struct {
	Dir string // where it is mounted

	server *fuse.Server
	full   atomic.Bool
	mu     sync.Mutex
	files  map[uint64]*unsynced // by inode
}

// unsynced is how to take back what was done to a file since it was last synced.
type unsynced struct {
	file  *os.File // a handle of our own: names may change meanwhile
	undos []undo
}

// undo is what a write or a truncation replaced.
type undo struct {
	at   int64
	old  []byte
	size int64 // the file's before
}

// ErrUnavailable is returned where no file system can be mounted.
var ErrUnavailable = errors.New("disk: no file system can be mounted here")

// Mount makes a disk in folder, which must be empty: what is on it lies in folder/kept.
func Mount(folder string) (*Disk, error) {
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Getuid() != 0 {
		return nil, ErrUnavailable
	}
	kept, dir := filepath.Join(folder, "kept"), filepath.Join(folder, "disk")
	for _, path := range []string{kept, dir} {
		if err := os.Mkdir(path, 0o755); err != nil {
			return nil, err
		}
	}
	var st syscall.Stat_t
	if err := syscall.Stat(kept, &st); err != nil {
		return nil, err
	}
	d := &Disk{Dir: dir, files: map[uint64]*unsynced{}}
	root := &fs.LoopbackRoot{Path: kept, Dev: st.Dev}
	top := &node{LoopbackNode: fs.LoopbackNode{RootData: root}, disk: d}
	root.RootNode = top
	never := time.Duration(0)
	var err error
	d.server, err = fs.Mount(dir, top, &fs.Options{AttrTimeout: &never, EntryTimeout: &never,
		MountOptions: fuse.MountOptions{DirectMountStrict: true, FsName: "crivo-test", Name: "forgetting"}})
	if err != nil {
		return nil, errors.Join(ErrUnavailable, err)
	}
	return d, nil
}

// Fill has every write refused for want of space, until it is called with false.
func (d *Disk) Fill(full bool) { d.full.Store(full) }

// Unmount ends it.
func (d *Disk) Unmount() error { return d.server.Unmount() }

// Reset takes back what was not synced: of each file's n unsynced changes all but the first keep(n), since a disk may have
// written some of them already. It returns how many bytes of changes went.
func (d *Disk) Reset(keep func(n int) int) (forgotten int64, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for ino, u := range d.files {
		first := keep(len(u.undos))
		for i := len(u.undos) - 1; i >= first; i-- {
			n, undoErr := u.undos[i].apply(u.file)
			forgotten, err = forgotten+n, errors.Join(err, undoErr)
		}
		err = errors.Join(err, u.file.Close())
		delete(d.files, ino)
	}
	return forgotten, err
}

// apply returns how many bytes the change had touched.
func (u undo) apply(f *os.File) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	_, err = f.WriteAt(u.old, u.at)
	return int64(len(u.old)) + max(0, info.Size()-u.size), errors.Join(err, f.Truncate(u.size))
}

// before remembers what the next change of n bytes at a place replaces; n < 0 is a truncation to that place.
func (d *Disk) before(f *os.File, ino uint64, at int64, n int) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	u := undo{at: at, size: info.Size()}
	if n < 0 {
		n = int(max(0, u.size-at))
	}
	u.old = make([]byte, min(int64(n), max(0, u.size-at)))
	if _, err := f.ReadAt(u.old, at); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	all := d.files[ino]
	if all == nil {
		fd, err := syscall.Dup(int(f.Fd()))
		if err != nil {
			return err
		}
		all = &unsynced{file: os.NewFile(uintptr(fd), "")}
		d.files[ino] = all
	}
	all.undos = append(all.undos, u)
	return nil
}

func (d *Disk) synced(ino uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if u := d.files[ino]; u != nil {
		_ = u.file.Close() // a spare handle
		delete(d.files, ino)
	}
}

// node is a file or folder.
type node struct {
	fs.LoopbackNode
	disk *Disk
}

// WrapChild makes every file of the disk one that is watched.
func (n *node) WrapChild(_ context.Context, ops fs.InodeEmbedder) fs.InodeEmbedder {
	inner, ok := ops.(*fs.LoopbackNode)
	if !ok {
		return ops
	}
	return &node{LoopbackNode: fs.LoopbackNode{RootData: inner.RootData}, disk: n.disk}
}

func (n *node) path() string { return filepath.Join(n.RootData.Path, n.Path(n.Root())) }

// Open opens the file below.
func (n *node) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	h, err := n.disk.open(n.path(), int(flags), 0)
	return h, 0, fs.ToErrno(err)
}

// Create makes and opens one.
func (n *node) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	h, err := n.disk.open(filepath.Join(n.path(), name), int(flags)|os.O_CREATE, os.FileMode(mode))
	if err != nil {
		return nil, nil, 0, fs.ToErrno(err)
	}
	inode, errno := n.Lookup(ctx, name, out)
	return inode, h, 0, errno
}

// Setattr truncates, among others.
func (n *node) Setattr(ctx context.Context, _ fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if size, ok := in.GetSize(); ok {
		h, err := n.disk.open(n.path(), os.O_RDWR, 0)
		if err != nil {
			return fs.ToErrno(err)
		}
		defer h.file.Close()
		if err := h.truncate(int64(size)); err != nil {
			return fs.ToErrno(err)
		}
		in.Valid &^= fuse.FATTR_SIZE
	}
	return n.LoopbackNode.Setattr(ctx, nil, in, out)
}

// CopyFileRange is left to reads and writes.
func (n *node) CopyFileRange(context.Context, fs.FileHandle, uint64, *fs.Inode, fs.FileHandle, uint64, uint64, uint64) (uint32, syscall.Errno) {
	return 0, syscall.ENOTSUP
}

// handle is an open file.
type handle struct {
	disk *Disk
	file *os.File
	ino  uint64
	sync bool // every write is synced
}

func (d *Disk) open(path string, flags int, mode os.FileMode) (*handle, error) {
	h := &handle{disk: d, sync: flags&(os.O_SYNC|syscall.O_DSYNC) != 0}
	cut := flags&os.O_TRUNC != 0
	flags &^= os.O_APPEND | os.O_TRUNC | os.O_WRONLY | os.O_SYNC | syscall.O_DSYNC | syscall.O_DIRECT
	var err error
	if h.file, err = os.OpenFile(path, flags|os.O_RDWR, mode); err != nil {
		return nil, err
	}
	info, err := h.file.Stat()
	if err != nil {
		return nil, err
	}
	h.ino = info.Sys().(*syscall.Stat_t).Ino
	if cut {
		err = h.truncate(0)
	}
	return h, err
}

func (h *handle) truncate(size int64) error {
	h.disk.mu.Lock()
	defer h.disk.mu.Unlock()
	if err := h.disk.before(h.file, h.ino, size, -1); err != nil {
		return err
	}
	return h.file.Truncate(size)
}

// Read reads.
func (h *handle) Read(_ context.Context, into []byte, at int64) (fuse.ReadResult, syscall.Errno) {
	n, err := h.file.ReadAt(into, at)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return fuse.ReadResultData(into[:n]), fs.ToErrno(err)
}

// Write writes, and remembers how it was.
func (h *handle) Write(_ context.Context, data []byte, at int64) (uint32, syscall.Errno) {
	if h.disk.full.Load() {
		return 0, syscall.ENOSPC
	}
	n, err := h.write(data, at)
	if h.sync && err == nil {
		h.disk.synced(h.ino)
	}
	return uint32(n), fs.ToErrno(err)
}

func (h *handle) write(data []byte, at int64) (int, error) {
	h.disk.mu.Lock()
	defer h.disk.mu.Unlock()
	if err := h.disk.before(h.file, h.ino, at, len(data)); err != nil {
		return 0, err
	}
	return h.file.WriteAt(data, at)
}

// Fsync is what makes changes last.
func (h *handle) Fsync(context.Context, uint32) syscall.Errno {
	h.disk.synced(h.ino)
	return fs.OK
}

// Flush is a close, which syncs nothing.
func (h *handle) Flush(context.Context) syscall.Errno { return fs.OK }

// Release ends the handle.
func (h *handle) Release(context.Context) syscall.Errno { return fs.ToErrno(h.file.Close()) }

// Allocate is not offered: programs write instead.
func (h *handle) Allocate(context.Context, uint64, uint64, uint32) syscall.Errno {
	return syscall.ENOTSUP
}
