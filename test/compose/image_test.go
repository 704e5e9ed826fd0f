package compose_test

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"

	"crivo/services/config"
	"crivo/streams"
)

// command runs a program in dir, with env added to this process's own, and returns all that it says.
func command(t *testing.T, dir string, env []string, args ...string) (string, error) {
	t.Helper()
	return runIn(t.Context(), dir, append(os.Environ(), env...), args...)
}

func runIn(ctx context.Context, dir string, env []string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir, cmd.Env = dir, env
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// image is what docker build makes: the programs, built once for all tests by the Dockerfile's own command from what
// .dockerignore lets through.
type image struct {
	context string // folder that is sent to the builder
	bin     string // folder of the programs
	final   []instruction
}

type instruction struct{ word, rest string }

var scratch string // of the whole test run

func TestMain(m *testing.M) {
	var err error
	if scratch, err = os.MkdirTemp("", "crivo-compose-test-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	status := m.Run()
	os.RemoveAll(scratch)
	os.Exit(status)
}

var build = sync.OnceValues(func() (image, error) {
	img := image{context: filepath.Join(scratch, "src"), bin: filepath.Join(scratch, "bin")}
	if err := sendContext(img.context); err != nil {
		return img, err
	}
	stages, err := dockerfile()
	if err != nil {
		return img, err
	}
	img.final = stages[len(stages)-1]
	env := append(os.Environ(), "TARGETOS="+runtime.GOOS, "TARGETARCH="+runtime.GOARCH, "GOFLAGS=")
	for _, in := range stages[0] {
		switch in.word {
		case "ENV":
			env = append(env, strings.Fields(in.rest)...)
		case "RUN":
			line := strings.Replace(mounts.ReplaceAllString(in.rest, ""), " /out/ ", " "+img.bin+"/ ", 1)
			if out, err := runIn(context.Background(), img.context, env, "sh", "-c", line); err != nil {
				return img, fmt.Errorf("%s: %w\n%s", line, err, out)
			}
		}
	}
	return img, nil
})

var mounts = regexp.MustCompile(`--mount=\S+ `)

func built(t *testing.T) image {
	t.Helper()
	img, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// dockerfile reads the Dockerfile's stages.
func dockerfile() (stages [][]instruction, err error) {
	data, err := os.ReadFile(filepath.Join(root, "services/Dockerfile"))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(strings.ReplaceAll(string(data), "\\\n", "")) {
		word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch {
		case word == "" || word[0] == '#':
			continue
		case word == "FROM":
			stages = append(stages, nil)
		case len(stages) == 0:
			return nil, fmt.Errorf("Dockerfile: %s before FROM", word)
		}
		stages[len(stages)-1] = append(stages[len(stages)-1], instruction{word, strings.Join(strings.Fields(rest), " ")})
	}
	return stages, nil
}

// sendContext copies to dir what .dockerignore does not keep back.
func sendContext(dir string) error {
	f, err := os.Open(filepath.Join(root, ".dockerignore"))
	if err != nil {
		return err
	}
	defer f.Close()
	patterns, err := ignorefile.ReadAll(f)
	if err != nil {
		return err
	}
	ignored, err := patternmatcher.New(patterns)
	if err != nil {
		return err
	}
	return filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		name := strings.TrimPrefix(path, root+"/")
		if entry.IsDir() {
			if !strings.Contains(name, "/") && !slices.ContainsFunc(patterns, func(p string) bool { return p == "!"+name }) {
				return filepath.SkipDir // nothing below can be let in again
			}
			return nil
		}
		if skip, err := ignored.MatchesOrParentMatches(name); err != nil || skip {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		to := filepath.Join(dir, name)
		return errors.Join(os.MkdirAll(filepath.Dir(to), 0o700), os.WriteFile(to, data, 0o600))
	})
}

func TestTheImageHoldsEveryProgramStatic(t *testing.T) {
	t.Parallel()
	img := built(t)
	var got []string
	for _, entry := range must(os.ReadDir(img.bin)) {
		got = append(got, entry.Name())
		if runtime.GOOS != "linux" {
			continue
		}
		program, err := elf.Open(filepath.Join(img.bin, entry.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(program.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
			t.Errorf("%s needs a loader", entry.Name())
		}
		program.Close()
	}
	want := slices.Sorted(slices.Values(append([]string{"crivo"}, streams.Services...)))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestTheImageIsNothingElse(t *testing.T) {
	t.Parallel()
	want := []instruction{{"FROM", "scratch"},
		{"COPY", "--from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/"}, {"COPY", "--from=build /out/ /usr/local/bin/"},
		{"ENV", "PATH=/usr/local/bin"}, {"USER", "65532:65532"}}
	if diff := cmp.Diff(want, built(t).final, cmp.AllowUnexported(instruction{})); diff != "" {
		t.Error(diff)
	}
}

func TestTheBuilderIsSentSourcesAlone(t *testing.T) {
	t.Parallel()
	img := built(t)
	for _, entry := range must(os.ReadDir(img.context)) {
		if !slices.Contains([]string{"pkg", "streams", "services"}, entry.Name()) {
			t.Errorf("%s is sent", entry.Name())
		}
	}
	err := filepath.WalkDir(img.context, func(path string, _ fs.DirEntry, err error) error {
		if strings.HasSuffix(path, "_test.go") || strings.Contains(path, "testdata") || strings.Contains(path, "services/deploy/") {
			t.Errorf("%s is sent", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// The toolchain of the image must be one that the workspace asks for, or a later one.
func TestTheBuilderHasTheGoThatIsAskedFor(t *testing.T) {
	t.Parallel()
	stages, err := dockerfile()
	if err != nil {
		t.Fatal(err)
	}
	asked := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindSubmatch(must(os.ReadFile(filepath.Join(root, "go.work"))))
	if from := stages[0][0].rest; !regexp.MustCompile(`golang:` + string(asked[1]) + `\.\d+-[a-z]+ AS build$`).MatchString(from) {
		t.Errorf("%s, and go.work says %s", from, asked[1])
	}
}

func TestEveryCommandIsAProgramOfTheImage(t *testing.T) {
	t.Parallel()
	img := built(t)
	eachService(t, func(t *testing.T, _ *types.Project, s types.ServiceConfig) {
		if !ours(s) {
			return
		}
		if s.Command[0] != kind(s) || s.Entrypoint != nil {
			t.Errorf("runs %v %v", s.Entrypoint, s.Command)
		}
		if _, err := os.Stat(filepath.Join(img.bin, s.Command[0])); err != nil {
			t.Error(err)
		}
		if s.Build.Context != root || s.Build.Dockerfile != "services/Dockerfile" || s.PullPolicy != types.PullPolicyBuild {
			t.Errorf("built from %+v, %s", s.Build, s.PullPolicy)
		}
	})
}

// TestEveryVariableIsASettingOfItsProgram asks the programs themselves: which names they know, and whether the values will do.
func TestEveryVariableIsASettingOfItsProgram(t *testing.T) {
	t.Parallel()
	img, secrets := built(t), provisioned(t)
	eachService(t, func(t *testing.T, _ *types.Project, s types.ServiceConfig) {
		if !ours(s) {
			return
		}
		program := filepath.Join(img.bin, s.Command[0])
		for name := range s.Environment {
			if !strings.HasPrefix(name, config.Prefix) || !knows(t, program, name) && !knows(t, program, strings.TrimSuffix(name, "_FILE")) {
				t.Errorf("%s does not know %s", s.Command[0], name)
			}
		}
		args := append(append([]string{program}, s.Command[1:]...), "--ops=nowhere")
		out, err := runIn(t.Context(), t.TempDir(), environment(s, secrets), args...)
		want := s.Command[0] + `: ops: "nowhere" is no address such as 127.0.0.1:8080` + "\n"
		if diff := cmp.Diff(want, out); diff != "" || err == nil {
			t.Errorf("%v, %s", err, diff)
		}
	})
}

// knows asks a program whether an environment name is one of its settings, hidden ones too.
func knows(t *testing.T, program, name string) bool {
	t.Helper()
	setting := strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(name, config.Prefix)), "_", "-")
	file := filepath.Join(t.TempDir(), "settings.yaml")
	if err := os.WriteFile(file, []byte(setting+": x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := runIn(t.Context(), t.TempDir(), nil, program, "--config", file, "--ops=nowhere")
	if err == nil || !strings.Contains(out, "ops: ") {
		t.Fatalf("%s: %v, %s", program, err, out)
	}
	return !strings.Contains(out, setting+": no such setting")
}

// environment is a service's, with the files that its container has taken from where they are on this machine.
func environment(s types.ServiceConfig, secrets string) []string {
	var env []string
	for name, value := range s.Environment {
		if value == nil {
			continue
		}
		path := *value
		for _, secret := range s.Secrets {
			if path == secret.Target {
				path = filepath.Join(secrets, secret.Source)
			}
		}
		for _, v := range s.Volumes {
			if below, ok := strings.CutPrefix(path, v.Target+"/"); ok {
				path = filepath.Join(secrets, strings.TrimPrefix(v.Source, filepath.Join(root, "secrets")), below)
			}
		}
		env = append(env, name+"="+path)
	}
	return env
}

func TestKnowsTellsAnUnknownName(t *testing.T) {
	t.Parallel()
	score := filepath.Join(built(t).bin, "score")
	if knows(t, score, "CRIVO_MONGO_URI") || !knows(t, score, "CRIVO_NATS_URL") {
		t.Error("score needs NATS and no MongoDB")
	}
	if !bytes.Contains([]byte(must(runIn(t.Context(), ".", nil, score, "--help"))), []byte("CRIVO_NATS_URL")) {
		t.Error("not in its help")
	}
}
