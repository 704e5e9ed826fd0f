// Package seal keeps tenants' keys and makes of personal data what streams and stores may hold: AEAD ciphertext and keyed
// tokens, both by Tink, both naming their key. Destroying a tenant's keys erases the tenant.
package seal

import (
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/prf"
	"github.com/tink-crypto/tink-go/v2/tink"
)

// ErrNoTenant is returned for a tenant that has no keys, never had any or whose keys were destroyed.
var ErrNoTenant = errors.New("no keys for this tenant")

// ErrUnknownKey is returned for a token whose key is not in the tenant's keyset.
var ErrUnknownKey = errors.New("token names an unknown key")

// System is the owner of keys that belong to no tenant: API keys' hashes and webhook ids.
const System = "_system"

// tokenBytes is the length of a token's MAC: 18 bytes, 144 bits, are 24 characters without padding.
const tokenBytes = 18

// Box seals and tokenises under one tenant's keys. It satisfies txn.Sealer and is safe for concurrent use.
type Box struct {
	aead   tink.AEAD
	tokens *prf.Set
}

func newBox(seals, tokens *keyset.Handle) (*Box, error) {
	a, err := aead.New(seals)
	if err != nil {
		return nil, fmt.Errorf("sealing keys: %w", err)
	}
	set, err := prf.NewPRFSet(tokens)
	if err != nil {
		return nil, fmt.Errorf("token keys: %w", err)
	}
	return &Box{a, set}, nil
}

// Format hides the keys in every verb.
func (*Box) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("seal.Box")) }

// Seal encrypts plain bound to ad; the result names its key.
func (b *Box) Seal(plain, ad []byte) ([]byte, error) { return b.aead.Encrypt(plain, ad) }

// Open decrypts what Seal made with the same ad.
func (b *Box) Open(sealed, ad []byte) ([]byte, error) { return b.aead.Decrypt(sealed, ad) }

// Token returns a keyed, URL-safe token of value, <key id>.<MAC>. Kinds keep equal values of different fields apart.
func (b *Box) Token(kind, value string) (string, error) {
	return b.token(b.tokens.PrimaryID, kind, value)
}

// Tokens returns the tokens of value under every key of the tenant: what was made before a rotation has an older one's.
func (b *Box) Tokens(kind, value string) ([]string, error) {
	out := make([]string, 0, len(b.tokens.PRFs))
	for key := range b.tokens.PRFs {
		token, err := b.token(key, kind, value)
		if err != nil {
			return nil, err
		}
		out = append(out, token)
	}
	return out, nil
}

// Matches tells whether token was made from kind and value, under the key that the token names.
func (b *Box) Matches(token, kind, value string) (bool, error) {
	name, _, _ := strings.Cut(token, ".")
	id, err := strconv.ParseUint(name, 16, 32)
	if err != nil {
		return false, ErrUnknownKey
	}
	again, err := b.token(uint32(id), kind, value)
	if err != nil {
		return false, err
	}
	return subtle.ConstantTimeCompare([]byte(again), []byte(token)) == 1, nil
}

func (b *Box) token(key uint32, kind, value string) (string, error) {
	f, ok := b.tokens.PRFs[key]
	if !ok {
		return "", ErrUnknownKey
	}
	// A zero byte parts kind from value: kinds are our own words and hold none.
	mac, err := f.ComputePRF([]byte(kind+"\x00"+value), tokenBytes)
	if err != nil {
		return "", fmt.Errorf("token: %w", err)
	}
	return strconv.FormatUint(uint64(key), 16) + "." + base64.RawURLEncoding.EncodeToString(mac), nil
}
