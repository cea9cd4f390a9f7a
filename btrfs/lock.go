package btrfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"sidus/image/store"
	"sidus/image/store/backend"
)

// openItem opens the root directory of an item's subvolume. ErrNotFound if
// there is none.
func (s *Store) openItem(i item, path string) (*os.File, error) {
	dir, err := os.OpenFile(s.path(path), os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("%v: %w", i, store.ErrNotFound)
	} else if err != nil {
		return nil, classify(i, "open", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil || st.Ino != rootInode {
		_ = dir.Close()
		return nil, fmt.Errorf("%v: %w: %s is no subvolume", i, store.ErrNotFound, s.path(path))
	}
	return dir, nil
}

// lockItem opens the subvolume at path and takes its flock: shared by whoever
// has it mounted, exclusive by whoever destroys it. ErrInUse if an exclusive
// lock cannot be had at once.
func (s *Store) lockItem(i item, path string, how int) (*os.File, error) {
	dir, err := s.openItem(i, path)
	if err != nil {
		return nil, err
	}
	err = backend.Flock(dir, how)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fmt.Errorf("%v: %w: it is mounted", i, store.ErrInUse)
	} else if err == nil {
		// Whoever had the lock may have destroyed it.
		var here, there os.FileInfo
		if here, err = dir.Stat(); err == nil {
			there, err = os.Lstat(s.path(path))
		}
		if errors.Is(err, os.ErrNotExist) || err == nil && !os.SameFile(here, there) {
			err = fmt.Errorf("%v: %w", i, store.ErrNotFound)
		}
	}
	if err != nil {
		_ = dir.Close()
		return nil, err
	}
	return dir, nil
}

// mount is a held lock on a subvolume.
type mount struct {
	path string
	once sync.Once
	give func() error
}

func (m *mount) Path() string { return m.path }

func (m *mount) Unmount(context.Context) error {
	var err error
	m.once.Do(func() { err = m.give() })
	return err
}

func (s *Store) hold(i item) (store.Mount, error) {
	dir, err := s.lockItem(i, i.path(), unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.mounts++
	s.mu.Unlock()
	return &mount{path: s.path(i.path()), give: func() error {
		s.mu.Lock()
		s.mounts--
		s.mu.Unlock()
		return backend.Unlock(dir)
	}}, nil
}

// MountVolume implements store.Store.
func (s *Store) MountVolume(_ context.Context, v store.VolumeID) (store.Mount, error) {
	i, err := itemOfVolume(v)
	if err != nil {
		return nil, err
	}
	return s.hold(i)
}

// MountSnapshot implements store.Store.
func (s *Store) MountSnapshot(_ context.Context, id store.SnapshotID) (store.Mount, error) {
	i, err := itemOfSnapshot(id)
	if err != nil {
		return nil, err
	}
	return s.hold(i)
}

// refuseNested returns ErrNestedVolume if a volume holds a subvolume or a
// mount.
func (s *Store) refuseNested(i item, dir *os.File) error {
	children, err := subvolChildren(dir)
	if err != nil {
		return classify(i, "look for nested subvolumes", err)
	}
	if len(children) > 0 {
		return fmt.Errorf("%v: %w: /%s is a subvolume (make it a plain folder)", i, store.ErrNestedVolume, children[0])
	}
	inside, err := s.mountsIn(i)
	if err != nil {
		return err
	}
	if len(inside) > 0 {
		return fmt.Errorf("%v: %w: something is mounted at %s", i, store.ErrNestedVolume, inside[0])
	}
	return nil
}

// mountsIn returns the mount points inside an item.
func (s *Store) mountsIn(i item) ([]string, error) {
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, err
	}
	root, err := filepath.EvalSymlinks(s.root)
	if err != nil {
		return nil, classify(i, "find its mount", err)
	}
	on, ok := mountOf(mounts, root)
	if !ok {
		return nil, fmt.Errorf("%v: %w: the store is not mounted", i, store.ErrUnavailable)
	}
	place := filepath.Join(on.Root, root[len(on.Mountpoint):], i.path())
	if on.Mountpoint == "/" {
		place = filepath.Join(on.Root, root, i.path())
	}
	return mountsInside(mounts, deviceOf(on), place), nil
}
