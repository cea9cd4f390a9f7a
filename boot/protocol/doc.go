// Package protocol is what a server and a machine that boots from it agree
// on: the words of the kernel command line, the boot entry that a tree
// carries, the steps of a boot, and the reports of the agent.
//
// What runs on nodes (initramfs hook, agent) is part of a snapshot and may be
// much older than the server. Everything here is therefore versioned: a
// server answers each version up to its own, and a node that speaks a newer
// one is told so instead of being misunderstood.
//
// The package imports the standard library and image/store (for its names)
// only, because the agent in the tree is built from it too.
package protocol

// Version is the version of the protocol that this code speaks.
const Version = 1
