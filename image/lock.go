package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/gofrs/flock"
)

// HeadLock is the right to write to the head of a tree. The kernel takes it
// back when the process ends, in whatever way.
type HeadLock struct {
	TreeID string
	Tree   string // the name when the lock was taken
	file   *flock.Flock
}

// lockRetry is how often a waiting process looks whether the lock is free.
const lockRetry = 100 * time.Millisecond

// LockHead takes the right to write to the head of a tree. If another process
// has it, the error is a *LockedError, or LockHead waits until ctx ends.
func (m *Manager) LockHead(ctx context.Context, tree string, wait bool) (*HeadLock, error) {
	t, err := m.Tree(ctx, tree)
	if err != nil {
		return nil, err
	}
	return m.lockHead(ctx, t, wait)
}

func (m *Manager) lockHead(ctx context.Context, tree Tree, wait bool) (*HeadLock, error) {
	path := m.layout.headLock(tree.ID)
	file := flock.New(path, flock.SetPermissions(0o600))
	locked, err := file.TryLock()
	if err == nil && !locked && wait {
		m.log.Infof("%s; waiting", &LockedError{Tree: tree.Name, Holder: readHolder(path)})
		locked, err = file.TryLockContext(ctx, lockRetry)
	}
	if err != nil {
		return nil, fmt.Errorf("lock the head of %s: %w", tree.Name, errors.Join(err, file.Close()))
	}
	if !locked {
		return nil, errors.Join(&LockedError{Tree: tree.Name, Holder: readHolder(path)}, file.Close())
	}
	lock := &HeadLock{TreeID: tree.ID, Tree: tree.Name, file: file}
	// While we waited the tree may have been deleted.
	if _, err := m.treeByID(ctx, tree.ID); err != nil {
		return nil, errors.Join(err, lock.Release())
	}
	holder, err := json.Marshal(LockHolder{User: m.actor.User, Command: m.actor.Command, PID: os.Getpid(), Since: time.Now()})
	if err == nil {
		err = os.WriteFile(path, holder, 0o600)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock the head of %s: %w", tree.Name, err), lock.Release())
	}
	return lock, nil
}

func readHolder(path string) LockHolder {
	var holder LockHolder
	if text, err := os.ReadFile(path); err == nil {
		_ = json.Unmarshal(text, &holder) // half-written: the holder is not known
	}
	return holder
}

// Release gives the right back.
func (l *HeadLock) Release() error {
	if err := l.file.Close(); err != nil {
		return fmt.Errorf("unlock the head of %s: %w", l.Tree, err)
	}
	return nil
}

// withHead runs work while it holds the lock of the tree's head. A lock that
// the caller holds already may be given; nil: it is taken here.
func (m *Manager) withHead(ctx context.Context, tree string, lock *HeadLock, wait bool, work func(Tree) error) (err error) {
	if lock == nil {
		if lock, err = m.LockHead(ctx, tree, wait); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, lock.Release()) }()
	}
	t, err := m.treeByID(ctx, lock.TreeID)
	if err != nil {
		return err
	}
	return work(t)
}
