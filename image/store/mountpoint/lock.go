package mountpoint

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"sidus/image/store/backend"
)

// lock opens a file, makes it if it is missing, and takes a flock on it: how is
// unix.LOCK_SH or unix.LOCK_EX, with unix.LOCK_NB or without. The error wraps
// unix.EWOULDBLOCK if LOCK_NB was asked and someone else has it. backend.Unlock gives it back.
func lock(path string, how int) (*os.File, error) {
	for {
		file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		if err := backend.Flock(file, how); err != nil {
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
		_ = backend.Unlock(file) // the name was taken away meanwhile
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
}
