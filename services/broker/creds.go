package broker

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"crivo/pkg/whole"
)

// errOpen is returned where credentials are asked of a broker that asks nobody for any.
var errOpen = errors.New("broker: no authentication, so no credentials")

// OperatorCreds keeps a credential of a person who may do everything in the pipeline's account at path, mode 0600. One that
// is there and still good stays.
func (s *Server) OperatorCreds(path string) error {
	if s.ids == nil {
		return errOpen
	}
	if s.ids.stillGood(path, jwt.Permissions{}) {
		return os.Chmod(path, 0o600)
	}
	creds, err := credentials(s.ids.account, "operator", jwt.Permissions{})
	if err != nil {
		return fmt.Errorf("broker: operator credential: %w", err)
	}
	return whole.Write(path, creds)
}

// TenantCreds returns the text of a .creds file that may request tx.intake.<tenant> and nothing else, and the public key that
// names it. It works at once and after every restart, until the time until where that is set.
func (s *Server) TenantCreds(tenant string, until time.Time) (id string, creds []byte, err error) {
	if s.ids == nil {
		return "", nil, errOpen
	}
	return s.ids.tenantCreds(tenant, until)
}

func (ids *identities) tenantCreds(tenant string, until time.Time) (id string, creds []byte, err error) {
	account, err := ids.tenant(tenant)
	if err != nil {
		return "", nil, fmt.Errorf("broker: account of tenant %s: %w", tenant, err)
	}
	token, pair, err := user(account, tenant, until, jwt.Permissions{
		Pub: jwt.Permission{Allow: jwt.StringList{"tx.intake." + tenant}},
		Sub: jwt.Permission{Allow: jwt.StringList{"_INBOX.>"}}, // private: the account is the tenant's alone
	})
	if err == nil {
		creds, err = decorated(token, pair)
	}
	if err == nil {
		id, err = public(pair)
	}
	if err != nil {
		return "", nil, fmt.Errorf("broker: credential of tenant %s: %w", tenant, err)
	}
	return id, creds, nil
}

func credentials(account nkeys.KeyPair, name string, limits jwt.Permissions) ([]byte, error) {
	token, pair, err := user(account, name, time.Time{}, limits)
	if err != nil {
		return nil, err
	}
	return decorated(token, pair)
}

// decorated is the text of a .creds file.
func decorated(token string, pair nkeys.KeyPair) ([]byte, error) {
	seed, err := pair.Seed()
	if err != nil {
		return nil, err
	}
	return jwt.FormatUserConfig(token, seed)
}

// stillGood tells whether path holds a credential that this installation's account signed, with these rights.
func (ids *identities) stillGood(path string, may jwt.Permissions) bool {
	data, err := os.ReadFile(path)
	if err != nil {
		return false
	}
	token, err := jwt.ParseDecoratedJWT(data)
	if err != nil {
		return false
	}
	claims, err := jwt.DecodeUserClaims(token)
	if err != nil {
		return false
	}
	key, err := public(ids.account)
	return err == nil && claims.Issuer == key && reflect.DeepEqual(claims.Permissions, may)
}

// tenant returns the key of the tenant's account; a new one is kept and made known before it is returned.
func (ids *identities) tenant(name string) (nkeys.KeyPair, error) {
	ids.mu.Lock()
	defer ids.mu.Unlock()
	if pair := ids.tenants[name]; pair != nil {
		return pair, nil
	}
	file, err := readIdentities(ids.path)
	if err != nil {
		return nil, err
	}
	seed, err := newSeed(nkeys.CreateAccount)
	if err != nil {
		return nil, err
	}
	file.Tenants = maps.Clone(file.Tenants)
	if file.Tenants == nil {
		file.Tenants = map[string]string{}
	}
	file.Tenants[name] = seed
	if err := writeIdentities(ids.path, file); err != nil {
		return nil, err
	}
	pair, err := nkeys.FromSeed([]byte(seed))
	if err != nil {
		return nil, err
	}
	if err := ids.publishTenant(name, pair); err != nil {
		return nil, err
	}
	ids.tenants[name] = pair
	return pair, nil
}

// publishTenant makes the tenant's account known: it imports its own intake subject from the pipeline's account.
func (ids *identities) publishTenant(name string, pair nkeys.KeyPair) error {
	key, err := public(pair)
	if err != nil {
		return err
	}
	from, err := public(ids.account)
	if err != nil {
		return err
	}
	claims := jwt.NewAccountClaims(key)
	subject := jwt.Subject("tx.intake." + name)
	claims.Imports.Add(&jwt.Import{Name: "intake", Subject: subject, Account: from, Type: jwt.Service})
	return ids.publish(claims, "tenant "+name)
}
