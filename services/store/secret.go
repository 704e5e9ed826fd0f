package store

import (
	"fmt"
	"time"

	"crivo/pkg/txn"
	"crivo/pkg/webhook"
)

// SealSecret seals an endpoint's signing secret under its tenant's keys, bound to the endpoint.
func SealSecret(box txn.Sealer, endpoint string, s webhook.Secret) (Secret, error) {
	sealed, err := box.Seal([]byte(s.Reveal()), []byte("endpoint/"+endpoint))
	if err != nil {
		return Secret{}, fmt.Errorf("secret of %s: %w", endpoint, err)
	}
	return Secret{Sealed: sealed}, nil
}

// SealNote seals what an analyst wrote about a transaction under its tenant's keys, bound to both; no note is nil.
func SealNote(box txn.Sealer, key Key, note txn.Personal) ([]byte, error) {
	if note.IsZero() {
		return nil, nil
	}
	sealed, err := box.Seal([]byte(note.Reveal()), noteOf(key))
	if err != nil {
		return nil, fmt.Errorf("note of %s/%s: %w", key.Tenant, key.ID, err)
	}
	return sealed, nil
}

// OpenNote returns what SealNote sealed.
func OpenNote(box txn.Sealer, key Key, sealed []byte) (txn.Personal, error) {
	if sealed == nil {
		return txn.Personal{}, nil
	}
	plain, err := box.Open(sealed, noteOf(key))
	if err != nil {
		return txn.Personal{}, fmt.Errorf("note of %s/%s: %w", key.Tenant, key.ID, err)
	}
	return txn.Secretive(string(plain)), nil
}

func noteOf(key Key) []byte { return []byte("note/" + key.Tenant + "/" + key.ID) }

// OpenSecrets returns the secrets that sign at the time now, the current one first.
func (e Endpoint) OpenSecrets(box txn.Sealer, now time.Time) ([]webhook.Secret, error) {
	var out []webhook.Secret
	for _, s := range e.Secrets {
		if !s.Until.IsZero() && now.After(s.Until) {
			continue
		}
		plain, err := box.Open(s.Sealed, []byte("endpoint/"+e.ID))
		if err != nil {
			return nil, fmt.Errorf("secret of %s: %w", e.ID, err)
		}
		secret, err := webhook.ParseSecret(string(plain))
		if err != nil {
			return nil, fmt.Errorf("secret of %s: %w", e.ID, err)
		}
		out = append(out, secret)
	}
	return out, nil
}
