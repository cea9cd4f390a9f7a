package mountpoint

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"sidus/image/store"
)

// progress is what this machine writes back within a Table's Limit, in bytes, if
// an unmount does not hang but writes what there is to write.
const progress = 64 << 20

// moment is how long a program that is being started may have open what this
// process has closed: between fork(2) and execve(2), on a busy machine.
const moment = time.Second

// unmountSoon is unmount, again and again for a moment while something in the
// folder is open.
func (t *Table) unmountSoon(folder string) error {
	for begun := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if err := t.unmount(folder); !errors.Is(err, unix.EBUSY) || time.Since(begun) > moment {
			return err
		}
	}
}

// unmount is umount(2). One that hangs, since the disk beneath does not answer, is
// given up: the kernel ends it when the disk is back.
func (t *Table) unmount(folder string) error {
	done := make(chan error, 1)
	go func() { done <- unix.Unmount(folder, unix.UMOUNT_NOFOLLOW) }()
	tick := time.NewTicker(t.Limit)
	defer tick.Stop()
	for least := unwritten(); ; {
		select {
		case err := <-done:
			if err != nil {
				return &os.PathError{Op: "unmount", Path: folder, Err: err}
			}
			return nil
		case <-tick.C:
		}
		left := unwritten()
		if left > least-progress {
			return &os.PathError{Op: "unmount", Path: folder, Err: fmt.Errorf("%w: nothing heard in %v: does the disk beneath answer?", store.ErrUnavailable, t.Limit)}
		}
		least = left
	}
}

// unwritten is how much the kernel has to write back on all disks, in bytes.
func unwritten() int64 {
	text, _ := os.ReadFile("/proc/meminfo")
	return unwrittenIn(text)
}

// unwrittenIn reads it from what proc_meminfo(5) describes.
func unwrittenIn(text []byte) (sum int64) {
	for line := range bytes.Lines(text) {
		var name string
		var kib int64
		if n, _ := fmt.Sscan(string(line), &name, &kib); n == 2 && (name == "Dirty:" || name == "Writeback:") {
			sum += kib << 10
		}
	}
	return sum
}
