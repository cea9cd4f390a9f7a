package mountpoint

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"sidus/image/store"
	"sidus/image/store/storetest"
)

func TestMain(m *testing.M) {
	if err := storetest.PrivateMounts(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// tmpfs mounts a file system.
func tmpfs(folder string) error { return unix.Mount("tmpfs", folder, "tmpfs", 0, "size=1m") }

func newTable(t *testing.T) (*Table, *[]string) {
	t.Helper()
	storetest.RequireRoot(t)
	var mu sync.Mutex
	var gone []string
	table, err := New(filepath.Join(t.TempDir(), "run"), func(name string) error {
		mu.Lock()
		defer mu.Unlock()
		gone = append(gone, name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return table, &gone
}

// empty fails if a table has anything left.
func empty(t *testing.T, table *Table) {
	t.Helper()
	entries, err := os.ReadDir(table.dir)
	if err != nil || len(entries) != 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

func TestShared(t *testing.T) {
	table, gone := newTable(t)
	count := 0
	mount := func(folder string) error { count++; return tmpfs(folder) }
	one, err1 := table.Hold("a", mount)
	two, err2 := table.Hold("a", mount)
	if err := errors.Join(err1, err2); err != nil || count != 1 || one.Path() != two.Path() {
		t.Fatalf("%v, mounted %d times", err, count)
	}
	if _, err := table.Exclude("a"); !errors.Is(err, store.ErrInUse) {
		t.Errorf("Exclude: %v", err)
	}
	if err := errors.Join(one.Release(), one.Release()); err != nil {
		t.Fatal(err)
	}
	if mounted, err := isMounted(two.Path()); !mounted || err != nil {
		t.Errorf("it is gone while it is held: %v", err)
	}
	if err := two.Release(); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(*gone, []string{"a"}) {
		t.Errorf("gone: %v", *gone)
	}
	empty(t, table)
	excluded, err := table.Exclude("a")
	if err != nil {
		t.Fatal(err)
	}
	excluded.Release()
	empty(t, table)
}

func TestMountFails(t *testing.T) {
	table, _ := newTable(t)
	broken := errors.New("broken")
	if _, err := table.Hold("a", func(string) error { return broken }); !errors.Is(err, broken) {
		t.Error(err)
	}
	empty(t, table)
	func() {
		defer func() { _ = recover() }()
		_, _ = table.Hold("a", func(string) error { panic(broken) })
	}()
	excluded, err := table.Exclude("a")
	if err != nil {
		t.Fatalf("after a panic: %v", err)
	}
	excluded.Release()
	empty(t, table)
}

// TestBusy gives back a mount in which a file is open: it stays, and the next
// one takes it away.
func TestBusy(t *testing.T) {
	table, _ := newTable(t)
	held, err := table.Hold("a", tmpfs)
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.Create(filepath.Join(held.Path(), "open"))
	if err != nil {
		t.Fatal(err)
	}
	if err := held.Release(); !errors.Is(err, store.ErrInUse) {
		t.Errorf("Release: %v", err)
	}
	if _, err := table.Exclude("a"); !errors.Is(err, store.ErrInUse) {
		t.Errorf("Exclude: %v", err)
	}
	if err := errors.Join(table.Sweep(), file.Close(), table.Sweep()); err != nil {
		t.Error(err)
	}
	empty(t, table)
}

// TestKilledHolder kills a process that holds a mount.
func TestKilledHolder(t *testing.T) {
	table, _ := newTable(t)
	if dir := os.Getenv("SIDUS_TEST_HOLD"); dir != "" {
		t.Skip()
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestHelperHolds$")
	cmd.Env = append(os.Environ(), "SIDUS_TEST_HOLD="+table.dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	word := make([]byte, 4)
	if _, err := out.Read(word); err != nil || string(word) != "held" {
		t.Fatalf("%q, %v", word, err)
	}
	if _, err := table.Exclude("a"); !errors.Is(err, store.ErrInUse) {
		t.Errorf("while another process holds it: %v", err)
	}
	if err := table.Sweep(); err != nil {
		t.Error(err)
	}
	if mounted, _ := isMounted(table.Path("a")); !mounted {
		t.Error("the sweep took away what is held")
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if mounted, _ := isMounted(table.Path("a")); !mounted {
		t.Error("nothing is left: the test proves nothing")
	}
	if err := table.Sweep(); err != nil {
		t.Error(err)
	}
	empty(t, table)
}

// TestHelperHolds is a process that holds a mount until it is killed.
func TestHelperHolds(t *testing.T) {
	dir := os.Getenv("SIDUS_TEST_HOLD")
	if dir == "" {
		t.SkipNow()
	}
	table, err := New(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	held, err := table.Hold("a", tmpfs)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Print("held")
	_, _ = io.Copy(io.Discard, os.Stdin) // which does not end before this process
	_ = held.Release()
}

// TestProgramBeingStarted: between fork and exec a program has the files of
// the process that starts it, and with them their locks. What was given back
// is given back nevertheless.
func TestProgramBeingStarted(t *testing.T) {
	table, _ := newTable(t)
	held, err := table.Hold("a", tmpfs)
	if err != nil {
		t.Fatal(err)
	}
	inChild, err := unix.Dup(int(held.held.Fd())) // the same open file, as a child has it
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(inChild)
	if err := held.Release(); err != nil {
		t.Fatal(err)
	}
	excluded, err := table.Exclude("a")
	if err != nil {
		t.Fatal(err)
	}
	inChild, err = unix.Dup(int(excluded.held.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(inChild)
	excluded.Release()
	if held, err = table.Hold("a", tmpfs); err != nil {
		t.Fatal(err)
	}
	inside, err := os.Create(filepath.Join(held.Path(), "open"))
	if err != nil {
		t.Fatal(err)
	}
	inChild, err = unix.Dup(int(inside.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if err := inside.Close(); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(100*time.Millisecond, func() { _ = unix.Close(inChild) })
	if err := held.Release(); err != nil {
		t.Fatal(err)
	}
	empty(t, table)
}

func TestManyAtOnce(t *testing.T) {
	table, _ := newTable(t)
	var group sync.WaitGroup
	var inside, mounts atomic.Int64
	for worker := range 8 {
		group.Go(func() {
			for range 50 {
				if worker == 0 {
					if e, err := table.Exclude("a"); err == nil {
						if n := inside.Load(); n != 0 {
							t.Errorf("excluded while %d hold it", n)
						}
						e.Release()
					} else if !errors.Is(err, store.ErrInUse) {
						t.Error(err)
					}
					continue
				}
				held, err := table.Hold("a", func(folder string) error { mounts.Add(1); return tmpfs(folder) })
				if err != nil {
					t.Error(err)
					continue
				}
				inside.Add(1)
				if mounted, err := isMounted(held.Path()); !mounted {
					t.Errorf("it is not mounted: %v", err)
				}
				inside.Add(-1)
				if err := held.Release(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	t.Logf("mounted %d times", mounts.Load())
	empty(t, table)
}

func TestInside(t *testing.T) {
	text := `21 1 0:20 / / rw - ext4 /dev/vda rw
30 21 0:30 / /run/s/volume-1 rw - zfs p/v rw
31 21 0:31 / /run/s/volume-2 rw - zfs p/w rw
32 30 0:40 / /run/s/volume-1/a\040b rw - tmpfs t rw
33 21 0:30 /sub /mnt/other rw - zfs p/v rw
34 33 0:41 / /mnt/other/proc rw - proc p rw
35 21 0:30 / /mnt/all rw - zfs p/v rw
`
	mounts, err := mountinfo.GetMountsFromReader(strings.NewReader(text), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := inside(mounts, "/run/s/volume-1"); !slices.Equal(got, []string{"/run/s/volume-1/a b", "/mnt/other/proc"}) {
		t.Errorf("%q", got)
	}
	if got := inside(mounts, "/run/s/volume-2"); len(got) != 0 {
		t.Errorf("%q", got)
	}
}
