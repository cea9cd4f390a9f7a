package system

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gofrs/flock"
)

const (
	recipe  = "testdata/client.yaml"
	channel = "default"
)

// site is a state folder with a store of its own, and the program that works
// on it.
type site struct {
	program string
	state   string
	cache   string // what outlives the run: downloaded packages
}

// snapshot is one version of the tree of the tests.
type snapshot struct {
	version string // what stands in its file, initrd and command line
	id      string
	ref     string // tree@number
}

// newSite makes a store. When the test ends, in whatever way, it is unmounted
// and removed.
func newSite(ctx context.Context, t *testing.T) *site {
	t.Helper()
	s := &site{program: os.Getenv("SIDUS_BIN"), cache: os.Getenv("SIDUS_TEST_CACHE")}
	if s.program == "" {
		s.program = "../../bin/sidus"
	}
	if s.cache == "" {
		s.cache = "/var/cache/sidus-tests"
	}
	var err error
	if s.program, err = filepath.Abs(s.program); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(s.program); err != nil {
		t.Fatalf("%v: `make build` makes it, and SIDUS_BIN names another", err)
	}
	packages := filepath.Join(s.cache, "packages")
	if err := os.MkdirAll(packages, 0o755); err != nil {
		t.Fatal(err)
	}
	removeDead(t, s.cache, s.program)
	if s.state, err = os.MkdirTemp(s.cache, "system-*"); err != nil {
		t.Fatal(err)
	}
	s.guard(t)
	s.must(ctx, t, "init", "--size", "20G")
	// Packages are lent to the build and taken over from it.
	lent := filepath.Join(s.state, "cache", "packages")
	if err := linkPackages(packages, lent); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := linkPackages(lent, packages); err != nil {
			t.Error(err)
		}
	})
	return s
}

// guard cleans up: at the end of the test, and, by a shell that outlives this
// process, if it is killed. The shell learns of its end by the end of its
// standard input.
func (s *site) guard(t *testing.T) {
	t.Helper()
	const script = `trap "" INT TERM HUP
read -r _
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30; do
	[ -e "$2" ] || exit 0
	if [ ! -e "$2/sidus.db" ] || "$1" unmount --state "$2" >/dev/null 2>&1; then
		exec rm -rf -- "$2" "$2.lock"
	fi
	sleep 1
done`
	// Others see by the lock that somebody works here; the shell holds it, too.
	lock, err := os.OpenFile(s.state+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	guard := exec.Command("sh", "-c", script, "sidus-system-guard", s.program, s.state)
	guard.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	guard.ExtraFiles = []*os.File{lock}
	stdin, err := guard.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := guard.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		out, err := exec.Command(s.program, "unmount", "--state", s.state).CombinedOutput()
		if err != nil {
			t.Errorf("the store cannot be unmounted at the end: %v: %s", err, out)
		} else if err := os.RemoveAll(s.state); err != nil {
			t.Error(err)
		}
		_ = stdin.Close()
		_ = guard.Wait()
		_ = lock.Close()
		_ = os.Remove(s.state + ".lock")
	})
}

// removeDead removes what runs left behind that were cut together with their
// guard.
func removeDead(t *testing.T, cache, program string) {
	locks, _ := filepath.Glob(filepath.Join(cache, "system-*.lock"))
	for _, name := range locks {
		lock := flock.New(name)
		if free, err := lock.TryLock(); err != nil || !free {
			continue
		}
		state := strings.TrimSuffix(name, ".lock")
		t.Logf("removing %s, which an earlier run left behind", state)
		if _, err := os.Stat(filepath.Join(state, "sidus.db")); err == nil {
			if out, err := exec.Command(program, "unmount", "--state", state).CombinedOutput(); err != nil {
				t.Logf("%s cannot be unmounted: %v: %s", state, err, out)
				_ = lock.Unlock()
				continue
			}
		}
		_ = os.RemoveAll(state)
		_ = os.Remove(name)
		_ = lock.Unlock()
	}
}

// linkPackages makes the packages of one folder appear in another. Several
// runs may do so at once.
func linkPackages(from, to string) error {
	names, err := filepath.Glob(filepath.Join(from, "*.deb"))
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := os.Link(name, filepath.Join(to, filepath.Base(name))); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

// result is what a command of sidus printed, and how it ended.
type result struct {
	stdout, stderr string
	status         int
}

// run runs a command of sidus.
func (s *site) run(ctx context.Context, args ...string) (result, error) {
	// A process dies with the thread that started it: if this one is killed,
	// the command is stopped.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, s.program, append(args, "--state", s.state)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 15 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, io.MultiWriter(&stderr)
	err := cmd.Run()
	r := result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
	if err != nil {
		err = fmt.Errorf("sidus %s: %w: %s", strings.Join(args, " "), err, tail(r.stdout+r.stderr, 30))
	}
	return r, err
}

// must runs a command of sidus that has to succeed and returns what it prints.
func (s *site) must(ctx context.Context, t *testing.T, args ...string) string {
	t.Helper()
	r, err := s.run(ctx, args...)
	if err != nil {
		t.Fatal(err)
	}
	return r.stdout
}

// refused runs a command of sidus that has to end with the status, and returns
// what it says.
func (s *site) refused(ctx context.Context, t *testing.T, status int, args ...string) string {
	t.Helper()
	r, err := s.run(ctx, args...)
	if r.status != status {
		t.Fatalf("sidus %s ends with status %d, not %d: %v", strings.Join(args, " "), r.status, status, err)
	}
	return r.stderr
}

// fetch runs a command of sidus with --json and reads what it prints into v.
func (s *site) fetch(ctx context.Context, t *testing.T, v any, args ...string) {
	t.Helper()
	text := s.must(ctx, t, append(args, "--json")...)
	if err := json.Unmarshal([]byte(text), v); err != nil {
		t.Fatalf("sidus %s --json: %v: %s", strings.Join(args, " "), err, text)
	}
}

// build builds a version of the tree.
func (s *site) build(ctx context.Context, t *testing.T, version string) snapshot {
	t.Helper()
	begun := time.Now()
	s.must(ctx, t, "build", recipe, "--set", "version="+version)
	times.note("build version "+version+" of the tree", time.Since(begun))
	var shown struct {
		Snapshot struct {
			ID, Tree string
			Number   int
			Complete bool
		}
	}
	s.fetch(ctx, t, &shown, "show", "client@latest")
	if !shown.Snapshot.Complete {
		t.Fatalf("a build ended with a snapshot that is not complete: %+v", shown)
	}
	return snapshot{version: version, id: shown.Snapshot.ID, ref: fmt.Sprintf("%s@%d", shown.Snapshot.Tree, shown.Snapshot.Number)}
}

// node is what `status` and `node list` say of a machine.
type node struct {
	MAC        string
	Name       string
	Registered bool
	Network    string
}

type status struct {
	Node    node
	Session *struct {
		ID       string
		Snapshot struct {
			ID string
		}
		Channel     string
		Address     string
		Step        string
		FailedUnits []string `json:"failed_units"`
	}
	Reboot struct {
		Snapshot struct {
			ID string
		}
		Change string
		Text   string
	}
}

// status is what `status` says of the machine with that hardware address.
func (s *site) status(ctx context.Context, t *testing.T, mac string) status {
	t.Helper()
	var all []status
	s.fetch(ctx, t, &all, "status")
	for _, one := range all {
		if one.Node.MAC == mac {
			return one
		}
	}
	t.Fatalf("status does not know %s: %+v", mac, all)
	return status{}
}

// tail is the last n lines of text.
func tail(text string, n int) string {
	lines := strings.SplitAfter(strings.ReplaceAll(text, "\r", ""), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "")
}
