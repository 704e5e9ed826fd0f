package edge

import (
	"bytes"
	"encoding/csv"
	"errors"
	"mime"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"crivo/pkg/txn"
	"crivo/services/store"
)

const (
	kindCSV    = "text/csv"
	kindNDJSON = "application/x-ndjson"
	// maxExports bounds what exports at once hold in memory, a page each, and take from the store.
	maxExports = 4
	// exportPage rows are some 2 MB as they come from the store.
	exportPage = 500
	// exportWrite is how long a client may take over one page before it is given up.
	exportWrite = 30 * time.Second
)

// exportKind is the kind of export that an Accept header prefers, "" for JSON: of equal wishes the first counts.
func exportKind(accept []string) string {
	kinds := map[string]string{kindCSV: kindCSV, "text/*": kindCSV, kindNDJSON: kindNDJSON, "application/json": "", "application/*": "", "*/*": ""}
	best, out := 0.0, ""
	for wish := range splitQuoted(strings.Join(accept, ","), ',') {
		name, parameters, err := mime.ParseMediaType(wish)
		kind, known := kinds[name]
		if err != nil || !known {
			continue
		}
		q, err := strconv.ParseFloat(parameters["q"], 64)
		if err != nil || !(q >= 0 && q <= 1) {
			q = 1
		}
		if q > best {
			best, out = q, kind
		}
	}
	return out
}

// export streams everything that is found, page by page. What is wrong before the first page is a problem document like any other;
// what breaks later breaks the connection, so that no client takes a part for the whole.
func (e *edge) export(w http.ResponseWriter, r *http.Request, q store.Query, kind string) error {
	if !e.exports.take(q.Tenant) {
		return errExports
	}
	defer e.exports.leave(q.Tenant)
	var out bytes.Buffer
	put := putNDJSON
	if kind == kindCSV {
		put = putCSV
		out.WriteString(strings.Join(csvColumns, ",") + "\r\n")
	}
	for left, first := q.Limit, true; ; first = false {
		q.Limit = min(left, exportPage)
		items, next, err := e.find(r.Context(), q)
		if err == nil {
			err = put(&out, items)
		}
		if err == nil && e.draining.Load() {
			err = errDraining
		}
		if err == nil && !e.hears(r) { // withdrawn meanwhile: an export may take hours
			err = errUnknownKey
		}
		switch {
		case err != nil && first:
			return err
		case err != nil:
			e.Log.Warn().Err(err).Str("request_id", requestID(r.Context())).Msg("export broken off")
			panic(http.ErrAbortHandler)
		case first:
			w.Header().Set("Content-Type", kind)
			w.Header().Set("Cache-Control", "no-store")
			w.Header().Set("Vary", "Accept")
		}
		control := http.NewResponseController(w)
		_ = control.SetWriteDeadline(time.Now().Add(exportWrite))
		if _, err := w.Write(out.Bytes()); err != nil {
			panic(http.ErrAbortHandler) // nobody listens
		}
		if left -= len(items); next == "" || left == 0 {
			return nil
		}
		_ = control.Flush()
		out.Reset()
		q.Cursor = next
	}
}

var errExports = errors.New("as many exports are under way as there may be at once")

func putNDJSON(out *bytes.Buffer, items []decidedAnswer) error {
	for i := range items {
		if err := json.MarshalWrite(out, &items[i], json.Deterministic(true)); err != nil {
			return err
		}
		out.WriteByte('\n')
	}
	return nil
}

var csvColumns = []string{"id", "accepted_at", "decided_at", "decision", "score", "risk_band", "reasons", "late", "degraded", "rule_set", "rule_set_version",
	"disposition", "disposed_at", "disposed_by", "note", "type", "direction", "amount", "currency", "created_at", "channel", "end_to_end_id"}

// putCSV writes rows as RFC 4180 has them; several values in one cell are separated by spaces, those with spaces by "; ".
func putCSV(out *bytes.Buffer, items []decidedAnswer) error {
	rows := csv.NewWriter(out)
	rows.UseCRLF = true
	for i := range items {
		x := &items[i]
		codes := make([]string, len(x.Reasons))
		for k, reason := range x.Reasons {
			codes[k] = reason.Code
		}
		row := []string{x.ID, stamp(x.AcceptedAt), stamp(x.DecidedAt), x.Decision.Decision, strconv.Itoa(x.Score), x.RiskBand, strings.Join(codes, " "),
			strconv.FormatBool(x.Late), strings.Join(x.Degraded, "; "), x.RuleSet.Name, strconv.Itoa(x.RuleSet.Version), x.Disposition, "", x.DisposedBy, x.Note}
		if x.DisposedAt != nil {
			row[12] = stamp(*x.DisposedAt)
		}
		if t := x.Transaction; t != nil {
			row = append(row, t.Type, t.Direction, strconv.FormatInt(t.Amount, 10), t.Currency, stamp(t.CreatedAt), t.Channel, t.EndToEndID)
		} else {
			row = append(row, make([]string, len(csvColumns)-len(row))...)
		}
		for k, cell := range row {
			row[k] = harmless(cell)
		}
		_ = rows.Write(row) // a buffer takes everything
	}
	rows.Flush()
	return rows.Error()
}

func stamp(t txn.Time) string {
	text, _ := t.MarshalText() // never fails
	return string(text)
}

// formula finds what a spreadsheet may take for one: at the start of a cell or, since some part rows at other signs than commas,
// after any of these (CSV injection, https://owasp.org/www-community/attacks/CSV_Injection).
var formula = regexp.MustCompile("(^|[,;|\"'\t\r\n])( *[=+@\\-＝＋＠－])")

// harmless is a cell that a spreadsheet shows as text: an apostrophe stands before what would be a formula.
func harmless(cell string) string { return formula.ReplaceAllString(cell, "$1'$2") }
