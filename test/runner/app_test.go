package runner_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"crivo/pkg/app"
	"crivo/services/broker"
)

func TestTheClockIsTheBrokers(t *testing.T) {
	t.Parallel()
	r := newRig(t, patient)
	for name, wrong := range map[string]time.Duration{"ten minutes ahead": 10 * time.Minute, "ten minutes behind": -10 * time.Minute, "right": 0} {
		t.Run(name, func(t *testing.T) {
			c := app.NewClock(func() time.Time { return time.Now().Add(wrong) })
			if err := c.Sync(t.Context(), r.nc, "IN"); err != nil {
				t.Fatal(err)
			}
			// The broker runs on this machine, whose clock is the right one; the way there and back is all that may be between.
			before := time.Now()
			if off := c.Now().Sub(before).Abs(); off > time.Second {
				t.Errorf("off by %s", off)
			}
			if offset, at := c.Offset(); (offset+wrong).Abs() > time.Second || at.IsZero() {
				t.Errorf("offset %s since %s", offset, at)
			}
		})
	}
}

func TestABrokerThatTellsNoTimeLeavesTheClockAsItWas(t *testing.T) {
	t.Parallel()
	r := newRig(t, patient)
	machine := time.Date(2026, 11, 22, 23, 5, 11, 0, time.UTC)
	c := app.NewClock(func() time.Time { return machine })
	over, cancel := context.WithCancel(t.Context())
	cancel()
	for name, try := range map[string]func() error{
		"no such stream":       func() error { return c.Sync(t.Context(), r.nc, "NONE") },
		"no time to ask":       func() error { return c.Sync(over, r.nc, "IN") },
		"nothing to keep with": func() error { _, err := c.Keep(t.Context(), r.nc, "NONE"); return err },
	} {
		if err := try(); err == nil {
			t.Errorf("%s: no error", name)
		}
		if _, at := c.Offset(); !c.Now().Equal(machine) || !at.IsZero() {
			t.Errorf("%s: the clock moved", name)
		}
	}
}

func TestKeepEndsWithItsContext(t *testing.T) {
	t.Parallel()
	r := newRig(t, patient)
	var c app.Clock
	ctx, cancel := context.WithCancel(t.Context())
	done, err := c.Keep(ctx, r.nc, "IN")
	if err != nil {
		t.Fatal(err)
	}
	if _, at := c.Offset(); at.IsZero() {
		t.Error("returned before the first sync")
	}
	cancel()
	select {
	case <-done:
	case <-time.After(within):
		t.Error("goes on")
	}
}

// logFile is a process's log and the reader of its messages.
func logFile(t *testing.T) (*os.File, func() []string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "log")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f, func() (messages []string) {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			_, message, _ := strings.Cut(line, `"message":"`)
			message, _, _ = strings.Cut(message, `"`)
			messages = append(messages, message)
		}
		return messages
	}
}

func TestConnectWaitsForABrokerThatIsAbsent(t *testing.T) {
	t.Parallel()
	o := broker.Options{Dir: t.TempDir(), Host: "127.0.0.1", Port: -1}
	s := start(t, o)
	o.Port = port(t, s)
	url := s.URL()
	s.Close()

	f, said := logFile(t)
	log, err := app.NewLog(f, "info", time.Now)
	if err != nil {
		t.Fatal(err)
	}
	var health app.Health
	nc, err := app.Connect(app.Connection{URL: url, Name: "crivo-test", Inbox: "_INBOX_test", Log: log, Health: &health})
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	away := map[string]string{"broker: crivo-test": "connection lost"}
	if diff := cmp.Diff(away, health.Reasons()); diff != "" {
		t.Errorf("while it is absent: %s", diff)
	}
	if err := nc.Publish("x", nil); err == nil {
		t.Error("a publish was kept for later")
	}
	s = start(t, o)
	wait(t, "connected", func() bool { return nc.IsConnected() && len(health.Reasons()) == 0 })

	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.AccountInfo(t.Context()); err != nil {
		t.Errorf("the connection does not work: %v", err)
	}
	s.Close()
	wait(t, "lost", func() bool { return !nc.IsConnected() && len(health.Reasons()) == 1 })
	tries := nc.Stats().Reconnects
	s = start(t, o)
	wait(t, "back", func() bool { return nc.Stats().Reconnects > tries && len(health.Reasons()) == 0 })
	want := []string{"broker is away, trying again", "broker is back", "broker is away, trying again", "broker is back"}
	wait(t, "each loss and each return said once", func() bool { return cmp.Equal(want, said()) })
	nc.Close()
	s.Close()
	if diff := cmp.Diff(want, said()); diff != "" {
		t.Errorf("a connection that its own process closed is no loss: %s", diff)
	}
}

func TestConnectSaysWhatCanNeverWork(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]app.Connection{
		"a URL that is none":        {URL: "nats://127.0.0.1:port"},
		"credentials not there":     {URL: "nats://127.0.0.1:1", Creds: filepath.Join(t.TempDir(), "none")},
		"an option that is refused": {URL: "nats://127.0.0.1:1", Extra: []nats.Option{func(*nats.Options) error { return errBad }}},
	} {
		if nc, err := app.Connect(c); err == nil {
			nc.Close()
			t.Errorf("%s: connected", name)
		}
	}
}

func TestARefusedSubjectIsSaidOnce(t *testing.T) {
	t.Parallel()
	s := guarded(t)
	who, err := s.As("score", []string{"tx.scored.*"}, []string{"_INBOX_score.>"})
	if err != nil {
		t.Fatal(err)
	}
	f, said := logFile(t)
	log, err := app.NewLog(f, "info", time.Now)
	if err != nil {
		t.Fatal(err)
	}
	nc, err := app.Connect(app.Connection{Name: "score", Inbox: "_INBOX_score", Log: log, Extra: []nats.Option{s.InProcess(), who}})
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	for range 3 {
		if err := nc.Publish("tx.decided.acme", nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := nc.SubscribeSync("tx.>"); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	wait(t, "said", func() bool { return len(said()) > 0 })
	if diff := cmp.Diff([]string{"broker reports an error"}, said()); diff != "" {
		t.Error(diff)
	}
}
