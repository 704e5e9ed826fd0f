package system

import "sync"

// Transcript is what processes said. It is written and read at any time; the zero value keeps everything.
type Transcript struct {
	Most int // bytes, of the last; 0: all

	mu   sync.Mutex
	text []byte
}

// Write is part of io.Writer.
func (t *Transcript) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	if t.Most > 0 && len(t.text) > t.Most {
		t.text = append(t.text[:0], t.text[len(t.text)-t.Most:]...)
	}
	return len(p), nil
}

func (t *Transcript) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.text)
}
