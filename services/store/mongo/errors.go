package mongo

import (
	"errors"
	"fmt"

	"go.mongodb.org/mongo-driver/v2/mongo"

	"crivo/services/store"
)

// class is what an error code says of the one write that it was given for.
type class int

const (
	unknown   class = iota // unknown or passing: the outcome must be read back
	duplicate              // another document has the key
	refused                // this document will never be taken
)

// codes are MongoDB's (src/mongo/base/error_codes.yml). Only what can never mean a passing trouble or a fault of the whole
// installation is a refusal: it ends an item for good.
var codes = map[int]class{
	11000: duplicate, // DuplicateKey
	11001: duplicate, // of old servers, on update
	12582: duplicate, // of old routers

	22:    refused, // InvalidBSON
	121:   refused, // DocumentValidationFailure
	10334: refused, // BSONObjectTooLarge
	17419: refused, // too large after the update
	17420: refused, // too large after the replacement
}

// errDuplicate is the verdict on an insert whose key is taken.
var errDuplicate = errors.New("duplicate")

// refusal is what an item gets that the server will never take. The server's text quotes values and stays out.
func refusal(code int) error { return fmt.Errorf("%w: server error %d", store.ErrRefused, code) }

// verdict is the outcome of one item for a code that is its own.
func verdict(code int) (err error, known bool) {
	switch codes[code] {
	case duplicate:
		return errDuplicate, true
	case refused:
		return refusal(code), true
	}
	return nil, false
}

// failed says which operation failed and why. What a server says may quote values, so only its codes are told; the driver's own
// errors name addresses and times, never a credential.
func failed(operation string, err error) error {
	var server mongo.ServerError
	if errors.As(err, &server) && !mongo.IsNetworkError(err) {
		return &serverError{operation, server}
	}
	return fmt.Errorf("%s: %w", operation, err)
}

// serverError is an answer of the server, told by its codes.
type serverError struct {
	operation string
	cause     mongo.ServerError
}

func (e *serverError) Error() string {
	return fmt.Sprintf("%s: server error %v", e.operation, e.cause.ErrorCodes())
}

// Unwrap is the driver's error.
func (e *serverError) Unwrap() error { return e.cause }
