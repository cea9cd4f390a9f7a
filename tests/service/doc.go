// Package service tests the systemd unit that is installed: that its
// restrictions leave the service what each store and each NFS engine needs.
// systemd, ZFS, LVM and the kernel's NFS server are those of the machine of
// tests/labdisk, where this runs.
package service
