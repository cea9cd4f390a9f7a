package nfs

import (
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestShortSlices looks at all threads, those that are started later too.
func TestShortSlices(t *testing.T) {
	if err := shortSlices(); err != nil {
		t.Fatal(err)
	}
	var uname unix.Utsname
	if err := unix.Uname(&uname); err != nil {
		t.Fatal(err)
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
		attr, err := unix.SchedGetAttr(id, 0)
		if err != nil {
			t.Fatal(err)
		}
		// Kernels before 6.12 have no slices of their own for threads.
		if got := time.Duration(attr.Runtime); got != timeSlice && got != 0 {
			t.Errorf("thread %d has slices of %v on Linux %s", id, got, unix.ByteSliceToString(uname.Release[:]))
		}
	}
}
