// Package failover holds the test of two servers that stand for each other: a
// machine boots from the first by the address that both share, the first dies,
// keepalived moves the address to the second, and the machine goes on reading.
// Then the site moves to a third server, by the very commands of
// docs/move-server.md, under the same machine.
//
//	site     a network namespace with a bridge, to which all are connected; the
//	         machine's card is plugged into it
//	first    10.80.0.2, a store of its own; builds the tree, replicates to second
//	second   10.80.0.3, another store, another size: other inode numbers
//	new      10.80.0.4, another one
//
// The shared address is 10.80.0.10. keepalived runs with the configuration and
// the notify script that are installed with Sidus; there is no systemd in a
// namespace, so systemctl is a script that starts `sidus serve`.
//
// The test needs root, QEMU, keepalived, sshd and what else tests/setup.sh
// installs. Without, it is skipped, or fails if CI=true.
package failover
