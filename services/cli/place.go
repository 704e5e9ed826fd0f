package cli

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// place remembers up to which row a file is settled at a server, in FILE.crivo-resume. Rows settle out of order; only an
// unbroken run from the start counts, so a resumed run may repeat some rows and skips none.
type place struct {
	path  string // empty: nothing is kept (stdin)
	of    string // the server, and what of the file and its mapping rows depend on; another has seen none of the rows
	from  int    // rows up to this one were settled by an earlier run
	stale bool   // what was kept is of something else

	mu      sync.Mutex
	upTo    int
	ahead   map[int]bool
	written time.Time
}

func openPlace(file, of string) (*place, error) {
	p := &place{of: of, ahead: map[int]bool{}}
	if file == "-" {
		return p, nil
	}
	p.path = file + ".crivo-resume"
	text, err := os.ReadFile(p.path)
	if errors.Is(err, os.ErrNotExist) {
		return p, nil
	}
	if err != nil {
		return nil, err
	}
	row, kept, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	n, err := strconv.Atoi(row)
	if err != nil || n < 0 || kept == "" {
		return nil, fmt.Errorf("%s: not a row number and a server; delete it to start over", p.path)
	}
	if kept != of {
		p.stale = true
		return p, nil
	}
	p.from, p.upTo = n, n
	return p, nil
}

// done marks a row settled and writes the place about once a second.
func (p *place) done(row int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ahead[row] = true
	for p.ahead[p.upTo+1] {
		delete(p.ahead, p.upTo+1)
		p.upTo++
	}
	if time.Since(p.written) > time.Second {
		p.written = time.Now()
		_ = p.write() // the last write, in close, is the one that must not fail
	}
}

func (p *place) write() error {
	if p.path == "" || p.upTo == 0 {
		return nil
	}
	next := p.path + ".new"
	if err := os.WriteFile(next, fmt.Appendf(nil, "%d %s\n", p.upTo, p.of), 0o644); err != nil {
		return err
	}
	return os.Rename(next, p.path)
}

// close keeps the place for the next run, or forgets it when the file is complete and every row settled.
func (p *place) close(complete bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if complete && p.path != "" {
		err := os.Remove(p.path)
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		return err
	}
	return p.write()
}

// said is what a person should know of a run that begins at this place; "" at the start of the file.
func (p *place) said() string {
	switch {
	case p.stale:
		return p.path + " is of another server, key, file or mapping: starting with row 1"
	case p.from > 0:
		return fmt.Sprintf("going on after row %d (%s)", p.from, p.path)
	}
	return ""
}

// kept is what a person should know of a run that did not come to the end.
func (p *place) kept() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.path == "" || p.upTo == 0 {
		return ""
	}
	return fmt.Sprintf("settled up to row %d; the same command goes on there (%s)", p.upTo, p.path)
}
