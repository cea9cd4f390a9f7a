// Package adopt tests what happens when the server is gone and the pool is
// there: another one takes over with the pool and the site's key. It runs the
// real program on real ZFS and LVM, in the machine of package labdisk.
package adopt
