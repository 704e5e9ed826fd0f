package txn

import (
	"errors"
	"math"
	"strings"
)

// twoDecimals are the active ISO 4217 codes whose minor unit is a hundredth; the others stand in [Exponent].
const twoDecimals = " AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CNY COP CRC CUP CVE CZK " +
	"DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR " +
	"LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR " +
	"SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD UZS VED VES WST XCD XCG YER ZAR ZMW ZWG "

const (
	noDecimals    = " BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF "
	threeDecimals = " BHD IQD JOD KWD LYD OMR TND "
	fourDecimals  = " CLF UYW "
)

// Exponent returns how many decimals a currency's minor unit has by ISO 4217, and whether the code is active.
func Exponent(currency string) (int, bool) {
	if len(currency) != 3 || strings.Contains(currency, " ") {
		return 0, false
	}
	code := " " + currency + " "
	for exponent, codes := range []string{0: noDecimals, 2: twoDecimals, 3: threeDecimals, 4: fourDecimals} {
		if strings.Contains(codes, code) {
			return exponent, true
		}
	}
	return 0, false
}

// Money is an amount in whole minor units with its ISO 4217 currency.
type Money struct {
	Minor    int64
	Currency string
}

// ErrCurrency is returned for arithmetic on two currencies, ErrOverflow for a result beyond 64 bits.
var (
	ErrCurrency = errors.New("two currencies")
	ErrOverflow = errors.New("amount out of range")
)

// Add returns m + n.
func (m Money) Add(n Money) (Money, error) {
	if m.Currency != n.Currency {
		return Money{}, ErrCurrency
	}
	if n.Minor > 0 && m.Minor > math.MaxInt64-n.Minor || n.Minor < 0 && m.Minor < math.MinInt64-n.Minor {
		return Money{}, ErrOverflow
	}
	return Money{m.Minor + n.Minor, m.Currency}, nil
}

// Sub returns m − n.
func (m Money) Sub(n Money) (Money, error) {
	if n.Minor == math.MinInt64 {
		return Money{}, ErrOverflow
	}
	return m.Add(Money{-n.Minor, n.Currency})
}

// Compare returns −1, 0 or 1.
func (m Money) Compare(n Money) (int, error) {
	if m.Currency != n.Currency {
		return 0, ErrCurrency
	}
	switch {
	case m.Minor < n.Minor:
		return -1, nil
	case m.Minor > n.Minor:
		return 1, nil
	}
	return 0, nil
}
