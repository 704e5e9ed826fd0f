package seal

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"sync"
	"syscall"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/prf"
	tinkpb "github.com/tink-crypto/tink-go/v2/proto/tink_go_proto"

	"crivo/pkg/whole"
)

// Keyring holds every tenant's keys, read from one file and safe for concurrent use by goroutines and processes.
type Keyring struct {
	path string

	mu    sync.RWMutex
	boxes map[string]*Box
}

// owner is one tenant's two Tink keysets as they stand in the file.
type owner struct {
	Seal  jsontext.Value `json:"seal"`
	Token jsontext.Value `json:"token"`
}

type keyFile struct {
	Version int              `json:"version"`
	Owners  map[string]owner `json:"owners"`
}

// Format hides the keys in every verb.
func (*Keyring) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("seal.Keyring")) }

// Open reads the keyring at path; when create is set and there is none it makes one, mode 0600. A file that others may read,
// or that is damaged, is an error: sealing on with other keys would orphan every token.
func Open(path string, create bool) (*Keyring, error) {
	k := &Keyring{path: path}
	err := k.load()
	if errors.Is(err, os.ErrNotExist) && create {
		return k, k.Add(System)
	}
	if err != nil {
		return nil, fmt.Errorf("keyring: %w", err)
	}
	return k, nil
}

// Box returns tenant's keys. It reads the file again for a tenant it does not know, then returns [ErrNoTenant].
func (k *Keyring) Box(tenant string) (*Box, error) {
	if b := k.known(tenant); b != nil {
		return b, nil
	}
	if err := k.load(); err != nil {
		return nil, fmt.Errorf("keyring: %w", err)
	}
	if b := k.known(tenant); b != nil {
		return b, nil
	}
	return nil, ErrNoTenant
}

func (k *Keyring) known(tenant string) *Box {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.boxes[tenant]
}

// Add makes keys for tenant and stores them durably before it returns; it does nothing for a tenant that has some.
func (k *Keyring) Add(tenant string) error {
	return k.change(func(owners map[string]owner) error {
		if _, ok := owners[tenant]; ok {
			return nil
		}
		made, err := generate()
		owners[tenant] = made
		return err
	})
}

// Destroy forgets tenant's keys for ever: nothing sealed under them can be read again.
func (k *Keyring) Destroy(tenant string) error {
	return k.change(func(owners map[string]owner) error {
		if _, ok := owners[tenant]; !ok {
			return ErrNoTenant
		}
		delete(owners, tenant)
		return nil
	})
}

// Rotate makes new primary keys for tenant. Old blobs stay readable and old tokens keep matching.
func (k *Keyring) Rotate(tenant string) error {
	return k.change(func(owners map[string]owner) error {
		old, ok := owners[tenant]
		if !ok {
			return ErrNoTenant
		}
		var err error
		if old.Seal, err = rotate(old.Seal, aead.AES256GCMKeyTemplate()); err != nil {
			return err
		}
		old.Token, err = rotate(old.Token, prf.HMACSHA256PRFKeyTemplate())
		owners[tenant] = old
		return err
	})
}

// change applies edit to the file under a lock that other processes see too, then reads the result.
func (k *Keyring) change(edit func(map[string]owner) error) error {
	unlock, err := lock(k.path + ".lock")
	if err != nil {
		return fmt.Errorf("keyring: %w", err)
	}
	defer unlock()
	file, err := read(k.path)
	if errors.Is(err, os.ErrNotExist) {
		file, err = keyFile{Version: 1, Owners: map[string]owner{}}, nil
	}
	if err != nil {
		return fmt.Errorf("keyring: %w", err)
	}
	before := maps.Clone(file.Owners)
	if err := edit(file.Owners); err != nil {
		return fmt.Errorf("keyring: %w", err)
	}
	if !maps.EqualFunc(before, file.Owners, func(a, b owner) bool { return bytes.Equal(a.Seal, b.Seal) && bytes.Equal(a.Token, b.Token) }) {
		if err := write(k.path, file); err != nil {
			return fmt.Errorf("keyring: %w", err)
		}
	}
	return k.load()
}

func (k *Keyring) load() error {
	file, err := read(k.path)
	if err != nil {
		return err
	}
	boxes := make(map[string]*Box, len(file.Owners))
	for name, o := range file.Owners {
		if boxes[name], err = o.box(); err != nil {
			return fmt.Errorf("%s: keys of %q: %w", k.path, name, err)
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.boxes = boxes
	return nil
}

func (o owner) box() (*Box, error) {
	seals, err := parse(o.Seal)
	if err != nil {
		return nil, err
	}
	tokens, err := parse(o.Token)
	if err != nil {
		return nil, err
	}
	return newBox(seals, tokens)
}

func generate() (owner, error) {
	seals, err := keyset.NewHandle(aead.AES256GCMKeyTemplate())
	if err != nil {
		return owner{}, err
	}
	tokens, err := keyset.NewHandle(prf.HMACSHA256PRFKeyTemplate())
	if err != nil {
		return owner{}, err
	}
	var o owner
	if o.Seal, err = text(seals); err != nil {
		return owner{}, err
	}
	o.Token, err = text(tokens)
	return o, err
}

func parse(value jsontext.Value) (*keyset.Handle, error) {
	return insecurecleartextkeyset.Read(keyset.NewJSONReader(bytes.NewReader(value)))
}

func text(h *keyset.Handle) (jsontext.Value, error) {
	var out bytes.Buffer
	if err := insecurecleartextkeyset.Write(h, keyset.NewJSONWriter(&out)); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func read(path string) (keyFile, error) {
	info, err := os.Stat(path)
	if err != nil {
		return keyFile{}, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return keyFile{}, fmt.Errorf("%s: mode is %o, others may read the keys; make it 600", path, info.Mode().Perm())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return keyFile{}, err
	}
	var file keyFile
	if err := json.Unmarshal(data, &file); err != nil || file.Version != 1 || file.Owners == nil {
		return keyFile{}, fmt.Errorf("%s: is no keyring of version 1, or damaged", path)
	}
	return file, nil
}

func write(path string, file keyFile) error {
	data, err := json.Marshal(&file, json.Deterministic(true), jsontext.WithIndent("  "))
	if err != nil {
		return err
	}
	return whole.Write(path, data)
}

func lock(path string) (func(), error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		_ = f.Close()
		return nil, err
	}
	return func() { _ = f.Close() }, nil
}

// rotate adds a key to a keyset and makes it the one that new work uses.
func rotate(value jsontext.Value, template *tinkpb.KeyTemplate) (jsontext.Value, error) {
	handle, err := parse(value)
	if err != nil {
		return nil, err
	}
	manager := keyset.NewManagerFromHandle(handle)
	id, err := manager.Add(template)
	if err != nil {
		return nil, err
	}
	if err := manager.SetPrimary(id); err != nil {
		return nil, err
	}
	next, err := manager.Handle()
	if err != nil {
		return nil, err
	}
	return text(next)
}
