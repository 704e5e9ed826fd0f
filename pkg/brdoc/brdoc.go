// Package brdoc reads Brazilian tax numbers: CPF, and CNPJ in its numeric and its alphanumeric form, in force since July 2026
// (IN RFB 2.229/2024, Nota Técnica COCAD/SUARA/RFB 49/2024). A wrong shape is an error; wrong check digits are a fact.
package brdoc

import (
	"errors"
	"strings"
)

// Kinds of documents.
const (
	CPF  = "cpf"
	CNPJ = "cnpj"
)

// ErrShape is returned for what is neither a CPF nor a CNPJ by length and characters.
var ErrShape = errors.New("neither a CPF nor a CNPJ")

// Document is a tax number in canonical form: upper case, no punctuation.
type Document struct {
	Number string
	Kind   string // CPF or CNPJ
	Valid  bool   // the check digits are right, and it is no CPF or CNPJ of one repeated digit
}

// Root returns a CNPJ's first eight characters, which all establishments of a company share; "" for a CPF.
func (d Document) Root() string {
	if d.Kind != CNPJ {
		return ""
	}
	return d.Number[:8]
}

// Parse reads a document with or without punctuation and in either case. The kind follows from the length: a company keeps
// its numeric root when it gets an alphanumeric branch, so nothing else tells.
func Parse(text string) (Document, error) {
	number := canonical(text)
	switch {
	case len(number) == 11 && allDigits(number):
		return Document{number, CPF, validCPF(number)}, nil
	case len(number) == 14 && allDigits(number[12:]) && allAlphanumeric(number[:12]):
		return Document{number, CNPJ, validCNPJ(number)}, nil
	}
	return Document{}, ErrShape
}

// canonical strips the punctuation that masks use and upper-cases.
func canonical(text string) string {
	if len(text) > 32 {
		return ""
	}
	return strings.ToUpper(strings.NewReplacer(".", "", "/", "", "-", "").Replace(strings.TrimSpace(text)))
}

func allDigits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}

func allAlphanumeric(s string) bool {
	for i := range len(s) {
		if (s[i] < '0' || s[i] > '9') && (s[i] < 'A' || s[i] > 'Z') {
			return false
		}
	}
	return true
}

// validCPF also refuses the ten CPFs of one repeated digit, all of which pass the arithmetic.
func validCPF(n string) bool {
	return strings.Count(n, n[:1]) != 11 && n[9] == check(n[:9], 11) && n[10] == check(n[:10], 11)
}

// validCNPJ also refuses fourteen zeros, the only repetition that passes the arithmetic.
func validCNPJ(n string) bool {
	return n != "00000000000000" && n[12] == check(n[:12], 9) && n[13] == check(n[:13], 9)
}

// check is the modulo-11 digit over body: weights rise from 2 at the right end and start over after top. A character's value
// is its ASCII code minus 48, so digits keep theirs and A is 17.
func check(body string, top int) byte {
	sum, weight := 0, 2
	for i := len(body) - 1; i >= 0; i-- {
		sum += int(body[i]-'0') * weight
		if weight++; weight > top {
			weight = 2
		}
	}
	if r := sum % 11; r >= 2 {
		return byte('0' + 11 - r)
	}
	return '0'
}
