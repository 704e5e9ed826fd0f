//go:build failpoints

package failpoint

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

type order struct {
	name string
	at   int64
}

var (
	given = parse(os.Getenv("CRIVO_FAILPOINT"))
	hits  atomic.Int64
)

// parse ends the process on what it does not understand: a test with a misspelt point would prove nothing.
func parse(text string) order {
	if text == "" {
		return order{}
	}
	name, act, _ := strings.Cut(text, "=")
	act, count, counted := strings.Cut(act, "@")
	at := int64(1)
	var err error
	if counted {
		at, err = strconv.ParseInt(count, 10, 64)
	}
	if !slices.Contains(Names(), name) || act != "kill" || err != nil || at < 1 {
		fmt.Fprintf(os.Stderr, "CRIVO_FAILPOINT=%s: want NAME=kill or NAME=kill@N, NAME one of %s\n", text, strings.Join(Names(), " "))
		os.Exit(2)
	}
	return order{name, at}
}

// Hit is the moment what in who.
func Hit(who, what string) {
	if given.name == who+"."+what && hits.Add(1) == given.at {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // until it has come through: nothing after the point may happen
	}
}
