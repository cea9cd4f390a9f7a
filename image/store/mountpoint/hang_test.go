package mountpoint

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sidus/image/store"
	"sidus/image/store/backend"
	"sidus/image/tool/hangfs"
)

// loop makes a block device.
func loop(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, 1<<20)); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", file).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v: %s", err, out)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("losetup: %v: %s", err, out)
		}
	})
	return device
}

// TestHangingUnmount: to unmount something whose disk does not answer ends in
// time, and so does the wait for another process that does it.
func TestHangingUnmount(t *testing.T) {
	table, _ := newTable(t)
	table.Limit = 300 * time.Millisecond
	device := loop(t)
	var fs *hangfs.FS
	held, err := table.Hold("a", func(folder string) (err error) {
		fs, err = hangfs.Mount(folder, device)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := held.Release(); !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "does the disk beneath answer") {
		t.Errorf("Release: %v", err)
	}
	if took := time.Since(begin); took < table.Limit || took > 20*time.Second {
		t.Errorf("it took %v: nothing hangs, or for ever", took)
	}
	gate, err := backend.LockFile(table.Path("a")+gateSuffix, unix.LOCK_EX)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := table.Hold("a", tmpfs); !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "another process") {
		t.Errorf("Hold while another process hangs: %v", err)
	}
	if _, err := table.Exclude("a"); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("Exclude while another process hangs: %v", err)
	}
	if err := errors.Join(backend.Unlock(gate), fs.Close()); err != nil {
		t.Error(err)
	}
	if held, err = table.Hold("a", tmpfs); err != nil {
		t.Fatalf("when the disk is back: %v", err)
	}
	if err := held.Release(); err != nil {
		t.Error(err)
	}
	empty(t, table)
}

func TestUnwritten(t *testing.T) {
	if got := unwrittenIn([]byte("MemFree:   5 kB\nDirty:             1000 kB\nWriteback:      24 kB\nWritebackTmp:   9 kB\n")); got != 1<<20 {
		t.Errorf("%d bytes", got)
	}
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil || !strings.Contains(string(text), "\nDirty:") || !strings.Contains(string(text), "\nWriteback:") {
		t.Errorf("this kernel says\n%s%v", text, err)
	}
}
