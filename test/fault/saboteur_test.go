package fault_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// saboteur passes MongoDB's wire protocol on. Told to, it answers every second write with an error: by turns one that was not
// made, and one that was.
type saboteur struct {
	listener net.Listener
	upstream string
	failing  atomic.Bool
	writes   atomic.Uint32
	failed   atomic.Int32

	mu    sync.Mutex
	open  map[net.Conn]bool
	lines sync.WaitGroup
}

func sabotage(upstream string) (*saboteur, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &saboteur{listener: listener, upstream: upstream, open: map[net.Conn]bool{}}
	s.lines.Go(s.accept)
	return s, nil
}

func (s *saboteur) address() string { return s.listener.Addr().String() }
func (s *saboteur) fail()           { s.failing.Store(true) }
func (s *saboteur) relent()         { s.failing.Store(false) }

func (s *saboteur) close() {
	_ = s.listener.Close()
	s.mu.Lock()
	for c := range s.open {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.lines.Wait()
}

func (s *saboteur) accept() {
	for {
		client, err := s.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", s.upstream)
		if err != nil {
			_ = client.Close()
			continue
		}
		s.line(client, server)
	}
}

// line serves one connection until either end closes it. The driver asks one thing at a time on each.
func (s *saboteur) line(client, server net.Conn) {
	s.mu.Lock()
	s.open[client], s.open[server] = true, true
	s.mu.Unlock()
	var spoiled atomic.Uint32 // the request whose answer is kept back
	end := func() {
		_ = client.Close()
		_ = server.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.open, client)
		delete(s.open, server)
	}
	s.lines.Go(func() {
		defer end()
		pass(client, server, func(m []byte) []byte {
			id := binary.LittleEndian.Uint32(m[4:])
			switch s.verdict(m) {
			case unmade:
				if _, err := client.Write(failure(id)); err != nil {
					return m
				}
				return nil
			case unsaid:
				spoiled.Store(id)
			}
			return m
		})
	})
	s.lines.Go(func() {
		defer end()
		pass(server, client, func(m []byte) []byte {
			if id := binary.LittleEndian.Uint32(m[8:]); id != 0 && spoiled.CompareAndSwap(id, 0) {
				return failure(id)
			}
			return m
		})
	})
}

// pass reads messages and writes what edit makes of each.
func pass(from, to net.Conn, edit func([]byte) []byte) {
	for {
		m := make([]byte, 16)
		if _, err := io.ReadFull(from, m); err != nil {
			return
		}
		m = append(m, make([]byte, max(16, binary.LittleEndian.Uint32(m))-16)...)
		if _, err := io.ReadFull(from, m[16:]); err != nil {
			return
		}
		if _, err := to.Write(edit(m)); err != nil {
			return
		}
	}
}

const (
	well   = iota
	unmade // the write is not made, and an error says so
	unsaid // it is made, and an error says something else
)

func (s *saboteur) verdict(m []byte) int {
	if !s.failing.Load() || !write(m) {
		return well
	}
	switch s.writes.Add(1) % 4 {
	case 1:
		s.failed.Add(1)
		return unmade
	case 3:
		s.failed.Add(1)
		return unsaid
	}
	return well
}

const opMsg = 2013

// write tells whether a message changes documents: its command is the name of the first element.
func write(m []byte) bool {
	const head = 16 + 4 + 1 + 4 + 1 // of the message, flags, the section's kind, the document's size, the element's kind
	if len(m) < head || binary.LittleEndian.Uint32(m[12:]) != opMsg || m[20] != 0 {
		return false
	}
	name, _, _ := bytes.Cut(m[head:], []byte{0})
	return slices.Contains([]string{"insert", "update", "findAndModify", "delete"}, string(name))
}

// failure answers a request with an error that says nothing of what was done.
func failure(request uint32) []byte {
	doc, err := bson.Marshal(bson.D{{Key: "ok", Value: 0.0}, {Key: "code", Value: 1}, {Key: "codeName", Value: "InternalError"}, {Key: "errmsg", Value: "sabotage"}})
	if err != nil {
		panic(err)
	}
	var out []byte
	for _, v := range []uint32{uint32(16 + 4 + 1 + len(doc)), 0, request, opMsg, 0} {
		out = binary.LittleEndian.AppendUint32(out, v)
	}
	return append(append(out, 0), doc...)
}
