package broker

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/jwt/v2"

	"crivo/pkg/whole"
	"crivo/streams"
)

// Names of the files that [Provision] writes beside the services' credentials.
const (
	AuthFile     = "nats-auth.conf"
	identityName = "nats-keys.json"
	operatorName = "operator"
)

// Provision writes what a NATS cluster of one's own needs: nats-auth.conf, to be included in the configuration of every server,
// and one .creds file for each service, which may say and hear what [streams.Permissions] lists, and one for an operator who may
// do everything. nats-keys.json holds the keys behind them and belongs in a safe. Called again, as after
// an upgrade, it keeps the keys and writes anew only what differs. It returns the names of the files.
func Provision(dir string) ([]string, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	ids, err := openIdentities(filepath.Join(dir, identityName), dir)
	if err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	files := map[string][]byte{}
	if files[AuthFile], err = ids.config(filepath.Join(dir, AuthFile)); err != nil {
		return nil, fmt.Errorf("broker: %s: %w", AuthFile, err)
	}
	rights := map[string]jwt.Permissions{operatorName: {}}
	for _, service := range streams.Services {
		rights[service] = limits(streams.Permissions(service))
	}
	for name, may := range rights {
		path := name + ".creds"
		if ids.stillGood(filepath.Join(dir, path), may) {
			continue
		}
		if files[path], err = credentials(ids.account, name, may); err != nil {
			return nil, fmt.Errorf("broker: %s: %w", path, err)
		}
	}
	for name, data := range files {
		if err := whole.Write(filepath.Join(dir, name), data); err != nil {
			return nil, fmt.Errorf("broker: %w", err)
		}
	}
	return slices.Sorted(maps.Keys(files)), nil
}

// ClusterTenant makes a credential like [Server.TenantCreds] with the keys that [Provision] keeps in dir, and adds the tenant to
// the servers' configuration there: they know it once they have read it again.
func ClusterTenant(dir, tenant string, until time.Time) (id string, creds []byte, err error) {
	for _, name := range []string{identityName, AuthFile} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return "", nil, fmt.Errorf("broker: %s holds no secrets of a cluster: %w", dir, err)
		}
	}
	ids, err := openIdentities(filepath.Join(dir, identityName), dir)
	if err != nil {
		return "", nil, fmt.Errorf("broker: %w", err)
	}
	if id, creds, err = ids.tenantCreds(tenant, until); err != nil {
		return "", nil, err
	}
	text, err := ids.config(filepath.Join(dir, AuthFile))
	if err != nil {
		return "", nil, fmt.Errorf("broker: %s: %w", AuthFile, err)
	}
	return id, creds, whole.Write(filepath.Join(dir, AuthFile), text)
}

// config is the part of a server's configuration that says whom it trusts. What stands at path names the operator already: a
// server that reads its configuration again refuses another token, and each is new by its time of making.
func (ids *identities) config(path string) ([]byte, error) {
	system, err := public(ids.system)
	if err != nil {
		return nil, err
	}
	operator := ids.operatorOf(path, system)
	if operator == "" {
		if operator, err = ids.operatorToken(system); err != nil {
			return nil, err
		}
	}
	account, err := public(ids.account)
	if err != nil {
		return nil, err
	}
	if err := ids.publish(jwt.NewAccountClaims(system), "SYS"); err != nil {
		return nil, err
	}
	if err := ids.publishMain(); err != nil {
		return nil, err
	}
	accounts := []string{system, account}
	for _, tenant := range slices.Sorted(maps.Keys(ids.tenants)) {
		key, err := public(ids.tenants[tenant])
		if err == nil {
			err = ids.publishTenant(tenant, ids.tenants[tenant])
		}
		if err != nil {
			return nil, err
		}
		accounts = append(accounts, key)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# Whom the servers trust. Made by crivo keys services.\noperator: %s\nsystem_account: %s\nresolver: MEMORY\nresolver_preload: {\n", operator, system)
	for _, key := range accounts {
		token, err := ids.resolver.Fetch(key)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "  %s: %s\n", key, token)
	}
	b.WriteString("}\n")
	return []byte(b.String()), nil
}

// operatorOf returns the operator's token of a configuration that stands, "" where there is none of ours for this system account.
func (ids *identities) operatorOf(path, system string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		token, ok := strings.CutPrefix(strings.TrimSpace(line), "operator: ")
		if !ok {
			continue
		}
		claims, err := jwt.DecodeOperatorClaims(token)
		key, keyErr := public(ids.operator)
		if err == nil && keyErr == nil && claims.Issuer == key && claims.SystemAccount == system {
			return token
		}
	}
	return ""
}
