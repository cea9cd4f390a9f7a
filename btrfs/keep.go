package btrfs

import (
	"context"
	"io"

	"sidus/image/store"
	"sidus/image/store/keptfiles"
)

// Keep implements store.Keeper.
func (s *Store) Keep(ctx context.Context, name string, r io.Reader) error {
	if err := store.ValidateKeptName(name); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.opts.step("keep"); err != nil {
		return err
	}
	return keptfiles.Keep(s.path(keptDir), name, r)
}

// Kept implements store.Keeper.
func (s *Store) Kept(_ context.Context, name string) (io.ReadCloser, error) {
	if err := store.ValidateKeptName(name); err != nil {
		return nil, err
	}
	return keptfiles.Open(s.path(keptDir), name)
}
