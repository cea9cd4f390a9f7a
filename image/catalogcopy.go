package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/gofrs/flock"

	"sidus/image/store"
)

const (
	// copyRetry is how often a process looks whether another one has ended its copy.
	copyRetry = 5 * time.Millisecond
	// copyWait is how long it does so: a store that hangs must not take all
	// commands with it.
	copyWait = time.Minute
)

// keepCatalog leaves a copy of the catalog in the store, where the store can
// keep one, so that the pool alone is enough to come back. It is called after
// each change; a failure is logged, since the change itself is durable.
func (m *Manager) keepCatalog(ctx context.Context) {
	keeper, ok := m.store.(store.Keeper)
	if !ok {
		return
	}
	mark, err := m.ChangeMark(ctx)
	if err == nil {
		err = m.copyCatalogTo(ctx, keeper)
	}
	if err != nil {
		m.log.WithError(err).Warn("the store has no copy of the newest catalog")
		return
	}
	m.kept.Store(mark)
}

// NoteCatalog takes what is in the catalog now for kept in the store: KeepChanges
// keeps what comes after it.
func (m *Manager) NoteCatalog(ctx context.Context) error {
	mark, err := m.ChangeMark(ctx)
	if err == nil {
		m.kept.Store(mark)
	}
	return err
}

// KeepChanges leaves a copy of the catalog in the store if anything has changed
// since the last one. It is for changes that are not the Manager's: of networks,
// nodes, sessions and leases. A failure is logged.
func (m *Manager) KeepChanges(ctx context.Context) {
	if mark, err := m.ChangeMark(ctx); err != nil || mark != m.kept.Load() {
		m.keepCatalog(ctx)
	}
}

// copyCatalogTo hands the store a copy. One process at a time does so: else the
// older of two copies could come last.
func (m *Manager) copyCatalogTo(ctx context.Context, keeper store.Keeper) (err error) {
	lock := flock.New(m.layout.catalogCopyLock(), flock.SetPermissions(0o600))
	waiting, stop := context.WithTimeoutCause(ctx, copyWait, fmt.Errorf("another process has not ended its copy of the catalog within %s: the store seems to hang", copyWait))
	defer stop()
	if _, err := lock.TryLockContext(waiting, copyRetry); err != nil {
		if waiting.Err() != nil {
			err = context.Cause(waiting)
		}
		return errors.Join(err, lock.Close())
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	folder, err := m.layout.MakeScratch("catalog")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, folder.Remove()) }()
	path := filepath.Join(folder.Path(), "sidus.db")
	if err := m.catalog.CopyTo(ctx, path); err != nil {
		return err
	}
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := keeper.Keep(ctx, "sidus.db", file); err != nil {
		return fmt.Errorf("keep a copy of the catalog: %w", err)
	}
	return nil
}
