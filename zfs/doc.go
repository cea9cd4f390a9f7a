// Package zfs keeps a store in OpenZFS: one dataset per volume, under one
// parent dataset.
//
// # Where
//
// The parent lies in a pool that exists already (Options.Dataset; nothing else
// in the pool is touched), or in a pool that Sidus makes in a file
// (Options.File). Beneath it there is
//
//	<volume>             a file system per volume
//	<volume>@<snapshot>  its snapshots
//	kept                 a file system with small files, see store.Keeper
//
// User properties tell what is the store's own: "sidus:store" on the parent is
// the version of this layout; "sidus:volume" on a file system is its volume,
// with "sidus:origin", the snapshot that it was cloned from; "sidus:snapshot"
// on a snapshot is its ID. What lacks them, or has another name than they say,
// was made by others: it is not shown and not destroyed.
//
// # Dependence
//
// In ZFS a snapshot is part of its file system, and a clone needs the snapshot
// that it was made from. The contract knows no such thing: a destroyed volume
// leaves its snapshots, a destroyed snapshot its clones. So what is still
// needed is retired:
//
//   - a volume with snapshots gets "sidus:retired" and gives back the space of
//     what changed since the last of them. It goes with its last snapshot.
//   - a snapshot with clones is destroyed with "zfs destroy -d": the kernel marks
//     it and removes it with its last clone.
//
// What is retired is not shown, cannot be mounted, and its name is free. Remnants
// tells what keeps it where no snapshot of the store does. Nothing
// is ever promoted ("zfs promote" moves snapshots from one file system to
// another).
//
// # Mounts
//
// Nothing mounts itself: mountpoint=legacy, and the parent has canmount=off.
// Volumes and snapshots are mounted by mount(2) under Options.RunDir, shared
// between processes (package mountpoint). A snapshot is mounted as what it is,
// never reached through .zfs/snapshot. While it is mounted the kernel holds it
// (a "long hold"): no tool can destroy it. A user hold ("zfs hold") would add
// nothing to that, and would outlive a killed server.
//
// # Programs
//
// Package go-zfs runs what it can: destroy, rollback, set, and the state of
// pools. Its create and clone pass -p, with which ZFS takes a dataset that
// exists already for success, and its snapshot takes no properties; those, and
// lists of user properties, run through package tool. Each has a time limit: a
// suspended pool makes zfs hang where no signal reaches it.
package zfs
