// Package dhcp answers machines that boot: as a proxy beside another DHCP
// server, which it leaves every address to, or in full.
//
// # Modes
//
// Each network has a mode. A proxy answers network boot firmware and iPXE
// only, on port 67 with offers that hold no address, and on port 4011 (the
// boot server of the PXE specification 2.1). In full mode addresses are given
// (RFC 2131), after a look round the wire for another server: with two, each
// machine's address would be a matter of luck, so the server refuses to start
// then. Off is silent.
//
// # Leases
//
// Leases are keyed by hardware address: firmware, initramfs and system of one
// machine have different client identifiers, and must have one address. An
// address that changes under a running machine kills its root file system, so
// lease times are long, a lease that is unknown is taken up again when its
// machine renews it and nobody else has it, and what expired is used last. An
// address is probed on the wire before it goes to a machine that did not have
// it.
//
// # Parts
//
// An engine turns a packet into an answer and needs no socket; Server owns
// the sockets of one interface.
package dhcp
