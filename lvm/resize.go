package lvm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

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
	if err := checkVolume(Ext4, size); err != nil {
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
		err = s.opts.run(ctx, "resize2fs", s.node(name))
	}
	if err != nil {
		return fmt.Errorf("%v: grow its %s to %s: %w", name, fs, backend.Human(size), err)
	}
	return nil
}
