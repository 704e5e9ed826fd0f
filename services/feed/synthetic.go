package feed

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"time"
)

// Synthetic makes up ordinary traffic: three cards to one Pix, 5,000 payers, 10,000 terminals, amounts around 45.00. Equal
// seeds give equal transactions but for their times. It is not safe for concurrent use.
type Synthetic struct {
	run  string
	rand *rand.Rand
	n    int
}

// NewSynthetic returns a stream whose ids start with run.
func NewSynthetic(run string, seed uint64) *Synthetic {
	return &Synthetic{run: run, rand: rand.New(rand.NewPCG(seed, 1))}
}

// Next returns one more transaction, created at now.
func (s *Synthetic) Next(now time.Time) Row {
	s.n++
	row := Row{Number: s.n, ID: s.run + "-" + strconv.Itoa(s.n)}
	amount := int64(math.Exp(s.rand.NormFloat64()*0.8+3.8) * 100)
	payer := s.rand.IntN(5000)
	at := now.UTC().Format("2006-01-02T15:04:05.000Z")
	if s.rand.IntN(4) > 0 {
		row.Body = fmt.Appendf(nil, `{"id":%q,"type":"card","amount":%d,"currency":"BRL","created_at":%q,"channel":"pos",`+
			`"payer":{"customer_id":"c-%d"},"merchant":{"id":"m-%d","mcc":"5411","terminal_id":"t-%d","country":"BR"},`+
			`"card":{"token":"tok-%d","bin":"544731","last4":"1881","entry_mode":"chip"}}`,
			row.ID, amount, at, payer, payer%700, s.rand.IntN(10000), payer)
		return row
	}
	row.Body = fmt.Appendf(nil, `{"id":%q,"type":"pix","direction":"outbound","amount":%d,"currency":"BRL","created_at":%q,"channel":"app",`+
		`"payer":{"document":"529.982.247-25","customer_id":"c-%d","name":"Ana Souza","account":{"ispb":"12345678","branch":"0001","number":"%d","type":"CACC"}},`+
		`"payee":{"document":"12.ABC.345/01DE-35","name":"Loja","pix_key":{"type":"email","value":"k%d@example.com"}},"device":{"id":"d-%d"},"network":{"ip":"203.0.113.%d"}}`,
		row.ID, amount, at, payer, 100000+payer, s.rand.IntN(20000), payer, payer%250)
	return row
}
