// Package image is the domain of Sidus: trees, their snapshots, and the
// channels that nodes follow.
//
// A tree has a writable head, a volume of the store, and the snapshots that
// were taken of it. A branch is a new tree whose head starts from a snapshot.
// A channel points to one complete snapshot; promoting moves the pointer, in
// one transaction, and nothing else does.
//
// Manager is the way in. What it does to the store follows one pattern (see
// operation.go): the intent is put on record, the store is changed, and one
// transaction makes the result visible and ends the intent. An operation that
// is cut at any instant leaves the catalog as before or as after, and at most
// something in the store that the catalog does not name: Check finds it and
// Repair removes it.
//
// A tree's head has one writer at a time (see HeadLock).
package image
