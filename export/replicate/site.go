package replicate

import "sidus/image/store"

// Site is what one of the two servers holds.
type Site struct {
	// Snapshots holds those that are there, and those whose deletion is on
	// record. The order does not matter.
	Snapshots []Snapshot
	// Trees holds the trees that the snapshots belong to.
	Trees []Tree
	// Channels holds where each channel points.
	Channels []Channel
}

// Snapshot is one snapshot of a site.
type Snapshot struct {
	ID     store.SnapshotID
	Parent store.SnapshotID // "" if it has none
	Tree   string           // the ID of its tree
	Number int              // in its tree
	// Deleted says that it is known and not there any more. It stays in the
	// lineage of others.
	Deleted bool
	// Lost says that it should be there, and the store has lost it: it cannot be
	// sent, and is to be sent again.
	Lost bool
	// NoBase says that it is there, but cannot be the base of a difference: it
	// came by a portable stream, or is of another backend than what is sent.
	NoBase bool
}

// Tree is a tree of a site.
type Tree struct {
	ID   string // the same on every server
	Name string
}

// Channel is a channel of a site.
type Channel struct {
	Name     string
	Snapshot store.SnapshotID
}

// Step is something to be done. It is a Send or a Move.
type Step interface{ step() }

// Send is a snapshot to be sent.
type Send struct {
	Snapshot store.SnapshotID
	Base     store.SnapshotID // "": the whole of it
}

// Move is a channel of the receiver to be pointed to a snapshot.
type Move struct {
	Channel  string
	Snapshot store.SnapshotID // "": the channel is to be removed
}

func (Send) step() {}
func (Move) step() {}

// Plan is what is to be done, in this order.
type Plan struct {
	Steps []Step
	// Lost lists what is wanted, and neither of the two has any more.
	Lost []store.SnapshotID
	// Gone lists what the receiver holds and the sender has deleted, oldest
	// first. A replica deletes nothing on its own.
	Gone []store.SnapshotID
}
