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
	file, err := backend.LockFile(filepath.Join(s.runDir, name+".work"), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("%s: %w: another process is at work on it", name, store.ErrInUse)
	} else if err != nil {
		return nil, err
	}
	return &workLock{file}, nil
}

// release gives the lock back, and removes its file while nobody else has it.
func (l *workLock) release() {
	_ = os.Remove(l.file.Name())
	_ = backend.Unlock(l.file)
}
