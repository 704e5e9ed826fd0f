package process_test

import (
	"errors"
	"testing"

	"github.com/alecthomas/kong"

	"crivo/services/config"
	"crivo/services/process"
)

// everything is a process that needs all that any service needs.
type everything struct {
	process.Common
	process.Mongo
	process.Redis
	process.Keyset
	process.Streams
	process.Door
	process.Allowed
	process.Webhooks
	process.Lists
}

func TestEveryWrongSettingIsToldAtOnce(t *testing.T) {
	env := map[string]string{"CRIVO_OPS": "nowhere", "CRIVO_LOG_LEVEL": "loud", "CRIVO_NATS_CREDS": "/none", "CRIVO_NATS_CA": "/none",
		"CRIVO_KEYSET_FILE": "/none", "CRIVO_REPLICAS": "2", "CRIVO_STREAM_BYTES": "1KB", "CRIVO_HTTP": "nowhere", "CRIVO_MAX_IN_FLIGHT": "0",
		"CRIVO_API_KEY": "short", "CRIVO_WEBHOOK_SCHEDULE": "-1s", "CRIVO_WEBHOOK_TIMEOUT": "1h", "CRIVO_WEBHOOK_ALLOW": "here",
		"CRIVO_BLOCKLIST": "/none", "CRIVO_TLS_CERT": "/none"}
	_, err := config.Read(&everything{}, nil, func(name string) (string, bool) { v, ok := env[name]; return v, ok }, kong.Name("x"))
	var faults config.Faults
	if !errors.As(err, &faults) {
		t.Fatalf("%v", err)
	}
	told := map[string]bool{}
	for _, f := range faults {
		told[config.Env(f.Name)] = true
	}
	for name := range env {
		if !told[name] {
			t.Errorf("%s is not told: %v", name, err)
		}
	}
}

func TestDefaultsSuitOneMachine(t *testing.T) {
	var s everything
	keyset := t.TempDir()
	none := func(name string) (string, bool) {
		if name == "CRIVO_KEYSET_FILE" {
			return keyset, true
		}
		return "", false
	}
	if _, err := config.Read(&s, nil, none, kong.Name("x")); err != nil {
		t.Fatal(err)
	}
	if s.NATSURL.Reveal() == "" || s.MongoURI.Reveal() == "" || s.RedisURL.Reveal() == "" || s.Layout().Replicas != 1 {
		t.Errorf("%+v", s)
	}
}
