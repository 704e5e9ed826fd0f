// Package seal keeps tenants' keys and makes of personal data what streams and stores may hold: AEAD ciphertext and keyed
// tokens, both by Tink, both naming their key. Destroying a tenant's keys erases the tenant.
package seal

import "errors"

// ErrNoTenant is returned for a tenant that has no keys, never had any or whose keys were destroyed.
var ErrNoTenant = errors.New("no keys for this tenant")

// System is the owner of keys that belong to no tenant: API keys' hashes and webhook ids.
const System = "_system"

// Keyring holds every tenant's keys, read from one file and safe for concurrent use.
type Keyring struct{}

// Open reads the keyring at path; when create is set and there is none it makes one, mode 0600.
func Open(path string, create bool) (*Keyring, error) { panic("to be written") }

// Add makes keys for tenant and stores them durably before it returns; it does nothing for a tenant that has some.
func (k *Keyring) Add(tenant string) error { panic("to be written") }

// Destroy forgets tenant's keys for ever.
func (k *Keyring) Destroy(tenant string) error { panic("to be written") }

// Box returns tenant's keys. It reads the file again for a tenant it does not know, then returns [ErrNoTenant].
func (k *Keyring) Box(tenant string) (*Box, error) { panic("to be written") }

// Box seals and tokenises under one tenant's keys. It satisfies txn.Sealer.
type Box struct{}

// Seal encrypts plain bound to ad; the result names its key.
func (b *Box) Seal(plain, ad []byte) ([]byte, error) { panic("to be written") }

// Open decrypts what Seal made with the same ad.
func (b *Box) Open(sealed, ad []byte) ([]byte, error) { panic("to be written") }

// Token returns a keyed, URL-safe token of value that names its key. Kinds keep equal values of different fields apart.
func (b *Box) Token(kind, value string) (string, error) { panic("to be written") }

// Matches tells whether token was made from kind and value, under the key that the token names.
func (b *Box) Matches(token, kind, value string) (bool, error) { panic("to be written") }
