// Package store is the contract between Sidus and the place where the bytes
// of its trees live: an embedded btrfs file system, a ZFS dataset, or an LVM
// thin pool.
//
// # Life cycle
//
// A volume is the writable head of a tree. It is created empty, or cloned
// from a snapshot, which takes constant time and copies nothing. A snapshot
// is taken of a volume; from then on it never changes, and it does not need
// its volume any more: destroying a volume leaves the snapshots that were
// taken of it. A snapshot never becomes a volume, nor a volume a snapshot.
//
// Volumes and snapshots are named by random identifiers, so that renaming a
// tree is no matter of the store. What the catalog does not name does not
// exist for Sidus: a store may hold more than the catalog knows (an operation
// was cut), never less.
//
// # Mounts
//
// A store hands out mounts: the contract speaks of directories, since not
// every backend has a file system of its own. Who mounts also unmounts.
//
// # Failures
//
// Every method that changes something is atomic: when it fails, the store is
// as it was before (methods that take several steps keep an undo stack).
// Errors wrap the sentinels of this package, name the object, and carry the
// end of what the backend's tool said.
package store
