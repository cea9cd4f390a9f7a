package image

import (
	"context"
	"database/sql"
	"errors"

	"sidus/image/catalog"
	"sidus/image/store"
)

// Workspace is a writable volume beside a tree's head, in which a build
// works: when a phase fails, or the process is cut, the head is as it was.
// Snapshots that are taken of it are the tree's; Adopt makes it the head.
type Workspace struct {
	m      *Manager
	tree   Tree
	volume store.VolumeID
	base   store.SnapshotID
	intent int64
}

// NewWorkspace makes a workspace for the tree whose head is locked. It starts
// from a snapshot, or, if from is empty, from nothing. The lock must be held
// until Adopt or Discard.
func (m *Manager) NewWorkspace(ctx context.Context, lock *HeadLock, from store.SnapshotID) (*Workspace, error) {
	tree, err := m.treeByID(ctx, lock.TreeID)
	if err != nil {
		return nil, err
	}
	w := &Workspace{m: m, tree: tree, volume: store.NewVolumeID(), base: from}
	intent := catalog.Intent{Action: "build", Volumes: []store.VolumeID{w.volume}, Actor: m.actor}
	if from != "" {
		intent.Uses = []store.SnapshotID{from}
	}
	err = m.catalog.Update(ctx, func(tx *sql.Tx) (err error) {
		if err := refuseReplica(tx); err != nil {
			return err
		}
		if from != "" {
			if _, err := snapshotByID(tx, from); err != nil {
				return err
			}
		}
		w.intent, err = catalog.Begin(tx, intent)
		return err
	})
	if err != nil {
		return nil, err
	}
	if from == "" {
		err = m.createInPlace(ctx, tree.Head, w.volume)
	} else if err = m.clone(ctx, from, w.volume); err == nil {
		err = m.carryProperties(ctx, tree.Head, w.volume)
	}
	if err != nil {
		return nil, errors.Join(err, w.Discard(ctx))
	}
	return w, nil
}

// Mount makes the workspace reachable for reading and writing. The caller
// unmounts it.
func (w *Workspace) Mount(ctx context.Context) (store.Mount, error) {
	return w.m.store.MountVolume(ctx, w.volume)
}

// Base is the snapshot that the workspace starts from: the last one taken of
// it. It is empty if there is none.
func (w *Workspace) Base() store.SnapshotID { return w.base }

// Snapshot takes a snapshot of the workspace and lists it under the tree.
// Until Adopt or Discard the workspace needs it, as it needs what it starts
// from.
func (w *Workspace) Snapshot(ctx context.Context, options SnapshotOptions) (Snapshot, error) {
	s, err := w.m.snapshotVolume(ctx, w.tree, w.volume, w.base, options, func(tx *sql.Tx, id store.SnapshotID) error {
		return catalog.SetUses(tx, w.intent, []store.SnapshotID{id})
	})
	if err == nil {
		w.base = s.ID
	}
	return s, err
}

// Adopt makes the workspace the tree's head, and destroys the old head.
func (w *Workspace) Adopt(ctx context.Context) error {
	old := w.tree.Head
	err := w.m.run(ctx, operation{
		action:  "build",
		removes: []store.VolumeID{old},
		removed: "the head before the build",
		work:    func(context.Context) error { return nil },
		commit: func(tx *sql.Tx) error {
			if err := setHead(tx, w.tree.ID, w.volume, w.base); err != nil {
				return err
			}
			return catalog.End(tx, w.intent)
		},
	})
	if err == nil {
		w.tree.Head, w.volume = w.volume, ""
	}
	return err
}

// Discard destroys the workspace, unless it was adopted. Snapshots that were
// taken of it stay. It works after ctx has ended, too.
func (w *Workspace) Discard(ctx context.Context) error {
	if w.volume == "" {
		return nil
	}
	ctx = context.WithoutCancel(ctx)
	if err := w.m.store.DestroyVolume(ctx, w.volume); err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	w.volume = ""
	return w.m.catalog.Update(ctx, func(tx *sql.Tx) error { return catalog.End(tx, w.intent) })
}
