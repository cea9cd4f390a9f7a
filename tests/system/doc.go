// Package system holds the whole-system tests: the real program, a real store,
// and virtual machines that boot from it over networks of their own.
//
// A boot takes a minute or more under software emulation, so the scenarios
// share boots. There are two lanes beside each other, each with one machine at
// a time:
//
//	alpha  boots by its second card, the first is on a dead network; default is
//	       promoted while it runs; every file that it sees is compared with
//	       the store; it reads on while the server is killed twice; it keeps
//	       its address for longer than two leases; the power button
//	beta   follows another channel; delete of what it runs is refused; the
//	       channel is rolled back, and it reboots: meanwhile the channel is
//	       promoted and the server killed twice; then the delete works
//	gamma  (after beta) is unknown, in a network where another server gives the
//	       addresses; has nothing to boot at first, then the newest promotion
//
// The tree is built once, from testdata/client.yaml, in three versions which
// differ in a file, in the initrd and in the kernel's command line: so each
// machine can be asked of which version its parts are. Downloaded packages are
// kept in SIDUS_TEST_CACHE (/var/cache/sidus-tests).
//
// The store is the embedded one, and the server runs on this machine. With
// SIDUS_TEST_STORE=zfs or lvm the server is a virtual machine that has OpenZFS
// or LVM with a thin pool (tests/labdisk), and obeys by SSH; the scenarios are
// the same, and the limits of time are wider. What the recipe takes from the
// Debian archive is then built on this machine and imported there as a stream
// (kept in SIDUS_TEST_CACHE, too), for that machine has no archive to ask; the
// phases that the tests add are built there, on that store.
//
// The tests need root, QEMU and what tests/setup.sh installs. Without, they
// are skipped, or fail if CI=true.
package system
