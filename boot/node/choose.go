package node

import (
	"database/sql"
	"fmt"

	"sidus/image/store"
)

// Reason says why there is nothing to boot for a machine. "" means that there
// is something.
type Reason string

// The reasons.
const (
	// ReasonNotServed: the machine's address is in none of the networks.
	ReasonNotServed Reason = "network-not-served"
	// ReasonUnknown: the machine is not known, and the network boots nothing
	// for unknown machines.
	ReasonUnknown Reason = "unknown-machine"
	// ReasonNoChannel: neither the node nor its network has a channel, and
	// the node has no pin.
	ReasonNoChannel Reason = "no-channel"
	// ReasonChannelMissing: there is no channel of the name.
	ReasonChannelMissing Reason = "channel-missing"
	// ReasonSnapshotGone: the snapshot was deleted, or is not in the catalog.
	ReasonSnapshotGone Reason = "snapshot-gone"
)

// Choice is what a machine boots, and why.
type Choice struct {
	// Snapshot is what it boots; the zero value, if Reason is set, or the
	// snapshot that is gone.
	Snapshot Ref `json:"snapshot,omitzero"`
	// Channel is the channel that was followed; "" if the node is pinned, or
	// there is none to follow.
	Channel string `json:"channel,omitempty"`
	// Pinned is set if the node is pinned.
	Pinned bool `json:"pinned,omitempty"`
	// Network is the network that the machine is in.
	Network string `json:"network,omitempty"`
	// Reason says why there is nothing to boot.
	Reason Reason `json:"reason,omitempty"`
}

// Sentence says for people why there is nothing to boot, "" if there is
// something.
func (c Choice) Sentence() string {
	switch c.Reason {
	case ReasonNotServed:
		return "its address is in no network that is served"
	case ReasonUnknown:
		return fmt.Sprintf("the machine is not known, and network %s boots nothing for unknown machines", c.Network)
	case ReasonNoChannel:
		if c.Network == "" {
			return "the node has neither channel nor pin, and was seen in no network yet"
		}
		return fmt.Sprintf("the node has neither channel nor pin, and network %s has no default channel", c.Network)
	case ReasonChannelMissing:
		return fmt.Sprintf("channel %s does not exist; nothing has been promoted to it", c.Channel)
	case ReasonSnapshotGone:
		return fmt.Sprintf("snapshot %s was deleted", c.Snapshot)
	}
	return ""
}

// choose says what a node boots in a network: its pin, else its channel, else
// the network's. A network without a name is one that is not known.
func choose(tx *sql.Tx, n Node, network Network) (Choice, error) {
	choice := Choice{Channel: n.Channel, Network: network.Name}
	var id store.SnapshotID
	switch {
	case n.Pin != "":
		choice.Channel, choice.Pinned, id = "", true, n.Pin
	case n.Channel == "" && network.Channel == "":
		choice.Reason = ReasonNoChannel
		if !n.Registered {
			choice.Reason = ReasonUnknown
		}
		return choice, nil
	default:
		if n.Channel == "" {
			choice.Channel = network.Channel
		}
		err := tx.QueryRow(`SELECT snapshot FROM channel WHERE name = ?`, choice.Channel).Scan(&id)
		if err == sql.ErrNoRows {
			choice.Reason = ReasonChannelMissing
			return choice, nil
		}
		if err != nil {
			return choice, fmt.Errorf("catalog: %w", err)
		}
	}
	ref, exists, err := refOf(tx, id)
	if err != nil {
		return choice, err
	}
	choice.Snapshot = ref
	if !exists {
		choice.Reason = ReasonSnapshotGone
	}
	return choice, nil
}
