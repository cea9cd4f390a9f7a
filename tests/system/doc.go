// Package system holds the whole-system tests: the real program, a real store,
// and virtual machines that boot from it over networks of their own.
//
// A boot takes a minute or more under software emulation, so the scenarios
// share boots. There are two lanes beside each other, each with one machine at
// a time:
//
//	alpha  boots by its second card, the first is on a dead network; default is
//	       promoted while it runs; every file that it sees is compared with
//	       the store; it reads on while the server is killed twice; its lease
//	       of two minutes is kept for five; the power button
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
// The tests need root, QEMU and what tests/setup.sh installs. Without, they
// are skipped, or fail if CI=true.
package system
