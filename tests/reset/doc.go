// Package reset resets a whole server machine while it changes its store, on
// ZFS and on LVM thin volumes: receive, branch, rollback, gc, import and export, all
// at once, each at a chosen step.
//
// The machine is one of package labdisk. A script stands there before each
// program that Sidus runs (zfs, lvm, mkfs.ext4, cp, …); it counts the runs that
// change something, and stops a command before, during or after one of them.
// When all commands stand still, or as soon as the first does, the kernel
// resets the machine at once (sysrq b): nothing is unmounted, nothing is
// written back. The disks keep what had been written to them, as those of a
// server do.
//
// The machine boots again, and must be what docs/safety.md promises: check finds
// what was left over, check --repair mends it, each tree is as before its
// command or as after, everything else holds what it held, and the commands can
// be given again.
package reset
