package event

// Any is one of the event types.
type Any interface {
	Submitted | Enriched | Validated | Scored | Decided
}

// Encode writes an event as JSON, deterministically: equal events give equal bytes.
func Encode[T Any](e T) ([]byte, error) { panic("to be written") }

// Decode reads an event. What cannot be read is stage.Undecodable, what a newer version wrote is stage.Hold.
func Decode[T Any](data []byte) (T, error) { panic("to be written") }
