// Package replicate plans how one server gets what another holds: which
// snapshots are sent in which order, each whole or as the difference to which
// base, and which channels move when all of that is there. It computes only;
// sidus/export/stream carries the plan out, a step at a time, and a plan that
// was cut is made anew from what is there then.
//
// A snapshot is sent after its parents, as the difference to its nearest
// ancestor that the receiver can build on, so that the lineage of branches is
// kept. Channels move last: the receiver never points to what it does not hold.
//
// Where the receiver holds something that the sender does not know, there is no
// plan but conflicts, each of a type of its own with a way out: a replica was
// written to, or the two were never the same site.
package replicate
