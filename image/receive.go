package image

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"

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
// snapshot more, and keeps its head. One that the catalog names and the store
// has lost comes back as what it was. Until all of it is there, nothing of it
// shows. What a process that is dead has left under the ID is removed before.
//
// The error wraps store.ErrExists if the snapshot is here already, or if the
// name is that of another tree; store.ErrNotFound if the base is missing;
// store.ErrInUse if another process is at work on it.
func (m *Manager) Receive(ctx context.Context, options ReceiveOptions) (s Snapshot, err error) {
	id := options.Snapshot.ID
	if err := id.Validate(); err != nil {
		return s, err
	}
	place, err := m.clearPlace(ctx, id)
	if err != nil {
		return s, err
	}
	lost := place == placeLost
	t, fresh, err := m.receivingTree(ctx, options, lost)
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
		check: func(tx *sql.Tx) error {
			// A failure of this operation destroys what it names: nothing else
			// may have it, and from now on nobody else can.
			if err := refuseTaken(tx, id); err != nil {
				return err
			}
			return checkReceived(tx, id, options.Replicated, lost)
		},
		// checkReceived looks at the role.
		replicated: true,
		work: func(ctx context.Context) error {
			if place == placePartial || lost {
				if err := m.destroyItem(ctx, store.Item{Kind: store.KindSnapshot, Snapshot: id}); err != nil {
					return err
				}
			}
			if err := options.Take(ctx, scratch); err != nil || !fresh {
				return err
			}
			if err := m.store.Clone(ctx, id, t.Head); err != nil {
				return err
			}
			return m.setProperties(ctx, t.Head, m.properties)
		},
		commit: func(tx *sql.Tx) error {
			// The role may be another one now.
			if err := checkReceived(tx, id, options.Replicated, lost); err != nil {
				return err
			}
			if fresh {
				if err := bringTree(tx, t); err != nil {
					return err
				}
			}
			s, err = m.insertReceived(tx, t, options, lost)
			return err
		},
	}
	if fresh {
		op.makes = append(op.makes, t.Head)
	}
	if options.Base != "" {
		op.uses = []store.SnapshotID{options.Base}
	}
	return s, m.run(ctx, op)
}

// receivingTree finds or describes the tree that a snapshot is listed under.
func (m *Manager) receivingTree(ctx context.Context, options ReceiveOptions, lost bool) (t Tree, fresh bool, err error) {
	if lost {
		s, err := m.SnapshotByID(ctx, options.Snapshot.ID)
		if err != nil {
			return t, false, err
		}
		t, err = m.treeByID(ctx, s.TreeID)
		return t, false, err
	}
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
			id := options.Snapshot.TreeID[:min(8, len(options.Snapshot.TreeID))]
			name = name[:min(len(name), maxName-1-len(id))] + "-" + id
		} else if err == nil {
			return fmt.Errorf("tree %s: %w, and is another one (made %s); give another name", name, store.ErrExists, other.Created.Format("2006-01-02 15:04"))
		}
		t, fresh = newTree(name, options.Snapshot.ID), true
		if options.Replicated && store.VolumeID(options.Snapshot.TreeID).Validate() == nil {
			t.ID = options.Snapshot.TreeID // also if it was deleted here: it is the primary's
			return nil
		}
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

// bringTree makes a tree that comes from another server visible, also one that is
// on record as deleted.
func bringTree(tx *sql.Tx, t Tree) error {
	result, err := tx.Exec(`UPDATE tree SET name = ?, head = ?, base = ?, touched = FALSE, deleted = NULL WHERE id = ? AND deleted IS NOT NULL`,
		t.Name, t.Head, t.Base, t.ID)
	if err != nil {
		return fmt.Errorf("tree %s: %w", t.Name, err)
	}
	if n, err := result.RowsAffected(); err != nil || n > 0 {
		return err
	}
	return insertTree(tx, t)
}

// checkReceived refuses a snapshot that the catalog names, unless it is known to
// be lost.
func checkReceived(tx *sql.Tx, id store.SnapshotID, replicated, lost bool) error {
	if err := checkRole(tx, replicated); err != nil {
		return err
	}
	old, err := anySnapshotByID(tx, id)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil
	case err == nil && old.Deleted.IsZero() && !lost:
		return fmt.Errorf("snapshot %s: %w, as %s", id, store.ErrExists, old.Ref())
	}
	return err
}

// refuseTaken refuses an ID that is on record as one that somebody makes or
// destroys.
func refuseTaken(tx *sql.Tx, id store.SnapshotID) error {
	intents, err := catalog.Intents(tx)
	if err != nil {
		return err
	}
	for _, i := range intents {
		if slices.Contains(i.Snapshots, id) {
			return fmt.Errorf("snapshot %s: %w: another process is at work on it (`%s` of %s, process %d); try again when it is done",
				id, store.ErrInUse, i.Actor.Command, i.Actor.User, i.Process.PID)
		}
	}
	retired, err := queryRetired(tx)
	if err != nil {
		return err
	}
	for _, r := range retired {
		if r.ID == string(id) {
			return fmt.Errorf("snapshot %s: %w: it was deleted and is not destroyed yet: %s", id, store.ErrInUse, r.Reason)
		}
	}
	return nil
}

// place is what there is under the ID of a snapshot that comes.
type place int

const (
	placeFree    place = iota
	placePartial       // something half-made, which nobody has announced
	placeLost          // the catalog names it, and the store holds half of it or nothing
)

// clearPlace makes room for a snapshot that comes: it removes what dead
// processes have left under its ID, and what was deleted and not destroyed yet.
// The error wraps store.ErrExists if the snapshot is here, or something that
// nobody knows.
func (m *Manager) clearPlace(ctx context.Context, id store.SnapshotID) (place, error) {
	known, err := m.knowledge(ctx)
	if err != nil {
		return placeFree, err
	}
	for _, i := range known.intents {
		if slices.Contains(i.Snapshots, id) && !i.Process.Alive() {
			if err := m.settle(ctx, i); err != nil {
				return placeFree, fmt.Errorf("snapshot %s: what a cut %s has left: %w", id, i.Action, err)
			}
		}
	}
	if _, retired := known.retired[string(id)]; retired && !known.busy[string(id)] {
		if _, _, err := m.collectRetired(ctx, []string{string(id)}, false); err != nil {
			return placeFree, err
		}
	}
	held, err := m.held(ctx)
	if err != nil {
		return placeFree, err
	}
	item, there := held[string(id)]
	whole := there && !item.Partial
	switch what := known.named[string(id)]; {
	case what != "" && whole:
		return placeFree, fmt.Errorf("%s %w", what, store.ErrExists)
	case what != "":
		return placeLost, nil
	case known.knows(string(id)): // whether it still is, is looked at when the intent is written
		return placeFree, nil
	case whole:
		return placeFree, fmt.Errorf("snapshot %s: the store %w, but the catalog does not name it; see `sidus check`", id, store.ErrExists)
	case there:
		return placePartial, nil
	}
	return placeFree, nil
}

// insertReceived makes a received snapshot visible. One that was lost is
// already.
func (m *Manager) insertReceived(tx *sql.Tx, t Tree, options ReceiveOptions, lost bool) (Snapshot, error) {
	s := options.Snapshot
	if lost {
		old, err := snapshotByID(tx, s.ID)
		if err != nil {
			return s, err
		}
		return old, m.record(tx, "import", t.ID, "received %s, which was lost, from %s", old.Ref(), options.Source)
	}
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
