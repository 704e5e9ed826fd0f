package cli

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"crivo/pkg/txn"
	"crivo/services/config"
	"crivo/services/feed"
)

// checkMapping finds mapped fields that no transaction has and constants that no transaction may hold. Both are the same for
// every row, so they are told before the first one is sent.
func checkMapping(f *config.Faults, m feed.Mapping) {
	for _, field := range slices.Sorted(maps.Keys(m.Columns)) {
		if why := unknownField(field); why != "" {
			f.Add("map "+field, "%s", why)
		} else if m.Columns[field] == "" {
			f.Add("map "+field, "no column")
		}
	}
	unknown := false
	for _, field := range slices.Sorted(maps.Keys(m.Set)) {
		if why := unknownField(field); why != "" {
			f.Add("set "+field, "%s", why)
			unknown = true
		}
	}
	if !unknown {
		checkConstants(f, m)
	}
}

// unknownField tells why no transaction has the dotted field, "" for one that has a place. The decoder itself is asked, so that
// fields are listed once.
func unknownField(field string) string {
	names := strings.Split(field, ".")
	if slices.Contains(names, "") {
		return "not a field such as payer.customer_id"
	}
	var body any = ""
	for _, name := range slices.Backward(names) {
		body = map[string]any{name: body}
	}
	for _, fault := range faultsOf(body) {
		inside := strings.Count(fault.Pointer, "/") < len(names)
		switch {
		case fault.Code == txn.UnknownField:
			return "no such field"
		case fault.Code == txn.WrongType && inside:
			return "is inside a field that is no object"
		}
	}
	return ""
}

func faultsOf(body any) txn.Faults {
	data, err := json.Marshal(body)
	if err != nil {
		return txn.Faults{{Code: txn.UnknownField}} // no UTF-8
	}
	var faults txn.Faults
	_, err = txn.Decode(data, time.Now())
	if err != nil && !errors.As(err, &faults) {
		return txn.Faults{{Code: txn.UnknownField}} // nested too deep
	}
	return faults
}

// checkConstants decodes a transaction of nothing but the constants. What it lacks, the rows bring.
func checkConstants(f *config.Faults, m feed.Mapping) {
	only := feed.Mapping{Set: maps.Clone(m.Set)}
	if m.Major {
		delete(only.Set, "amount") // whether its decimals are right depends on each row's currency
	}
	rows, err := feed.NewReader(strings.NewReader("{}"), only)
	if err != nil {
		f.Add("set", "%v", err)
		return
	}
	row, err := rows.Next()
	var bad *feed.RowError
	if errors.As(err, &bad) {
		f.Add("set", "%v", bad.Err)
		return
	}
	var faults txn.Faults
	if _, err := txn.Decode(row.Body, time.Now()); !errors.As(err, &faults) {
		return
	}
	for _, fault := range faults {
		if fault.Code != txn.Required {
			f.Add("set "+strings.ReplaceAll(strings.TrimPrefix(fault.Pointer, "/"), "/", "."), "%s", fault.Detail)
		}
	}
}
