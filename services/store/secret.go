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
