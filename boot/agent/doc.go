// Package agent is what speaks for a running node. It runs as two services of
// the tree (package boot/initramfs has their units), so that neither can hold
// up the other:
//
//   - Keeper keeps the lease of the card that carries the root file system,
//     from before sysinit.target until the final killing of all processes. It
//     asks in the states RENEWING and REBINDING of RFC 2131 and never changes
//     the address, since the root hangs on it. It works with any DHCP server,
//     also beside a proxy.
//   - Reporter tells the server, after multi-user.target, that the node is up
//     and which systemd units have failed, and then sends a heartbeat.
//   - Obeyer, in the same service, waits for the server's orders and has an
//     Updater carry them out: live updates, which stack the /usr of another
//     snapshot over the running one.
//
// What the boot script found out about the node is in Facts.
package agent
