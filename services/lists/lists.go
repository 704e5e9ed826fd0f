// Package lists understands the values that lists hold. Operators write them in clear, in a file or a request; from here on they
// are what sealed transactions show of the same values.
package lists

import (
	"errors"
	"net/netip"
	"strings"

	"crivo/pkg/brdoc"
	"crivo/pkg/txn"
)

// Block is the list of whom transactions are declined for.
const Block = "block"

// Kinds that transactions show in clear; the others are those of their tokens, networks among them as txn.KindIP.
const (
	KindMerchantID = "merchant_id"
	KindTerminalID = "terminal_id"
)

// ErrKind is returned for a kind that no transaction shows; every other error is about the value, and does not tell it.
var ErrKind = errors.New("kind is unknown")

// Value is an operator's value, understood. It masks itself.
type Value struct {
	token string // kind of its token, empty where transactions show it in clear
	text  txn.Personal
}

// Understand reads a value as it is written: documents with or without punctuation, networks as 203.0.113.0/24.
func Understand(kind, text string) (Value, error) {
	v := Value{kind, txn.Secretive(text)}
	if text == "" {
		return v, errors.New("value is missing")
	}
	switch kind {
	case txn.KindDocument:
		d, err := txn.ParseDocument(text)
		return Value{kind, d.Personal}, err
	case txn.KindDocumentRoot:
		d, err := brdoc.Parse(text + "000000")
		if err != nil || d.Root() == "" {
			return v, errors.New("a root is a CNPJ's first 8 characters")
		}
		return Value{kind, txn.Secretive(d.Root())}, nil
	case txn.KindIP:
		return network(text)
	case txn.KindAccount:
		if parts := strings.SplitN(text, "/", 3); len(parts) < 3 || parts[2] == "" { // see txn.AccountKey
			return v, errors.New("an account is ispb/branch/number")
		}
	case KindMerchantID, KindTerminalID:
		return Value{"", v.text}, nil
	case txn.KindPixKey:
		return Value{kind, txn.Secretive(txn.PixKeyText(text))}, nil
	case txn.KindCustomerID, txn.KindDeviceID, txn.KindCardToken:
	default:
		return v, ErrKind
	}
	return v, nil
}

// network reads an address, or a network of one of the sizes that transactions carry tokens for.
func network(text string) (Value, error) {
	if ip, _, _, ok := txn.Networks(text); ok {
		return Value{txn.KindIP, txn.Secretive(ip)}, nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return Value{}, errors.New("not an address or network")
	}
	near, wide := 24, 16
	if p.Addr().Is6() {
		near, wide = 64, 48
	}
	v := Value{txn.KindIPNear, txn.Secretive(p.Masked().String())}
	switch p.Bits() {
	case near:
	case wide:
		v.token = txn.KindIPWide
	default:
		return Value{}, errors.New("networks are /24 and /16, for IPv6 /64 and /48")
	}
	return v, nil
}

// Shown is the value as sealed transactions of s's tenant show it: a token, or clear text where nothing is personal.
func (v Value) Shown(s interface {
	Token(kind, value string) (string, error)
}) (string, error) {
	if v.token == "" {
		return v.text.Reveal(), nil
	}
	return s.Token(v.token, v.text.Reveal())
}

// Marks is all that a sealed transaction can be found by, as kind and what it shows.
func Marks(t txn.Sealed) []Mark {
	var out []Mark
	add := func(kind, shown string) {
		if shown != "" {
			out = append(out, Mark{kind, shown})
		}
	}
	for _, p := range []*txn.SealedParty{&t.Payer, t.Payee} {
		if p == nil {
			continue
		}
		add(txn.KindCustomerID, p.CustomerID)
		if p.Document != nil {
			add(txn.KindDocument, p.Document.Token)
			add(txn.KindDocumentRoot, p.Document.Root)
		}
		if p.Account != nil {
			add(txn.KindAccount, p.Account.Token)
		}
		if p.PixKey != nil {
			add(txn.KindPixKey, p.PixKey.Token)
		}
	}
	if d := t.Device; d != nil {
		add(txn.KindDeviceID, d.ID)
	}
	if c := t.Card; c != nil {
		add(txn.KindCardToken, c.Token)
	}
	if n := t.Network; n != nil {
		add(txn.KindIP, n.IP)
		add(txn.KindIP, n.Near)
		add(txn.KindIP, n.Wide)
	}
	if m := t.Merchant; m != nil {
		add(KindMerchantID, m.ID)
		add(KindTerminalID, m.TerminalID)
	}
	return out
}

// Mark is one thing that an entry and a transaction can have in common.
type Mark struct{ Kind, Shown string }
