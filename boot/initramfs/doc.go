// Package initramfs puts into a tree what makes it boot over the network: the
// initramfs-tools hook and boot script, the agent with its systemd units, and
// the little that a tree must not have if many machines run it at once.
//
// # What a tree needs
//
// The packages initramfs-tools (0.142 or newer is tested), busybox, systemd
// with udev, and a kernel with overlay and NFSv3 (every kernel of Debian has
// both; the hook refuses one that has not). dbus is good to have: the power
// button needs it. openssh-server is looked after if it is there.
//
// # In which order
//
//	initramfs.Install(root, initramfs.Options{})   // hook, script, agent, units
//	chroot root update-initramfs -u                // makes the initrd anew
//	initramfs.Prepare(root)                        // the tree as it is promoted
//
// # How a node boots
//
// The kernel's command line selects the boot script (boot=sidus; package
// boot/protocol has all its words). The script
//
//   - waits for the card that the firmware booted with (BOOTIF) and asks DHCP
//     on that card; others are not touched,
//   - mounts the snapshot from the NFS server at /run/sidus/ro, and retries for
//     as long as it takes,
//   - puts an overlay on it, whose upper layer is a tmpfs at /run/sidus/rw
//     (half of the memory at most, or what sidus.tmpfs= says), and links /ro
//     and /rw to the two layers,
//   - writes into the overlay who this node is: machine-id, hostname, hosts,
//     resolv.conf; and into /run/sidus/boot.env what the agent has to know,
//   - tells systemd-networkd, NetworkManager and ifupdown, under /run, to
//     leave the card alone.
//
// What it waits for, it says on the console in one sentence.
//
// # How a node ends
//
// Nothing takes the card down, and the layers are not unmounted before the
// processes have been killed: so the program that switches the machine off
// can still be read.
package initramfs
