package image

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"sidus/image/store"
)

// LostError says that the store does not hold what the catalog names: somebody
// has removed it by hand, or its disk has. It wraps store.ErrNotFound.
type LostError struct {
	What string // the snapshot or the head, for people
	Head bool   // it is a head
}

func (e *LostError) Error() string {
	return fmt.Sprintf("%s: %v: it is in the catalog, but the store has lost it; `sidus check` names the way out", e.What, store.ErrNotFound)
}

func (e *LostError) Unwrap() error { return store.ErrNotFound }

// lostSnapshot makes a *LostError of a store's word that it has no snapshot,
// if the catalog names that.
func (m *Manager) lostSnapshot(ctx context.Context, id store.SnapshotID, err error) error {
	if !errors.Is(err, store.ErrNotFound) {
		return err
	}
	s, known := m.SnapshotByID(ctx, id)
	if known != nil {
		return err
	}
	return &LostError{What: "snapshot " + s.Ref()}
}

// lostSnapshots finds the snapshots that the catalog names and the store has
// lost.
func (m *Manager) lostSnapshots(ctx context.Context) (map[store.SnapshotID]bool, error) {
	var list []Snapshot
	err := m.catalog.View(ctx, func(tx *sql.Tx) (err error) {
		list, err = querySnapshots(tx, `snapshot.deleted IS NULL`)
		return err
	})
	if err == nil {
		err = m.MarkLost(ctx, list)
	}
	lost := map[store.SnapshotID]bool{}
	for _, s := range list {
		if s.Lost {
			lost[s.ID] = true
		}
	}
	return lost, err
}

// clone makes a volume from a snapshot. The error is a *LostError if the
// snapshot is lost.
func (m *Manager) clone(ctx context.Context, id store.SnapshotID, v store.VolumeID) error {
	return m.lostSnapshot(ctx, id, m.store.Clone(ctx, id, v))
}

// mountSnapshot makes a snapshot reachable for reading. The error is a
// *LostError if it is lost.
func (m *Manager) mountSnapshot(ctx context.Context, id store.SnapshotID) (store.Mount, error) {
	mount, err := m.store.MountSnapshot(ctx, id)
	if err != nil {
		return nil, m.lostSnapshot(ctx, id, err)
	}
	return mount, nil
}

// mountHead makes the head of a tree reachable. The error is a *LostError if it
// is lost.
func (m *Manager) mountHead(ctx context.Context, t Tree) (store.Mount, error) {
	mount, err := m.store.MountVolume(ctx, t.Head)
	if errors.Is(err, store.ErrNotFound) {
		return nil, &LostError{What: "the head of " + t.Name, Head: true}
	}
	return mount, err
}

// checkLost finds what the catalog names and the store does not hold, and says
// what can be done about it.
func (m *Manager) checkLost(ctx context.Context, held map[string]store.Item, before, after knowledge) (findings []Finding, err error) {
	isHeld := func(id string) bool {
		item, there := held[id]
		return there && !item.Partial
	}
	err = m.catalog.View(ctx, func(tx *sql.Tx) error {
		site, err := querySite(tx)
		if err != nil {
			return err
		}
		for id, what := range after.named {
			if isHeld(id) || before.named[id] == "" || after.busy[id] {
				continue
			}
			way, err := wayOut(tx, id, site.Role != Primary, isHeld)
			if err != nil {
				return err
			}
			findings = append(findings, Finding{Kind: FindingLost, Fatal: true,
				Text: fmt.Sprintf("%s is in the catalog, but the store does not hold it (%s): %s", what, id, way)})
		}
		return nil
	})
	return findings, err
}

// wayOut says what can be done about a head or a snapshot that is lost.
func wayOut(tx *sql.Tx, id string, replica bool, held func(id string) bool) (string, error) {
	t, err := scanTree(tx.QueryRow(`SELECT `+treeColumns+` FROM tree WHERE head = ? AND deleted IS NULL`, id))
	if err == nil {
		return wayOutOfHead(tx, t, replica, held)
	} else if !errors.Is(err, sql.ErrNoRows) {
		return "", err
	}
	s, err := anySnapshotByID(tx, store.SnapshotID(id))
	switch {
	case errors.Is(err, store.ErrNotFound) || err == nil && !s.Deleted.IsZero():
		return "it was deleted a moment ago", nil
	case err != nil:
		return "", err
	case replica:
		return "the primary's next `sidus replicate` brings it back", nil
	}
	way := fmt.Sprintf("`sidus import --stream` of an export of it, or `sidus send %s` on a server that has it, brings it back", s.ID)
	if s.Key != "" {
		way += "; a build makes another one"
	}
	return way + fmt.Sprintf("; `sidus delete %s` gives it up", s.Ref()), nil
}

func wayOutOfHead(tx *sql.Tx, t Tree, replica bool, held func(id string) bool) (string, error) {
	list, err := querySnapshots(tx, `snapshot.tree = ? AND snapshot.deleted IS NULL ORDER BY snapshot.number DESC`, t.ID)
	if err != nil {
		return "", err
	}
	from := ""
	if t.Base != "" && held(string(t.Base)) {
		from = t.Name + "@base"
	}
	for _, s := range list {
		if from == "" && held(string(s.ID)) {
			from = s.Ref()
		}
	}
	switch {
	case from == "" && replica:
		return "with it all snapshots of the tree: the primary's next `sidus replicate` brings them back", nil
	case from == "":
		return fmt.Sprintf("with it all snapshots of the tree: one of them has to come back first, or `sidus delete %s` gives the tree up", t.Name), nil
	case replica:
		return fmt.Sprintf("nothing that nodes boot needs it; after a takeover `sidus rollback %s` makes another one", from), nil
	}
	return fmt.Sprintf("`sidus rollback %s` makes another one; what it held and no snapshot holds is gone", from), nil
}
