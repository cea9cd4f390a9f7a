package image

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"sidus/image/catalog"
	"sidus/image/store"
)

// SnapshotOptions describe a snapshot that is taken.
type SnapshotOptions struct {
	Name     string // a name beside the number; "" for none
	Phase    string // the build's phase; "" if made by hand
	Key      string // hash of all that the phase used
	Recipe   string // where it comes from
	Message  string // "": the Manager's message
	Complete bool   // it can be promoted
}

// Snapshot takes a snapshot of a tree's head. If lock is nil, the head's lock
// is taken meanwhile, and waited for if wait is set.
func (m *Manager) Snapshot(ctx context.Context, tree string, lock *HeadLock, wait bool, options SnapshotOptions) (s Snapshot, err error) {
	err = m.withHead(ctx, tree, lock, wait, func(t Tree) error {
		s, err = m.snapshotVolume(ctx, t, t.Head, t.Base, options, func(tx *sql.Tx, id store.SnapshotID) error {
			return setHead(tx, t.ID, t.Head, id)
		})
		return err
	})
	return s, err
}

// snapshotVolume takes a snapshot of a volume and lists it under the tree.
// also runs in the transaction that makes it visible; it may be nil.
func (m *Manager) snapshotVolume(ctx context.Context, t Tree, volume store.VolumeID, parent store.SnapshotID, options SnapshotOptions, also func(tx *sql.Tx, id store.SnapshotID) error) (s Snapshot, err error) {
	id := store.NewSnapshotID()
	err = m.run(ctx, operation{
		action:    "snapshot",
		snapshots: []store.SnapshotID{id},
		check:     func(tx *sql.Tx) error { return checkSnapshotName(tx, t, options.Name) },
		work:      func(ctx context.Context) error { return m.store.Snapshot(ctx, volume, id) },
		commit: func(tx *sql.Tx) error {
			if s, err = m.insertSnapshot(tx, t, id, parent, options); err != nil {
				return err
			}
			if also == nil {
				return nil
			}
			return also(tx, id)
		},
	})
	return s, err
}

func checkSnapshotName(tx *sql.Tx, t Tree, name string) error {
	if name == "" {
		return nil
	}
	if err := validateSnapshotName(name); err != nil {
		return err
	}
	taken, err := querySnapshots(tx, `snapshot.tree = ? AND snapshot.name = ? AND snapshot.deleted IS NULL`, t.ID, name)
	if err != nil {
		return err
	}
	if len(taken) > 0 {
		return fmt.Errorf("snapshot %s@%s: %w: it is %s", t.Name, name, store.ErrExists, taken[0].Ref())
	}
	return nil
}

// insertSnapshot makes the snapshot visible under the next number of its tree.
func (m *Manager) insertSnapshot(tx *sql.Tx, t Tree, id, parent store.SnapshotID, options SnapshotOptions) (Snapshot, error) {
	if err := checkSnapshotName(tx, t, options.Name); err != nil {
		return Snapshot{}, err
	}
	message := options.Message
	if message == "" {
		message = m.message
	}
	var number int
	if err := tx.QueryRow(`UPDATE tree SET next_number = next_number + 1 WHERE id = ? AND deleted IS NULL RETURNING next_number - 1`, t.ID).Scan(&number); err != nil {
		return Snapshot{}, fmt.Errorf("tree %s: %w", t.Name, err)
	}
	_, err := tx.Exec(`INSERT INTO snapshot (id, tree, number, name, phase, key, recipe, parent, complete, author, message, created)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		id, t.ID, number, options.Name, options.Phase, options.Key, options.Recipe, parent, options.Complete, m.actor.User, message, catalog.Millis(time.Now()))
	if err != nil {
		return Snapshot{}, fmt.Errorf("snapshot %s@%d: %w", t.Name, number, err)
	}
	s, err := snapshotByID(tx, id)
	if err != nil {
		return s, err
	}
	return s, m.record(tx, "snapshot", t.ID, "took %s%s", s.Ref(), phaseNote(options.Phase))
}

func phaseNote(phase string) string {
	if phase == "" {
		return ""
	}
	return " after the phase " + phase
}

// setHead points the tree to a head volume that is equal to base.
func setHead(tx *sql.Tx, tree string, head store.VolumeID, base store.SnapshotID) error {
	if _, err := tx.Exec(`UPDATE tree SET head = ?, base = ?, touched = FALSE WHERE id = ?`, head, base, tree); err != nil {
		return fmt.Errorf("set the head: %w", err)
	}
	return nil
}
