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

// What a second document says would be left out without a word.
func TestOneDocument(t *testing.T) {
	for text, one := range map[string]bool{
		"- a\n":                        true,
		"":                             true,
		"# nothing\n":                  true,
		"# of whom\n---\n- a\n":        true,
		"%YAML 1.2\n---\n- a\n...\n":   true,
		"- a\n---\n# nothing more\n":   true,
		"---\n- a\n---\n":              true,
		"- |\n  ---\n  a\n":            true,
		"- a\n---\n- b\n":              false,
		"- a\r\n---\r\n- b\r\n":        false,
		"- a\n...\n- b\n":              false,
		"- a\n--- [b]\n":               false,
		"---\n---\n- b\n":              false,
		"---\n# of whom\n---\n- b\n":   false,
		"- a\n---\n# none\n---\n- b\n": false,
		"- a\n--- ~\n":                 false,
	} {
		var list []string
		for how, err := range map[string]error{"read": yaml.Read([]byte(text), &list), "strict": yaml.Strict([]byte(text), &list)} {
			if (err == nil) != one || errors.Is(err, yaml.ErrDocuments) == one {
				t.Errorf("%s %q: %v", how, text, err)
			}
		}
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
