package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"crivo/services/process"
)

// Version is the program's, told in every decision as engine.
const Version = process.Version

// VersionCmd prints what this program is.
type VersionCmd struct {
	JSON bool `help:"Print as JSON." name:"json"`
}

// Help shows an example.
func (VersionCmd) Help() string { return "Example:\n\n  crivo version --json" }

// build is what version prints.
type build struct {
	Version  string `json:"version"`
	Revision string `json:"revision"` // of the source, empty where the build did not record it
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// Run prints.
func (c VersionCmd) Run() error {
	b := build{Version: Version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				b.Revision = s.Value
			}
		}
	}
	if !c.JSON {
		fmt.Printf("crivo %s %s %s %s\n", b.Version, b.Revision, b.Go, b.Platform)
		return nil
	}
	return printJSON(&b)
}
