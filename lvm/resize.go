package lvm

import (
	"context"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"sidus/image/store"
)

// Capacity is the size of a volume's file system and what is free in it, in
// bytes.
type Capacity struct {
	Size int64
	Free int64
}

// Capacity tells how full the file system of a volume is. ErrNotFound if the
// volume is missing.
func (s *Store) Capacity(ctx context.Context, v store.VolumeID) (c Capacity, err error) {
	m, err := s.MountVolume(ctx, v)
	if err != nil {
		return c, err
	}
	defer func() {
		if unmountErr := m.Unmount(context.WithoutCancel(ctx)); err == nil {
			err = unmountErr
		}
	}()
	var st unix.Statfs_t
	if err := unix.Statfs(m.Path(), &st); err != nil {
		return c, fmt.Errorf("volume %s: statfs: %w", v, err)
	}
	return Capacity{Size: int64(st.Blocks) * st.Bsize, Free: int64(st.Bavail) * st.Bsize}, nil
}

// Resize makes a volume's file system size bytes large, while it is in use. It
// can only grow. If growing the file system fails, the logical volume stays
// large, which costs nothing; calling Resize again goes on. Snapshots keep the
// size that the volume had. ErrNotFound if the volume is missing.
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
	found, err := s.finished(ctx, name)
	if err != nil {
		return err
	}
	now, err := found.number("lv_size")
	if err != nil {
		return err
	}
	if size < now {
		return fmt.Errorf("volume %s: %w: it has %s and cannot shrink to %s", v, store.ErrUnsupported, human(now), human(size))
	}
	m, err := s.MountVolume(ctx, v)
	if err != nil {
		return err
	}
	defer func() {
		if unmountErr := m.Unmount(context.WithoutCancel(ctx)); err == nil {
			err = unmountErr
		}
	}()
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
		err = s.opts.run(ctx, "xfs_growfs", m.Path())
	} else {
		err = s.opts.run(ctx, "resize2fs", s.node(name))
	}
	if err != nil {
		return fmt.Errorf("%v: grow its %s to %s: %w", filepath.Base(string(name)), fs, human(size), err)
	}
	return nil
}
