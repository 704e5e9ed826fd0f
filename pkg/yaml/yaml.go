// Package yaml reads YAML that people write: rule sets, lists, settings. The library below it panics on some of what is no YAML;
// here that is an error like others.
package yaml

import (
	"bytes"
	"errors"
	"io"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/token"
)

// Unknown is the error of a key that the target has no place for, from [Strict] only.
type Unknown = yaml.UnknownFieldError

// ErrDocuments is the error of data that holds more than one document: the others would be silently left out.
var ErrDocuments = errors.New("one document is expected, and another follows after ---")

// Read decodes the one document of data into into, ignoring keys that it has no place for.
func Read(data []byte, into any) error { return read(data, into) }

// Strict decodes the one document of data into into; a key that it has no place for is an error, [*Unknown].
func Strict(data []byte, into any) error { return read(data, into, yaml.Strict()) }

func read(data []byte, into any, how ...yaml.DecodeOption) (err error) {
	defer func() {
		if recover() != nil {
			err = errors.New("not readable as YAML")
		}
	}()
	if hidden(data) {
		return ErrDocuments
	}
	d := yaml.NewDecoder(bytes.NewReader(data), how...)
	switch err := d.Decode(into); {
	case errors.Is(err, io.EOF):
		return nil // an empty document
	case err != nil:
		return err
	}
	if err := d.Decode(new(any)); !errors.Is(err, io.EOF) {
		return ErrDocuments
	}
	return nil
}

// hidden tells whether anything follows a second ---. The decoder cannot: it takes an empty document for the last one.
func hidden(data []byte) bool {
	headers := 0
	for _, t := range lexer.Tokenize(string(data)) {
		switch t.Type {
		case token.DocumentHeaderType:
			headers++
		case token.DocumentEndType, token.CommentType:
		default:
			if headers > 1 {
				return true
			}
		}
	}
	return false
}
