package backend

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Flock is flock(2), which ends with Unlock. The error is unix.EWOULDBLOCK if
// LOCK_NB was asked and someone else has it.
func Flock(file *os.File, how int) error {
	for {
		if err := unix.Flock(int(file.Fd()), how); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// Unlock ends a flock and closes the file. Closing alone would not end it at
// once: a program that is being started has the file, too, until it runs.
func Unlock(file *os.File) error {
	return errors.Join(Flock(file, unix.LOCK_UN), file.Close())
}

// LockFile opens a file, makes it if it is missing, and takes a flock on it:
// how is unix.LOCK_SH or unix.LOCK_EX, with unix.LOCK_NB or without. Unlock
// gives it back; whoever has it exclusively may remove the file before. The
// error wraps unix.EWOULDBLOCK if LOCK_NB was asked and someone else has it.
func LockFile(path string, how int) (*os.File, error) {
	for {
		file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		if err := Flock(file, how); err != nil {
			_ = file.Close()
			return nil, &os.PathError{Op: "flock", Path: path, Err: err}
		}
		here, err := file.Stat()
		if err == nil {
			var there os.FileInfo
			if there, err = os.Lstat(path); err == nil && os.SameFile(here, there) {
				return file, nil
			}
		}
		_ = Unlock(file) // the name was taken away meanwhile
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
}
