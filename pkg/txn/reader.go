package txn

import (
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// reader walks a JSON document once and collects every fault on the way.
type reader struct {
	dec    *jsontext.Decoder
	faults Faults
	err    error // the document is malformed: nothing more is read
}

func (r *reader) fault(pointer, code, format string, args ...any) {
	if len(r.faults) < MaxFaults {
		r.faults = append(r.faults, Fault{pointer, code, fmt.Sprintf(format, args...)})
	}
}

func (r *reader) broken(err error) {
	if r.err == nil {
		var syntax *jsontext.SyntacticError
		if errors.As(err, &syntax) {
			err = fmt.Errorf("at byte %d", syntax.ByteOffset) // its own text may quote the body
		}
		r.err = fmt.Errorf("%w: %w", ErrMalformed, err)
	}
}

// object reads an object, handing each member that is not null to field, which tells whether it knows the name and has read
// the value. It returns false for null and for what is no object.
func (r *reader) object(pointer string, field func(name, pointer string) bool) bool {
	if !r.expect(pointer, '{', "an object") {
		return false
	}
	r.token()
	for r.err == nil && r.dec.PeekKind() != '}' {
		name := r.token().String()
		at := pointer + "/" + escape(name)
		switch {
		case r.err != nil:
		case r.dec.PeekKind() == 'n':
			r.token()
		case !field(name, at):
			r.fault(at, UnknownField, "no such field")
			r.skip()
		}
	}
	r.token()
	return true
}

// escape writes a name as a JSON pointer's token; a long unknown name is cut, it is the client's and tells nothing more.
func escape(name string) string {
	if utf8.RuneCountInString(name) > maxAttribute {
		name = string([]rune(name)[:maxAttribute]) + "…"
	}
	return strings.ReplaceAll(strings.ReplaceAll(name, "~", "~0"), "/", "~1")
}

// expect tells whether the next value is of kind; null is skipped silently, another kind with a fault.
func (r *reader) expect(pointer string, kind jsontext.Kind, what string) bool {
	if r.err != nil {
		return false
	}
	switch got := r.dec.PeekKind(); got {
	case kind:
		return true
	case 'n':
	default:
		r.fault(pointer, WrongType, "must be %s", what)
	}
	r.skip()
	return false
}

func (r *reader) token() jsontext.Token {
	if r.err != nil {
		return jsontext.Null
	}
	t, err := r.dec.ReadToken()
	if err != nil {
		r.broken(err)
		return jsontext.Null
	}
	return t
}

func (r *reader) skip() {
	if r.err == nil {
		if err := r.dec.SkipValue(); err != nil {
			r.broken(err)
		}
	}
}

// shape is what a text must look like: its longest length in characters, a test, and how to say it.
type shape struct {
	limit int
	ok    func(string) bool
	want  string
}

// text reads a string of the given shape; on any fault it returns "".
func (r *reader) text(pointer string, s shape) string {
	if !r.expect(pointer, '"', "a string") {
		return ""
	}
	v := r.token().String()
	switch {
	case r.err != nil:
	case v == "":
		r.fault(pointer, WrongFormat, "must not be empty")
	case utf8.RuneCountInString(v) > s.limit:
		r.fault(pointer, TooLong, "at most %d characters", s.limit)
	case s.ok != nil && !s.ok(v):
		r.fault(pointer, WrongFormat, "must be %s", s.want)
	default:
		return v
	}
	return ""
}

// personal reads free text of at most limit characters.
func (r *reader) personal(pointer string, limit int) Personal {
	return Secretive(r.text(pointer, shape{limit: limit}))
}

// integer reads a whole number between low and high.
func (r *reader) integer(pointer string, low, high int64) *int64 {
	if !r.expect(pointer, '0', "an integer") {
		return nil
	}
	raw := r.token().String()
	if r.err != nil {
		return nil
	}
	n, err := strconv.ParseInt(raw, 10, 64)
	switch {
	case errors.Is(err, strconv.ErrRange):
		r.fault(pointer, OutOfRange, "must be between %d and %d", low, high)
	case err != nil:
		r.fault(pointer, WrongType, "must be an integer, without fraction or exponent")
	case n < low || n > high:
		r.fault(pointer, OutOfRange, "must be between %d and %d", low, high)
	default:
		return &n
	}
	return nil
}

// number reads a number between low and high.
func (r *reader) number(pointer string, low, high float64) *float64 {
	if !r.expect(pointer, '0', "a number") {
		return nil
	}
	raw := r.token().String()
	if r.err != nil {
		return nil
	}
	n, err := strconv.ParseFloat(raw, 64)
	if err != nil || math.IsInf(n, 0) || n < low || n > high {
		r.fault(pointer, OutOfRange, "must be between %g and %g", low, high)
		return nil
	}
	if !kept(raw, n) {
		r.fault(pointer, OutOfRange, "has more digits than a 64-bit float keeps: send it as text")
		return nil
	}
	return &n
}

// longest is how many characters of a number beyond 2^53 are looked at; the largest float64 has 309 digits.
const longest = 400

// kept tells whether n is shown again as the number that text says, and not as a neighbour of it. Below 2^53 every integer is,
// and fractions are rounded as by anybody.
func kept(text string, n float64) bool {
	if math.Abs(n) < 1<<53 {
		return true
	}
	if len(text) > longest {
		return false
	}
	sent, ok := new(big.Rat).SetString(text)
	shown, _ := new(big.Rat).SetString(strconv.FormatFloat(n, 'e', -1, 64))
	return ok && sent.Cmp(shown) == 0
}

func (r *reader) flag(pointer string) *bool {
	if r.err == nil && r.dec.PeekKind() == 'f' {
		r.token()
		return new(bool)
	}
	if !r.expect(pointer, 't', "true or false") {
		return nil
	}
	r.token()
	yes := true
	return &yes
}

// instant reads an RFC 3339 time.
func (r *reader) instant(pointer string) *Time {
	v := r.text(pointer, shape{limit: 64})
	if v == "" {
		return nil
	}
	t, err := time.Parse(time.RFC3339Nano, v)
	if err != nil || t.Year() < 1900 || t.Year() > 9998 {
		r.fault(pointer, WrongFormat, "must be an RFC 3339 time, such as 2026-11-22T23:05:11.120Z")
		return nil
	}
	at := At(t)
	return &at
}

// end checks that nothing follows the document.
func (r *reader) end() {
	if r.err != nil {
		return
	}
	switch _, err := r.dec.ReadToken(); {
	case err == nil:
		r.broken(errors.New("data after the object"))
	case !errors.Is(err, io.EOF):
		r.broken(err)
	}
}

// depth returns how deep arrays and objects nest in data, strings left aside.
func depth(data []byte) int {
	deepest, now, quoted := 0, 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			now++
			deepest = max(deepest, now)
		case c == '}' || c == ']':
			now--
		}
	}
	return deepest
}
