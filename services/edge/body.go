package edge

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"crivo/pkg/txn"
)

const (
	maxBody  = 64 << 10
	bodyTime = 10 * time.Second
)

// readBody returns a whole body of application/json within the limits of size and time.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if mediaType(r) != "application/json" {
		return nil, errMediaType
	}
	return readUpTo(w, r, maxBody, errTooLarge)
}

// mediaType is that of a request's body, empty when it is none.
func mediaType(r *http.Request) string {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil {
		return ""
	}
	return kind
}

// readUpTo returns a whole body of at most so many bytes, unpacked; one that is larger is tooLarge.
func readUpTo(w http.ResponseWriter, r *http.Request, most int, tooLarge error) ([]byte, error) {
	if r.ContentLength > int64(most) {
		return nil, tooLarge
	}
	if rec, ok := w.(*recorder); ok {
		rec.read = true
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTime)) // the server lifts it at the body's end
	in, err := unpacked(r.Header.Get("Content-Encoding"), http.MaxBytesReader(w, r.Body, int64(most)), most)
	if err != nil {
		return nil, bodyFault(err, tooLarge)
	}
	var out bytes.Buffer
	if r.ContentLength > 0 {
		out.Grow(int(r.ContentLength) + 512)
	}
	if _, err := out.ReadFrom(in); err != nil {
		return nil, bodyFault(err, tooLarge)
	}
	if out.Len() > most {
		return nil, tooLarge
	}
	return out.Bytes(), nil
}

// unreadTime is how long a body that nobody reads may take before its request is answered and its connection closed. It is
// enough for one that was sent along with its headers, whose connection can be used again.
const unreadTime = 50 * time.Millisecond

// leaveUnread makes a refusal go out although its body did not arrive: the server reads to a body's end before it answers.
func leaveUnread(w http.ResponseWriter, r *http.Request) {
	if rec, ok := w.(*recorder); ok && !rec.read && r.ContentLength != 0 {
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(unreadTime))
	}
}

// unpacked reads through a content coding. The limit counts unpacked bytes, so that a small body cannot become a large one.
func unpacked(coding string, in io.Reader, most int) (io.Reader, error) {
	switch strings.ToLower(coding) {
	case "", "identity":
		return in, nil
	case "gzip", "x-gzip":
		out, err := gzip.NewReader(in)
		if err != nil {
			return nil, err
		}
		return io.LimitReader(out, int64(most)+1), nil
	}
	return nil, errEncoding
}

// bodyFault tells a body that is too large or too slow from one that is broken.
func bodyFault(err, tooLarge error) error {
	var large *http.MaxBytesError
	var network net.Error
	switch {
	case errors.Is(err, errEncoding):
		return err
	case errors.As(err, &large):
		return tooLarge
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &network) && network.Timeout():
		return errSlowBody
	}
	return fmt.Errorf("%w: %w", errBadBody, err)
}

// members are what a small request body may hold, each with where its value goes. Null counts as absent.
type members map[string]any

// read reads the body into its members.
func (m members) read(w http.ResponseWriter, r *http.Request) error {
	data, err := readBody(w, r)
	if err != nil {
		return err
	}
	return m.decode(data)
}

// decode reads a JSON object; what is unknown or misshapen in it is a fault with a pointer, all of them at once.
func (m members) decode(data []byte) error {
	values, err := object(data)
	if err != nil {
		return err
	}
	var faults txn.Faults
	for _, name := range slices.Sorted(maps.Keys(values)) {
		to, known := m[name]
		var misfit *json.SemanticError
		switch {
		case len(faults) == txn.MaxFaults:
		case !known:
			faults = append(faults, txn.Fault{Pointer: pointer(name), Code: txn.UnknownField, Detail: "no such field"})
		case values[name].Kind() == 'n':
		case !errors.As(json.Unmarshal(values[name], to), &misfit):
		default:
			faults = append(faults, txn.Fault{Pointer: pointer(name) + string(misfit.JSONPointer), Code: txn.WrongType, Detail: "is of another type"})
		}
	}
	return orNil(faults)
}

// within reads the value of a member that is an object itself, at a place.
func (m members) within(place string, value jsontext.Value) (faults txn.Faults) {
	if err := m.decode(value); !errors.As(err, &faults) && err != nil {
		return txn.Faults{{Pointer: place, Code: txn.WrongType, Detail: "is of another type"}} // all else was seen in the whole
	}
	for i := range faults {
		faults[i].Pointer = place + faults[i].Pointer
	}
	return faults
}

// orNil returns faults as an error only where there are some.
func orNil(faults txn.Faults) error {
	if len(faults) == 0 {
		return nil
	}
	return faults
}

// pointer names a member of the top level; a long unknown name is cut, it is the client's and tells nothing more.
func pointer(name string) string {
	if len(name) > 64 {
		name = strings.ToValidUTF8(name[:64], "") + "…"
	}
	return "/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(name)
}

// object returns the members of a body that is one JSON object without duplicate names, trailing data or deep nesting.
func object(data []byte) (map[string]jsontext.Value, error) {
	var out map[string]jsontext.Value
	err := json.Unmarshal(data, &out)
	var syntax *jsontext.SyntacticError
	switch {
	case errors.As(err, &syntax):
		return nil, fmt.Errorf("%w: at byte %d", txn.ErrMalformed, syntax.ByteOffset) // its own text may quote the body
	case err != nil || out == nil:
		return nil, fmt.Errorf("%w: not an object", txn.ErrMalformed)
	case deeper(data, txn.MaxDepth):
		return nil, fmt.Errorf("%w: nested too deep", txn.ErrMalformed)
	}
	return out, nil
}

// deeper tells whether well-formed JSON nests deeper than most.
func deeper(data []byte, most int) bool {
	for d := jsontext.NewDecoder(bytes.NewReader(data)); ; {
		if _, err := d.ReadToken(); err != nil {
			return false
		}
		if d.StackDepth() > most {
			return true
		}
	}
}
