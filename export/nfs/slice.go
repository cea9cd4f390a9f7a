package nfs

import (
	"errors"
	"os"
	"strconv"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// For how long a thread of the server works before the kernel lets another one
// begin that has become ready on the same processor. A thread whose slices are
// shorter than those of the one that works begins at once; where they are as
// long, the kernel may wait for its next tick, 4 ms later (kernel/sched/fair.c:
// PREEMPT_SHORT, RUN_TO_PARITY). So threads that have a turn get long ones.
const (
	lightSlice = 100 * time.Microsecond // the least that the kernel takes
	turnSlice  = 3 * time.Millisecond   // about Linux' own
)

// scheduling is how the threads of the process are scheduled, nil if the kernel
// takes no slices from us (before Linux 6.12), or if somebody chose another
// policy.
var scheduling atomic.Pointer[unix.SchedAttr]

// setSlice sets the time slice of the calling thread. A goroutine may leave a
// thread with the slice of another one behind it: it then has the wrong one
// until a turn begins or ends on it.
func setSlice(slice time.Duration) {
	usual := scheduling.Load()
	if usual == nil {
		return
	}
	attr := *usual
	attr.Runtime = uint64(slice)
	// Not through Go's scheduler, and what fails here was said by shortSlices.
	_, _, _ = unix.RawSyscall(unix.SYS_SCHED_SETATTR, 0, uintptr(unsafe.Pointer(&attr)), 0)
}

// shortSlices gives all threads of the process, and with them those that they
// start, the slices of threads that have no turn (sched_setattr(2)).
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
				attr.Flags, attr.Runtime = 0, uint64(lightSlice)
				err = unix.SchedSetAttr(id, attr, 0)
			}
			if err != nil && !errors.Is(err, unix.ESRCH) { // ESRCH: it has ended
				return os.NewSyscallError("sched_setattr", err)
			}
		}
		if !found {
			break
		}
	}
	attr, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		return os.NewSyscallError("sched_getattr", err)
	}
	if attr.Policy == unix.SCHED_NORMAL && attr.Runtime > 0 {
		attr.Flags = 0
		scheduling.Store(attr)
	}
	return nil
}
