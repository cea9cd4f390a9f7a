package zfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"sidus/image/store"
	"sidus/image/store/backend"
)

// workLock says that a process is at work on something. The kernel drops it
// with the process.
type workLock struct {
	file *os.File
}

// lockWork takes the lock of that name, and does not wait for it: ErrInUse if
// someone has it.
func (s *Store) lockWork(name string) (*workLock, error) {
	path := filepath.Join(s.runDir, name+".work")
	for {
		file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			_ = file.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, fmt.Errorf("%s: %w: another process is at work on it", name, store.ErrInUse)
			}
			return nil, &os.PathError{Op: "flock", Path: path, Err: err}
		}
		here, err := file.Stat()
		if err == nil {
			var there os.FileInfo
			if there, err = os.Lstat(path); err == nil && os.SameFile(here, there) {
				return &workLock{file}, nil
			}
		}
		_ = file.Close() // the one before took the name away
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
}

// release gives the lock back, and removes its file while nobody else has it.
func (l *workLock) release() {
	_ = os.Remove(l.file.Name())
	_ = backend.Unlock(l.file)
}
