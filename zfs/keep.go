package zfs

import (
	"context"
	"io"

	"sidus/image/store"
	"sidus/image/store/keptfiles"
)

// keptFolder mounts the file system of kept files, until Close.
func (s *Store) keptFolder(ctx context.Context) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kept == nil {
		held, err := s.points.Hold(keptName, func(folder string) error {
			return s.mountAt(ctx, dataset(s.parent+"/"+keptName), folder, 0)
		})
		if err != nil {
			return "", err
		}
		s.kept = held
	}
	return s.kept.Path(), nil
}

// Keep implements store.Keeper.
func (s *Store) Keep(ctx context.Context, name string, r io.Reader) error {
	if err := store.ValidateKeptName(name); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	folder, err := s.keptFolder(ctx)
	if err != nil {
		return err
	}
	if err := s.opts.step("keep"); err != nil {
		return err
	}
	return s.call(ctx, "keep "+name, func() error { return keptfiles.Keep(folder, name, r) })
}

// Kept implements store.Keeper.
func (s *Store) Kept(ctx context.Context, name string) (io.ReadCloser, error) {
	if err := store.ValidateKeptName(name); err != nil {
		return nil, err
	}
	folder, err := s.keptFolder(ctx)
	if err != nil {
		return nil, err
	}
	return keptfiles.Open(folder, name)
}
