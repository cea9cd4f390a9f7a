package lvm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"sidus/image/store"
	"sidus/image/store/mountpoint"
)

// mountOptions of a volume's file system.
//
//   - discard: what is deleted goes back to the pool.
//   - noinit_itable: ext4 would write all its inode tables in the background, and
//     take space for them. Their checksums make that unnecessary.
//   - nouuid: XFS refuses two file systems with one UUID, as all clones have.
//   - noload, norecovery: a snapshot was taken frozen, so that there is nothing
//     to recover; and its device is read-only.
var mountOptions = map[FileSystem]struct{ volume, snapshot string }{
	Ext4: {"noinit_itable,discard,errors=remount-ro", "noload"},
	XFS:  {"nouuid,discard", "nouuid,norecovery"},
}

// fileSystemOn tells by its magic number which file system a device has.
func fileSystemOn(device string) (FileSystem, error) {
	file, err := os.Open(device)
	if err != nil {
		return "", err
	}
	defer file.Close()
	head := make([]byte, 2048)
	if _, err := file.ReadAt(head, 0); err != nil {
		return "", err
	}
	switch {
	case bytes.HasPrefix(head, []byte("XFSB")):
		return XFS, nil
	case head[1024+56] == 0x53 && head[1024+57] == 0xef: // s_magic of the superblock
		return Ext4, nil
	}
	return "", fmt.Errorf("%s: neither ext4 nor XFS is on it", device)
}

// mountNode mounts an active logical volume. A device that does not answer is
// waited for no longer than for a command.
func (s *Store) mountNode(ctx context.Context, name lv, folder string, readOnly bool) error {
	return s.opts.within(ctx, fmt.Sprintf("%v: mount", name), func(ctx context.Context) error {
		err := s.mountDevice(name, folder, readOnly)
		if err == nil && ctx.Err() != nil { // nobody waits for it any more
			return errors.Join(context.Cause(ctx), unix.Unmount(folder, unix.MNT_DETACH))
		}
		return err
	})
}

func (s *Store) mountDevice(name lv, folder string, readOnly bool) error {
	fs, err := fileSystemOn(s.node(name))
	if err != nil {
		return fmt.Errorf("%v: %w: %w", name, store.ErrUnavailable, err)
	}
	flags, options := uintptr(unix.MS_NOATIME), mountOptions[fs].volume
	if readOnly {
		flags, options = flags|unix.MS_RDONLY, mountOptions[fs].snapshot
	}
	err = unix.Mount(s.node(name), folder, string(fs), flags, options)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%v: mount: this kernel has no %s (modprobe %s): %w", name, fs, fs, err)
	case errors.Is(err, unix.EIO), errors.Is(err, unix.EUCLEAN), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EROFS), errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%v: mount: %w: %w (the kernel's log says more: dmesg)", name, store.ErrUnavailable, err)
	}
	return fmt.Errorf("%v: mount: %w", name, err)
}

// mountAt activates a logical volume and mounts it.
func (s *Store) mountAt(ctx context.Context, name lv, folder string, readOnly bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	if err := s.activateFinished(ctx, name); err != nil {
		return err
	}
	err := s.mountNode(ctx, name, folder, readOnly)
	if err != nil {
		if offErr := s.deactivate(ctx, name); offErr != nil {
			s.opts.Log.WithError(offErr).Warn("a device stays active")
		}
	}
	return err
}

// activateFinished activates something that is not half-made.
func (s *Store) activateFinished(ctx context.Context, name lv) error {
	if _, err := os.Lstat(s.node(name)); err == nil {
		// A process was killed: it may be anything.
		if _, err := s.finished(ctx, name); err != nil {
			return err
		}
	}
	// One command instead of two: what is not selected stays inactive.
	selection := fmt.Sprintf(`pool_lv="%s" && lv_tags!="%s"`, s.pool, tagNew)
	if err := s.activate(ctx, name, "--select", selection); err != nil {
		return err
	}
	if _, err := os.Stat(s.node(name)); err == nil {
		return nil
	}
	if _, err := s.finished(ctx, name); err != nil {
		return err
	}
	// Nobody made the node: a container has its own /dev.
	if err := s.opts.run(ctx, "dmsetup", "mknodes", mapperName(s.group, string(name))); err != nil {
		return classify(name, name, err)
	}
	return nil
}

// mount is the use of a mounted volume or snapshot.
type mount struct {
	store *Store
	held  *mountpoint.Held
	stop  func() // ends what keeps a volume wide; nil for a snapshot
	once  sync.Once
}

func (m *mount) Path() string { return m.held.Path() }

func (m *mount) Unmount(context.Context) error {
	var err error
	m.once.Do(func() {
		if m.stop != nil {
			m.stop()
		}
		m.store.mu.Lock()
		m.store.mounts--
		m.store.mu.Unlock()
		err = m.held.Release()
	})
	return err
}

func (s *Store) hold(ctx context.Context, name lv, point string, readOnly bool) (*mount, error) {
	held, err := s.points.Hold(point, func(folder string) error { return s.mountAt(ctx, name, folder, readOnly) })
	if errors.Is(err, store.ErrNotFound) {
		return nil, fmt.Errorf("%w (if it was renamed by hand, `lvrename %s NAME %s` gives it its name back; `lvs %s` shows the names)", err, s.group, name, s.group)
	} else if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.mounts++
	s.mu.Unlock()
	return &mount{store: s, held: held}, nil
}

// MountVolume implements store.Store. The volume grows while it is mounted, see
// headroom.
func (s *Store) MountVolume(ctx context.Context, v store.VolumeID) (store.Mount, error) {
	name, err := lvOfVolume(v)
	if err != nil {
		return nil, err
	}
	m, err := s.hold(ctx, name, pointOfVolume(v), false)
	if err != nil {
		return nil, err
	}
	m.stop = s.keepWide(name, m.Path())
	return m, nil
}

// MountSnapshot implements store.Store.
func (s *Store) MountSnapshot(ctx context.Context, id store.SnapshotID) (store.Mount, error) {
	name, err := lvOfSnapshot(id)
	if err != nil {
		return nil, err
	}
	m, err := s.hold(ctx, name, pointOfSnapshot(id), true)
	if err != nil {
		return nil, err
	}
	return m, nil
}
