package sandbox

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// treeCapabilities is what a program inside a tree may have at most.
var treeCapabilities = []uintptr{
	unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID,
	unix.CAP_KILL, unix.CAP_SETGID, unix.CAP_SETUID, unix.CAP_SETPCAP, unix.CAP_SETFCAP,
	unix.CAP_NET_BIND_SERVICE, unix.CAP_SYS_CHROOT, unix.CAP_MKNOD, unix.CAP_AUDIT_WRITE,
}

// hostCapabilities is what a tool on the host's root may have at most:
// mmdebstrap and debootstrap mount /proc, /sys and /dev for their chroots.
var hostCapabilities = append([]uintptr{unix.CAP_SYS_ADMIN}, treeCapabilities...)

// limitCapabilities takes every capability that is not in keep from the
// calling thread, its bounding set included. The caller has locked the thread
// and forks from it.
func limitCapabilities(keep []uintptr) error {
	var mask [2]uint32
	for _, c := range keep {
		mask[c/32] |= 1 << (c % 32)
	}
	for c := uintptr(0); c < 64; c++ {
		if mask[c/32]&(1<<(c%32)) != 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			if errors.Is(err, unix.EINVAL) {
				break // past the last one that this kernel knows
			}
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	_ = unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	for i := range data {
		data[i].Effective &= mask[i]
		data[i].Permitted &= mask[i]
		data[i].Inheritable = 0
	}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("limit capabilities: %w", err)
	}
	return nil
}
