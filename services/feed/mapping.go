package feed

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"crivo/pkg/txn"
)

// Mapping says how a file's columns become a transaction's fields. Fields are dotted: payer.customer_id.
type Mapping struct {
	Columns map[string]string // field → column; empty: NDJSON passes through, CSV columns are fields by their names
	Set     map[string]string // field → constant; wins over a column
	Major   bool              // amounts are in major units (12.34), not minor (1234)
	// ID rewrites the transaction's id, so that one file can be sent many times; nil keeps it.
	ID func(id string) string
}

// numbers and flags are the fields that are not strings; amount is apart, attributes decide by look.
var (
	numbers = []string{"geo.lat", "geo.lon", "geo.accuracy_m", "network.asn"}
	flags   = []string{"device.is_rooted", "device.is_emulator", "network.is_vpn"}
)

// exactNumbers keeps numbers as they are written, however large.
var exactNumbers = json.WithUnmarshalers(json.UnmarshalFromFunc(func(in *jsontext.Decoder, v *any) error {
	if in.PeekKind() != '0' {
		return errors.ErrUnsupported
	}
	raw, err := in.ReadValue()
	*v = raw.Clone()
	return err
}))

// missing names every mapped column that the header lacks.
func (m Mapping) missing(columns map[string]int) error {
	var errs []error
	for _, field := range slices.Sorted(maps.Keys(m.Columns)) {
		if _, ok := columns[m.Columns[field]]; !ok {
			errs = append(errs, fmt.Errorf("no column %q for %s", m.Columns[field], field))
		}
	}
	return errors.Join(errs...)
}

func (m Mapping) apply(rec record) (Row, error) {
	fields, err := m.fields(rec)
	if err != nil {
		return Row{}, err
	}
	if m.Major {
		if err := toMinor(fields); err != nil {
			return Row{}, err
		}
	}
	id, _ := fields["id"].(string)
	if m.ID != nil && id != "" {
		id = m.ID(id)
		fields["id"] = id
	}
	body, err := json.Marshal(fields, json.Deterministic(true))
	if err != nil {
		return Row{}, errors.New("cannot be written as JSON")
	}
	return Row{ID: id, Body: body}, nil
}

// fields builds the transaction as a tree of maps.
func (m Mapping) fields(rec record) (map[string]any, error) {
	out := map[string]any{}
	if rec.object != nil && len(m.Columns) == 0 {
		for name, value := range rec.object {
			var v any = value
			if value.Kind() == '{' || name == "id" {
				v = nil
				if err := json.Unmarshal(value, &v, exactNumbers); err != nil {
					return nil, errors.New("not a JSON object")
				}
			}
			out[name] = v
		}
	}
	var errs []error
	put := func(field string, value any, err error) {
		if err == nil && value != nil {
			err = set(out, strings.Split(field, "."), value)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", field, err))
		}
	}
	columns := m.columns(rec)
	for _, field := range slices.Sorted(maps.Keys(columns)) { // a parent comes before what is set inside it
		value, err := rec.value(field, columns[field])
		put(field, value, err)
	}
	for _, field := range slices.Sorted(maps.Keys(m.Set)) {
		value, err := convert(field, m.Set[field])
		put(field, value, err)
	}
	return out, errors.Join(errs...)
}

func (m Mapping) columns(rec record) map[string]string {
	if len(m.Columns) > 0 || rec.object != nil {
		return m.Columns
	}
	own := make(map[string]string, len(rec.columns))
	for name := range rec.columns {
		own[name] = name
	}
	return own
}

// value returns a column's value, nil where the row has none.
func (r record) value(field, column string) (any, error) {
	if r.object == nil {
		return convert(field, r.cells[r.columns[column]])
	}
	value, ok := r.object[column]
	if !ok || value.Kind() == 'n' {
		return nil, nil
	}
	if value.Kind() == '"' {
		var text string
		err := json.Unmarshal(value, &text)
		return text, err
	}
	if value.Kind() == '0' && field == "id" {
		return value.String(), nil // ids are often numbers in files, never in transactions
	}
	return value, nil
}

// convert gives a cell's text the JSON type of its field; an empty cell is an absent field.
func convert(field, text string) (any, error) {
	switch {
	case text == "":
		return nil, nil
	case field == "amount" || slices.Contains(numbers, field) || strings.HasPrefix(field, "payee.statistics.") && field != "payee.statistics.as_of":
		return number(text)
	case slices.Contains(flags, field):
		b, err := strconv.ParseBool(text)
		if err != nil {
			return nil, errors.New("not true or false")
		}
		return b, nil
	case strings.HasPrefix(field, "attributes."):
		if n, err := number(text); err == nil {
			return n, nil
		}
		return text, nil
	}
	return text, nil
}

func number(text string) (any, error) {
	value := jsontext.Value(text)
	if !value.IsValid() || value.Kind() != '0' {
		return nil, errors.New("not a number")
	}
	return value, nil
}

func set(into map[string]any, path []string, value any) error {
	for _, name := range path[:len(path)-1] {
		child, ok := into[name].(map[string]any)
		if !ok {
			if into[name] != nil {
				return errors.New("is inside a field that is no object")
			}
			child = map[string]any{}
			into[name] = child
		}
		into = child
	}
	into[path[len(path)-1]] = value
	return nil
}

// toMinor turns the amount from major to minor units of its currency, exactly.
func toMinor(fields map[string]any) error {
	value, ok := fields["amount"].(jsontext.Value)
	if !ok {
		return nil // the edge says what is wrong with it
	}
	currency, ok := fields["currency"].(string)
	if raw, isRaw := fields["currency"].(jsontext.Value); isRaw {
		ok = json.Unmarshal(raw, &currency) == nil
	}
	exponent, known := txn.Exponent(currency)
	if !ok || !known {
		return errors.New("amount: major units need a known currency")
	}
	minor, err := shift(value.String(), exponent)
	if err != nil {
		return fmt.Errorf("amount: %w", err)
	}
	fields["amount"] = minor
	return nil
}

// shift multiplies a plain decimal by ten to the power of places, refusing what would not be whole.
func shift(decimal string, places int) (int64, error) {
	whole, fraction, _ := strings.Cut(decimal, ".")
	fraction = strings.TrimRight(fraction, "0")
	if len(fraction) > places {
		return 0, fmt.Errorf("more than %d decimals", places)
	}
	minor, err := strconv.ParseInt(whole+fraction+strings.Repeat("0", places-len(fraction)), 10, 64)
	if err != nil {
		return 0, errors.New("not a plain decimal in range")
	}
	return minor, nil
}
