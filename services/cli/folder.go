package cli

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/gofrs/flock"

	"crivo/pkg/seal"
	"crivo/pkg/whole"
)

// folder is the data folder of a running system, locked.
type folder struct {
	path   string
	shared bool // it was there, and group or others may enter
	lock   *flock.Flock
}

// openFolder makes the folder where it is missing, nobody else's to read, and locks it. A lock ends with its process, however that
// ended. The mode of one that is there stays: it may be /tmp.
func openFolder(path string) (*folder, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	f := &folder{path, info.Mode().Perm()&0o077 != 0, flock.New(filepath.Join(path, "lock"), flock.SetFlag(os.O_CREATE|os.O_RDWR), flock.SetPermissions(0o600))}
	held, err := f.lock.TryLock()
	if err != nil {
		return nil, fmt.Errorf("data folder: lock: %w", err)
	}
	if !held {
		return nil, fmt.Errorf("data folder %s is in use by process %s", path, f.owner())
	}
	if err := os.WriteFile(f.file("lock"), []byte(strconv.Itoa(os.Getpid())+"\n"), 0o600); err != nil {
		_ = f.lock.Unlock()
		return nil, fmt.Errorf("data folder: %w", err)
	}
	return f, nil
}

func (f *folder) owner() string {
	pid, err := os.ReadFile(f.file("lock"))
	if text := strings.TrimSpace(string(pid)); err == nil && text != "" {
		return text
	}
	return "(it has not said its number yet)"
}

func (f *folder) file(name string) string { return filepath.Join(f.path, name) }

// close lets the next one in. The file stays: removing it could unlock a folder that another just locked.
func (f *folder) close() { _ = f.lock.Unlock() }

// keyFile is where the first API key is kept when nobody gave one.
const keyFile = "api-key"

// keysetFile is where the sealing keys are.
const keysetFile = "keyset.json"

// credsFile is where the broker's operator credential is kept.
const credsFile = "nats.creds"

// apiKey returns the key that was given, or the folder's own, which is made at first start. The path is empty for a given one.
func (f *folder) apiKey(given string) (key, path string, err error) {
	if given != "" {
		return given, "", nil
	}
	path = f.file(keyFile)
	data, err := os.ReadFile(path)
	if err == nil && strings.TrimSpace(string(data)) != "" {
		return strings.TrimSpace(string(data)), path, os.Chmod(path, 0o600)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", "", fmt.Errorf("api key: %w", err)
	}
	key = "crivo_" + strings.ToLower(rand.Text())
	if err := whole.Write(path, []byte(key+"\n")); err != nil {
		return "", "", fmt.Errorf("api key: %w", err)
	}
	return key, path, nil
}

// keyring opens the sealing keys and makes them at first start. A folder that holds data and no keys is refused: new ones would
// open nothing in it, and make other webhook ids of the same events.
func (f *folder) keyring() (*seal.Keyring, error) {
	path := f.file(keysetFile)
	_, missing := os.Stat(path)
	_, data := os.Stat(f.file("transactions.db"))
	if errors.Is(missing, os.ErrNotExist) && data == nil {
		return nil, fmt.Errorf("%s is missing, and what is in %s is sealed with it: put it back", path, f.path)
	}
	return seal.Open(path, true)
}
