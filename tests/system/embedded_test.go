package system

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gofrs/flock"

	"sidus/tests/lab"
	"sidus/tests/lab/labtest"
)

// embedded is this machine, with a state folder and an embedded store in it;
// what serves is in the lab's namespace.
type embedded struct {
	program string
	state   string
	lab     *lab.Lab // nil if it does not serve
	walker  string   // atsnapshot; "" if it does not serve
}

// newEmbedded makes a store. When the test ends, in whatever way, it is
// unmounted and removed.
func newEmbedded(ctx context.Context, t *testing.T) *embedded {
	t.Helper()
	e := &embedded{program: labtest.Program(t)}
	cache := labtest.Cache(t)
	packages := filepath.Join(cache, "packages")
	if err := os.MkdirAll(packages, 0o755); err != nil {
		t.Fatal(err)
	}
	removeDead(t, cache, e.program)
	var err error
	if e.state, err = os.MkdirTemp(cache, "system-*"); err != nil {
		t.Fatal(err)
	}
	e.guard(t)
	if _, err := e.sidus(ctx, "init", "--size", "20G"); err != nil {
		t.Fatal(err)
	}
	// Packages are lent to the build and taken over from it.
	lent := filepath.Join(e.state, "cache", "packages")
	if err := linkPackages(packages, lent); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := linkPackages(lent, packages); err != nil {
			t.Error(err)
		}
	})
	return e
}

func (e *embedded) sidus(ctx context.Context, args ...string) (result, error) {
	return e.run(ctx, "sidus", e.program, append(args, "--state", e.state)...)
}

// run runs a program, which what names.
func (e *embedded) run(ctx context.Context, what, file string, args ...string) (result, error) {
	// A process dies with the thread that started it: if this one is killed,
	// the command is stopped.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, file, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 15 * time.Second
	return finish(cmd, words(what, args), cmd.Start)
}

func (e *embedded) recipe() string { return recipe }

func (e *embedded) serve(options ...string) (*lab.Process, error) {
	cmd := exec.Command(e.program, append([]string{"serve", "--state", e.state}, options...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	return e.lab.StartCmd(cmd)
}

func (e *embedded) kill(serving *lab.Process) error { return serving.Kill() }

func (e *embedded) stop(ctx context.Context, serving *lab.Process) error { return serving.Stop(ctx) }

func (e *embedded) walk(ctx context.Context, id string) (result, error) {
	return e.run(ctx, "walk", e.walker, "-file", filepath.Join(e.state, "store/store.img"), id, "testdata/walk")
}

// cable is the bridge itself: the server's address is that of the bridge.
func (e *embedded) cable(network string) string { return network }

func (e *embedded) observer() netip.Addr { return alphaNet.Addr() }

func (e *embedded) patience() time.Duration { return 1 }

// guard cleans up: at the end of the test, and, by a shell that outlives this
// process, if it is killed. The shell learns of its end by the end of its
// standard input.
func (e *embedded) guard(t *testing.T) {
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
	lock, err := os.OpenFile(e.state+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	guard := exec.Command("sh", "-c", script, "sidus-system-guard", e.program, e.state)
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
		out, err := exec.Command(e.program, "unmount", "--state", e.state).CombinedOutput()
		if err != nil {
			t.Errorf("the store cannot be unmounted at the end: %v: %s", err, out)
		} else if err := os.RemoveAll(e.state); err != nil {
			t.Error(err)
		}
		_ = stdin.Close()
		_ = guard.Wait()
		_ = lock.Close()
		_ = os.Remove(e.state + ".lock")
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
