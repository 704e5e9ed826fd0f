package mongo_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"crivo/services/store/mongo"
)

// replica is a set of two servers that say what a test tells them to and keep nothing: the errors of elections, shut-downs and
// lagging members, which no single server gives.
type replica struct {
	nodes [2]*node

	mu      sync.Mutex
	primary int
}

type node struct {
	set      *replica
	listener net.Listener
	behind   time.Duration // of its last write

	mu     sync.Mutex
	script map[string][]answer
	asked  []bson.Raw // all but what the driver asks for itself
}

// answer is what a server says to one command; nil cuts the connection.
type answer func(command bson.Raw) bson.D

// silence is no answer on a connection that stays.
var silence = bson.D{}

// always is any answer that does not depend on the command.
func always(doc bson.D) answer { return func(bson.Raw) bson.D { return doc } }

func newReplica(t *testing.T) *replica {
	t.Helper()
	r := &replica{}
	for i := range r.nodes {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		n := &node{set: r, listener: l, script: map[string][]answer{}}
		r.nodes[i] = n
		var serving sync.WaitGroup
		serving.Go(func() { n.accept(&serving) })
		t.Cleanup(func() { _ = l.Close(); serving.Wait() })
	}
	return r
}

// open opens the stores on the set.
func (r *replica) open(t *testing.T, edit func(*options.ClientOptions)) *mongo.DB {
	t.Helper()
	db, err := mongo.OpenWith(mongo.Options{URI: "mongodb://" + r.nodes[0].address() + "," + r.nodes[1].address() + "/?replicaSet=rs"}, edit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close(t.Context()) })
	return db
}

// elect makes the other node the primary.
func (r *replica) elect() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.primary = 1 - r.primary
}

func (n *node) address() string { return n.listener.Addr().String() }

// says queues answers to the next commands of a name; then the node says again that all is well.
func (n *node) says(command string, answers ...answer) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.script[command] = append(n.script[command], answers...)
}

// heard returns the commands of a name that the node was asked, "" for all.
func (n *node) heard(name string) []bson.Raw {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []bson.Raw
	for _, c := range n.asked {
		if name == "" || nameOf(c) == name {
			out = append(out, c)
		}
	}
	return out
}

func nameOf(command bson.Raw) string {
	elements, _ := command.Elements()
	return elements[0].Key()
}

func (n *node) accept(serving *sync.WaitGroup) {
	for {
		c, err := n.listener.Accept()
		if err != nil {
			return
		}
		serving.Go(func() {
			defer c.Close()
			for n.serve(c) {
			}
		})
	}
}

// serve answers one message: OP_QUERY for the first hello, OP_MSG for the rest.
func (n *node) serve(c net.Conn) bool {
	var header [16]byte
	if _, err := io.ReadFull(c, header[:]); err != nil {
		return false
	}
	body := make([]byte, binary.LittleEndian.Uint32(header[:])-16)
	if _, err := io.ReadFull(c, body); err != nil {
		return false
	}
	request, legacy := binary.LittleEndian.Uint32(header[4:]), binary.LittleEndian.Uint32(header[12:]) == opQuery
	command := commandOf(body, legacy)
	said := n.reply(command)
	if said == nil {
		return false
	}
	if len(said) == 0 {
		return true
	}
	doc, err := bson.Marshal(said)
	if err != nil {
		return false
	}
	_, err = c.Write(message(request, legacy, doc))
	return err == nil
}

const opReply, opQuery, opMsg = 1, 2004, 2013

// commandOf reads a command; the documents of a sequence become an array in it, as in the driver's own events.
func commandOf(body []byte, legacy bool) bson.Raw {
	if legacy {
		return bson.Raw(body[4+bytes.IndexByte(body[4:], 0)+1+8:])
	}
	var command bson.D
	for rest := body[4:]; len(rest) > 0; {
		kind, size := rest[0], binary.LittleEndian.Uint32(rest[1:])
		section := rest[1 : 1+size]
		rest = rest[1+size:]
		if kind == 0 {
			_ = bson.Unmarshal(section, &command)
			continue
		}
		name, documents, _ := bytes.Cut(section[4:], []byte{0})
		var list bson.A
		for len(documents) > 0 {
			size := binary.LittleEndian.Uint32(documents)
			list = append(list, bson.Raw(documents[:size]))
			documents = documents[size:]
		}
		command = append(command, bson.E{Key: string(name), Value: list})
	}
	raw, _ := bson.Marshal(command)
	return raw
}

func message(to uint32, legacy bool, doc []byte) []byte {
	body, code := append([]byte{0, 0, 0, 0, 0}, doc...), uint32(opMsg)
	if legacy { // flags, cursor, start, one document
		body, code = append(append(make([]byte, 16), 1, 0, 0, 0), doc...), opReply
	}
	out := binary.LittleEndian.AppendUint32(nil, uint32(16+len(body)))
	for _, v := range []uint32{0, to, code} {
		out = binary.LittleEndian.AppendUint32(out, v)
	}
	return append(out, body...)
}

func (n *node) reply(command bson.Raw) bson.D {
	name := nameOf(command)
	switch strings.ToLower(name) {
	case "hello", "ismaster":
		return n.hello()
	case "ping", "endsessions":
		return bson.D{{Key: "ok", Value: 1}}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked = append(n.asked, command)
	if answers := n.script[name]; len(answers) > 0 {
		n.script[name] = answers[1:]
		return answers[0](command)
	}
	return wellDone(command)
}

func (n *node) hello() bson.D {
	n.set.mu.Lock()
	defer n.set.mu.Unlock()
	primary := n.set.nodes[n.set.primary]
	return bson.D{{Key: "ok", Value: 1}, {Key: "helloOk", Value: true}, {Key: "setName", Value: "rs"}, {Key: "setVersion", Value: 1}, {Key: "me", Value: n.address()},
		{Key: "hosts", Value: bson.A{n.set.nodes[0].address(), n.set.nodes[1].address()}}, {Key: "primary", Value: primary.address()},
		{Key: "isWritablePrimary", Value: n == primary}, {Key: "secondary", Value: n != primary},
		{Key: "lastWrite", Value: bson.D{{Key: "opTime", Value: bson.D{{Key: "ts", Value: bson.Timestamp{T: 1}}, {Key: "t", Value: int64(1)}}},
			{Key: "lastWriteDate", Value: time.Now().Add(-n.behind)}}},
		{Key: "minWireVersion", Value: 0}, {Key: "maxWireVersion", Value: 21}, {Key: "logicalSessionTimeoutMinutes", Value: 30},
		{Key: "maxBsonObjectSize", Value: 16 << 20}, {Key: "maxMessageSizeBytes", Value: 48000000}, {Key: "maxWriteBatchSize", Value: 100000},
		{Key: "localTime", Value: time.Now()}}
}

// wellDone says that every write was made, and that nothing was found.
func wellDone(command bson.Raw) bson.D {
	count := func(list string) int {
		values, _ := command.Lookup(list).Array().Values()
		return len(values)
	}
	switch nameOf(command) {
	case "insert":
		return made(count("documents"))
	case "update":
		return made(count("updates"))
	case "find":
		return found()
	case "distinct":
		return bson.D{{Key: "ok", Value: 1}, {Key: "values", Value: bson.A{}}}
	case "findAndModify":
		return bson.D{{Key: "ok", Value: 1}, {Key: "value", Value: nil}}
	}
	return bson.D{{Key: "ok", Value: 1}, {Key: "n", Value: 1}}
}

func made(n int) bson.D {
	return bson.D{{Key: "ok", Value: 1}, {Key: "n", Value: n}, {Key: "nModified", Value: n}}
}

func found(documents ...any) bson.D {
	return bson.D{{Key: "ok", Value: 1}, {Key: "cursor", Value: bson.D{{Key: "id", Value: int64(0)}, {Key: "ns", Value: "crivo.transactions"},
		{Key: "firstBatch", Value: append(bson.A{}, documents...)}}}}
}

// trouble is a command that failed as a whole; a server labels what may be tried again.
func trouble(code int, name string, labels ...string) bson.D {
	return bson.D{{Key: "ok", Value: 0}, {Key: "code", Value: code}, {Key: "codeName", Value: name}, {Key: "errmsg", Value: "a text that quotes 529.982.247-25"},
		{Key: "errorLabels", Value: labels}}
}

// faults are the errors of single writes of a command, by their places in it.
func faults(n int, codes map[int]int) bson.D {
	var errs bson.A
	for at, code := range codes {
		errs = append(errs, bson.D{{Key: "index", Value: at}, {Key: "code", Value: code}, {Key: "errmsg", Value: "a text that quotes 529.982.247-25"}})
	}
	return append(made(n), bson.E{Key: "writeErrors", Value: errs})
}

// unheld is a write that was made and not acknowledged as was asked.
func unheld(n, code int, labels ...string) bson.D {
	return append(made(n), bson.E{Key: "writeConcernError", Value: bson.D{{Key: "code", Value: code}, {Key: "errmsg", Value: "waiting"}}},
		bson.E{Key: "errorLabels", Value: labels})
}
