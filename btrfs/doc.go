// Package btrfs keeps a store on btrfs: the embedded default. Volumes and
// snapshots are subvolumes, so that a snapshot, a clone and their removal cost
// the same whatever they hold.
//
// # Where
//
// A store lies in a sparse loop file, which Sidus makes, mounts and never lets
// fill the disk beneath it, or in a folder of a btrfs file system that exists
// already. Inside, there is
//
//	sidus-store      marks the folder, and names the version of this layout
//	volumes/<id>     one subvolume per volume
//	snapshots/<id>   one read-only subvolume per snapshot
//	kept/<name>      small files, see store.Keeper
//
// A name that begins with ".new-" or ".gone-" is half-made or half-removed.
// The top folder has mode 0700: trees hold set-uid programs, which the
// server's own users must not reach.
//
// # Loop files
//
// One file has at most one loop device, since two of them, each with a cache of
// its own, would destroy the file system. The device of a file is looked for
// and used again, under a lock on the file itself. It is marked to go away with
// its last mount, so that nothing is left over however the mount ends. Close
// leaves the store mounted, Detach takes it away. A mount namespace that was
// made while the store was mounted has a mount of it too; where propagation is
// private, that one holds the device until the namespace ends.
//
// # Mounts
//
// A mount of a volume or snapshot is its path in the mounted file system, held
// by a shared flock on its root directory. The kernel drops it with the
// process: no mount can leak. Destroying takes the same lock exclusively.
//
// # Kernel interface
//
// Subvolumes are handled by ioctl (linux/btrfs.h) and not by the btrfs
// program: one system call instead of a process, and an error number instead
// of words. Programs make the file system (mkfs.btrfs) and attach loop devices
// (losetup).
package btrfs
