package image

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"sidus/image/catalog"
	"sidus/image/store"
)

const treeColumns = `tree.id, tree.name, tree.head, tree.base, tree.touched, tree.created`

func scanTree(row interface{ Scan(...any) error }) (Tree, error) {
	var t Tree
	var created int64
	err := row.Scan(&t.ID, &t.Name, &t.Head, &t.Base, &t.Touched, &created)
	t.Created = catalog.Time(created)
	return t, err
}

const snapshotColumns = `snapshot.id, snapshot.tree, tree.name, snapshot.number, snapshot.name, snapshot.phase,
	snapshot.key, snapshot.recipe, snapshot.parent, snapshot.complete, snapshot.author, snapshot.message,
	snapshot.created, COALESCE(snapshot.deleted, 0)`

func scanSnapshot(row interface{ Scan(...any) error }) (Snapshot, error) {
	var s Snapshot
	var created, deleted int64
	err := row.Scan(&s.ID, &s.TreeID, &s.Tree, &s.Number, &s.Name, &s.Phase, &s.Key, &s.Recipe, &s.Parent,
		&s.Complete, &s.Author, &s.Message, &created, &deleted)
	s.Created, s.Deleted = catalog.Time(created), catalog.Time(deleted)
	return s, err
}

func treeByName(tx *sql.Tx, name string) (Tree, error) {
	if err := ValidateName("tree", name); err != nil {
		return Tree{}, err
	}
	t, err := scanTree(tx.QueryRow(`SELECT `+treeColumns+` FROM tree WHERE name = ? AND deleted IS NULL`, name))
	if errors.Is(err, sql.ErrNoRows) {
		return t, fmt.Errorf("tree %s: %w; `sidus list` shows what there is", name, store.ErrNotFound)
	}
	return t, err
}

// Tree returns the tree of that name. The error wraps store.ErrNotFound or
// store.ErrBadName.
func (m *Manager) Tree(ctx context.Context, name string) (t Tree, err error) {
	err = m.catalog.View(ctx, func(tx *sql.Tx) error {
		t, err = treeByName(tx, name)
		return err
	})
	return t, err
}

func (m *Manager) treeByID(ctx context.Context, id string) (t Tree, err error) {
	err = m.catalog.View(ctx, func(tx *sql.Tx) error {
		t, err = scanTree(tx.QueryRow(`SELECT `+treeColumns+` FROM tree WHERE id = ? AND deleted IS NULL`, id))
		if errors.Is(err, sql.ErrNoRows) {
			return fmt.Errorf("the tree %w: it was deleted a moment ago", store.ErrNotFound)
		}
		return err
	})
	return t, err
}

// Trees returns all trees, by name.
func (m *Manager) Trees(ctx context.Context) ([]Tree, error) {
	var trees []Tree
	err := m.catalog.View(ctx, func(tx *sql.Tx) (err error) {
		trees, err = queryTrees(tx)
		return err
	})
	return trees, err
}

// Snapshots returns the snapshots of a tree that are there, the oldest first.
func (m *Manager) Snapshots(ctx context.Context, tree Tree) ([]Snapshot, error) {
	var list []Snapshot
	err := m.catalog.View(ctx, func(tx *sql.Tx) (err error) {
		list, err = querySnapshots(tx, `snapshot.tree = ? AND snapshot.deleted IS NULL ORDER BY snapshot.number`, tree.ID)
		return err
	})
	return list, err
}

// SnapshotsByKey returns the snapshots, of whatever tree, that a build phase
// with that key has left.
func (m *Manager) SnapshotsByKey(ctx context.Context, key string) ([]Snapshot, error) {
	var list []Snapshot
	err := m.catalog.View(ctx, func(tx *sql.Tx) (err error) {
		list, err = querySnapshots(tx, `snapshot.key = ? AND snapshot.key <> '' AND snapshot.deleted IS NULL ORDER BY snapshot.created DESC`, key)
		return err
	})
	return list, err
}

func querySnapshots(tx *sql.Tx, where string, args ...any) ([]Snapshot, error) {
	rows, err := tx.Query(`SELECT `+snapshotColumns+` FROM snapshot JOIN tree ON tree.id = snapshot.tree WHERE `+where, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var list []Snapshot
	for rows.Next() {
		s, err := scanSnapshot(rows)
		if err != nil {
			return nil, err
		}
		list = append(list, s)
	}
	return list, rows.Err()
}

// anySnapshotByID also finds deleted ones.
func anySnapshotByID(tx *sql.Tx, id store.SnapshotID) (Snapshot, error) {
	s, err := scanSnapshot(tx.QueryRow(`SELECT `+snapshotColumns+` FROM snapshot JOIN tree ON tree.id = snapshot.tree WHERE snapshot.id = ?`, id))
	if errors.Is(err, sql.ErrNoRows) {
		return s, fmt.Errorf("snapshot %s: %w", id, store.ErrNotFound)
	}
	return s, err
}

func snapshotByID(tx *sql.Tx, id store.SnapshotID) (Snapshot, error) {
	s, err := anySnapshotByID(tx, id)
	if err == nil && !s.Deleted.IsZero() {
		return s, fmt.Errorf("snapshot %s: %w: it was deleted on %s", s.Ref(), store.ErrNotFound, s.Deleted.Format("2006-01-02 15:04"))
	}
	return s, err
}

// SnapshotByID returns the snapshot of that ID. The error wraps
// store.ErrNotFound if it is unknown or deleted.
func (m *Manager) SnapshotByID(ctx context.Context, id store.SnapshotID) (s Snapshot, err error) {
	err = m.catalog.View(ctx, func(tx *sql.Tx) error {
		s, err = snapshotByID(tx, id)
		return err
	})
	return s, err
}

// SnapshotRecord is SnapshotByID that also finds snapshots whose deletion is
// on record (Deleted is set).
func (m *Manager) SnapshotRecord(ctx context.Context, id store.SnapshotID) (s Snapshot, err error) {
	err = m.catalog.View(ctx, func(tx *sql.Tx) error {
		s, err = anySnapshotByID(tx, id)
		return err
	})
	return s, err
}

// The words in place of a snapshot's name.
const (
	latestWord = "latest" // the newest complete one
	baseWord   = "base"   // the one that the head last was equal to
)

// Resolve finds the snapshot that a reference names: TREE@14 (its number),
// TREE@latest (the newest complete one), TREE@base (the one that the head last
// was equal to; of a new branch it is a snapshot of another tree), TREE@NAME,
// TREE@ID or ID, where ID may be cut to a prefix of six digits or more that is
// not ambiguous. The error wraps store.ErrNotFound or store.ErrBadName.
func (m *Manager) Resolve(ctx context.Context, reference string) (s Snapshot, err error) {
	err = m.catalog.View(ctx, func(tx *sql.Tx) error {
		s, err = resolve(tx, reference)
		return err
	})
	return s, err
}

func resolve(tx *sql.Tx, reference string) (Snapshot, error) {
	treeName, which, ok := strings.Cut(reference, "@")
	if !ok {
		if !idPattern.MatchString(reference) {
			return Snapshot{}, fmt.Errorf("snapshot %q: %w: write TREE@NUMBER, TREE@NAME, TREE@latest, TREE@base or an ID", reference, store.ErrBadName)
		}
		return uniqueSnapshot(tx, reference, `snapshot.id LIKE ? || '%'`, reference)
	}
	tree, err := treeByName(tx, treeName)
	if err != nil {
		return Snapshot{}, err
	}
	switch {
	case which == latestWord:
		list, err := querySnapshots(tx, `snapshot.tree = ? AND snapshot.complete AND snapshot.deleted IS NULL ORDER BY snapshot.number DESC LIMIT 1`, tree.ID)
		if err != nil {
			return Snapshot{}, err
		}
		if len(list) == 0 {
			return Snapshot{}, fmt.Errorf("snapshot %s: %w: %s has no complete snapshot yet; `sidus build` ends with one, `sidus snapshot %s` makes one", reference, store.ErrNotFound, treeName, treeName)
		}
		return list[0], nil
	case which == baseWord:
		if tree.Base == "" {
			return Snapshot{}, fmt.Errorf("snapshot %s: %w: the head of %s began empty", reference, store.ErrNotFound, treeName)
		}
		return snapshotByID(tx, tree.Base)
	case numberPattern.MatchString(which):
		s, err := uniqueSnapshot(tx, reference, `snapshot.tree = ? AND snapshot.number = ?`, tree.ID, which)
		if errors.Is(err, store.ErrNotFound) && idPattern.MatchString(which) {
			return uniqueSnapshot(tx, reference, `snapshot.tree = ? AND snapshot.id LIKE ? || '%'`, tree.ID, which)
		}
		return s, err
	case idPattern.MatchString(which):
		return uniqueSnapshot(tx, reference, `snapshot.tree = ? AND (snapshot.id LIKE ? || '%')`, tree.ID, which)
	default:
		if err := ValidateName("snapshot", which); err != nil {
			return Snapshot{}, err
		}
		return uniqueSnapshot(tx, reference, `snapshot.tree = ? AND snapshot.name = ?`, tree.ID, which)
	}
}

// uniqueSnapshot returns the one snapshot that is meant. If there is none, but
// there was, it says when it was deleted.
func uniqueSnapshot(tx *sql.Tx, reference, where string, args ...any) (Snapshot, error) {
	list, err := querySnapshots(tx, where+` ORDER BY snapshot.created LIMIT 20`, args...)
	if err != nil {
		return Snapshot{}, err
	}
	there := slices.DeleteFunc(slices.Clone(list), func(s Snapshot) bool { return !s.Deleted.IsZero() })
	switch {
	case len(there) == 1:
		return there[0], nil
	case len(there) > 1:
		refs := make([]string, len(there))
		for i, s := range there {
			refs[i] = fmt.Sprintf("%s (%s)", s.Ref(), s.ID)
		}
		return Snapshot{}, fmt.Errorf("snapshot %s: %w: it is ambiguous: %s", reference, store.ErrBadName, strings.Join(refs, ", "))
	case len(list) > 0:
		return Snapshot{}, fmt.Errorf("snapshot %s: %w: it was deleted on %s", reference, store.ErrNotFound, list[0].Deleted.Format("2006-01-02 15:04"))
	}
	tree, _, isRef := strings.Cut(reference, "@")
	if !isRef {
		return Snapshot{}, fmt.Errorf("snapshot %s: %w", reference, store.ErrNotFound)
	}
	return Snapshot{}, fmt.Errorf("snapshot %s: %w; `sidus log %s` shows what there is", reference, store.ErrNotFound, tree)
}
