package backend

import (
	"context"
	"errors"
	"os"
	"time"

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

// lockPoll is how often a lock is asked for that somebody else has.
const lockPoll = 10 * time.Millisecond

// FlockWhenFree is Flock that waits until nobody else has the lock, or ctx is
// done: the error is the cause of that. Flock itself waits where no context
// reaches it.
func FlockWhenFree(ctx context.Context, file *os.File, how int) error {
	for {
		err := Flock(file, how|unix.LOCK_NB)
		if err == nil {
			return nil
		} else if !errors.Is(err, unix.EWOULDBLOCK) {
			return &os.PathError{Op: "flock", Path: file.Name(), Err: err}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(lockPoll):
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
	return lockFile(path, func(file *os.File) error {
		if err := Flock(file, how); err != nil {
			return &os.PathError{Op: "flock", Path: path, Err: err}
		}
		return nil
	})
}

// LockFileWhenFree is LockFile that waits like FlockWhenFree.
func LockFileWhenFree(ctx context.Context, path string, how int) (*os.File, error) {
	return lockFile(path, func(file *os.File) error { return FlockWhenFree(ctx, file, how) })
}

func lockFile(path string, lock func(file *os.File) error) (*os.File, error) {
	for {
		file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		if err := lock(file); err != nil {
			_ = file.Close()
			return nil, err
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
