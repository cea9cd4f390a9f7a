package image

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/dustin/go-humanize/english"

	"sidus/image/catalog"
	"sidus/image/store"
)

// CreateTree makes a tree with an empty head.
func (m *Manager) CreateTree(ctx context.Context, name string) (Tree, error) {
	t := newTree(name, "")
	err := m.run(ctx, operation{
		action: "create",
		makes:  []store.VolumeID{t.Head},
		check:  func(tx *sql.Tx) error { return checkTreeName(tx, name) },
		work:   func(ctx context.Context) error { return m.createVolume(ctx, t.Head) },
		commit: func(tx *sql.Tx) error {
			if err := insertTree(tx, t); err != nil {
				return err
			}
			return m.record(tx, "create", t.ID, "made the tree %s", name)
		},
	})
	return t, err
}

// Branch makes a new tree whose head starts from a snapshot: a clone, at once.
func (m *Manager) Branch(ctx context.Context, from store.SnapshotID, name string) (Tree, error) {
	t := newTree(name, from)
	err := m.run(ctx, operation{
		action: "branch",
		makes:  []store.VolumeID{t.Head},
		uses:   []store.SnapshotID{from},
		check:  func(tx *sql.Tx) error { return checkTreeName(tx, name) },
		work: func(ctx context.Context) error {
			if err := m.clone(ctx, from, t.Head); err != nil {
				return err
			}
			return m.setProperties(ctx, t.Head, m.properties)
		},
		commit: func(tx *sql.Tx) error {
			origin, err := snapshotByID(tx, from)
			if err != nil {
				return err
			}
			if err := insertTree(tx, t); err != nil {
				return err
			}
			return m.record(tx, "branch", t.ID, "branched %s from %s", name, origin.Ref())
		},
	})
	return t, err
}

// Rename gives a tree another name. What is stored, and what nodes boot, does
// not change.
func (m *Manager) Rename(ctx context.Context, tree, name string) error {
	err := m.catalog.Update(ctx, func(tx *sql.Tx) error {
		if err := refuseReplica(tx); err != nil {
			return err
		}
		t, err := treeByName(tx, tree)
		if err != nil {
			return err
		}
		if err := checkTreeName(tx, name); err != nil {
			return err
		}
		if _, err := tx.Exec(`UPDATE tree SET name = ? WHERE id = ?`, name, t.ID); err != nil {
			return err
		}
		return m.record(tx, "rename", t.ID, "renamed %s to %s", tree, name)
	})
	if err == nil {
		m.keepCatalog(ctx)
	}
	return err
}

func newTree(name string, base store.SnapshotID) Tree {
	return Tree{ID: string(store.NewVolumeID()), Name: name, Head: store.NewVolumeID(), Base: base, Created: time.Now()}
}

func checkTreeName(tx *sql.Tx, name string) error {
	_, err := treeByName(tx, name)
	switch {
	case err == nil:
		return fmt.Errorf("tree %s: %w", name, store.ErrExists)
	case errors.Is(err, store.ErrNotFound):
		return nil
	}
	return err
}

func insertTree(tx *sql.Tx, t Tree) error {
	// Another process may have taken the name since it was checked.
	if err := checkTreeName(tx, t.Name); err != nil {
		return err
	}
	_, err := tx.Exec(`INSERT INTO tree (id, name, head, base, touched, created) VALUES (?, ?, ?, ?, FALSE, ?)`,
		t.ID, t.Name, t.Head, t.Base, catalog.Millis(t.Created))
	return err
}

// Origin describes where the head of a branch comes from: its base, if that
// is a snapshot of another tree.
func (m *Manager) Origin(ctx context.Context, t Tree) (Snapshot, bool, error) {
	if t.Base == "" {
		return Snapshot{}, false, nil
	}
	s, err := m.SnapshotRecord(ctx, t.Base)
	return s, err == nil && s.TreeID != t.ID, err
}

// DeleteTree deletes a tree: its head and all its snapshots. If anybody needs
// one of them the error is a *NeededError, and nothing is deleted.
func (m *Manager) DeleteTree(ctx context.Context, tree string, wait bool) error {
	return m.withHead(ctx, tree, nil, wait, func(t Tree) error {
		list, err := m.Snapshots(ctx, t)
		if err != nil {
			return err
		}
		ids := make([]store.SnapshotID, len(list))
		for i, s := range list {
			ids[i] = s.ID
		}
		if err := m.destroy(ctx, destruction{
			action:    "delete",
			what:      "tree " + t.Name,
			volumes:   []store.VolumeID{t.Head},
			snapshots: ids,
			ownTree:   t.ID,
			commit: func(tx *sql.Tx) error {
				if _, err := tx.Exec(`UPDATE tree SET deleted = ? WHERE id = ?`, catalog.Millis(time.Now()), t.ID); err != nil {
					return err
				}
				return m.record(tx, "delete", t.ID, "deleted the tree %s with %s", t.Name, english.Plural(len(ids), "snapshot", ""))
			},
		}); err != nil {
			return err
		}
		if err := os.Remove(m.layout.headLock(t.ID)); err != nil && !errors.Is(err, os.ErrNotExist) {
			m.log.WithError(err).Warn("an old lock file stays")
		}
		if err := m.layout.removeRecipe(t.ID); err != nil {
			m.log.WithError(err).Warnf("the recipe of %s stays; `sidus check --repair` removes it", t.Name)
		}
		return nil
	})
}

// DeleteSnapshot deletes a snapshot. If anybody needs it the error is a
// *NeededError.
func (m *Manager) DeleteSnapshot(ctx context.Context, id store.SnapshotID) error {
	s, err := m.SnapshotByID(ctx, id)
	if err != nil {
		return err
	}
	return m.destroy(ctx, destruction{
		action:    "delete",
		what:      "snapshot " + s.Ref(),
		snapshots: []store.SnapshotID{id},
		commit: func(tx *sql.Tx) error {
			return m.record(tx, "delete", s.TreeID, "deleted %s", s.Ref())
		},
	})
}

// RollbackReport says what a rollback did, and what it did not do.
type RollbackReport struct {
	Tree     string    `json:"tree"` // whose head it was
	To       Snapshot  `json:"to"`
	Saved    *Snapshot `json:"saved,omitempty"`    // holds what the head held, if that was in no snapshot
	Channels []Channel `json:"channels,omitempty"` // channels that still point to another snapshot of the tree
	Running  []Need    `json:"running,omitempty"`  // nodes that run another snapshot of the tree, or are pinned to one
}

// Rollback makes the head of a tree start again from a snapshot, of that tree
// or of another one. Later snapshots stay, so that it can be undone; a head that
// somebody may have written to is saved in a snapshot first, unless it is lost.
// Nothing that nodes boot is changed. The time it takes does not depend on the tree's size.
func (m *Manager) Rollback(ctx context.Context, tree string, to store.SnapshotID, wait bool) (report RollbackReport, err error) {
	report.Tree = tree
	err = m.withHead(ctx, tree, nil, wait, func(t Tree) error {
		// Whether a head that somebody may have written to really differs from its
		// base takes the longer the larger it is; a snapshot takes no time.
		if report.Saved, err = m.resetHead(ctx, t, to, t.Touched); err != nil {
			return err
		}
		if report.To, err = m.SnapshotByID(ctx, to); err != nil {
			return err
		}
		return m.catalog.View(ctx, func(tx *sql.Tx) error { return fillRollbackReport(tx, t, &report) })
	})
	return report, err
}

// resetHead replaces the head by a clone of a snapshot. What the head held is
// kept in a snapshot, if save is set.
func (m *Manager) resetHead(ctx context.Context, t Tree, to store.SnapshotID, save bool) (saved *Snapshot, err error) {
	head := store.NewVolumeID()
	var kept []store.SnapshotID
	if save {
		kept = []store.SnapshotID{store.NewSnapshotID()}
	}
	err = m.run(ctx, operation{
		action:    "rollback",
		makes:     []store.VolumeID{head},
		removes:   []store.VolumeID{t.Head},
		removed:   "the head before the rollback",
		snapshots: kept,
		uses:      []store.SnapshotID{to},
		work: func(ctx context.Context) error {
			for _, id := range kept {
				err := m.store.Snapshot(ctx, t.Head, id)
				if errors.Is(err, store.ErrNotFound) {
					m.log.Warnf("the store has lost the head of %s: what it held and no snapshot holds is gone", t.Name)
					kept = nil
					break
				}
				if err != nil {
					return err
				}
			}
			if err := m.clone(ctx, to, head); err != nil {
				return err
			}
			return m.carryProperties(ctx, t.Head, head)
		},
		commit: func(tx *sql.Tx) error {
			for _, id := range kept {
				s, err := m.insertSnapshot(tx, t, id, t.Base, SnapshotOptions{Message: "the head before a rollback"})
				if err != nil {
					return err
				}
				saved = &s
			}
			if err := setHead(tx, t.ID, head, to); err != nil {
				return err
			}
			target, err := snapshotByID(tx, to)
			if err != nil {
				return err
			}
			return m.record(tx, "rollback", t.ID, "rolled the head of %s back to %s", t.Name, target.Ref())
		},
	})
	return saved, err
}

func fillRollbackReport(tx *sql.Tx, t Tree, report *RollbackReport) error {
	channels, err := queryChannels(tx)
	if err != nil {
		return err
	}
	for _, c := range channels {
		if c.Snapshot.TreeID == t.ID && c.Snapshot.ID != report.To.ID {
			report.Channels = append(report.Channels, c)
		}
	}
	list, err := querySnapshots(tx, `snapshot.tree = ? AND snapshot.deleted IS NULL`, t.ID)
	if err != nil {
		return err
	}
	needs, err := needsOfAll(tx, list, t.ID)
	if err != nil {
		return err
	}
	for _, s := range list {
		for _, need := range needs[s.ID] {
			if s.ID != report.To.ID && (need.Kind == "pin" || need.Kind == "session") {
				report.Running = append(report.Running, need)
			}
		}
	}
	return nil
}

// String tells the report to people.
func (r RollbackReport) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "the head of %s is now %s; later snapshots are still there\n", r.Tree, r.To.Ref())
	if r.Saved != nil {
		fmt.Fprintf(&b, "what the head held is saved as %s\n", r.Saved.Ref())
	}
	for _, c := range r.Channels {
		fmt.Fprintf(&b, "channel %s still points to %s: `sidus channel rollback %s --to %s` changes what its nodes boot\n", c.Name, c.Snapshot.Ref(), c.Name, r.To.Ref())
	}
	for _, n := range r.Running {
		fmt.Fprintf(&b, "%s\n", n.Text)
	}
	return b.String()
}
