// Package catalog keeps what Sidus knows: trees, snapshots, channels,
// networks, nodes, sessions, who did what, and what is being done right now.
// It is one SQLite database, used by several processes at the same time.
//
// The catalog is the gate: what it does not name does not exist. A change is
// one durable transaction (WAL, synchronous=FULL), and no transaction is open
// while a program runs or a file system is touched. What an operation is
// going to do to the store is on record as an Intent before it is done.
package catalog
