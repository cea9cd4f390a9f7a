// Package keptfiles writes and reads the files of a store.Keeper: plain files
// in one folder of a store, each replaced as a whole.
package keptfiles

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"sidus/image/store"
	"sidus/image/store/backend"
)

// newPrefix begins the name of a file that is about to take another's place.
const newPrefix = ".new-"

// Keep writes what r yields to a file, see Write. The error names the file and
// wraps store.ErrNoSpace or store.ErrUnavailable where one of them is meant.
func Keep(folder, name string, r io.Reader) error {
	return classify(name, Write(folder, name, r))
}

// Open opens a file for reading. The error wraps store.ErrNotFound if there is
// none.
func Open(folder, name string) (io.ReadCloser, error) {
	file, err := os.Open(filepath.Join(folder, name))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("kept file %s: %w", name, store.ErrNotFound)
	} else if err != nil {
		return nil, classify(name, err)
	}
	return file, nil
}

// Write writes what r yields to a file, so that after a crash the old content
// is there or the new, and the new when Write has returned. The folder is
// locked meanwhile (flock(2)), also against other processes, and r is read
// under that lock: of several writers the last that got it wins.
func Write(folder, name string, r io.Reader) error {
	dir, err := os.Open(folder)
	if err != nil {
		return err
	}
	if err := backend.Flock(dir, unix.LOCK_EX); err != nil {
		return errors.Join(err, dir.Close())
	}
	defer func() { _ = backend.Unlock(dir) }()
	// The file has no name until it is complete.
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

func classify(name string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("kept file %s: %w: %w", name, store.ErrNoSpace, err)
	case errors.Is(err, unix.EIO), errors.Is(err, unix.EUCLEAN), errors.Is(err, unix.EROFS), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("kept file %s: %w: %w (the kernel's log says more: dmesg)", name, store.ErrUnavailable, err)
	}
	return fmt.Errorf("kept file %s: %w", name, err)
}
