package txn

import (
	"fmt"

	"github.com/go-json-experiment/json"
)

// Transaction is a payment as its client describes it. Amount is whole minor units of Currency. ISO 20022 (pacs.008)
// counterparts: ID is InstrId, EndToEndID EndToEndId, Amount IntrBkSttlmAmt, Payer Dbtr, Payee Cdtr, Description Ustrd.
type Transaction struct {
	ID          string         `json:"id"`
	Type        string         `json:"type"`
	Direction   string         `json:"direction,omitzero"`
	Amount      int64          `json:"amount"`
	Currency    string         `json:"currency"`
	CreatedAt   Time           `json:"created_at"`
	Channel     string         `json:"channel,omitzero"`
	EndToEndID  string         `json:"end_to_end_id,omitzero"`
	Description Personal       `json:"description,omitzero"`
	Payer       Party          `json:"payer"`
	Payee       *Party         `json:"payee,omitzero"`
	Merchant    *Shop          `json:"merchant,omitzero"`
	Card        *Card          `json:"card,omitzero"`
	Device      *Device        `json:"device,omitzero"`
	Network     *Network       `json:"network,omitzero"`
	Geo         *Geo           `json:"geo,omitzero"`
	Session     *Session       `json:"session,omitzero"`
	Attributes  map[string]any `json:"attributes,omitzero"`
	Metadata    Metadata       `json:"metadata,omitzero"`
}

// Party is payer or payee.
type Party struct {
	Document   Document    `json:"document,omitzero"`
	Name       Personal    `json:"name,omitzero"`
	CustomerID Personal    `json:"customer_id,omitzero"`
	CreatedAt  *Time       `json:"created_at,omitzero"`
	Account    *Account    `json:"account,omitzero"`
	PixKey     *PixKey     `json:"pix_key,omitzero"`
	Statistics *Statistics `json:"statistics,omitzero"`
}

// Account is an account at the institution that ISPB names.
type Account struct {
	ISPB     string   `json:"ispb,omitzero"`
	Branch   Personal `json:"branch,omitzero"`
	Number   Personal `json:"number,omitzero"`
	Type     string   `json:"type,omitzero"`
	OpenedAt *Time    `json:"opened_at,omitzero"`
}

// PixKey is a key of the DICT directory.
type PixKey struct {
	Type       string   `json:"type,omitzero"`
	Value      Personal `json:"value,omitzero"`
	OwnedSince *Time    `json:"owned_since,omitzero"`
}

// Shop is a merchant as the client names it; a sole trader's name is personal.
type Shop struct {
	Merchant
	Name Personal `json:"name,omitzero"`
}

// Card is the card that paid; Token stands for its number.
type Card struct {
	Token     Personal `json:"token,omitzero"`
	BIN       string   `json:"bin,omitzero"`
	Last4     string   `json:"last4,omitzero"`
	EntryMode string   `json:"entry_mode,omitzero"`
	ThreeDS   string   `json:"three_ds,omitzero"`
}

// Device is what the payer used.
type Device struct {
	ID           Personal `json:"id,omitzero"`
	RegisteredAt *Time    `json:"registered_at,omitzero"`
	OS           string   `json:"os,omitzero"`
	AppVersion   string   `json:"app_version,omitzero"`
	IsRooted     *bool    `json:"is_rooted,omitzero"`
	IsEmulator   *bool    `json:"is_emulator,omitzero"`
}

// Network is where the request came from.
type Network struct {
	IP    Personal `json:"ip,omitzero"`
	ASN   *int64   `json:"asn,omitzero"`
	IsVPN *bool    `json:"is_vpn,omitzero"`
}

// Geo is a position in degrees.
type Geo struct {
	Lat       Degrees  `json:"lat"`
	Lon       Degrees  `json:"lon"`
	AccuracyM *float64 `json:"accuracy_m,omitzero"`
}

// Session is the payer's session with the client.
type Session struct {
	ID             Personal `json:"id,omitzero"`
	Authentication string   `json:"authentication,omitzero"`
	StartedAt      *Time    `json:"started_at,omitzero"`
}

// Degrees is an exact position; it masks itself, since it says where a person was.
type Degrees struct{ value *float64 }

// DegreesOf returns v.
func DegreesOf(v float64) Degrees { return Degrees{&v} }

// Reveal returns the degrees.
func (d Degrees) Reveal() float64 {
	if d.value == nil {
		return 0
	}
	return *d.value
}

// Equal compares the values.
func (d Degrees) Equal(e Degrees) bool { return d.Reveal() == e.Reveal() }

// Format masks in every verb.
func (d Degrees) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(mask)) }

// MarshalJSON masks.
func (d Degrees) MarshalJSON() ([]byte, error) { return []byte(`"` + mask + `"`), nil }

// UnmarshalJSON reads a JSON number.
func (d *Degrees) UnmarshalJSON(data []byte) error {
	var v float64
	err := json.Unmarshal(data, &v)
	d.value = &v
	return err
}

// MarshalClear writes the transaction with its personal values, as a client would send it: for sealing, and for whoever
// may read it all. Absent members are left out, members come in a fixed order, attributes sorted.
func (t Transaction) MarshalClear() ([]byte, error) {
	return json.Marshal(&t, revealing, json.Deterministic(true))
}
