package yaml_test

import (
	"errors"
	"testing"

	"crivo/pkg/yaml"
)

func TestRead(t *testing.T) {
	var into struct{ A int }
	if err := yaml.Read([]byte("a: 1\nb: 2\n"), &into); err != nil || into.A != 1 {
		t.Errorf("%+v, %v", into, err)
	}
	var unknown *yaml.Unknown
	if err := yaml.Strict([]byte("a: 1\nb: 2\n"), &into); !errors.As(err, &unknown) {
		t.Errorf("a key without a place: %v", err)
	}
}

func FuzzRead(f *testing.F) {
	for _, seed := range []string{"a: 1", "- x\n- y", "{", "a: &b *b", "? \n", "\x00", "- - -\n -", "a: |\n  b"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(_ *testing.T, data []byte) {
		var into map[string]any
		_ = yaml.Read(data, &into) // whatever it is, it does not panic
	})
}
