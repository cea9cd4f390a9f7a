package btrfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"sidus/image/store"
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
	return classify("kept file "+name, "write", writeFile(s.path(keptDir), name, r))
}

// Kept implements store.Keeper.
func (s *Store) Kept(_ context.Context, name string) (io.ReadCloser, error) {
	if err := store.ValidateKeptName(name); err != nil {
		return nil, err
	}
	file, err := os.Open(s.path(keptDir, name))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("kept file %s: %w", name, store.ErrNotFound)
	} else if err != nil {
		return nil, classify("kept file "+name, "open", err)
	}
	return file, nil
}

// writeFile writes a file so that after a crash it is there as a whole or not
// at all. The file has no name until it is complete. The folder is locked
// meanwhile: one writer at a time.
func writeFile(folder, name string, r io.Reader) (err error) {
	dir, err := os.Open(folder)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := lockFolder(dir); err != nil {
		return err
	}
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
	// A link cannot take the place of a file, a rename can. A writer that was
	// cut in between has left his link; nobody else is here now.
	temp := filepath.Join(folder, newPrefix+name)
	if err := os.Remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, temp, unix.AT_SYMLINK_FOLLOW); err != nil {
		return &os.LinkError{Op: "link", Old: folder, New: temp, Err: err}
	}
	if err := os.Rename(temp, filepath.Join(folder, name)); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	return dir.Sync()
}

// lockFolder takes the flock of an open folder, which ends when it is closed.
func lockFolder(dir *os.File) error {
	for {
		if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
