package txn

import (
	"errors"
	"fmt"
	"strings"
)

// ErrMalformed marks a body that is no single JSON object: broken syntax, a duplicate key, trailing data, too deep, bad UTF-8.
var ErrMalformed = errors.New("malformed JSON")

// Codes of field faults.
const (
	Required     = "required"
	UnknownField = "unknown_field"
	WrongType    = "type"
	WrongFormat  = "format"
	OutOfRange   = "range"
	TooLong      = "too_long"
)

// Fault is one field that is wrong. Detail never holds the value.
type Fault struct {
	Pointer string `json:"pointer"` // RFC 6901
	Code    string `json:"code"`
	Detail  string `json:"detail"`
}

// Faults is every field that is wrong, in document order, at most [MaxFaults].
type Faults []Fault

// MaxFaults bounds a list of faults.
const MaxFaults = 50

// Error lists pointers and codes, no values.
func (f Faults) Error() string {
	parts := make([]string, len(f))
	for i, fault := range f {
		parts[i] = fmt.Sprintf("%s %s", fault.Pointer, fault.Code)
	}
	return strings.Join(parts, ", ")
}
