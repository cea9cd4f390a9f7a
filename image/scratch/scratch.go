// Package scratch makes temporary folders that do not outlive their use. Its
// owner has a folder locked (flock(2)); the kernel takes the lock back when he
// ends, in whatever way, and a folder that nobody has locked is left over.
package scratch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"sidus/image/store/backend"
)

// Folder is a temporary folder in use.
type Folder struct {
	lock *os.File
}

// Make makes an empty folder, mode 0700, in the folder parent, which is made if
// it is missing. kind, a word, begins its name and tells people what it is of.
func Make(parent, kind string) (*Folder, error) {
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return nil, err
	}
	for {
		path, err := os.MkdirTemp(parent, kind+"-")
		if err != nil {
			return nil, err
		}
		lock, err := take(path, 0)
		if err == nil {
			return &Folder{lock}, nil
		}
		// Before it was locked, it looked left over and was removed.
		if !errors.Is(err, os.ErrNotExist) {
			return nil, errors.Join(err, os.Remove(path))
		}
	}
}

// Path is where the folder is.
func (f *Folder) Path() string { return f.lock.Name() }

// Remove removes the folder and what is in it.
func (f *Folder) Remove() error {
	return errors.Join(os.RemoveAll(f.Path()), backend.Unlock(f.lock))
}

// take locks a folder; flags are flock's. The error wraps os.ErrNotExist if it
// is gone, unix.EWOULDBLOCK with LOCK_NB if somebody has it.
func take(path string, flags int) (*os.File, error) {
	lock, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	if err := backend.Flock(lock, unix.LOCK_EX|flags); err != nil {
		return nil, errors.Join(&os.PathError{Op: "flock", Path: path, Err: err}, lock.Close())
	}
	here, err := lock.Stat()
	if err == nil {
		var there os.FileInfo
		if there, err = os.Lstat(path); err == nil && os.SameFile(here, there) {
			return lock, nil
		}
	}
	if err == nil {
		err = &os.PathError{Op: "lock", Path: path, Err: os.ErrNotExist} // another one has its name
	}
	return nil, errors.Join(err, backend.Unlock(lock))
}

// Left lists what is left over in the folder parent, which may be missing:
// folders that nobody uses, and whatever else is there.
func Left(parent string) (paths []string, err error) {
	err = each(parent, func(path string) error {
		paths = append(paths, path)
		return nil
	})
	return paths, err
}

// Sweep removes what is left over in the folder parent.
func Sweep(parent string) error {
	return each(parent, os.RemoveAll)
}

// RemoveLeft removes one of what Left has listed, unless it is gone or in use
// now.
func RemoveLeft(path string) error {
	return withLeft(path, os.RemoveAll)
}

func each(parent string, do func(path string) error) error {
	entries, err := os.ReadDir(parent)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, entry := range entries {
		errs = append(errs, withLeft(filepath.Join(parent, entry.Name()), do))
	}
	return errors.Join(errs...)
}

// withLeft calls do with the path while nobody can use what is there. It is
// not called if somebody does.
func withLeft(path string, do func(path string) error) error {
	lock, err := take(path, unix.LOCK_NB)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.EWOULDBLOCK):
		return nil
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return do(path) // no folder: nobody makes anything else here
	case err != nil:
		return fmt.Errorf("left over: %w", err)
	}
	return errors.Join(do(path), backend.Unlock(lock))
}
