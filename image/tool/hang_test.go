package tool

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sidus/image/tool/hangfs"
)

// TestHangingProgram runs a program that waits in the kernel for a disk, so to
// speak, and cannot be killed.
func TestHangingProgram(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: this test needs root")
	}
	folder := t.TempDir()
	fs, err := hangfs.Mount(folder, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(fs.Close(), unix.Unmount(folder, unix.MNT_DETACH)); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("it takes too long")
	go func() {
		<-fs.Asked()
		cancel(why)
	}()
	begin := time.Now()
	err = Run(ctx, Options{}, "ls", folder)
	if !errors.Is(err, why) || !strings.Contains(err.Error(), "hangs in the kernel") {
		t.Errorf("got %v", err)
	}
	if took := time.Since(begin); took > ioDelay+30*time.Second {
		t.Errorf("it took %v", took)
	}
}
