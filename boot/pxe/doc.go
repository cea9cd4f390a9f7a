// Package pxe holds what a machine is told when it boots over the network:
// which boot loader fits its firmware, and the configuration of PXELINUX,
// iPXE and GRUB, rendered from embedded templates.
//
// Everything here is pure: packages boot/dhcp, boot/tftp and boot/http do the
// talking, and ask a Booter what a machine shall boot.
//
// # How a machine boots
//
//	firmware      DHCP: who am I, and which file?      -> BootFile
//	boot loader   TFTP or HTTP: its configuration      -> Config, Render
//	              TFTP or HTTP: kernel and initrd
//	kernel        its command line, see boot/protocol
//
// A session opens when the configuration is rendered: that chooses the
// snapshot once, and every path in the configuration carries its ID.
package pxe
