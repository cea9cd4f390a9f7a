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
	Oldest int                // the number of the first of them at the receiver
}

func (d *Divergence) Error() string {
	since := "both never had a snapshot in common"
	if d.Common != "" {
		since = "the last that both have is " + string(d.Common)
	}
	return fmt.Sprintf("tree %s: the receiver holds %d snapshots that the sender does not know (%s@%d, …), %s; "+
		"to keep one, bring it here before (on the receiver: `sidus send %s@%d ADDRESS`), or save it in a file (`sidus export` there)",
		d.Tree, len(d.Only), d.Tree, d.Oldest, since, d.Tree, d.Oldest)
}

// NameTaken is a name that is of one tree here and of another there.
type NameTaken struct {
	Name             string
	Sender, Receiver string // IDs of trees
}

func (n *NameTaken) Error() string {
	return fmt.Sprintf("tree %s: the receiver has another tree of that name; rename the one here (`sidus rename %s NAME`)", n.Name, n.Name)
}

// ChannelDivergence is a channel of the receiver that points to a snapshot that
// the sender does not know.
type ChannelDivergence struct {
	Channel  string
	Snapshot store.SnapshotID
}

func (c *ChannelDivergence) Error() string {
	return fmt.Sprintf("channel %s: at the receiver it points to snapshot %s, which the sender does not know; to keep that, bring it here before (`sidus send` there)",
		c.Channel, c.Snapshot)
}

// BadTarget is a channel of the sender whose snapshot cannot be sent.
type BadTarget struct {
	Channel  string
	Snapshot store.SnapshotID
}

func (b *BadTarget) Error() string {
	return fmt.Sprintf("channel %s: its snapshot %s is not here; let it point to one that is (`sidus promote`, `sidus channel rollback %s --to TREE@SNAP`)", b.Channel, b.Snapshot, b.Channel)
}

// BadLineage is a snapshot that is its own ancestor, or is listed twice.
type BadLineage struct {
	Snapshot store.SnapshotID
}

func (b *BadLineage) Error() string {
	return fmt.Sprintf("snapshot %s: its lineage makes no sense: the catalog is damaged; bring it back from a backup (`sidus restore`)", b.Snapshot)
}
