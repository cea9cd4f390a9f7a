package labdisk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
)

// A Suite is the tests of one package, to be run in the machine.
type Suite struct {
	// Package is the import path.
	Package string
	// Args are added to the test program's arguments: "-test.short", …
	Args []string
	// Env is added to its environment: "NAME=value".
	Env []string
	// Programs are the import paths of commands that lie beside the test
	// program, under the last element of their path.
	Programs []string
	// Files of this machine lie there, too, under the last element of their path,
	// which is relative to the folder of the test that runs the suite.
	Files []string
	// Setup is a shell command that runs before, as root; empty means none.
	Setup string
	// Output is a file of this machine that gets what the suite writes to
	// OutputPort: what it made, and others are to look at. Empty means none; one
	// suite of a machine may have one.
	Output string
	// Timeout is how long it may run; 0 means 30 minutes.
	Timeout time.Duration
}

const defaultTimeout = 30 * time.Minute

func (s Suite) timeout() time.Duration {
	if s.Timeout == 0 {
		return defaultTimeout
	}
	return s.Timeout
}

// bootTime is what a machine may take beside its suites.
const bootTime = 5 * time.Minute

// Run runs suites in one machine, one after another, and reports each of
// their tests as a subtest. In the machine the environment has SIDUS_LAB=1,
// and CI as it is here. Where the machine cannot be made, the test fails if CI
// is "true"; else it is skipped, with a word on what was not tested. What has
// passed before with the same programs on the same disk is not run again; see
// [FreshEnv].
func Run(t *testing.T, suites ...Suite) {
	t.Helper()
	disk, err := Ensure(t.Context(), progress{t}, logrus.StandardLogger())
	if err == nil {
		_, err = exec.LookPath("qemu-system-x86_64")
		if err != nil {
			err = fmt.Errorf("%w: %w", ErrCannotBuild, err)
		}
	}
	if errors.Is(err, ErrCannotBuild) && os.Getenv("CI") != "true" {
		var names []string
		for _, s := range suites {
			names = append(names, s.Package)
		}
		t.Skipf("SKIPPED: the tests of %s were NOT run: %v", strings.Join(names, ", "), err)
	} else if err != nil {
		t.Fatal(err)
	}
	work := t.TempDir()
	folder := filepath.Join(work, "data")
	var notes []string // of those that are run
	suites, notes = prepare(t, folder, suites)
	if len(suites) == 0 {
		return
	}
	data, err := pack(t.Context(), folder, len(suites), filepath.Join(work, "data.img"))
	if err != nil {
		t.Fatal(err)
	}
	limit := bootTime
	for _, s := range suites {
		limit += s.timeout()
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), limit, fmt.Errorf("the machine was still running after %v", limit))
	defer cancel()
	r := reader{progress: progress{t}}
	err = boot(ctx, disk, data, work, output(suites), &r)
	r.report(t, suites)
	if err == nil && r.status != "0" {
		err = fmt.Errorf("exit status %q", r.status)
	}
	if err != nil {
		console, _ := os.ReadFile(filepath.Join(work, "console"))
		t.Errorf("the machine: %v; its last words:\n%s\nits console:\n%s", err, last(r.pending, 4000), last(string(console), 4000))
	}
	for n, note := range notes {
		if n >= len(r.codes) || r.codes[n] != "0" {
			continue
		}
		if err := notePassed(note); err != nil {
			t.Logf("%s will run again next time: %v", suites[n].Package, err)
		}
	}
}

// output is the file that gets what suites write to OutputPort.
func output(suites []Suite) string {
	for _, s := range suites {
		if s.Output != "" {
			return s.Output
		}
	}
	return os.DevNull
}

// progress shows what makes the disk, and each test that ends in the machine.
type progress struct{ t *testing.T }

func (p progress) Write(text []byte) (int, error) {
	if testing.Verbose() {
		return os.Stderr.Write(text)
	}
	return len(text), nil
}

// prepare compiles suites into the folders 0, 1, … of a folder. It returns
// those that are to be run, and the notes to be made when they have passed.
func prepare(t *testing.T, folder string, all []Suite) (suites []Suite, notes []string) {
	for _, s := range all {
		dir := filepath.Join(folder, fmt.Sprint(len(suites)))
		if err := s.build(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
		note, err := passedFile(dir)
		if err != nil {
			t.Fatal(err)
		}
		if when, ok := passed(note); ok && s.Output == "" {
			t.Run(s.Package, func(t *testing.T) {
				t.Logf("UNCHANGED since it passed at %s; %s=1 runs it again", when.Format(time.DateTime), FreshEnv)
			})
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			continue
		}
		suites, notes = append(suites, s), append(notes, note)
	}
	return suites, notes
}

// build puts all that a suite needs into a folder; its file "suite" is what a
// shell is to run there.
func (s Suite) build(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := compile(ctx, s.Package, filepath.Join(dir, "test")); err != nil {
		return err
	}
	for _, p := range s.Programs {
		if err := buildProgram(ctx, p, filepath.Join(dir, path.Base(p))); err != nil {
			return err
		}
	}
	for _, file := range s.Files {
		if err := copyFile(file, filepath.Join(dir, filepath.Base(file))); err != nil {
			return err
		}
	}
	// Temporary files lie in memory, and ZFS ends a transaction each second: the
	// machine's disk is the slowest part of it.
	script := "export SIDUS_LAB=1 CI='" + quote(os.Getenv("CI")) + "' TMPDIR=/dev/shm\nmount -o remount,size=75% /dev/shm\n" +
		"echo 1 >/sys/module/zfs/parameters/zfs_txg_timeout\n"
	if s.Setup != "" {
		script += s.Setup + "\n"
	}
	script += "exec env"
	for _, e := range s.Env {
		script += " '" + quote(e) + "'"
	}
	seconds := int(s.timeout().Seconds())
	script += fmt.Sprintf(" timeout -k 10 %d ./test -test.v -test.timeout=%ds", seconds+30, seconds)
	for _, a := range s.Args {
		script += " '" + quote(a) + "'"
	}
	return os.WriteFile(filepath.Join(dir, "suite"), []byte(script+"\n"), 0o755)
}

// pack puts the suites on a disk.
func pack(ctx context.Context, folder string, suites int, image string) (string, error) {
	script := "#!/bin/sh\nall=0\n"
	for n := range suites {
		script += fmt.Sprintf("cd /lab/%[1]d\necho '%[2]s%[1]d'\nsh ./suite\nstatus=$?\necho \"%[3]s%[1]d $status\"\n[ $status = 0 ] || all=1\n", n, beginMark, endMark)
	}
	if err := os.WriteFile(filepath.Join(folder, "run"), []byte(script+"exit $all\n"), 0o755); err != nil {
		return "", err
	}
	return Pack(ctx, folder, image)
}

func quote(s string) string { return strings.ReplaceAll(s, "'", `'\''`) }

// buildProgram makes a command that needs nothing of the machine it runs on.
func buildProgram(ctx context.Context, pkg, to string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", to, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w: %s", pkg, err, out)
	}
	return nil
}

// compile makes a test program that needs nothing of the machine it runs on,
// with its package's test data beside it.
func compile(ctx context.Context, pkg, to string) error {
	cmd := exec.CommandContext(ctx, "go", "test", "-c", "-trimpath", "-buildvcs=false", "-o", to, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go test -c %s: %w: %s", pkg, err, out)
	}
	out, err := exec.CommandContext(ctx, "go", "list", "-f", "{{.Dir}}", pkg).Output()
	if err != nil {
		return fmt.Errorf("go list %s: %w", pkg, err)
	}
	from := filepath.Join(strings.TrimSpace(string(out)), "testdata")
	if _, err := os.Stat(from); err != nil {
		return nil
	}
	return os.CopyFS(filepath.Join(filepath.Dir(to), "testdata"), os.DirFS(from))
}

// Pack puts a folder on a disk that a machine can mount. If it has an
// executable file "run", a machine with RunCommandLine runs that and powers off.
func Pack(ctx context.Context, folder, image string) (string, error) {
	var size int64
	err := filepath.Walk(folder, func(_ string, info os.FileInfo, err error) error {
		if err == nil {
			size += info.Size() + 4096
		}
		return err
	})
	if err != nil {
		return "", err
	}
	mib := size>>20 + size>>24 + 64
	return image, program(ctx, io.Discard, "mke2fs", "-q", "-F", "-t", "ext4", "-d", folder, image, fmt.Sprintf("%dM", mib))
}

func last(s string, n int) string {
	if len(s) > n {
		return s[len(s)-n:]
	}
	return s
}
