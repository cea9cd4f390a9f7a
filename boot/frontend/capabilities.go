package frontend

import (
	"errors"
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// kept are the capabilities of a front end that runs, see capabilities(7).
var kept = []int{
	unix.CAP_DAC_READ_SEARCH,  // the trees' files belong to all kinds of users
	unix.CAP_NET_BIND_SERVICE, // DHCP binds its ports when its network is put on
	unix.CAP_NET_RAW,          // ARP: is an address in use? And binding to an interface
}

// dropCapabilities gives up, in all threads and for good, what a front end
// does not need: packets from the network are parsed with little power.
func dropCapabilities() error {
	const version3 = 0x20080522 // _LINUX_CAPABILITY_VERSION_3
	header := struct {
		version uint32
		pid     int32
	}{version: version3}
	var data [2]struct{ effective, permitted, inheritable uint32 }
	var current [2]struct{ effective, permitted, inheritable uint32 }
	if _, _, errno := syscall.RawSyscall(unix.SYS_CAPGET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&current)), 0); errno != 0 {
		return fmt.Errorf("capget: %w", errno)
	}
	keep := map[int]bool{}
	for _, c := range kept {
		keep[c] = true
		bit := uint32(1) << (c % 32)
		// What a service manager took away cannot be had back.
		data[c/32].permitted |= bit & current[c/32].permitted
		data[c/32].effective |= bit & current[c/32].permitted
	}
	if err := onAllThreads(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	for c := 0; c <= unix.CAP_LAST_CAP; c++ {
		if keep[c] {
			continue
		}
		err := onAllThreads(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(c), 0)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EPERM) { // an older kernel knows fewer; a service manager took SETPCAP
			return fmt.Errorf("drop capability %d from the bounding set: %w", c, err)
		}
	}
	err := onAllThreads(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data)), 0)
	runtime.KeepAlive(&header)
	runtime.KeepAlive(&data)
	if err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	return nil
}

// onAllThreads makes a system call in every thread of the process. A program
// that was built with cgo cannot do that.
func onAllThreads(call, a, b, c uintptr) error {
	_, _, errno := syscall.AllThreadsSyscall(call, a, b, c)
	if errno == syscall.ENOTSUP {
		return errors.New("this sidus was built with cgo and cannot change all its threads: build it with make")
	}
	if errno != 0 {
		return errno
	}
	return nil
}
