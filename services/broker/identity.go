package broker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"crivo/pkg/whole"
)

// identities are the keys that credentials are made with. All of the installation's traffic is in one account; each tenant
// that comes by NATS has an account of its own, which sees nothing but the one subject that it imports.
type identities struct {
	path     string
	operator nkeys.KeyPair
	system   nkeys.KeyPair
	account  nkeys.KeyPair
	resolver *server.MemAccResolver

	mu      sync.Mutex
	tenants map[string]nkeys.KeyPair
}

type identityFile struct {
	Version  int               `json:"version"`
	Operator string            `json:"operator"`
	System   string            `json:"system"`
	Account  string            `json:"account"`
	Tenants  map[string]string `json:"tenants"`
}

// openIdentities reads the keys at path, or makes them when there are neither keys nor streams in data.
func openIdentities(path, data string) (*identities, error) {
	file, err := readIdentities(path)
	if errors.Is(err, os.ErrNotExist) {
		if _, err := os.Stat(filepath.Join(data, "jetstream")); err == nil {
			return nil, fmt.Errorf("%s is missing, but %s holds streams of the account it names: put it back", path, data)
		}
		if file, err = newIdentities(); err == nil {
			err = writeIdentities(path, file)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("keys: %w", err)
	}
	ids := &identities{path: path, tenants: map[string]nkeys.KeyPair{}, resolver: &server.MemAccResolver{}}
	for _, k := range []struct {
		to   *nkeys.KeyPair
		seed string
	}{{&ids.operator, file.Operator}, {&ids.system, file.System}, {&ids.account, file.Account}} {
		if *k.to, err = nkeys.FromSeed([]byte(k.seed)); err != nil {
			return nil, fmt.Errorf("keys: %s is damaged: %w", path, err)
		}
	}
	for tenant, seed := range file.Tenants {
		if ids.tenants[tenant], err = nkeys.FromSeed([]byte(seed)); err != nil {
			return nil, fmt.Errorf("keys: %s is damaged: %w", path, err)
		}
	}
	return ids, nil
}

func newIdentities() (identityFile, error) {
	f := identityFile{Version: 1, Tenants: map[string]string{}}
	for _, k := range []struct {
		to   *string
		make func() (nkeys.KeyPair, error)
	}{{&f.Operator, nkeys.CreateOperator}, {&f.System, nkeys.CreateAccount}, {&f.Account, nkeys.CreateAccount}} {
		seed, err := newSeed(k.make)
		if err != nil {
			return f, err
		}
		*k.to = seed
	}
	return f, nil
}

func newSeed(create func() (nkeys.KeyPair, error)) (string, error) {
	pair, err := create()
	if err != nil {
		return "", err
	}
	seed, err := pair.Seed()
	return string(seed), err
}

func readIdentities(path string) (identityFile, error) {
	var f identityFile
	info, err := os.Stat(path)
	if err != nil {
		return f, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return f, fmt.Errorf("%s: mode is %o, others may read the keys; make it 600", path, info.Mode().Perm())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return f, err
	}
	if err := json.Unmarshal(data, &f); err != nil || f.Version != 1 {
		return f, fmt.Errorf("%s is no key file of version 1, or damaged", path)
	}
	return f, nil
}

func writeIdentities(path string, f identityFile) error {
	data, err := json.Marshal(&f, json.Deterministic(true), jsontext.WithIndent("  "))
	if err != nil {
		return err
	}
	return whole.Write(path, data)
}

// trust makes the server accept the operator's accounts and nothing else.
func (ids *identities) trust(o *server.Options) error {
	system, err := public(ids.system)
	if err != nil {
		return err
	}
	token, err := ids.operatorToken(system)
	if err != nil {
		return err
	}
	operator, err := jwt.DecodeOperatorClaims(token)
	if err != nil {
		return err
	}
	o.TrustedOperators, o.SystemAccount, o.AccountResolver = []*jwt.OperatorClaims{operator}, system, ids.resolver
	if err := ids.publish(jwt.NewAccountClaims(system), "SYS"); err != nil {
		return err
	}
	if err := ids.publishMain(); err != nil {
		return err
	}
	for tenant, pair := range ids.tenants {
		if err := ids.publishTenant(tenant, pair); err != nil {
			return err
		}
	}
	return nil
}

func (ids *identities) operatorToken(system string) (string, error) {
	key, err := public(ids.operator)
	if err != nil {
		return "", err
	}
	claims := jwt.NewOperatorClaims(key)
	claims.Name, claims.SystemAccount = "crivo", system
	return claims.Encode(ids.operator)
}

// publishMain is the account of the pipeline: JetStream without limits of its own, and the door that tenants knock at.
func (ids *identities) publishMain() error {
	key, err := public(ids.account)
	if err != nil {
		return err
	}
	claims := jwt.NewAccountClaims(key)
	claims.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: jwt.NoLimit, DiskStorage: jwt.NoLimit, Streams: jwt.NoLimit, Consumer: jwt.NoLimit}
	claims.Exports.Add(&jwt.Export{Name: "intake", Subject: "tx.intake.*", Type: jwt.Service, ResponseType: jwt.ResponseTypeSingleton})
	return ids.publish(claims, "crivo")
}

func (ids *identities) publish(claims *jwt.AccountClaims, name string) error {
	claims.Name = name
	token, err := claims.Encode(ids.operator)
	if err != nil {
		return fmt.Errorf("account %s: %w", name, err)
	}
	return ids.resolver.Store(claims.Subject, token)
}

// user signs a new user of account, good until a time unless that is zero, and returns its JWT and key.
func user(account nkeys.KeyPair, name string, until time.Time, limits jwt.Permissions) (string, nkeys.KeyPair, error) {
	pair, err := nkeys.CreateUser()
	if err != nil {
		return "", nil, err
	}
	key, err := public(pair)
	if err != nil {
		return "", nil, err
	}
	claims := jwt.NewUserClaims(key)
	claims.Name, claims.Permissions = name, limits
	if !until.IsZero() {
		claims.Expires = until.Unix()
	}
	token, err := claims.Encode(account)
	return token, pair, err
}

// As is the identity of one of the system's own processes: it may publish and subscribe what is listed, and answer requests
// that reach it. Without authentication it changes nothing.
func (s *Server) As(name string, publish, subscribe []string) (nats.Option, error) {
	if s.ids == nil {
		return func(*nats.Options) error { return nil }, nil
	}
	token, pair, err := user(s.ids.account, name, time.Time{}, limits(publish, subscribe))
	if err != nil {
		return nil, fmt.Errorf("broker: user %s: %w", name, err)
	}
	return nats.UserJWT(func() (string, error) { return token, nil }, pair.Sign), nil
}

// limits lets a user say and hear what is listed, and answer requests that reach it.
func limits(publish, subscribe []string) jwt.Permissions {
	return jwt.Permissions{Pub: jwt.Permission{Allow: publish}, Sub: jwt.Permission{Allow: subscribe},
		Resp: &jwt.ResponsePermission{MaxMsgs: 1, Expires: answerWithin}}
}

// answerWithin is how long a request may wait for its answer: the longest that a client can ask to wait for a decision, twice.
const answerWithin = 20 * time.Second

func public(pair nkeys.KeyPair) (string, error) { return pair.PublicKey() }
