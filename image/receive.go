package image

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"sidus/image/catalog"
	"sidus/image/store"
)

// ReceiveOptions describe a snapshot that comes from another server.
type ReceiveOptions struct {
	// Snapshot is what the other server says of it. Its ID is kept, with its
	// parent, phase, key, recipe, author, message and time; its number and
	// name, too, if they are free in the tree here.
	Snapshot Snapshot
	// Tree is the name of the tree to list it under; "": that of Snapshot.
	Tree string
	// Base is the snapshot that it comes as a difference to; "": none.
	Base store.SnapshotID
	// Source says where it comes from, for the history.
	Source string
	// Replicated says that it comes from the primary of this site. Only a
	// replica takes it then, and else only a primary.
	Replicated bool
	// Take makes the snapshot in the store. It may make the volume scratch
	// meanwhile. It should destroy that again; what it leaves is destroyed.
	Take func(ctx context.Context, scratch store.VolumeID) error
}

// Receive takes a snapshot from another server under its own ID. A tree that
// is not here yet is made, with the ID that it has there and a head that
// starts from the snapshot; one that is here, known by that ID, gets a
// snapshot more, and keeps its head. Until all of it is there, nothing of it
// shows.
//
// The error wraps store.ErrExists if the snapshot is here already, or if the
// name is that of another tree; store.ErrNotFound if the base is missing.
func (m *Manager) Receive(ctx context.Context, options ReceiveOptions) (s Snapshot, err error) {
	id := options.Snapshot.ID
	if err := id.Validate(); err != nil {
		return s, err
	}
	t, fresh, err := m.receivingTree(ctx, options)
	if err != nil {
		return s, err
	}
	if !fresh && len(m.properties) > 0 {
		return s, fmt.Errorf("the tree %s: %w, and properties are for a new one: `sidus set %s NAME=VALUE` changes it", t.Name, store.ErrExists, t.Name)
	}
	scratch := store.NewVolumeID()
	op := operation{
		action:    "import",
		makes:     []store.VolumeID{scratch},
		removes:   []store.VolumeID{scratch}, // if Take could not
		removed:   "the volume that the import worked in",
		snapshots: []store.SnapshotID{id},
		check:     func(tx *sql.Tx) error { return checkReceived(tx, id, options.Replicated) },
		// checkReceived looks at the role.
		replicated: true,
		work: func(ctx context.Context) error {
			if err := options.Take(ctx, scratch); err != nil || !fresh {
				return err
			}
			if err := m.store.Clone(ctx, id, t.Head); err != nil {
				return err
			}
			return m.setProperties(ctx, t.Head, m.properties)
		},
		commit: func(tx *sql.Tx) error {
			// Another process may have been quicker.
			if err := checkReceived(tx, id, options.Replicated); err != nil {
				return err
			}
			if fresh {
				if err := insertTree(tx, t); err != nil {
					return err
				}
			}
			s, err = m.insertReceived(tx, t, options)
			return err
		},
	}
	if fresh {
		op.makes = append(op.makes, t.Head)
	}
	if options.Base != "" {
		op.uses = []store.SnapshotID{options.Base}
	}
	// Whatever holds the ID must not be destroyed by a failure of this
	// operation, which names it.
	if err := m.refuseHeld(ctx, id); err != nil {
		return s, err
	}
	return s, m.run(ctx, op)
}

// receivingTree finds or describes the tree that a snapshot is listed under.
func (m *Manager) receivingTree(ctx context.Context, options ReceiveOptions) (t Tree, fresh bool, err error) {
	name := options.Tree
	if name == "" {
		name = options.Snapshot.Tree
	}
	err = m.catalog.View(ctx, func(tx *sql.Tx) error {
		if err := ValidateName("tree", name); err != nil {
			return err
		}
		known, err := scanTree(tx.QueryRow(`SELECT `+treeColumns+` FROM tree WHERE id = ? AND deleted IS NULL`, options.Snapshot.TreeID))
		if err == nil {
			if options.Tree != "" && known.Name != options.Tree {
				return fmt.Errorf("the tree %s: %w: it is %s here; leave the name out", options.Snapshot.Tree, store.ErrExists, known.Name)
			}
			t = known
			return nil
		}
		if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if other, err := treeByName(tx, name); err == nil && options.Replicated {
			// The primary has renamed trees: its catalog, which comes last,
			// has all their names.
			name += "-" + options.Snapshot.TreeID[:min(8, len(options.Snapshot.TreeID))]
		} else if err == nil {
			return fmt.Errorf("tree %s: %w, and is another one (made %s); give another name", name, store.ErrExists, other.Created.Format("2006-01-02 15:04"))
		}
		t, fresh = newTree(name, options.Snapshot.ID), true
		var used int
		if err := tx.QueryRow(`SELECT COUNT(*) FROM tree WHERE id = ?`, options.Snapshot.TreeID).Scan(&used); err != nil {
			return err
		}
		if store.VolumeID(options.Snapshot.TreeID).Validate() == nil && used == 0 {
			t.ID = options.Snapshot.TreeID
		}
		return nil
	})
	return t, fresh, err
}

func checkReceived(tx *sql.Tx, id store.SnapshotID, replicated bool) error {
	if err := checkRole(tx, replicated); err != nil {
		return err
	}
	old, err := anySnapshotByID(tx, id)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil
	case err == nil && old.Deleted.IsZero():
		return fmt.Errorf("snapshot %s: %w, as %s", id, store.ErrExists, old.Ref())
	}
	return err
}

// refuseHeld returns an error if the store, or another process, has something
// under the ID.
func (m *Manager) refuseHeld(ctx context.Context, id store.SnapshotID) error {
	known, err := m.knowledge(ctx)
	if err != nil {
		return err
	}
	if _, retired := known.retired[string(id)]; retired {
		return fmt.Errorf("snapshot %s: %w: it was deleted and not destroyed yet; `sidus gc` does that", id, store.ErrExists)
	}
	if known.busy[string(id)] {
		return fmt.Errorf("snapshot %s: %w: another process is at work on it", id, store.ErrInUse)
	}
	items, err := m.store.List(ctx)
	if err != nil {
		return err
	}
	for _, item := range items {
		if item.Kind == store.KindSnapshot && item.Snapshot == id && known.named[string(id)] == "" {
			return fmt.Errorf("snapshot %s: the store %w, but the catalog does not name it; see `sidus check`", id, store.ErrExists)
		}
	}
	if what := known.named[string(id)]; what != "" {
		return fmt.Errorf("%s %w", what, store.ErrExists)
	}
	return nil
}

// insertReceived makes a received snapshot visible.
func (m *Manager) insertReceived(tx *sql.Tx, t Tree, options ReceiveOptions) (Snapshot, error) {
	s := options.Snapshot
	if checkSnapshotName(tx, t, s.Name) != nil {
		m.log.Warnf("%s of %s has no name here: %s is taken, or no name", s.ID, t.Name, s.Name)
		s.Name = ""
	}
	var next, used int
	if err := tx.QueryRow(`SELECT next_number FROM tree WHERE id = ? AND deleted IS NULL`, t.ID).Scan(&next); err != nil {
		return s, fmt.Errorf("tree %s: %w", t.Name, err)
	}
	// What is on record as deleted under this ID is here again.
	if err := tx.QueryRow(`SELECT COUNT(*) FROM snapshot WHERE tree = ? AND number = ? AND id <> ?`, t.ID, s.Number, s.ID).Scan(&used); err != nil {
		return s, err
	}
	if s.Number < 1 || used > 0 {
		s.Number = next
	}
	if _, err := tx.Exec(`UPDATE tree SET next_number = ? WHERE id = ?`, max(next, s.Number+1), t.ID); err != nil {
		return s, err
	}
	_, err := tx.Exec(`INSERT INTO snapshot (id, tree, number, name, phase, key, recipe, parent, complete, author, message, created)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET tree = excluded.tree, number = excluded.number, name = excluded.name, phase = excluded.phase,
		key = excluded.key, recipe = excluded.recipe, parent = excluded.parent, complete = excluded.complete, author = excluded.author,
		message = excluded.message, created = excluded.created, deleted = NULL`,
		s.ID, t.ID, s.Number, s.Name, s.Phase, s.Key, s.Recipe, s.Parent, s.Complete, s.Author, s.Message, catalog.Millis(s.Created))
	if err != nil {
		return s, fmt.Errorf("snapshot %s@%d: %w", t.Name, s.Number, err)
	}
	if s, err = snapshotByID(tx, s.ID); err != nil {
		return s, err
	}
	return s, m.record(tx, "import", t.ID, "received %s from %s", s.Ref(), options.Source)
}
