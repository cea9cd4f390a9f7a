package lvm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"sidus/image/store"
	"sidus/image/store/backend"
)

var _ store.Resizer = (*Store)(nil)

// Capacity implements store.Resizer.
func (s *Store) Capacity(ctx context.Context, v store.VolumeID) (c store.Capacity, err error) {
	name, err := lvOfVolume(v)
	if err != nil {
		return c, err
	}
	m, err := s.hold(ctx, name, pointOfVolume(v), false)
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, m.Unmount(context.WithoutCancel(ctx))) }()
	if c.Size, err = deviceSize(s.node(name)); err != nil {
		return c, fmt.Errorf("volume %s: %w", v, err)
	}
	c.Free, err = backend.FreeOn(m.Path())
	return c, err
}

// deviceSize is the size of a block device, in bytes.
func deviceSize(node string) (int64, error) {
	file, err := os.Open(node)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	return file.Seek(0, io.SeekEnd)
}

// Resize implements store.Resizer. If growing the file system fails, the logical
// volume stays large, which costs nothing.
func (s *Store) Resize(ctx context.Context, v store.VolumeID, size int64) (err error) {
	name, err := lvOfVolume(v)
	if err != nil {
		return err
	}
	if err := CheckVolume(Ext4, size); err != nil {
		return err
	}
	if err := s.begin(ctx, name); err != nil {
		return err
	}
	m, err := s.hold(ctx, name, pointOfVolume(v), false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Unmount(context.WithoutCancel(ctx))) }()
	lock, err := s.lockGrowth(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()
	now, err := deviceSize(s.node(name))
	if err != nil {
		return fmt.Errorf("volume %s: %w", v, err)
	}
	if size < now {
		return fmt.Errorf("volume %s: %w: it has %s and cannot shrink to %s", v, store.ErrUnsupported, backend.Human(now), backend.Human(size))
	}
	return s.grow(ctx, name, m.Path(), now, size)
}

// grow makes a mounted volume of now bytes size bytes large. If growing the file
// system fails, the logical volume stays large.
func (s *Store) grow(ctx context.Context, name lv, folder string, now, size int64) error {
	if size > now {
		if err := s.opts.step("extend"); err != nil {
			return err
		}
		if _, err := s.lvm(context.WithoutCancel(ctx), "lvextend", "--size", fmt.Sprintf("%dk", (size+1023)/1024), s.full(name)); err != nil {
			return classify(name, name, err)
		}
	}
	if err := s.opts.step("grow file system"); err != nil {
		return err
	}
	fs, err := fileSystemOn(s.node(name))
	if err != nil {
		return fmt.Errorf("%v: %w", name, err)
	}
	if fs == XFS {
		err = s.opts.run(ctx, "xfs_growfs", folder)
	} else {
		err = s.growExt4(ctx, name, folder)
	}
	if err != nil {
		return fmt.Errorf("%v: grow its %s to %s: %w", name, fs, backend.Human(size), err)
	}
	return nil
}

// growExt4 grows an ext4 with the option by which the kernel leaves new inode
// tables to a thread of its own, which writes none of them after that: with
// noinit_itable, see mountOptions, it writes them all at once.
func (s *Store) growExt4(ctx context.Context, name lv, folder string) error {
	set := func(option string) error {
		if err := unix.Mount("", folder, "", unix.MS_REMOUNT|unix.MS_NOATIME, option); err != nil {
			return &os.PathError{Op: "remount with " + option, Path: folder, Err: err}
		}
		return nil
	}
	if err := set("init_itable"); err != nil {
		return err
	}
	return errors.Join(s.opts.run(ctx, "resize2fs", s.node(name)), set("noinit_itable"))
}
