package txn

import (
	"fmt"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"crivo/pkg/brdoc"
)

// mask is what a personal value looks like wherever it is printed, logged or marshalled by accident.
const mask = "[personal]"

// Personal is text that names or describes a person. It masks itself in every formatter and encoder; only [Personal.Reveal]
// gives it away. The text hides behind a pointer, so that printing by reflection shows an address.
type Personal struct{ text *string }

// Secretive returns text as a personal value; empty text is the zero value.
func Secretive(text string) Personal {
	if text == "" {
		return Personal{}
	}
	return Personal{&text}
}

// Reveal returns the text itself.
func (p Personal) Reveal() string {
	if p.text == nil {
		return ""
	}
	return *p.text
}

// IsZero tells whether there is no text.
func (p Personal) IsZero() bool { return p.text == nil }

// Equal compares the texts.
func (p Personal) Equal(q Personal) bool { return p.Reveal() == q.Reveal() }

// String masks.
func (p Personal) String() string { return mask }

// Format masks in every verb.
func (p Personal) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(mask)) }

// MarshalText masks.
func (p Personal) MarshalText() ([]byte, error) { return []byte(mask), nil }

// MarshalJSON masks.
func (p Personal) MarshalJSON() ([]byte, error) { return []byte(`"` + mask + `"`), nil }

// UnmarshalJSON reads a JSON string.
func (p *Personal) UnmarshalJSON(data []byte) error {
	var text string
	if err := json.Unmarshal(data, &text); err != nil {
		return fmt.Errorf("not a string")
	}
	*p = Secretive(text)
	return nil
}

// Document is a CPF or CNPJ in canonical form that masks itself like [Personal].
type Document struct {
	Personal
	Kind  string // cpf, cnpj
	Valid bool   // the check digits are right
}

// ParseDocument reads a CPF or CNPJ with or without punctuation; the error is brdoc.ErrShape.
func ParseDocument(text string) (Document, error) {
	d, err := brdoc.Parse(text)
	if err != nil {
		return Document{}, err
	}
	return Document{Secretive(d.Number), d.Kind, d.Valid}, nil
}

// Root returns a CNPJ's first eight characters, "" for a CPF.
func (d Document) Root() string {
	if d.Kind != brdoc.CNPJ {
		return ""
	}
	return d.Reveal()[:8]
}

// Equal compares the numbers.
func (d Document) Equal(e Document) bool { return d.Reveal() == e.Reveal() }

// UnmarshalJSON reads a JSON string that holds a CPF or CNPJ.
func (d *Document) UnmarshalJSON(data []byte) error {
	var p Personal
	if err := p.UnmarshalJSON(data); err != nil || p.IsZero() {
		return err
	}
	var err error
	*d, err = ParseDocument(p.Reveal())
	return err
}

// Metadata is the client's own JSON object, personal as a whole: sealed, echoed back to readers, not seen by rules.
type Metadata struct{ raw *jsontext.Value }

// Reveal returns the object as JSON, nil when there is none.
func (m Metadata) Reveal() jsontext.Value {
	if m.raw == nil {
		return nil
	}
	return *m.raw
}

// IsZero tells whether there is none.
func (m Metadata) IsZero() bool { return m.raw == nil }

// Equal compares the JSON text.
func (m Metadata) Equal(n Metadata) bool { return string(m.Reveal()) == string(n.Reveal()) }

// Format masks in every verb.
func (m Metadata) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(mask)) }

// MarshalJSON masks.
func (m Metadata) MarshalJSON() ([]byte, error) { return []byte(`"` + mask + `"`), nil }

// UnmarshalJSON keeps the object.
func (m *Metadata) UnmarshalJSON(data []byte) error {
	v := jsontext.Value(data).Clone()
	m.raw = &v
	return nil
}

// revealing marshals personal values as they are.
var revealing = json.WithMarshalers(json.JoinMarshalers(
	json.MarshalToFunc(func(out *jsontext.Encoder, p Personal) error { return out.WriteToken(jsontext.String(p.Reveal())) }),
	json.MarshalToFunc(func(out *jsontext.Encoder, d Document) error { return out.WriteToken(jsontext.String(d.Reveal())) }),
	json.MarshalToFunc(func(out *jsontext.Encoder, m Metadata) error { return out.WriteValue(m.Reveal()) }),
	json.MarshalToFunc(func(out *jsontext.Encoder, d Degrees) error { return out.WriteToken(jsontext.Float(d.Reveal())) }),
))
