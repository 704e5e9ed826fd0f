package txn

// Sealer turns personal values into tokens and ciphertext under one tenant's keys.
type Sealer interface {
	// Seal encrypts plain bound to ad; the result names its key.
	Seal(plain, ad []byte) ([]byte, error)
	// Open decrypts what Seal made with the same ad.
	Open(sealed, ad []byte) ([]byte, error)
	// Token returns a keyed, URL-safe token of value; kinds keep equal values of different fields apart. It names its key.
	Token(kind, value string) (string, error)
	// Matches tells whether token was made from kind and value, under the key that the token names.
	Matches(token, kind, value string) (bool, error)
}
