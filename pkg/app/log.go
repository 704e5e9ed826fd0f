package app

import (
	"fmt"
	stdlog "log"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"
)

// Levels are the names that a log level can have, from the most to the least.
var Levels = [...]string{"debug", "info", "warn", "error"}

// NewLog returns the process's log on f: lines of JSON, or text for a person when f is a terminal. Times are now's. What libraries
// write to Go's standard log goes there too, but for what they quote.
func NewLog(f *os.File, level string, now func() time.Time) (zerolog.Logger, error) {
	l, err := zerolog.ParseLevel(level)
	if err != nil || !slices.Contains(Levels[:], strings.ToLower(level)) { // zerolog knows more, "disabled" among them
		return zerolog.Nop(), fmt.Errorf("log level %q: one of %v", level, Levels)
	}
	log := zerolog.New(f)
	if Terminal(f) {
		log = zerolog.New(zerolog.ConsoleWriter{Out: f, TimeFormat: "15:04:05.000"})
	}
	stamp := zerolog.HookFunc(func(e *zerolog.Event, _ zerolog.Level, _ string) {
		e.Str(zerolog.TimestampFieldName, now().UTC().Format("2006-01-02T15:04:05.000Z07:00"))
	})
	log = log.Level(l).Hook(stamp)
	stdlog.SetFlags(0)
	stdlog.SetOutput(unquoted{log.Sample(&zerolog.BurstSampler{Burst: 10, Period: time.Minute})}) // a receiver may cause one by each webhook
	return log, nil
}

// unquoted logs lines up to their first quote: net/http quotes what a receiver sent after its answer, which may be its request, with
// whatever credential that had.
type unquoted struct{ log zerolog.Logger }

func (u unquoted) Write(line []byte) (int, error) {
	said, _, _ := strings.Cut(string(line), `"`)
	u.log.Warn().Str("said", strings.TrimSpace(said)).Msg("standard log")
	return len(line), nil
}

// Terminal tells whether a person reads f.
func Terminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
}
