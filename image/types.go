package image

import (
	"fmt"
	"time"

	"sidus/image/store"
)

// Tree is a named operating system under development.
type Tree struct {
	ID      string           `json:"id"`
	Name    string           `json:"name"`
	Head    store.VolumeID   `json:"head"`
	Base    store.SnapshotID `json:"base"` // the snapshot that the head last was equal to; "" if none
	Touched bool             `json:"-"`    // somebody may have written to the head since
	Created time.Time        `json:"created"`
}

// Snapshot is a tree at one moment, read-only for ever.
type Snapshot struct {
	ID       store.SnapshotID `json:"id"`
	TreeID   string           `json:"tree_id"`
	Tree     string           `json:"tree"` // the tree's name today
	Number   int              `json:"number"`
	Name     string           `json:"name,omitempty"`
	Phase    string           `json:"phase,omitempty"`  // the build's phase; "" if made by hand
	Key      string           `json:"key,omitempty"`    // hash of all that the phase used
	Recipe   string           `json:"recipe,omitempty"` // where it came from: a recipe, or the source of an import
	Parent   store.SnapshotID `json:"parent,omitempty"`
	Complete bool             `json:"complete"` // made by hand, or the end of a build
	Author   string           `json:"author"`
	Message  string           `json:"message,omitempty"`
	Created  time.Time        `json:"created"`
	Deleted  time.Time        `json:"deleted,omitzero"`
	// Lost says that the store does not hold it. Only inventories look.
	Lost bool `json:"lost,omitempty"`
}

// Ref is the snapshot's short name: tree@number.
func (s Snapshot) Ref() string { return fmt.Sprintf("%s@%d", s.Tree, s.Number) }

// Channel is a name that points to one snapshot. Nodes follow it.
type Channel struct {
	Name     string    `json:"name"`
	Snapshot Snapshot  `json:"snapshot"`
	Keep     int       `json:"keep"` // how many earlier snapshots stay protected for a rollback
	Changed  time.Time `json:"changed"`
	Nodes    int       `json:"nodes"` // registered nodes that follow it by name
}

// ChannelMove is one entry of a channel's history.
type ChannelMove struct {
	At       time.Time        `json:"at"`
	Action   string           `json:"action"` // promote, rollback, delete
	Snapshot store.SnapshotID `json:"snapshot,omitempty"`
	Ref      string           `json:"ref,omitempty"`
	Previous store.SnapshotID `json:"previous,omitempty"`
	Actor    string           `json:"actor"`
	Message  string           `json:"message,omitempty"`
	Current  bool             `json:"current"` // what the channel points to now
	Kept     bool             `json:"kept"`    // protected for a rollback
}
