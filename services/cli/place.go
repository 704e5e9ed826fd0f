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

// place remembers up to which row a file is settled, in FILE.crivo-resume. Rows settle out of order; only an unbroken
// run from the start counts, so a resumed run may repeat some rows and skips none.
type place struct {
	path string // empty: nothing is kept (stdin)
	from int    // rows up to this one were settled by an earlier run

	mu      sync.Mutex
	upTo    int
	ahead   map[int]bool
	written time.Time
}

func openPlace(file string) (*place, error) {
	p := &place{ahead: map[int]bool{}}
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
	p.from, err = strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || p.from < 0 {
		return nil, fmt.Errorf("%s: not a row number; delete it to start over", p.path)
	}
	p.upTo = p.from
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
	if p.path == "" {
		return nil
	}
	next := p.path + ".new"
	if err := os.WriteFile(next, []byte(strconv.Itoa(p.upTo)+"\n"), 0o644); err != nil {
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
