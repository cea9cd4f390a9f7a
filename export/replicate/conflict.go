package replicate

import (
	"fmt"
	"strings"

	"sidus/image/store"
)

// Conflicts are all reasons why there is no plan. errors.As finds each of them.
type Conflicts []error

func (c Conflicts) Error() string {
	lines := make([]string, len(c))
	for i, conflict := range c {
		lines[i] = conflict.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns the conflicts.
func (c Conflicts) Unwrap() []error { return c }

// Divergence is a tree of which the receiver has snapshots that the sender does
// not know.
type Divergence struct {
	Tree   string             // the tree's name at the receiver
	Common store.SnapshotID   // the newest ancestor that both know; "" if none
	Only   []store.SnapshotID // what only the receiver has, oldest first
}

func (d *Divergence) Error() string {
	since := "both never had a snapshot in common"
	if d.Common != "" {
		since = "the last that both have is " + string(d.Common)
	}
	return fmt.Sprintf("tree %s: the receiver holds %d snapshots that the sender does not know (%s, …), %s; "+
		"to keep them, replicate them the other way first, or branch them into a tree of their own on a server of another site; to drop them, delete them on the receiver",
		d.Tree, len(d.Only), d.Only[0], since)
}

// NumberTaken is a number that is of one snapshot here and of another there.
type NumberTaken struct {
	Tree             string // the tree's name at the sender
	Number           int
	Sender, Receiver store.SnapshotID
}

func (n *NumberTaken) Error() string {
	return fmt.Sprintf("%s@%d is snapshot %s at the sender and %s at the receiver; delete the one on the receiver, or replicate it the other way first",
		n.Tree, n.Number, n.Sender, n.Receiver)
}

// NameTaken is a name that is of one tree here and of another there.
type NameTaken struct {
	Name             string
	Sender, Receiver string // IDs of trees
}

func (n *NameTaken) Error() string {
	return fmt.Sprintf("tree %s: the receiver has another tree of that name; rename one of them (sidus rename)", n.Name)
}

// ChannelDivergence is a channel of the receiver that points to a snapshot that
// the sender does not know.
type ChannelDivergence struct {
	Channel  string
	Snapshot store.SnapshotID
}

func (c *ChannelDivergence) Error() string {
	return fmt.Sprintf("channel %s: at the receiver it points to snapshot %s, which the sender does not know; delete the channel there, or replicate the other way first",
		c.Channel, c.Snapshot)
}

// BadTarget is a channel of the sender whose snapshot cannot be sent.
type BadTarget struct {
	Channel  string
	Snapshot store.SnapshotID
}

func (b *BadTarget) Error() string {
	return fmt.Sprintf("channel %s: its snapshot %s is not at the sender; `sidus check` says more", b.Channel, b.Snapshot)
}

// BadLineage is a snapshot that is its own ancestor, or is listed twice.
type BadLineage struct {
	Snapshot store.SnapshotID
}

func (b *BadLineage) Error() string {
	return fmt.Sprintf("snapshot %s: its lineage makes no sense; `sidus check` says more", b.Snapshot)
}
