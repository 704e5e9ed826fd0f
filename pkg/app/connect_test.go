package app_test

import (
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"

	"crivo/pkg/app"
)

func TestABrokerThatCannotBeUsedIsSaidWithoutItsPassword(t *testing.T) {
	for name, c := range map[string]app.Connection{
		"a port that is none":     {URL: "nats://who:hush@127.0.0.1:x"},
		"a bad escape":            {URL: "nats://who:hush%zz@127.0.0.1"},
		"the second of two":       {URL: "nats://127.0.0.1:1,who:hush@[::1"},
		"certificates of nowhere": {URL: "nats://who:hush@127.0.0.1:1", Extra: []nats.Option{nats.RootCAs("/none")}},
	} {
		c.Log, c.Inbox = zerolog.Nop(), "_INBOX_x"
		nc, err := app.Connect(c)
		if err == nil {
			nc.Close()
			t.Errorf("%s: connected", name)
		} else if strings.Contains(err.Error(), "hush") || !strings.HasPrefix(err.Error(), "broker: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
