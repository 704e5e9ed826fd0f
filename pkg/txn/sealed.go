package txn

// Sealed is a transaction as streams, stores and rules see it: personal fields are keyed tokens and harmless derivates,
// and the originals one ciphertext that [Open] reads back. Amounts are whole minor units of Currency.
type Sealed struct {
	ID         string         `json:"id"`
	Type       string         `json:"type"`
	Direction  string         `json:"direction,omitempty"`
	Amount     int64          `json:"amount"`
	Currency   string         `json:"currency"`
	CreatedAt  Time           `json:"created_at"`
	Channel    string         `json:"channel,omitempty"`
	EndToEndID string         `json:"end_to_end_id,omitempty"`
	Payer      SealedParty    `json:"payer"`
	Payee      *SealedParty   `json:"payee,omitempty"`
	Merchant   *Merchant      `json:"merchant,omitempty"`
	Card       *SealedCard    `json:"card,omitempty"`
	Device     *SealedDevice  `json:"device,omitempty"`
	Network    *SealedNetwork `json:"network,omitempty"`
	Geo        *SealedGeo     `json:"geo,omitempty"`
	Session    *SealedSession `json:"session,omitempty"`
	Attributes map[string]any `json:"attributes,omitempty"`
	// Blob holds the personal fields as AEAD ciphertext; tenant and id are its associated data.
	Blob []byte `json:"sealed"`
}

// SealedParty is payer or payee without anything that names a person.
type SealedParty struct {
	Document   *SealedDocument `json:"document,omitempty"`
	CustomerID string          `json:"customer_id,omitempty"` // token
	CreatedAt  *Time           `json:"created_at,omitempty"`
	Account    *SealedAccount  `json:"account,omitempty"`
	PixKey     *SealedPixKey   `json:"pix_key,omitempty"`
	Statistics *Statistics     `json:"statistics,omitempty"`
}

// SealedDocument is a CPF or CNPJ as a token, with whether its check digits are right.
type SealedDocument struct {
	Token string `json:"token"`
	Root  string `json:"root,omitempty"` // token of a CNPJ's first eight characters
	Type  string `json:"type"`           // cpf, cnpj
	Valid bool   `json:"valid"`
}

// SealedAccount is an account whose branch and number are one token.
type SealedAccount struct {
	Token    string `json:"token,omitempty"`
	ISPB     string `json:"ispb,omitempty"`
	Type     string `json:"type,omitempty"`
	OpenedAt *Time  `json:"opened_at,omitempty"`
}

// SealedPixKey is a Pix key whose value is a token.
type SealedPixKey struct {
	Type       string `json:"type,omitempty"`
	Token      string `json:"token,omitempty"`
	OwnedSince *Time  `json:"owned_since,omitempty"`
}

// SealedCard is a card whose token is tokenised once more.
type SealedCard struct {
	Token     string `json:"token,omitempty"`
	BIN       string `json:"bin,omitempty"`
	Last4     string `json:"last4,omitempty"`
	EntryMode string `json:"entry_mode,omitempty"`
	ThreeDS   string `json:"three_ds,omitempty"`
}

// SealedDevice is a device whose id is a token.
type SealedDevice struct {
	ID           string `json:"id,omitempty"` // token
	RegisteredAt *Time  `json:"registered_at,omitempty"`
	OS           string `json:"os,omitempty"`
	AppVersion   string `json:"app_version,omitempty"`
	IsRooted     *bool  `json:"is_rooted,omitempty"`
	IsEmulator   *bool  `json:"is_emulator,omitempty"`
}

// SealedNetwork is an address as tokens of itself and of the two networks around it.
type SealedNetwork struct {
	IP    string `json:"ip,omitempty"`   // token of the address
	Near  string `json:"near,omitempty"` // token of the /24 (IPv6: /64)
	Wide  string `json:"wide,omitempty"` // token of the /16 (IPv6: /48)
	ASN   *int64 `json:"asn,omitempty"`
	IsVPN *bool  `json:"is_vpn,omitempty"`
}

// SealedGeo is a position rounded to 0.1 degree.
type SealedGeo struct {
	Lat       float64  `json:"lat"`
	Lon       float64  `json:"lon"`
	AccuracyM *float64 `json:"accuracy_m,omitempty"`
}

// SealedSession is a session whose id is a token.
type SealedSession struct {
	ID             string `json:"id,omitempty"` // token
	Authentication string `json:"authentication,omitempty"`
	StartedAt      *Time  `json:"started_at,omitempty"`
}

// Merchant is who was paid by card; nothing in it but Name is personal, and Name is sealed.
type Merchant struct {
	ID         string `json:"id,omitempty"`
	MCC        string `json:"mcc,omitempty"`
	TerminalID string `json:"terminal_id,omitempty"`
	Country    string `json:"country,omitempty"`
}

// Statistics are the counters that a payer's institution read from DICT for the payee, by window (d90, m12, m60).
type Statistics struct {
	Settlements       map[string]int64 `json:"settlements,omitempty"`
	MuleAccounts      map[string]int64 `json:"mule_accounts,omitempty"`
	ScammerAccounts   map[string]int64 `json:"scammer_accounts,omitempty"`
	ApplicationFrauds map[string]int64 `json:"application_frauds,omitempty"`
	OtherFrauds       map[string]int64 `json:"other_frauds,omitempty"`
	AsOf              *Time            `json:"as_of,omitempty"`
}
