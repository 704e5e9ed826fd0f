// Package yaml reads YAML that people write: rule sets, lists, settings. The library below it panics on some of what is no YAML;
// here that is an error like others.
package yaml

import (
	"errors"

	"github.com/goccy/go-yaml"
)

// Unknown is the error of a key that the target has no place for, from [Strict] only.
type Unknown = yaml.UnknownFieldError

// Read decodes data into into, ignoring keys that it has no place for.
func Read(data []byte, into any) error { return read(data, into) }

// Strict decodes data into into; a key that it has no place for is an error, [*Unknown].
func Strict(data []byte, into any) error { return read(data, into, yaml.Strict()) }

func read(data []byte, into any, how ...yaml.DecodeOption) (err error) {
	defer func() {
		if recover() != nil {
			err = errors.New("not readable as YAML")
		}
	}()
	return yaml.UnmarshalWithOptions(data, into, how...)
}
