package feed

import (
	"bytes"
	"fmt"
	"time"
)

// Lively is Synthetic with trouble in it, for people to look at: by the rule set that comes with crivo some eight in a hundred
// are to be reviewed and three declined.
type Lively struct {
	*Synthetic
	hasty int
}

// NewLively returns a stream whose ids start with run.
func NewLively(run string, seed uint64) *Lively { return &Lively{Synthetic: NewSynthetic(run, seed)} }

// Next returns one more transaction, created at now.
func (l *Lively) Next(now time.Time) Row {
	row := l.Synthetic.Next(now)
	row.Body = bytes.Replace(row.Body, []byte("529.982.247-25"), fmt.Appendf(nil, "%011d", cpf(l.rand.IntN(5000), 0)), 1)
	amount := 1000 + l.rand.IntN(90000)
	switch kind := l.rand.IntN(100); {
	case kind < 3: // a document whose check digits are wrong
		l.pix(&row, now, amount, fmt.Sprintf(`"document":"%011d"`, cpf(l.rand.IntN(5000), 1)), "")
	case kind < 6: // much to somebody never seen
		l.pix(&row, now, 500000+amount, fmt.Sprintf(`"customer_id":"c-%d"`, l.rand.IntN(5000)),
			fmt.Sprintf(`,"payee":{"pix_key":{"type":"email","value":"new-%s@example.com"}}`, row.ID))
	case kind < 9: // to a mule, from a device that was tampered with
		l.pix(&row, now, amount, fmt.Sprintf(`"customer_id":"c-%d"`, l.rand.IntN(5000)), fmt.Sprintf(`,"device":{"id":"d-%d","is_rooted":true},`+
			`"payee":{"pix_key":{"type":"email","value":"mule@example.com"},"statistics":{"mule_accounts":{"d90":%d}}}`, l.rand.IntN(50), 1+l.rand.IntN(3)))
	case kind < 12: // somebody in a hurry: forty payments, then another
		l.hasty++
		l.pix(&row, now, amount, fmt.Sprintf(`"customer_id":"hasty-%d"`, l.hasty/40), "")
	}
	return row
}

// pix makes row a Pix of a payer, with more members.
func (l *Lively) pix(row *Row, now time.Time, amount int, payer, more string) {
	row.Body = fmt.Appendf(nil, `{"id":%q,"type":"pix","direction":"outbound","amount":%d,"currency":"BRL","created_at":%q,"channel":"app","payer":{%s}%s}`,
		row.ID, amount, now.UTC().Format("2006-01-02T15:04:05.000Z"), payer, more)
}

// cpf is the n-th of some CPF numbers, with its last digit off by so much.
func cpf(n, off int) int {
	body := 100_000_000 + 7919*n
	for range 2 {
		sum := 0
		for rest, weight := body, 2; rest > 0; rest, weight = rest/10, weight+1 {
			sum += rest % 10 * weight
		}
		body = 10*body + sum*10%11%10
	}
	return body/10*10 + (body+off)%10
}
