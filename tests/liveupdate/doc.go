// Package liveupdate has a virtual machine updated while it runs: programs and
// libraries of newer snapshots appear on it without a reboot, in all mount
// namespaces, with the mount options and the caches that every node has.
//
// It takes some minutes: SIDUS_VM_TESTS=1 wants it. SIDUS_BIN names the
// program (bin/sidus). The tree is built once, and then kept as a stream in
// SIDUS_TEST_CACHE (/var/cache/sidus-tests).
package liveupdate
