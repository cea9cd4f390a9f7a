package lvm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"sidus/image/store"
)

// keptFolder mounts the volume of kept files, until Close.
func (s *Store) keptFolder() (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kept == nil {
		held, err := s.points.Hold(keptPoint, func(folder string) error {
			return s.mountAt(context.Background(), keptLV, folder, false)
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
	folder, err := s.keptFolder()
	if err != nil {
		return err
	}
	if err := s.opts.step("keep"); err != nil {
		return err
	}
	if err := writeFile(folder, name, r); err != nil {
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			return fmt.Errorf("kept file %s: %w: %w", name, store.ErrNoSpace, err)
		}
		return fmt.Errorf("kept file %s: %w", name, err)
	}
	return nil
}

// Kept implements store.Keeper.
func (s *Store) Kept(_ context.Context, name string) (io.ReadCloser, error) {
	if err := store.ValidateKeptName(name); err != nil {
		return nil, err
	}
	folder, err := s.keptFolder()
	if err != nil {
		return nil, err
	}
	file, err := os.Open(filepath.Join(folder, name))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("kept file %s: %w", name, store.ErrNotFound)
	} else if err != nil {
		return nil, fmt.Errorf("kept file %s: %w", name, err)
	}
	return file, nil
}

// writeFile writes a file so that after a crash it is there as a whole or not
// at all. The file has no name until it is complete.
func writeFile(folder, name string, r io.Reader) (err error) {
	fd, err := unix.Open(folder, unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &os.PathError{Op: "open", Path: folder, Err: err}
	}
	file := os.NewFile(uintptr(fd), filepath.Join(folder, name))
	defer file.Close()
	if _, err := io.Copy(file, r); err != nil {
		return err
	}
	if err := file.Sync(); err != nil {
		return err
	}
	// A link cannot take the place of a file, a rename can.
	temp := filepath.Join(folder, ".new-"+name+"-"+rand.Text())
	if err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, temp, unix.AT_SYMLINK_FOLLOW); err != nil {
		return &os.LinkError{Op: "link", Old: folder, New: temp, Err: err}
	}
	if err := os.Rename(temp, filepath.Join(folder, name)); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	return syncDir(folder)
}

// syncDir makes the names in a folder durable.
func syncDir(folder string) error {
	dir, err := os.Open(folder)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
