// Package labdisk makes the disk of a virtual machine that has what the host
// may lack (OpenZFS, device mapper with thin pools, the kernel's NFS server),
// and runs the tests of other packages inside such a machine.
//
//	func TestZFS(t *testing.T) { labdisk.Run(t, labdisk.Suite{Package: "sidus/zfs"}) }
//
// The disk is made by [Ensure] from the files of this folder and the Debian
// archive that the machine's own apt uses. That takes some minutes, so it is
// kept outside the checkout, in a folder named by the hash of all that went into
// it. Whoever finds it missing makes it; a second one who needs it meanwhile
// waits. It is never written to: each machine that boots from it keeps its
// changes in a temporary file of its own, so that any number may run.
//
// What is to run comes on a second disk; what it says goes out through a
// virtio-serial port, and the last line of it is the exit status. Nothing of
// that depends on a network.
//
// Making the disk needs root, mmdebstrap and mke2fs, running a machine
// qemu-system-x86_64. Without KVM it is emulated, which is slow but enough.
package labdisk
