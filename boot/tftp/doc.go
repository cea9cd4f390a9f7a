// Package tftp serves boot loaders, their configuration, and the kernel and
// initrd of snapshots by TFTP (RFC 1350, with the options blksize and tsize
// of RFC 2348 and 2349). It only reads.
//
// What there is under which name:
//
//	lpxelinux.0, ldlinux.c32, snponly.efi …   boot loaders, from Server.Loaders
//	pxelinux.cfg/01-aa-bb-cc-dd-ee-ff          rendered for the machine with that address
//	grub/grub.cfg-01-aa-bb-cc-dd-ee-ff         the same for GRUB
//	boot/<snapshot>/kernel, …/initrd           from the snapshot
//
// Boot loaders look for their configuration under many names; the ones that
// are no machine's are answered at once with "file not found".
package tftp
