package memory

import (
	"bufio"
	"encoding/binary"
	"encoding/gob"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/go-json-experiment/json"

	"crivo/services/enrich"
)

// tail is a file of applied events: frames of length, CRC-32 and JSON. A frame that is torn ends the file.
type tail struct {
	file   *os.File
	size   int64 // of the whole frames
	torn   bool  // there may be a part of one after them
	events int   // in it, and in those before it that are not being folded
}

// frame is what one frame holds: a batch, or news of the place in the stream.
type frame struct {
	Created  *time.Time     `json:"created,omitempty"`
	Sequence uint64         `json:"sequence,omitzero"`
	Since    time.Time      `json:"since,omitzero"`
	Events   []enrich.Event `json:"events,omitempty"`
}

func (t *tail) append(events []enrich.Event) error {
	err := t.write(frame{Events: events})
	if err == nil {
		t.events += len(events)
	}
	return err
}

// write appends a frame. What a write that failed has left is cut off first: nothing is read beyond a torn frame.
func (t *tail) write(f frame) error {
	if t.torn {
		if err := t.file.Truncate(t.size); err != nil {
			return err
		}
	}
	body, err := json.Marshal(f)
	if err != nil {
		return err
	}
	out := make([]byte, 8, 8+len(body))
	binary.LittleEndian.PutUint32(out, uint32(len(body)))
	binary.LittleEndian.PutUint32(out[4:], crc32.ChecksumIEEE(body))
	n, err := t.file.Write(append(out, body...))
	if t.torn = err != nil; !t.torn {
		t.size += int64(n)
	}
	return err
}

func (t *tail) close() error { return errors.Join(t.file.Sync(), t.file.Close()) }

// load reads the snapshot and all tails after it, and opens a new tail that counts on from theirs. Each counts for some events
// at least, so that many starts leave few files.
func load(dir string, least int) (*state, *tail, error) {
	s, err := readSnapshot(filepath.Join(dir, "snapshot"))
	if err != nil {
		return nil, nil, err
	}
	tails, err := tailsOf(dir)
	if err != nil {
		return nil, nil, err
	}
	events := 0
	for _, path := range tails {
		n, err := s.replay(path)
		if err != nil {
			return nil, nil, err
		}
		events += max(n, least)
	}
	t, err := newTail(dir, tails, events)
	return s, t, err
}

func tailsOf(dir string) ([]string, error) {
	tails, err := filepath.Glob(filepath.Join(dir, "tail-*"))
	slices.Sort(tails)
	return tails, err
}

// newTail makes the file after the last one; numbers have a fixed width, so names sort by age.
func newTail(dir string, tails []string, events int) (*tail, error) {
	number := 1
	if n := len(tails); n > 0 {
		if _, err := fmt.Sscanf(filepath.Base(tails[n-1]), "tail-%d", &number); err != nil {
			return nil, fmt.Errorf("%s: not a tail", tails[n-1])
		}
		number++
	}
	f, err := os.OpenFile(filepath.Join(dir, fmt.Sprintf("tail-%010d", number)), os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	return &tail{file: f, events: events}, nil
}

// replay applies a tail and tells how many events it held; what is torn at its end was never acknowledged to anybody.
func (s *state) replay(path string) (events int, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	in := bufio.NewReaderSize(f, 1<<20)
	for {
		body, err := readFrame(in)
		if err != nil || len(body) == 0 {
			return events, err
		}
		var fr frame
		if err := json.Unmarshal(body, &fr); err != nil {
			return events, fmt.Errorf("%s: %w", path, err)
		}
		if fr.Created != nil {
			s.restart(fr)
		}
		for _, e := range fr.Events {
			s.apply(e)
		}
		events += len(fr.Events)
	}
}

// readFrame returns nothing at the end and at a torn frame. Zeros, which a machine's reset may leave, are one.
func readFrame(in io.Reader) ([]byte, error) {
	head := make([]byte, 8)
	if _, err := io.ReadFull(in, head); err != nil {
		return nil, unlessEnd(err)
	}
	body := make([]byte, min(binary.LittleEndian.Uint32(head), 64<<20))
	if _, err := io.ReadFull(in, body); err != nil {
		return nil, unlessEnd(err)
	}
	if crc32.ChecksumIEEE(body) != binary.LittleEndian.Uint32(head[4:]) {
		return nil, nil
	}
	return body, nil
}

// unlessEnd leaves of an error what is none of the file's end: a disk that cannot be read is no torn tail.
func unlessEnd(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

// rotate starts a new tail when there is enough in the old ones, and folds these into the snapshot beside the running work: from
// the files, not from the live state, so that nothing waits. One at a time: while it runs the tail goes on.
func (f *Features) rotate() {
	if f.folds || f.tail.events < f.limit {
		return
	}
	tails, err := tailsOf(f.dir)
	if err != nil {
		return
	}
	next, err := newTail(f.dir, tails, 0)
	if err != nil {
		return // the full tail goes on; the next batch tries again
	}
	full := f.tail
	f.tail, f.folds = next, true
	f.folding.Go(func() {
		err := full.close()
		if err == nil {
			err = fold(f.dir, tails)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.folds, f.foldErr = false, err
	})
}

// fold writes a snapshot of the old one and tails, then removes them: not before the disk has it under its name.
func fold(dir string, tails []string) error {
	path := filepath.Join(dir, "snapshot")
	s, err := readSnapshot(path)
	if err != nil {
		return err
	}
	for _, t := range tails {
		if _, err := s.replay(t); err != nil {
			return err
		}
	}
	if err := writeSnapshot(path, s); err != nil {
		return err
	}
	for _, t := range tails {
		err = errors.Join(err, os.Remove(t))
	}
	return err
}

func readSnapshot(path string) (*state, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return newState(), nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s := newState()
	if err := gob.NewDecoder(bufio.NewReaderSize(f, 1<<20)).Decode(s); err != nil {
		return nil, fmt.Errorf("%s is damaged (%w): move its folder away to begin with empty windows", path, err)
	}
	return s, nil
}

func writeSnapshot(path string, s *state) error {
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	out := bufio.NewWriterSize(f, 1<<20)
	err = errors.Join(gob.NewEncoder(out).Encode(s), out.Flush(), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
