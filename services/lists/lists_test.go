package lists_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"crivo/pkg/txn"
	"crivo/services/lists"
)

// tokens shows kind and value as they reach the keys.
type tokens struct{}

func (tokens) Token(kind, value string) (string, error) { return kind + ":" + value, nil }

func TestAValueIsShownAsTransactionsShowIt(t *testing.T) {
	for name, tc := range map[string]struct{ kind, text, want string }{
		"a CPF with mask":            {"document", "529.982.247-25", "document:52998224725"},
		"a CPF with a wrong digit":   {"document", "529.982.247-26", "document:52998224726"},
		"an alphanumeric CNPJ":       {"document", "12.abc.345/01de-35", "document:12ABC34501DE35"},
		"a company by its root":      {"document_root", "12.abc.345", "document_root:12ABC345"},
		"an account":                 {"account", "12345678/1/2", "account:12345678/1/2"},
		"an account without an ISPB": {"account", "/1/2", "account:/1/2"},
		"a Pix key":                  {"pix_key", "k@example.com", "pix_key:k@example.com"},
		"an e-mail in capitals":      {"pix_key", "K@Example.com", "pix_key:k@example.com"},
		"a CPF as a Pix key":         {"pix_key", "529.982.247-25", "pix_key:52998224725"},
		"a random Pix key":           {"pix_key", "123E4567-E12B-12D1-A456-426655440000", "pix_key:123e4567-e12b-12d1-a456-426655440000"},
		"a phone":                    {"pix_key", "+5511987654321", "pix_key:+5511987654321"},
		"an address":                 {"ip", "::ffff:203.0.113.77", "ip:203.0.113.77"},
		"a /24 by one of its own":    {"ip", "203.0.113.9/24", "ip_near:203.0.113.0/24"},
		"a /16":                      {"ip", "203.0.0.0/16", "ip_wide:203.0.0.0/16"},
		"an IPv6 /64":                {"ip", "2001:db8:0:1::/64", "ip_near:2001:db8:0:1::/64"},
		"an IPv6 /48":                {"ip", "2001:db8::/48", "ip_wide:2001:db8::/48"},
		"a merchant":                 {"merchant_id", "m-1", "m-1"},
		"a terminal":                 {"terminal_id", "0042", "0042"},
	} {
		v, err := lists.Understand(tc.kind, tc.text)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got, err := v.Shown(tokens{}); got != tc.want || err != nil {
			t.Errorf("%s: %s, %v", name, got, err)
		}
		if printed := fmt.Sprintf("%v %+v %#v", v, v, v); strings.Contains(printed, tc.text) {
			t.Errorf("%s prints itself: %s", name, printed)
		}
	}
}

func TestWhatIsNotUnderstoodIsNotTold(t *testing.T) {
	for name, tc := range map[string]struct {
		kind, text string
		ofKind     bool
	}{
		"no kind":             {"", "secret", true},
		"another kind":        {"iban", "secret", true},
		"a token kind":        {txn.KindIPNear, "203.0.113.0/24", true},
		"no value":            {"device_id", "", false},
		"a short document":    {"document", "12345", false},
		"a CPF as a root":     {"document_root", "52998224725", false},
		"a bare number":       {"account", "1044266", false},
		"a branch alone":      {"account", "12345678/0001/", false},
		"a host":              {"ip", "secret.example", false},
		"a network too small": {"ip", "203.0.113.0/25", false},
	} {
		_, err := lists.Understand(tc.kind, tc.text)
		if err == nil || errors.Is(err, lists.ErrKind) != tc.ofKind || tc.text != "" && strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
