// Package feed turns the rows of a CSV or NDJSON file, plain or gzipped, into transactions as clients send them. It maps
// columns to fields, adds constant ones and converts amounts exactly; it judges nothing, that is the edge's work.
package feed

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Row is one transaction of a file.
type Row struct {
	Number int    // from 1, the header not counted
	ID     string // of the transaction, for asking about it later
	Body   []byte // JSON
}

// RowError is a row that cannot become a transaction; reading goes on after it.
type RowError struct {
	Number int
	Err    error
}

func (e *RowError) Error() string { return fmt.Sprintf("row %d: %v", e.Number, e.Err) }

// Unwrap returns the cause.
func (e *RowError) Unwrap() error { return e.Err }

// Reader reads rows in file order.
type Reader struct {
	next    func() (record, error)
	mapping Mapping
	number  int
	close   func() error
}

// record gives one row's raw value by column, and all columns it has.
type record struct {
	object  map[string]jsontext.Value // NDJSON
	columns map[string]int            // CSV
	cells   []string
}

// Open reads path ("-" is stdin); gzip and the format are told by content, not by name.
func Open(path string, m Mapping) (*Reader, error) {
	file := os.Stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		file = f
	}
	r, err := NewReader(file, m)
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	r.close = file.Close
	return r, nil
}

// NewReader reads rows from in.
func NewReader(in io.Reader, m Mapping) (*Reader, error) {
	buffered := bufio.NewReaderSize(in, 1<<16)
	if magic, _ := buffered.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		unpacked, err := gzip.NewReader(buffered)
		if err != nil {
			return nil, fmt.Errorf("gzip: %w", err)
		}
		buffered = bufio.NewReaderSize(unpacked, 1<<16)
	}
	if mark, _ := buffered.Peek(3); string(mark) == "\ufeff" {
		_, _ = buffered.Discard(3) // spreadsheets write a byte order mark; it is no part of the first column's name
	}
	r := &Reader{mapping: m, close: func() error { return nil }}
	first, err := firstByte(buffered)
	switch {
	case errors.Is(err, io.EOF):
		r.next, err = func() (record, error) { return record{}, io.EOF }, nil
	case err != nil:
		return nil, err
	case first == '{':
		r.next = objects(buffered)
	case first == '[':
		return nil, errors.New("a JSON array; one object a line is wanted (NDJSON), or CSV")
	default:
		r.next, err = table(buffered, m)
	}
	return r, err
}

// firstByte returns the first byte that is not white space, leaving it unread.
func firstByte(in *bufio.Reader) (byte, error) {
	for {
		b, err := in.ReadByte()
		if err != nil {
			return 0, err
		}
		if b != ' ' && b != '\n' && b != '\r' && b != '\t' {
			return b, in.UnreadByte()
		}
	}
}

// objects reads one object a line, so that a broken one costs no other; empty lines are no rows.
func objects(in *bufio.Reader) func() (record, error) {
	return func() (record, error) {
		line, err := nextLine(in)
		if err != nil {
			return record{}, err
		}
		object := map[string]jsontext.Value{}
		if err := json.Unmarshal(line, &object); err != nil || object == nil {
			return record{}, &RowError{Err: errors.New("not a JSON object on a line of its own")}
		}
		return record{object: object}, nil
	}
}

// maxLine is far beyond a body that the edge takes (64 KiB).
const maxLine = 4 << 20

var errLine = errors.New("a line of more than 4 MiB")

func nextLine(in *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := in.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case len(line) > maxLine:
			return nil, errLine
		case errors.Is(err, bufio.ErrBufferFull):
		case err != nil && !errors.Is(err, io.EOF):
			return nil, err // what was read of this line is no line
		case len(bytes.TrimSpace(line)) > 0:
			return line, nil
		case err != nil:
			return nil, io.EOF
		default:
			line = line[:0]
		}
	}
}

func table(in *bufio.Reader, m Mapping) (func() (record, error), error) {
	rows := csv.NewReader(in)
	rows.ReuseRecord = true
	header, err := rows.Read()
	if err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	columns := make(map[string]int, len(header))
	for i, name := range header {
		columns[name] = i
	}
	if err := m.missing(columns); err != nil {
		return nil, err
	}
	return func() (record, error) {
		cells, err := rows.Read()
		var parse *csv.ParseError
		switch {
		case errors.As(err, &parse) && parse.Line > parse.StartLine: // what it took for one cell may be many rows, of which none was sent
			return record{}, fmt.Errorf("a quote in the row that begins on line %d takes in all up to line %d: %w", parse.StartLine, parse.Line, parse.Err)
		case parse != nil:
			return record{}, &RowError{Err: parse.Err}
		}
		return record{columns: columns, cells: cells}, err
	}, nil
}

// Next returns the next row, a *RowError for one that cannot be used, or io.EOF. Any other error ends the reading: where the next
// row would begin nobody knows.
func (r *Reader) Next() (Row, error) {
	rec, err := r.next()
	var bad *RowError
	if errors.As(err, &bad) {
		r.number++
		return Row{Number: r.number}, &RowError{r.number, bad.Err}
	}
	if errors.Is(err, io.EOF) {
		return Row{}, io.EOF
	}
	if err != nil {
		return Row{}, fmt.Errorf("after row %d: %w", r.number, err)
	}
	r.number++
	row, err := r.mapping.apply(rec)
	row.Number = r.number
	if err != nil {
		return row, &RowError{r.number, err}
	}
	return row, nil
}

// Close closes the file.
func (r *Reader) Close() error { return r.close() }
