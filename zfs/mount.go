package zfs

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"sidus/image/store"
	"sidus/image/store/mountpoint"
)

// Names of mount points.
func pointOfVolume(v store.VolumeID) string      { return "volume-" + string(v) }
func pointOfSnapshot(id store.SnapshotID) string { return "snapshot-" + string(id) }

// mount is the use of a mounted volume or snapshot.
type mount struct {
	store *Store
	held  *mountpoint.Held
	once  sync.Once
}

func (m *mount) Path() string { return m.held.Path() }

func (m *mount) Unmount(context.Context) error {
	var err error
	m.once.Do(func() {
		m.store.mu.Lock()
		m.store.mounts--
		m.store.mu.Unlock()
		err = m.held.Release()
	})
	if errors.Is(err, store.ErrUnavailable) {
		return fmt.Errorf("%w (zpool status -x; zpool clear when the pool's disks are back)", err)
	}
	// Who still uses it may be whom the pool does not answer.
	if errors.Is(err, store.ErrInUse) {
		if sick := m.store.suspended("unmount"); sick != nil {
			return fmt.Errorf("%w: %v", sick, err)
		}
	}
	return err
}

// hold mounts what find returns at a point, or shares the mount that is there.
func (s *Store) hold(ctx context.Context, point string, find func() (dataset, error), flags uintptr) (store.Mount, error) {
	held, err := s.points.Hold(point, func(folder string) error {
		d, err := find()
		if err != nil {
			return err
		}
		return s.mountAt(ctx, d, folder, flags)
	})
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.mounts++
	s.mu.Unlock()
	return &mount{store: s, held: held}, nil
}

// mountAt is mount(2). The program mount.zfs would add options that the
// dataset's properties say already. A mount that hangs is given up: if it comes
// to an end after all, its folder is gone, or the next one to hold it finds it
// mounted.
func (s *Store) mountAt(ctx context.Context, d dataset, folder string, flags uintptr) error {
	err := s.call(ctx, fmt.Sprintf("%v: mount", d), func() error {
		return unix.Mount(string(d), folder, "zfs", unix.MS_NOATIME|flags, "")
	})
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%v: %w", d, store.ErrNotFound)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Errorf("%v: %w: its key is not loaded (zfs load-key -r %s): %w", d, store.ErrUnavailable, s.parent, err)
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%v: %w: load it (modprobe zfs)", d, ErrNoKernelSupport)
	case errors.Is(err, unix.EIO):
		return fmt.Errorf("%v: mount: %w: is the pool suspended? (zpool status -x; zpool clear when its disks are back): %w", d, store.ErrUnavailable, err)
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EROFS):
		return fmt.Errorf("%v: mount: %w: %w", d, store.ErrUnavailable, err)
	}
	if errors.Is(err, store.ErrUnavailable) {
		return err
	}
	return fmt.Errorf("%v: mount: %w", d, err)
}

// MountVolume implements store.Store.
func (s *Store) MountVolume(ctx context.Context, v store.VolumeID) (store.Mount, error) {
	d, err := s.volume(v)
	if err != nil {
		return nil, err
	}
	return s.hold(ctx, pointOfVolume(v), func() (dataset, error) {
		_, err := s.own(ctx, v, d, "")
		return d, err
	}, 0)
}

// MountSnapshot implements store.Store.
func (s *Store) MountSnapshot(ctx context.Context, id store.SnapshotID) (store.Mount, error) {
	if err := id.Validate(); err != nil {
		return nil, err
	}
	return s.hold(ctx, pointOfSnapshot(id), func() (dataset, error) {
		d, _, err := s.find(ctx, id)
		return d, err
	}, unix.MS_RDONLY)
}
