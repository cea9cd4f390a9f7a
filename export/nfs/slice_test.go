package nfs

import (
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestSlices looks at all threads, those that are started later too, and at
// one that has a turn.
func TestSlices(t *testing.T) {
	if err := shortSlices(); err != nil {
		t.Fatal(err)
	}
	var uname unix.Utsname
	if err := unix.Uname(&uname); err != nil {
		t.Fatal(err)
	}
	release := unix.ByteSliceToString(uname.Release[:])
	slice := func(id int) time.Duration {
		attr, err := unix.SchedGetAttr(id, 0)
		if err != nil {
			t.Fatal(err)
		}
		return time.Duration(attr.Runtime)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if scheduling.Load() == nil {
		// Kernels before 6.12 have no slices of their own for threads.
		if got := slice(0); got != 0 {
			t.Errorf("the slice is %v on Linux %s, and is not used", got, release)
		}
		setSlice(turnSlice) // does nothing
		return
	}
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		id, err := strconv.Atoi(thread.Name())
		if err != nil {
			t.Fatal(err)
		}
		if got := slice(id); got != lightSlice && got != turnSlice {
			t.Errorf("thread %d has slices of %v on Linux %s", id, got, release)
		}
	}
	setSlice(turnSlice)
	if got := slice(0); got != turnSlice {
		t.Errorf("a thread with a turn has slices of %v", got)
	}
	setSlice(lightSlice)
	if got := slice(0); got != lightSlice {
		t.Errorf("a thread after its turn has slices of %v", got)
	}
}
