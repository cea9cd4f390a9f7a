package mountpoint

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// lock opens a file, makes it if it is missing, and takes a flock on it: how is
// unix.LOCK_SH or unix.LOCK_EX, with unix.LOCK_NB or without. The error wraps
// unix.EWOULDBLOCK if LOCK_NB was asked and someone else has it.
func lock(path string, how int) (*os.File, error) {
	for {
		file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		for {
			err = unix.Flock(int(file.Fd()), how)
			if !errors.Is(err, unix.EINTR) {
				break
			}
		}
		if err != nil {
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
		_ = file.Close() // the name was taken away meanwhile
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
}
