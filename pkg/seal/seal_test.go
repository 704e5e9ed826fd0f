package seal_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"crivo/pkg/seal"
)

func open(t testing.TB, tenants ...string) (*seal.Keyring, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keyset.json")
	k, err := seal.Open(path, true)
	if err != nil {
		t.Fatal(err)
	}
	for _, tenant := range tenants {
		if err := k.Add(tenant); err != nil {
			t.Fatal(err)
		}
	}
	return k, path
}

func box(t testing.TB, k *seal.Keyring, tenant string) *seal.Box {
	t.Helper()
	b, err := k.Box(tenant)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSealedBytesOpenOnlyWhereTheyBelong(t *testing.T) {
	k, _ := open(t, "a", "b")
	sealed, err := box(t, k, "a").Seal([]byte("529.982.247-25"), []byte("a/1"))
	if err != nil || strings.Contains(string(sealed), "529") {
		t.Fatalf("%q, %v", sealed, err)
	}
	if plain, err := box(t, k, "a").Open(sealed, []byte("a/1")); err != nil || string(plain) != "529.982.247-25" {
		t.Errorf("got %q, %v", plain, err)
	}
	if _, err := box(t, k, "a").Open(sealed, []byte("a/2")); err == nil {
		t.Error("opened for another transaction")
	}
	if _, err := box(t, k, "b").Open(sealed, []byte("a/1")); err == nil {
		t.Error("opened by another tenant")
	}
}

func TestTokens(t *testing.T) {
	k, path := open(t, "a", "b")
	a := box(t, k, "a")
	token, err := a.Token("document", "52998224725")
	if err != nil || strings.ContainsAny(token, "/+= ") || strings.Contains(token, "529") {
		t.Fatalf("%q, %v", token, err)
	}
	again, _ := a.Token("document", "52998224725")
	kind, _ := a.Token("account", "52998224725")
	other, _ := box(t, k, "b").Token("document", "52998224725")
	if again != token || kind == token || other == token {
		t.Errorf("%s: again %s, other kind %s, other tenant %s", token, again, kind, other)
	}
	reopened, err := seal.Open(path, false)
	if err != nil {
		t.Fatal(err)
	}
	for value, want := range map[string]bool{"52998224725": true, "52998224726": false} {
		if ok, err := box(t, reopened, "a").Matches(token, "document", value); err != nil || ok != want {
			t.Errorf("matches %v, %v", ok, err)
		}
	}
	for _, bad := range []string{"", ".", "zz.x", "1.x"} {
		if _, err := a.Matches(bad, "document", "x"); !errors.Is(err, seal.ErrUnknownKey) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestRotationKeepsWhatWasMade(t *testing.T) {
	k, _ := open(t, "a")
	token, _ := box(t, k, "a").Token("document", "1")
	sealed, _ := box(t, k, "a").Seal([]byte("x"), nil)
	if err := k.Rotate("a"); err != nil {
		t.Fatal(err)
	}
	a := box(t, k, "a")
	if next, _ := a.Token("document", "1"); next == token {
		t.Error("new tokens use the old key")
	}
	if ok, err := a.Matches(token, "document", "1"); !ok || err != nil {
		t.Errorf("old token: %v, %v", ok, err)
	}
	next, _ := a.Token("document", "1")
	if all, err := a.Tokens("document", "1"); err != nil || len(all) != 2 || !slices.Contains(all, token) || !slices.Contains(all, next) {
		t.Errorf("tokens %v, %v", all, err)
	}
	if plain, err := a.Open(sealed, nil); err != nil || string(plain) != "x" {
		t.Errorf("old blob: %q, %v", plain, err)
	}
}

func TestADestroyedTenantIsGone(t *testing.T) {
	k, path := open(t, "a", "b")
	if err := k.Destroy("a"); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Box("a"); !errors.Is(err, seal.ErrNoTenant) {
		t.Error(err)
	}
	if err := k.Destroy("a"); !errors.Is(err, seal.ErrNoTenant) {
		t.Error(err)
	}
	text, _ := os.ReadFile(path)
	if strings.Contains(string(text), `"a"`) || !strings.Contains(string(text), `"b"`) {
		t.Error("the file still holds its keys, or lost another's")
	}
}

func TestTwoProcessesShareOneFile(t *testing.T) {
	first, path := open(t)
	second, err := seal.Open(path, false)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			k := []*seal.Keyring{first, second}[i%2]
			if err := k.Add(fmt.Sprint("t", i)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for i := range 20 {
		x, _ := box(t, first, fmt.Sprint("t", i)).Token("k", "v")
		y, _ := box(t, second, fmt.Sprint("t", i)).Token("k", "v")
		if x != y {
			t.Errorf("t%d: the two disagree", i)
		}
	}
}

func TestAKeyringThatCannotBeTrustedIsRefused(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"readable by others": func(p string) error { return os.Chmod(p, 0o644) },
		"cut short":          func(p string) error { return os.Truncate(p, 40) },
		"not JSON":           func(p string) error { return os.WriteFile(p, []byte("x"), 0o600) },
		"another version":    func(p string) error { return os.WriteFile(p, []byte(`{"version":2,"owners":{}}`), 0o600) },
		"no key inside": func(p string) error {
			return os.WriteFile(p, []byte(`{"version":1,"owners":{"a":{"seal":{},"token":{}}}}`), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, path := open(t, "a")
			if err := spoil(path); err != nil {
				t.Fatal(err)
			}
			if _, err := seal.Open(path, true); err == nil {
				t.Error("opened")
			}
		})
	}
	if _, err := seal.Open(filepath.Join(t.TempDir(), "none"), false); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestKeysPrintAsNothing(t *testing.T) {
	k, _ := open(t, "a")
	for _, v := range []any{k, box(t, k, "a")} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x"} {
			if out := fmt.Sprintf(verb, v); !strings.HasPrefix(out, "seal.") || len(out) > 14 {
				t.Errorf("%s prints %s", verb, out)
			}
		}
	}
}

func BenchmarkSeal(b *testing.B) {
	k, _ := open(b, "a")
	a, plain, ad := box(b, k, "a"), make([]byte, 400), []byte("a/ord-1")
	for b.Loop() {
		_, _ = a.Seal(plain, ad)
	}
}

func BenchmarkOpen(b *testing.B) {
	k, _ := open(b, "a")
	a, ad := box(b, k, "a"), []byte("a/ord-1")
	sealed, _ := a.Seal(make([]byte, 400), ad)
	for b.Loop() {
		_, _ = a.Open(sealed, ad)
	}
}

func BenchmarkToken(b *testing.B) {
	k, _ := open(b, "a")
	a := box(b, k, "a")
	for b.Loop() {
		_, _ = a.Token("document", "52998224725")
	}
}
