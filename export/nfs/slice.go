package nfs

import (
	"errors"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// timeSlice is for how long a thread of the server works before the kernel
// lets another one begin that has become ready on the same processor. Linux'
// usual three milliseconds are what a call of a light client would wait for a
// thread that sends large files. It is the least that the kernel takes.
const timeSlice = 100 * time.Microsecond

// shortSlices gives all threads of the process that time slice, and with them
// those that they start (sched_setattr(2); Linux 6.12 or newer, older ones
// ignore it).
func shortSlices() error {
	// Threads that are started meanwhile by one that is not done yet: again.
	for done := map[int]bool{}; ; {
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return err
		}
		found := false
		for _, thread := range threads {
			id, err := strconv.Atoi(thread.Name())
			if err != nil || done[id] {
				continue
			}
			found = true
			done[id] = true
			attr, err := unix.SchedGetAttr(id, 0)
			if err == nil && attr.Policy == unix.SCHED_NORMAL {
				attr.Flags, attr.Runtime = 0, uint64(timeSlice)
				err = unix.SchedSetAttr(id, attr, 0)
			}
			if err != nil && !errors.Is(err, unix.ESRCH) { // ESRCH: it has ended
				return os.NewSyscallError("sched_setattr", err)
			}
		}
		if !found {
			return nil
		}
	}
}
