// Package node knows who boots: networks that are served, nodes, and their
// sessions, one for each boot of a node. It keeps them in the catalog and
// decides what a machine boots.
//
// # What a machine boots
//
// A session opens when a machine's boot configuration is rendered. That
// chooses the snapshot once: the node's pin, else the node's channel, else
// the default channel of the network it is in, else nothing, with the reason.
// It is one transaction, so that a promotion falls before or after it, never
// into it. Whatever the machine fetches afterwards carries the session's and
// the snapshot's ID.
//
// Boot loaders ask more than once. A machine that asks again within two
// minutes after its session was opened, and has not mounted its root since,
// gets the same session; so does one that asks a server that was restarted in
// between. A machine whose root was mounted and that asks again has been
// booted again, however fast that was.
//
// # When a session ends
//
// It ends when its node boots again, or after 30 days in which nothing was
// heard of it. Those days are counted on the served clock, which advances
// only while a server runs (Registry.Tick): a server that was down for a
// month does not forget its nodes.
//
// Until it ends it protects its snapshot (UsersOf, SnapshotsInUse). Anybody
// may ask for the boot configuration of any hardware address, and so end a
// session whose node goes on running. When such a node is heard again, its
// session is opened again, unless a later one has reached its root.
package node
