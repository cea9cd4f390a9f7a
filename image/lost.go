package image

import (
	"context"
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
