package image

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"sidus/image/catalog"
	"sidus/image/store"
)

// Promote makes a channel point to a complete snapshot: one durable
// transaction. The channel is made if it is not there. A boot that asks
// before gets the old snapshot, one that asks after the new one; what runs is
// not touched. It returns the channel and what it pointed to before (the zero
// Snapshot: nothing).
//
// Whether the tree holds secrets is the caller's to check (FindSecrets), as
// is the index, which the first boot would else wait for (Index).
func (m *Manager) Promote(ctx context.Context, id store.SnapshotID, channel, note string) (c Channel, before Snapshot, err error) {
	if err := ValidateName("channel", channel); err != nil {
		return c, before, err
	}
	err = m.catalog.Update(ctx, func(tx *sql.Tx) error {
		s, err := snapshotByID(tx, id)
		if err != nil {
			return err
		}
		if err := m.requireComplete(s); err != nil {
			return err
		}
		c, before, err = m.moveChannel(tx, channel, s, "promote", note)
		return err
	})
	if err == nil {
		m.keepCatalog(ctx)
	}
	return c, before, err
}

func (m *Manager) requireComplete(s Snapshot) error {
	if s.Complete {
		return nil
	}
	if s.Phase == "" {
		return fmt.Errorf("%s is %w: it was saved when the head was replaced; to make nodes boot it, `sidus rollback %s`, then `sidus snapshot %s`",
			s.Ref(), ErrIncomplete, s.Ref(), s.Tree)
	}
	return fmt.Errorf("%s is %w: it is a step of a build (phase %s), and nodes may only boot what a build ended with or somebody chose; `sidus log %s` shows the complete ones",
		s.Ref(), ErrIncomplete, s.Phase, s.Tree)
}

// moveChannel points a channel to a snapshot and writes its history.
func (m *Manager) moveChannel(tx *sql.Tx, name string, s Snapshot, action, note string) (c Channel, before Snapshot, err error) {
	if err := refuseReplica(tx); err != nil {
		return c, before, err
	}
	now := catalog.Millis(time.Now())
	old, err := queryChannel(tx, name)
	if err == nil {
		before = old.Snapshot
	} else if !errors.Is(err, store.ErrNotFound) {
		return c, before, err
	}
	_, err = tx.Exec(`INSERT INTO channel (name, snapshot, changed) VALUES (?, ?, ?)
		ON CONFLICT (name) DO UPDATE SET snapshot = excluded.snapshot, changed = excluded.changed`, name, s.ID, now)
	if err != nil {
		return c, before, fmt.Errorf("channel %s: %w", name, err)
	}
	message := m.message
	if note != "" && message != "" {
		message += " (" + note + ")"
	} else if note != "" {
		message = note
	}
	_, err = tx.Exec(`INSERT INTO channel_history (channel, snapshot, previous, action, actor, message, at) VALUES (?, ?, ?, ?, ?, ?, ?)`,
		name, s.ID, before.ID, action, m.actor.User, message, now)
	if err != nil {
		return c, before, fmt.Errorf("channel %s: %w", name, err)
	}
	verb := map[string]string{"promote": "promoted", "rollback": "rolled back to"}[action]
	if err := m.record(tx, action, "channel "+name, "%s %s on channel %s", verb, s.Ref(), name); err != nil {
		return c, before, err
	}
	c, err = queryChannel(tx, name)
	return c, before, err
}

const channelQuery = `SELECT name, snapshot, keep, changed,
	(SELECT COUNT(*) FROM node WHERE node.channel = channel.name AND node.pin = '') FROM channel`

func queryChannel(tx *sql.Tx, name string) (Channel, error) {
	channels, err := scanChannels(tx, channelQuery+` WHERE name = ?`, name)
	if err != nil {
		return Channel{}, err
	}
	if len(channels) == 0 {
		return Channel{}, fmt.Errorf("channel %s: %w; `sidus channel list` shows what there is", name, store.ErrNotFound)
	}
	return channels[0], nil
}

func queryChannels(tx *sql.Tx) ([]Channel, error) {
	return scanChannels(tx, channelQuery+` ORDER BY name`)
}

func scanChannels(tx *sql.Tx, query string, args ...any) ([]Channel, error) {
	rows, err := tx.Query(query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var channels []Channel
	for rows.Next() {
		var c Channel
		var changed int64
		if err := rows.Scan(&c.Name, &c.Snapshot.ID, &c.Keep, &changed, &c.Nodes); err != nil {
			return nil, err
		}
		c.Changed = catalog.Time(changed)
		channels = append(channels, c)
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	for i := range channels {
		if channels[i].Snapshot, err = snapshotByID(tx, channels[i].Snapshot.ID); err != nil {
			return nil, err
		}
	}
	return channels, nil
}

// Channels returns all channels, by name.
func (m *Manager) Channels(ctx context.Context) (channels []Channel, err error) {
	err = m.catalog.View(ctx, func(tx *sql.Tx) error {
		channels, err = queryChannels(tx)
		return err
	})
	return channels, err
}

// Channel returns the channel of that name. The error wraps
// store.ErrNotFound.
func (m *Manager) Channel(ctx context.Context, name string) (c Channel, err error) {
	err = m.catalog.View(ctx, func(tx *sql.Tx) error {
		c, err = queryChannel(tx, name)
		return err
	})
	return c, err
}

// ChannelHistory returns the moves of a channel, the newest first. A channel
// that was deleted still has its history.
func (m *Manager) ChannelHistory(ctx context.Context, name string) (history []ChannelMove, err error) {
	err = m.catalog.View(ctx, func(tx *sql.Tx) error {
		history, err = queryHistory(tx, name)
		if err == nil && len(history) == 0 {
			return fmt.Errorf("channel %s: %w", name, store.ErrNotFound)
		}
		return err
	})
	return history, err
}

func queryHistory(tx *sql.Tx, name string) ([]ChannelMove, error) {
	history, err := scanHistory(tx, name)
	if err != nil {
		return nil, err
	}
	current, err := queryChannel(tx, name)
	if errors.Is(err, store.ErrNotFound) {
		return history, nil // deleted: nothing is current, nothing is kept
	}
	if err != nil {
		return nil, err
	}
	kept := map[store.SnapshotID]bool{current.Snapshot.ID: true}
	for i := range history {
		move := &history[i]
		if i == 0 {
			move.Current = true
		}
		if move.Snapshot != "" && !kept[move.Snapshot] && len(kept) <= current.Keep {
			kept[move.Snapshot] = true
		}
		move.Kept = kept[move.Snapshot]
	}
	return history, nil
}

func scanHistory(tx *sql.Tx, name string) ([]ChannelMove, error) {
	rows, err := tx.Query(`SELECT at, action, channel_history.snapshot, previous, actor, channel_history.message,
			COALESCE(tree.name || '@' || snapshot.number, '')
		FROM channel_history LEFT JOIN snapshot ON snapshot.id = channel_history.snapshot LEFT JOIN tree ON tree.id = snapshot.tree
		WHERE channel = ? ORDER BY channel_history.id DESC`, name)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var history []ChannelMove
	for rows.Next() {
		var move ChannelMove
		var at int64
		if err := rows.Scan(&at, &move.Action, &move.Snapshot, &move.Previous, &move.Actor, &move.Message, &move.Ref); err != nil {
			return nil, err
		}
		move.At = catalog.Time(at)
		history = append(history, move)
	}
	return history, rows.Err()
}

// RollbackChannel makes a channel point to what it pointed to before, or, if
// to is not empty, to a complete snapshot that is named. Done twice it goes
// back by two: it is an undo, not a swap.
func (m *Manager) RollbackChannel(ctx context.Context, name string, to store.SnapshotID) (c Channel, before Snapshot, err error) {
	err = m.catalog.Update(ctx, func(tx *sql.Tx) error {
		if _, err := queryChannel(tx, name); err != nil {
			return err
		}
		target := to
		if target == "" {
			history, err := queryHistory(tx, name)
			if err != nil {
				return err
			}
			if target = rollbackTarget(history); target == "" {
				return fmt.Errorf("channel %s: %w: it never pointed to anything else; `--to TREE@N` chooses", name, store.ErrNotFound)
			}
		}
		s, err := snapshotByID(tx, target)
		if err != nil {
			return fmt.Errorf("%w; `sidus channel history %s` shows where `--to` can go", err, name)
		}
		if err := m.requireComplete(s); err != nil {
			return err
		}
		c, before, err = m.moveChannel(tx, name, s, "rollback", "")
		return err
	})
	if err == nil {
		m.keepCatalog(ctx)
	}
	return c, before, err
}

// rollbackTarget replays a channel's history, the newest move first, as a
// stack of undos and returns what lies below the top; "" if nothing does.
func rollbackTarget(history []ChannelMove) store.SnapshotID {
	var stack []store.SnapshotID
	for _, move := range slices.Backward(history) {
		switch move.Action {
		case "delete":
			stack = nil
		case "rollback":
			if at := lastIndex(stack, move.Snapshot); at >= 0 {
				stack = stack[:at+1]
				continue
			}
			fallthrough
		default:
			if len(stack) == 0 || stack[len(stack)-1] != move.Snapshot {
				stack = append(stack, move.Snapshot)
			}
		}
	}
	if len(stack) < 2 {
		return ""
	}
	return stack[len(stack)-2]
}

func lastIndex(stack []store.SnapshotID, id store.SnapshotID) int {
	for i, s := range slices.Backward(stack) {
		if s == id {
			return i
		}
	}
	return -1
}

// SetChannelKeep sets how many earlier snapshots of a channel stay protected
// for a rollback.
func (m *Manager) SetChannelKeep(ctx context.Context, name string, keep int) error {
	if keep < 0 || keep > 1000 {
		return fmt.Errorf("channel %s: --keep %d: it is 0 to 1000", name, keep)
	}
	return m.catalog.Update(ctx, func(tx *sql.Tx) error {
		if err := refuseReplica(tx); err != nil {
			return err
		}
		if _, err := queryChannel(tx, name); err != nil {
			return err
		}
		if _, err := tx.Exec(`UPDATE channel SET keep = ? WHERE name = ?`, keep, name); err != nil {
			return err
		}
		return m.record(tx, "channel-set", "channel "+name, "channel %s keeps %d earlier snapshots", name, keep)
	})
}

// DeleteChannel deletes a channel. It is refused, with a *NeededError, while
// nodes or networks follow it.
func (m *Manager) DeleteChannel(ctx context.Context, name string) error {
	err := m.catalog.Update(ctx, func(tx *sql.Tx) error {
		if err := refuseReplica(tx); err != nil {
			return err
		}
		c, err := queryChannel(tx, name)
		if err != nil {
			return err
		}
		var needs []Need
		err = eachRow(tx, func(node, mac string) {
			needs = append(needs, Need{"", "", "node", node, fmt.Sprintf("node %s follows it", nodeName(node, mac))})
		}, `SELECT name, mac FROM node WHERE channel = ? ORDER BY name`, name)
		if err != nil {
			return err
		}
		err = eachRow(tx, func(network, subnet string) {
			needs = append(needs, Need{"", "", "network", network, fmt.Sprintf("machines of network %s (%s) boot it unless told otherwise", network, subnet)})
		}, `SELECT name, subnet FROM network WHERE channel = ? ORDER BY name`, name)
		if err != nil {
			return err
		}
		if len(needs) > 0 {
			return &NeededError{What: "channel " + name, Needs: needs}
		}
		if _, err := tx.Exec(`DELETE FROM channel WHERE name = ?`, name); err != nil {
			return err
		}
		_, err = tx.Exec(`INSERT INTO channel_history (channel, snapshot, previous, action, actor, message, at) VALUES (?, '', ?, 'delete', ?, ?, ?)`,
			name, c.Snapshot.ID, m.actor.User, m.message, catalog.Millis(time.Now()))
		if err != nil {
			return err
		}
		return m.record(tx, "delete", "channel "+name, "deleted the channel %s, which pointed to %s", name, c.Snapshot.Ref())
	})
	if err == nil {
		m.keepCatalog(ctx)
	}
	return err
}

func nodeName(name, mac string) string {
	if name == "" {
		return mac
	}
	return name
}
