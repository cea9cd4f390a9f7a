// Package lvm keeps a store in LVM: volumes and snapshots are thin logical
// volumes of one thin pool, each with a file system of its own on it.
//
// # Where
//
// The thin pool exists already (Options.ThinPool; nothing else in its volume
// group is touched), or Sidus makes a volume group with one in a loop file
// (Options.File). The pool has the tag "sidus.store.1", which is the version of
// this layout. Beside it there are
//
//	sidus.v.<id>   a logical volume per volume
//	sidus.s.<id>   a read-only one per snapshot
//	sidus.kept     a small one with files, see store.Keeper
//
// One that has the tag "sidus.new" is half-made. All of them have the flag
// "activation skip": they are active while they are mounted and not otherwise,
// and a thousand of them do not slow down the machine's boot.
//
// # Snapshots
//
// A thin snapshot shares its blocks with its origin and depends on nothing: the
// origin may go. It is taken while the volume is mounted: the device mapper
// freezes the file system meanwhile, which writes all of it and leaves its
// journal empty. So a snapshot needs no recovery, and is mounted without
// (ext4: noload, XFS: norecovery).
//
// # Space
//
// Three things can fill up: the data of the thin pool, its metadata, and the
// metadata of the volume group, in which each volume takes about 500 bytes of
// what vgcreate reserved. Work is refused before, with what to do about it.
//
// A volume's file system has a size of its own, which costs nothing until it is
// written; Resize makes it larger.
package lvm
