package image

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/gofrs/flock"

	"sidus/image/index"
	"sidus/image/store"
)

// Index returns the path of a snapshot's index, for index.Open. It is a
// cache: what is missing is built, which takes as long as reading the
// snapshot's metadata. Processes that want the same index build it once.
func (m *Manager) Index(ctx context.Context, id store.SnapshotID) (path string, err error) {
	path = m.layout.Index(id)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if _, err := m.SnapshotByID(ctx, id); err != nil {
		return "", err
	}
	lock := flock.New(path+".lock", flock.SetPermissions(0o600))
	if _, err := lock.TryLockContext(ctx, lockRetry); err != nil {
		return "", fmt.Errorf("build the index of snapshot %s: %w", id, errors.Join(err, lock.Close()))
	}
	defer func() { err = errors.Join(err, os.Remove(lock.Path()), lock.Close()) }()
	if _, err := os.Stat(path); err == nil {
		return path, nil // another process was quicker
	}
	mount, err := m.MountSnapshot(ctx, id)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, mount.Unmount(context.WithoutCancel(ctx))) }()
	if _, err := index.Build(ctx, mount.Path(), path, index.Options{}); err != nil {
		return "", fmt.Errorf("build the index of snapshot %s: %w", id, err)
	}
	return path, nil
}
