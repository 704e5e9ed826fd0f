package validate_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"crivo/pkg/seal"
	"crivo/pkg/stage"
	"crivo/pkg/txn"
	"crivo/services/validate"
	"crivo/streams"
	"crivo/streams/event"
)

const (
	blocked = "- {kind: device_id, value: d-1}"
	others  = "- {kind: device_id, value: d-2}"
	broken  = "- {kind: device_id"
)

// file is a list's file whose every version has a later time.
type file struct {
	path  string
	times int
}

func (f *file) write(t *testing.T, text string) {
	t.Helper()
	f.times++
	at := now.Add(time.Duration(f.times) * time.Second)
	if err := errors.Join(os.WriteFile(f.path, []byte(text), 0o600), os.Chtimes(f.path, at, at)); err != nil {
		t.Fatal(err)
	}
}

// blocklist checks a transaction from device d-1 against what is in use.
func blocklist(t *testing.T, k *seal.Keyring, snapshot *validate.Snapshot) (txn.Check, []string) {
	t.Helper()
	s := validate.Stage{List: func() *validate.Snapshot { return snapshot }, Keys: k, Now: func() time.Time { return now }}
	out, err := s.Handle(context.Background(), enriched(t, k, body))
	if err != nil || len(out.Checks) != 2 || out.Checks[1].Name != validate.CheckBlocklist {
		t.Fatalf("got %+v, %v", out, err)
	}
	return out.Checks[1], out.Degraded
}

func TestTheListFollowsItsFile(t *testing.T) {
	k := keyring(t)
	f := &file{path: filepath.Join(t.TempDir(), "list.yaml")}
	l := validate.NewList(f.path, func() time.Time { return now })
	var versions []string
	for i, step := range []struct {
		what, text    string // "" removes the file
		status, cache string
		stale         bool
	}{
		{"no file yet", "", txn.Unknown, "", true},
		{"a first version that is broken", broken, txn.Unknown, "", true},
		{"a good one", blocked, txn.Hit, "fresh", false},
		{"the device is taken off", others, txn.Clear, "fresh", false},
		{"it comes back", blocked, txn.Hit, "fresh", false},
		{"a broken one", broken, txn.Hit, "stale", true},
		{"a broken one again", broken + "!", txn.Hit, "stale", true},
		{"a bad entry", others + "\n- {kind: what, value: x}", txn.Hit, "stale", true},
		{"the file is gone", "", txn.Hit, "stale", true},
		{"nothing on it", "[]", txn.Clear, "fresh", false},
		{"an empty list is broken", broken, txn.Clear, "stale", true},
		{"a good one at last", blocked, txn.Hit, "fresh", false},
	} {
		if step.text == "" {
			_ = os.Remove(f.path)
		} else {
			f.write(t, step.text)
		}
		check, degraded := blocklist(t, k, l.Look())
		if check.Status != step.status || check.Cache != step.cache || slices.Contains(degraded, "blocklist: invalid") != step.stale || (check.Error != "") != step.stale {
			t.Errorf("%s: got %+v, degraded %v", step.what, check, degraded)
		}
		if (check.AsOf == nil) != (check.Status == txn.Unknown) {
			t.Errorf("%s: as of %v", step.what, check.AsOf)
		}
		versions = append(versions, check.Version)
		if i > 0 && check.Cache == "stale" && versions[i-1] != check.Version {
			t.Errorf("%s: version %s is not the last good one, %s", step.what, check.Version, versions[i-1])
		}
	}
	if versions[2] != versions[4] || versions[2] == versions[3] {
		t.Errorf("versions %v are not of the content", versions)
	}
}

func TestAnUnchangedFileIsNotReadAgain(t *testing.T) {
	f := &file{path: filepath.Join(t.TempDir(), "list.yaml")}
	f.write(t, blocked)
	l := validate.NewList(f.path, func() time.Time { return now })
	if first := l.Look(); first != l.Look() {
		t.Error("read again")
	}
	if err := os.Remove(f.path); err != nil {
		t.Fatal(err)
	}
	if spoiled := l.Look(); spoiled != l.Look() {
		t.Error("spoiled again: every tenant's tokens would be made anew each time")
	}
}

// A file that was away for a while comes back with the size and time it had.
func TestAFileThatWasAwayIsReadAgain(t *testing.T) {
	k := keyring(t)
	f := &file{path: filepath.Join(t.TempDir(), "list.yaml")}
	f.write(t, blocked)
	l := validate.NewList(f.path, func() time.Time { return now })
	l.Look()
	if err := os.Rename(f.path, f.path+".away"); err != nil {
		t.Fatal(err)
	}
	if check, _ := blocklist(t, k, l.Look()); check.Cache != "stale" || check.Status != txn.Hit {
		t.Errorf("away: %+v", check)
	}
	if err := os.Rename(f.path+".away", f.path); err != nil {
		t.Fatal(err)
	}
	if check, degraded := blocklist(t, k, l.Look()); check.Cache != "fresh" || len(degraded) > 0 {
		t.Errorf("back: %+v", check)
	}
}

func TestWithoutAFileTheListIsEmpty(t *testing.T) {
	check, degraded := blocklist(t, keyring(t), validate.NewList("", func() time.Time { return now }).Look())
	if check.Status != txn.Clear || check.Cache != "fresh" || len(degraded) > 0 {
		t.Errorf("got %+v, %v", check, degraded)
	}
}

// gone are the keys of nobody.
type gone struct{}

func (gone) Box(string) (*seal.Box, error) { return nil, seal.ErrNoTenant }

func TestWithoutKeysTheListIsUnknown(t *testing.T) {
	k := keyring(t)
	list, err := validate.ParseList([]byte(others), now)
	if err != nil {
		t.Fatal(err)
	}
	s := validate.Stage{List: func() *validate.Snapshot { return list }, Keys: gone{}, Now: func() time.Time { return now }}
	in := enriched(t, k, body)
	room := [2]string{"features: unavailable", "untouched"}
	in.Degraded = room[:1]
	out, err := s.Handle(context.Background(), in)
	if err != nil || out.Checks[1].Status != txn.Unknown {
		t.Errorf("got %+v, %v", out.Checks, err)
	}
	if diff := cmp.Diff([]string{"features: unavailable", "blocklist: keys"}, out.Degraded); diff != "" {
		t.Error(diff)
	}
	if room[1] != "untouched" {
		t.Error("the input's array was written to")
	}
}

// Equal values of two tenants have different tokens; an entry for all finds each by its own.
func TestAnEntryForAllFindsEveryTenants(t *testing.T) {
	k := keyring(t)
	list, err := validate.ParseList([]byte(blocked), now)
	if err != nil {
		t.Fatal(err)
	}
	s := validate.Stage{List: func() *validate.Snapshot { return list }, Keys: k, Now: func() time.Time { return now }}
	for _, tenant := range []string{"t", "u"} {
		tx, err := txn.Decode([]byte(body), now)
		if err != nil {
			t.Fatal(err)
		}
		box, err := k.Box(tenant)
		if err != nil {
			t.Fatal(err)
		}
		in := enriched(t, k, body)
		if in.Tx, err = txn.Seal(box, tenant, tx); err != nil {
			t.Fatal(err)
		}
		in.Tenant = tenant
		if out, err := s.Handle(context.Background(), in); err != nil || out.Checks[1].Status != txn.Hit {
			t.Errorf("%s: got %+v, %v", tenant, out.Checks, err)
		}
	}
}

func TestTheStepAnnouncesTheSameBytesAgain(t *testing.T) {
	k := keyring(t)
	list, err := validate.ParseList([]byte(blocked), now)
	if err != nil {
		t.Fatal(err)
	}
	s := validate.Stage{List: func() *validate.Snapshot { return list }, Keys: k, Now: func() time.Time { return now }}
	step := streams.Step(streams.EventValidated, 1, s.Handle)
	m := enrichedMessage(t, enriched(t, k, body))
	first, again := step(context.Background(), []stage.Message{m}), step(context.Background(), []stage.Message{m})
	if diff := cmp.Diff(first, again); diff != "" || first[0].Err != nil {
		t.Fatal(first[0].Err, diff)
	}
	out := first[0].Outputs[0]
	v, err := event.Decode[event.Validated](out.Data)
	if err != nil || out.Subject != "tx.validated.t" || out.ID != "t/a/validated/1" || v.Checks[1].Status != txn.Hit {
		t.Errorf("got %+v, %v", out, err)
	}
}
