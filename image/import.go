package image

import (
	"context"
	"database/sql"
	"errors"

	"sidus/image/store"
)

// ImportOptions say what is imported.
type ImportOptions struct {
	Source string // where it comes from, for the log: a path
	Fill   Fill
}

// Fill copies a tree into the directory root, which is empty. It calls room
// before with the bytes that it will write, if it knows them or can guess.
type Fill func(ctx context.Context, root string, room func(bytes int64) error) error

// Import makes a tree from something that exists, with one complete snapshot.
// Until all of it is there, nothing of it shows.
func (m *Manager) Import(ctx context.Context, name string, options ImportOptions) (s Snapshot, err error) {
	id := store.NewSnapshotID()
	t := newTree(name, id)
	err = m.run(ctx, operation{
		action:    "import",
		makes:     []store.VolumeID{t.Head},
		snapshots: []store.SnapshotID{id},
		check:     func(tx *sql.Tx) error { return checkTreeName(tx, name) },
		work: func(ctx context.Context) error {
			if err := m.createVolume(ctx, t.Head); err != nil {
				return err
			}
			if err := m.fill(ctx, t.Head, options.Fill); err != nil {
				return err
			}
			return m.store.Snapshot(ctx, t.Head, id)
		},
		commit: func(tx *sql.Tx) error {
			if err := insertTree(tx, t); err != nil {
				return err
			}
			if err := m.record(tx, "import", t.ID, "imported %s from %s", name, options.Source); err != nil {
				return err
			}
			s, err = m.insertSnapshot(tx, t, id, "", SnapshotOptions{Recipe: "import of " + options.Source, Complete: true})
			return err
		},
	})
	return s, err
}

func (m *Manager) fill(ctx context.Context, volume store.VolumeID, fill Fill) (err error) {
	mount, err := m.store.MountVolume(ctx, volume)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, mount.Unmount(context.WithoutCancel(ctx))) }()
	return fill(ctx, mount.Path(), func(bytes int64) error { return store.MakeRoom(ctx, m.store, volume, bytes) })
}
