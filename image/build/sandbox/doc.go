// Package sandbox runs one program inside a tree (or beside it, with the
// host's tools) so that nothing of it outlives the call.
//
// # How
//
// Run starts the running binary once more, as the first process of new mount,
// PID, IPC and UTS namespaces. That process makes the tree its root with
// pivot_root, mounts a fresh /proc, a private /dev, a read-only /sys and
// empty /run and /tmp, starts the program with few capabilities, reaps what
// is left to it, and ends when the program ends. When it ends, for whatever
// reason (kill -9 of Run's process included), the kernel kills every process
// of the PID namespace and drops every mount of the mount namespace. There is
// no clean-up code that could fail to run.
//
// # What the program can and cannot do
//
// It is root with the capabilities that maintainer scripts need: owners and
// modes of files, device nodes, file capabilities, other users, chroot. It
// has none for mounts, modules, the clock, a reboot, raw I/O, the network's
// configuration, tracing others, or the kernel's log. CAP_MKNOD stays,
// because packages make device nodes in their trees; the tree is mounted
// nodev, so that such a node can be made and not opened. no_new_privs is not
// set: set-uid programs (su, newuidmap) are used by maintainer scripts, and
// the bounding set holds for them too.
//
// With the default network the program uses the host's network namespace, so
// that it reaches the mirror; it also reaches whatever listens on the host's
// loopback and abstract sockets. NoNetwork gives it an empty one.
//
// The binary is executed from a read-only mount of itself, so that a hostile
// tree that gets hold of /proc/PID/exe cannot write to it.
//
// # Use
//
// Main must be the first thing that main (and TestMain) calls.
package sandbox
