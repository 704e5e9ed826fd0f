package event

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/go-json-experiment/json"

	"crivo/pkg/stage"
)

// Any is one of the event types.
type Any interface {
	Submitted | Enriched | Validated | Scored | Decided
}

// Encode writes an event as JSON, deterministically: equal events give equal bytes.
func Encode[T Any](e T) ([]byte, error) {
	data, err := json.Marshal(&e, json.Deterministic(true))
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", e, err)
	}
	return data, nil
}

// Decode reads an event. What cannot be read is stage.Undecodable, what a newer version wrote is stage.Hold. Members that this
// version does not know are ignored, so that fields can be added within a schema.
func Decode[T Any](data []byte) (T, error) {
	var e T
	if err := json.Unmarshal(data, &e); err != nil {
		var newer struct {
			Schema int `json:"schema"`
		}
		if json.Unmarshal(data, &newer) == nil && newer.Schema > Schema {
			return e, stage.Hold(fmt.Errorf("schema %d, this version reads up to %d", newer.Schema, Schema))
		}
		return e, stage.Undecodable(errors.New("not an event of this type")) // the cause may quote the data
	}
	return e, head(any(e))
}

// head checks what every event must carry.
func head(e any) error {
	s := submitted(e)
	switch {
	case s.Schema > Schema:
		return stage.Hold(fmt.Errorf("schema %d, this version reads up to %d", s.Schema, Schema))
	case s.Schema < Schema-1 || s.Schema < 1:
		return stage.Undecodable(fmt.Errorf("schema %d", s.Schema))
	case s.Tenant == "" || s.ID == "" || s.Run < 1:
		return stage.Undecodable(errors.New("no tenant, id or run"))
	}
	return nil
}

func submitted(e any) Submitted {
	switch e := e.(type) {
	case Submitted:
		return e
	case Enriched:
		return e.Submitted
	case Validated:
		return e.Submitted
	case Scored:
		return e.Submitted
	case Decided:
		return e.Submitted
	}
	return Submitted{}
}

// MarshalJSON writes the number, or null for unknown.
func (v Value) MarshalJSON() ([]byte, error) {
	if !v.Known {
		return []byte("null"), nil
	}
	return strconv.AppendFloat(nil, v.Number, 'f', -1, 64), nil
}

// UnmarshalJSON reads a number or null.
func (v *Value) UnmarshalJSON(data []byte) error {
	if string(data) == "null" {
		*v = Value{}
		return nil
	}
	n, err := strconv.ParseFloat(string(data), 64)
	*v = Value{Known: true, Number: n}
	return err
}
