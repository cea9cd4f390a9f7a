package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/gofrs/flock"

	"sidus/image/index"
	"sidus/image/store"
)

// OpenIndex opens a snapshot's index; the caller closes it. It is a cache: one
// that is missing, damaged or of another version of the format is built, which
// takes as long as reading the snapshot's metadata. Processes that want the same
// index build it once.
func (m *Manager) OpenIndex(ctx context.Context, id store.SnapshotID) (*index.Index, error) {
	path := m.layout.Index(id)
	x, err := index.Open(path)
	if !ofNoUse(err) {
		return x, err
	}
	if err := m.buildIndex(ctx, id, path); err != nil {
		return nil, err
	}
	return index.Open(path)
}

// buildIndex builds an index, unless another process has done so meanwhile.
func (m *Manager) buildIndex(ctx context.Context, id store.SnapshotID, path string) (err error) {
	if _, err := m.SnapshotByID(ctx, id); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil { // a server may run for years
		return err
	}
	lock := flock.New(path+".lock", flock.SetPermissions(0o600))
	if _, err := lock.TryLockContext(ctx, lockRetry); err != nil {
		return fmt.Errorf("build the index of snapshot %s: %w", id, errors.Join(err, lock.Close()))
	}
	defer func() { err = errors.Join(err, os.Remove(lock.Path()), lock.Close()) }()
	x, err := index.Open(path)
	if err == nil {
		return x.Close() // another process was quicker
	}
	if !ofNoUse(err) {
		return err
	}
	if errors.Is(err, index.ErrCorrupt) {
		m.log.WithError(err).Warn("it is built anew")
	}
	mount, err := m.MountSnapshot(ctx, id)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, mount.Unmount(context.WithoutCancel(ctx))) }()
	if _, err := index.Build(ctx, mount.Path(), path, index.Options{}); err != nil {
		return fmt.Errorf("build the index of snapshot %s: %w", id, err)
	}
	return nil
}

// ofNoUse tells from the error of index.Open that an index has to be built.
func ofNoUse(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, index.ErrCorrupt)
}

// MakeIndex builds the index of a snapshot, if OpenIndex would.
func (m *Manager) MakeIndex(ctx context.Context, id store.SnapshotID) error {
	x, err := m.OpenIndex(ctx, id)
	if err != nil {
		return err
	}
	return x.Close()
}
