package btrfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"sidus/image/store"
	"sidus/image/store/storetest"
	"sidus/image/tool"
)

// initialised makes a store with one volume that holds one file, and closes it.
func initialised(t *testing.T) (Options, store.VolumeID) {
	t.Helper()
	o := loopOptions(t)
	detachAtEnd(t, o)
	s, err := Init(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	v := store.NewVolumeID()
	if err := s.CreateVolume(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.path(volumesDir, string(v), "file"), []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return o, v
}

func mustDetach(t *testing.T, o Options) {
	t.Helper()
	if err := Detach(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if loops, err := o.loopsOf(t.Context(), o.File); err != nil || len(loops) > 0 {
		t.Fatalf("loop devices after Detach: %v, %v", loops, err)
	}
}

// content opens the store and reads the file that initialised has written.
func content(t *testing.T, o Options, v store.VolumeID) string {
	t.Helper()
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	text, err := os.ReadFile(s.path(volumesDir, string(v), "file"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestStaysMountedUntilDetached(t *testing.T) {
	o, v := initialised(t)
	loops, err := o.loopsOf(t.Context(), o.File)
	if err != nil || len(loops) != 1 {
		t.Fatalf("after Close: loop devices %v, %v", loops, err)
	}
	for range 3 {
		if got := content(t, o, v); got != "content" {
			t.Errorf("got %q", got)
		}
	}
	again, err := o.loopsOf(t.Context(), o.File)
	if err != nil || fmt.Sprint(again) != fmt.Sprint(loops) {
		t.Errorf("the loop device was not used again: %v, then %v, %v", loops, again, err)
	}
	mustDetach(t, o)
	mustDetach(t, o) // does nothing
	if got := content(t, o, v); got != "content" {
		t.Errorf("after Detach and Open: got %q", got)
	}
}

func TestMountOptions(t *testing.T) {
	o, _ := initialised(t)
	out, err := exec.Command("findmnt", "--noheadings", "--output", "OPTIONS", "--types", "btrfs", "--raw").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"noatime", "discard=async", "compress=zstd:1"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%s is not mounted with %s: %s", o.File, want, out)
		}
	}
	info, err := os.Stat(o.File)
	if err != nil {
		t.Fatal(err)
	}
	if used := info.Sys().(*syscall.Stat_t).Blocks * 512; used > 16<<20 {
		t.Errorf("a new loop file of %d bytes takes %d", info.Size(), used)
	}
	if info.Mode() != 0o600 {
		t.Errorf("the loop file has mode %v", info.Mode())
	}
}

func TestOthersCannotReachTrees(t *testing.T) {
	o, _ := initialised(t)
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	info, err := os.Stat(s.Root())
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the store's top folder: %v, %v", info.Mode(), err)
	}
}

func TestDetachWhileOpen(t *testing.T) {
	o, v := initialised(t)
	other, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := Detach(t.Context(), o); !errors.Is(err, store.ErrInUse) {
		t.Errorf("got %v, want ErrInUse", err)
	}
	m, err := other.MountVolume(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Detach(t.Context()); !errors.Is(err, store.ErrInUse) {
		t.Errorf("with a mount: got %v, want ErrInUse", err)
	}
	if _, err := os.ReadFile(filepath.Join(m.Path(), "file")); err != nil {
		t.Errorf("the mount is gone: %v", err)
	}
	if err := errors.Join(m.Unmount(t.Context()), other.Detach(t.Context())); err != nil {
		t.Error(err)
	}
}

func TestOpenAtTheSameTime(t *testing.T) {
	o, _ := initialised(t)
	mustDetach(t, o)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			s, err := Open(context.Background(), o)
			if err != nil {
				t.Error(err)
				return
			}
			if err := s.CreateVolume(context.Background(), store.NewVolumeID()); err != nil {
				t.Error(err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	loops, err := o.loopsOf(t.Context(), o.File)
	if err != nil || len(loops) != 1 {
		t.Errorf("loop devices: %v, %v", loops, err)
	}
}

func TestInitAtTheSameTime(t *testing.T) {
	o := loopOptions(t)
	detachAtEnd(t, o)
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			s, err := Init(context.Background(), o)
			if err != nil {
				t.Error(err)
				return
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	entries, err := os.ReadDir(filepath.Dir(o.File))
	if err != nil || len(entries) != 2 { // the file and the folder for mounts
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

// TestAnotherMountNamespace opens a store where its mount is not to be seen.
func TestAnotherMountNamespace(t *testing.T) {
	o, v := initialised(t)
	mustDetach(t, o)
	// A process in a namespace of its own mounts the store, and waits.
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run", "^TestHelperHoldsStore$")
	cmd.Env = append(os.Environ(), "SIDUS_TEST_HOLD="+o.File, "SIDUS_TEST_RUN="+o.RunDir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready := make([]byte, len("ready"))
	if _, err := io.ReadFull(stdout, ready); err != nil {
		t.Fatal(err)
	}
	loops, err := o.loopsOf(t.Context(), o.File)
	if err != nil || len(loops) != 1 {
		t.Fatalf("loop devices: %v, %v", loops, err)
	}
	if got := content(t, o, v); got != "content" {
		t.Errorf("got %q", got)
	}
	if again, err := o.loopsOf(t.Context(), o.File); err != nil || fmt.Sprint(again) != fmt.Sprint(loops) {
		t.Errorf("another loop device was made: %v, then %v, %v", loops, again, err)
	}
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	// What the other process holds, holds here.
	if err := s.DestroyVolume(t.Context(), v); !errors.Is(err, store.ErrInUse) {
		t.Errorf("DestroyVolume: got %v, want ErrInUse", err)
	}
	// It is killed: what it held is free, and its mount is gone.
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	_ = stdin.Close()
	if err := s.DestroyVolume(t.Context(), v); err != nil {
		t.Errorf("DestroyVolume: %v", err)
	}
	if err := s.Detach(t.Context()); err != nil {
		t.Error(err)
	}
	mustDetach(t, o)
}

// TestHelperHoldsStore is the other process of TestAnotherMountNamespace.
func TestHelperHoldsStore(t *testing.T) {
	file := os.Getenv("SIDUS_TEST_HOLD")
	if file == "" {
		t.Skip("a helper of another test")
	}
	s, err := Open(t.Context(), Options{File: file, RunDir: os.Getenv("SIDUS_TEST_RUN")})
	if err != nil {
		t.Fatal(err)
	}
	items, err := s.List(t.Context())
	if err != nil || len(items) != 1 {
		t.Fatal(items, err)
	}
	if _, err := s.MountVolume(t.Context(), items[0].Volume); err != nil {
		t.Fatal(err)
	}
	fmt.Print("ready")
	_, _ = io.Copy(io.Discard, os.Stdin) // until killed
}

func TestBrokenLoopFiles(t *testing.T) {
	for _, c := range []struct {
		name   string
		break_ func(t *testing.T, file string)
		want   error
		says   string
	}{
		{"missing", func(t *testing.T, file string) {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		}, store.ErrNotFound, "sidus init"},
		{"empty", func(t *testing.T, file string) {
			if err := os.Truncate(file, 0); err != nil {
				t.Fatal(err)
			}
		}, ErrDamaged, "it ends before the superblock"},
		{"cut", func(t *testing.T, file string) {
			if err := os.Truncate(file, 1<<30); err != nil {
				t.Fatal(err)
			}
		}, ErrDamaged, "restore it from a backup"},
		{"something else", func(t *testing.T, file string) { scribble(t, file, 0, 1<<20) }, ErrDamaged, "no btrfs file system"},
		{"superblock", func(t *testing.T, file string) { scribble(t, file, superOffset+0x60, 4) }, ErrDamaged, "superblock is damaged"},
		{"trees", func(t *testing.T, file string) {
			scribble(t, file, superOffset+superSize, 64<<20-superOffset-superSize)
			scribble(t, file, 64<<20+superSize, 448<<20)
		}, ErrDamaged, "btrfs check"},
		{"a folder", func(t *testing.T, file string) {
			if err := errors.Join(os.Remove(file), os.Mkdir(file, 0o700)); err != nil {
				t.Fatal(err)
			}
		}, ErrNotAStore, "no plain file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o, _ := initialised(t)
			mustDetach(t, o)
			c.break_(t, o.File)
			_, err := Open(t.Context(), o)
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), o.File) {
				t.Errorf("got %v", err)
			}
			t.Logf("the message: %v", err)
			_ = os.RemoveAll(o.File)
			if mounts, err := os.ReadDir(o.RunDir); err != nil || len(mounts) > 0 {
				t.Errorf("left behind: %v, %v", mounts, err)
			}
			checkNoLoops(t, o.File)
		})
	}
}

// scribble overwrites a part of a file.
func scribble(t *testing.T, file string, offset, length int64) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	junk := []byte(strings.Repeat("\xa5", 1<<20))
	for length > 0 {
		n, err := f.WriteAt(junk[:min(length, int64(len(junk)))], offset)
		if err != nil {
			t.Fatal(err)
		}
		offset, length = offset+int64(n), length-int64(n)
	}
}

// checkNoLoops fails the test if a loop device lies on a path, also after the
// file itself is gone.
func checkNoLoops(t *testing.T, file string) {
	t.Helper()
	out, err := tool.Output(t.Context(), tool.Options{}, "losetup", "--list", "--output", "NAME,BACK-FILE", "--noheadings")
	if err != nil || strings.Contains(string(out), file) {
		t.Errorf("loop devices are left: %s%v", out, err)
	}
}

func TestCopyOfALoopFile(t *testing.T) {
	o, _ := initialised(t)
	other := o
	other.File = o.File + ".copy"
	if out, err := exec.Command("cp", "--sparse=always", o.File, other.File).CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	_, err := Open(t.Context(), other)
	if !errors.Is(err, store.ErrInUse) || !strings.Contains(err.Error(), "is the file a copy?") {
		t.Errorf("got %v", err)
	}
}

func TestInitThatFails(t *testing.T) {
	steps := 0
	for n := 1; ; n++ {
		o := loopOptions(t)
		reached := 0
		why := errors.New("injected failure")
		o.Step = func(string) error {
			if reached++; reached == n {
				return why
			}
			return nil
		}
		detachAtEnd(t, o)
		s, err := Init(t.Context(), o)
		if reached < n {
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			break
		}
		steps++
		if !errors.Is(err, why) {
			t.Errorf("step %d: got %v", n, err)
		}
		if _, err := os.Stat(o.File); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("step %d: the loop file is there: %v", n, err)
		}
		entries, err := os.ReadDir(filepath.Dir(o.File))
		if err != nil || len(entries) > 1 {
			t.Errorf("step %d: left behind: %v, %v", n, entries, err)
		}
		checkNoLoops(t, o.File)
	}
	if steps < 5 {
		t.Errorf("only %d steps", steps)
	}
}

func TestInitAdopts(t *testing.T) {
	o, v := initialised(t)
	s, err := Init(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	items, err := s.List(t.Context())
	if err != nil || len(items) != 1 || items[0].Volume != v {
		t.Errorf("got %v, %v", items, err)
	}
	if err := CreateLoop(t.Context(), o); !errors.Is(err, store.ErrExists) {
		t.Errorf("CreateLoop: got %v, want ErrExists", err)
	}
}

func TestNewerStore(t *testing.T) {
	o, _ := initialised(t)
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := os.WriteFile(s.path(markerName), []byte("sidus store 2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), "newer Sidus") {
		t.Errorf("got %v", err)
	}
}

func TestTooSmall(t *testing.T) {
	o := loopOptions(t)
	o.Size = 1 << 20
	if _, err := Init(t.Context(), o); err == nil || !strings.Contains(err.Error(), "too few") {
		t.Errorf("got %v", err)
	}
}

// TestLeftoverLoopDevice opens a store whose loop device was attached by a
// process that was cut before it mounted it.
func TestLeftoverLoopDevice(t *testing.T) {
	o, v := initialised(t)
	mustDetach(t, o)
	device, err := o.attachLoop(t.Context(), o.File)
	if err != nil {
		t.Fatal(err)
	}
	if got := content(t, o, v); got != "content" {
		t.Errorf("got %q", got)
	}
	if loops, err := o.loopsOf(t.Context(), o.File); err != nil || len(loops) != 1 || loops[0] != device {
		t.Errorf("loop devices: %v, %v; want %s", loops, err, device)
	}
	mustDetach(t, o)
	if _, err := o.attachLoop(t.Context(), o.File); err != nil {
		t.Fatal(err)
	}
	mustDetach(t, o) // also takes one that was never mounted
}

func TestTwoLoopDevices(t *testing.T) {
	o, _ := initialised(t)
	mustDetach(t, o)
	for range 2 {
		if _, err := o.attachLoop(t.Context(), o.File); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(t.Context(), o); !errors.Is(err, store.ErrInUse) || !strings.Contains(err.Error(), "losetup -d") {
		t.Errorf("got %v", err)
	}
	mustDetach(t, o)
}

// TestNotRoot runs Open as nobody.
func TestNotRoot(t *testing.T) {
	if os.Getenv("SIDUS_TEST_NOBODY") != "" {
		_, err := Open(t.Context(), Options{File: "/nowhere"})
		if !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "root") {
			t.Errorf("got %v", err)
		}
		return
	}
	storetest.RequireRoot(t)
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run", "^TestNotRoot$")
	cmd.Env = append(os.Environ(), "SIDUS_TEST_NOBODY=1")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
