package keeper_test

import (
	"bytes"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"crivo/pkg/txn"
	"crivo/services/rules"
	"crivo/services/store"
)

// said is a log that can be read while it is written.
type said struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

func TestTheProgramsRuleSetIsRecordedOnce(t *testing.T) {
	w := newWorld(t)
	set, err := rules.Default()
	w.must(err)
	w.rules = set
	ref := set.Ref()
	for range 2 { // a restart
		w.shell.Metrics = prometheus.NewRegistry()
		stop := w.run()
		w.rounds(2)
		stop()
		got, err := w.sets.RuleSet(t.Context(), ref.Name, ref.Version)
		want := store.RuleSet{Name: ref.Name, Version: ref.Version, Digest: ref.Digest, Source: set.Source(), CreatedAt: txn.At(start)}
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Error(err, diff)
		}
		if reasons := w.shell.Health.Reasons(); len(reasons) > 0 {
			t.Errorf("not ready: %v", reasons)
		}
	}
	if again, err := rules.Parse(set.Source()); err != nil || again.Ref() != ref {
		t.Errorf("the source is another set's: %v", err)
	}
}

func TestARecordedVersionWithOtherRulesIsSaidAndTheKeeperGoesOn(t *testing.T) {
	w := newWorld(t)
	set, err := rules.Default()
	w.must(err)
	w.rules = set
	ref := set.Ref()
	stands := store.RuleSet{Name: ref.Name, Version: ref.Version, Digest: "sha256:other", Source: []byte("other"), CreatedAt: txn.At(start)}
	w.must(w.sets.PutRuleSet(t.Context(), stands))
	log := &said{}
	w.shell.Log = zerolog.New(log)
	stop := w.run()
	w.rounds(3)
	stop()
	const want = "rule set default 1 is recorded with other rules: what this program has needs a new version"
	if got := w.shell.Health.Reasons()["keeper rule set"]; got != want {
		t.Errorf("not ready: %q", got)
	}
	if n := bytes.Count([]byte(log.String()), []byte(`"level":"error"`)); n != 1 {
		t.Errorf("%d errors in the log:\n%s", n, log)
	}
	if got, err := w.sets.RuleSet(t.Context(), ref.Name, ref.Version); err != nil || cmp.Diff(stands, got) != "" {
		t.Errorf("%+v, %v", got, err)
	}
}
