package scratch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// newPrefix begins the hidden name that a file may have before its own.
const newPrefix = ".new-"

// File is a file that appears whole or not at all: until Keep it has no name,
// and the kernel removes it when its process ends, in whatever way. (A file
// system that has no such files gives it a hidden name beside its place.)
type File struct {
	*os.File
	path    string
	replace bool
	temp    string // the name that it has meanwhile; "": none
}

// NewFile begins a file that only its owner can read, for the place path. The
// error wraps fs.ErrExist if something is there, unless replace is set and it
// is a regular file.
func NewFile(path string, replace bool) (*File, error) {
	if info, err := os.Lstat(path); err == nil && (!replace || !info.Mode().IsRegular()) {
		return nil, &fs.PathError{Op: "create", Path: path, Err: fs.ErrExist}
	}
	folder := filepath.Dir(path)
	f := &File{path: path, replace: replace}
	fd, err := unix.Open(folder, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	switch {
	case err == nil:
		f.File = os.NewFile(uintptr(fd), path)
		return f, nil
	case !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR): // open(2) on O_TMPFILE
		return nil, &fs.PathError{Op: "create", Path: path, Err: err}
	}
	if f.File, err = os.CreateTemp(folder, newPrefix+filepath.Base(path)+"-"); err != nil {
		return nil, err
	}
	f.temp = f.Name()
	return f, nil
}

// Keep makes the file durable and gives it its name. The error wraps
// fs.ErrExist if the name was taken meanwhile and is not to be replaced.
func (f *File) Keep() (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("keep %s: %w", f.path, err)
		}
	}()
	if err := f.Sync(); err != nil {
		return err
	}
	if f.temp == "" {
		if err := f.link(); err != nil {
			return err
		}
	}
	if f.temp != "" {
		flags := uint(unix.RENAME_NOREPLACE)
		if f.replace {
			flags = 0
		}
		if err := unix.Renameat2(unix.AT_FDCWD, f.temp, unix.AT_FDCWD, f.path, flags); err != nil {
			return err
		}
		f.temp = ""
	}
	folder, err := os.Open(filepath.Dir(f.path))
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close(), f.Close())
}

// link gives a file without a name its own or, if it is to replace another,
// which a link cannot, one to rename it from.
func (f *File) link() error {
	as := f.path
	if f.replace {
		as = filepath.Join(filepath.Dir(f.path), fmt.Sprintf("%s%s-%d", newPrefix, filepath.Base(f.path), os.Getpid()))
		if err := os.Remove(as); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err // of a process with this number that was cut
		}
		f.temp = as
	}
	return unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.AT_FDCWD, as, unix.AT_SYMLINK_FOLLOW)
}

// Discard removes the file, unless Keep has succeeded: then it does nothing.
func (f *File) Discard() {
	_ = f.Close()
	if f.temp != "" {
		_ = os.Remove(f.temp)
	}
}
