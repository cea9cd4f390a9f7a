package image

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/gofrs/flock"
	"github.com/sirupsen/logrus"

	"sidus/image/catalog"
	"sidus/image/store"
)

// Options are what a Manager works with.
type Options struct {
	Layout  Layout             // the state folder; its folders must exist
	Catalog *catalog.Catalog   // required
	Store   store.Store        // required
	Actor   catalog.Actor      // who is written into the history; zero: who runs this process
	Message string             // the user's --message, for the history
	Logger  logrus.FieldLogger // nil: logrus' standard logger
}

// Manager does everything that can be done to trees, snapshots and channels.
// Its methods may be called from several goroutines and processes.
type Manager struct {
	layout  Layout
	catalog *catalog.Catalog
	store   store.Store
	actor   catalog.Actor
	message string
	log     logrus.FieldLogger

	properties map[string]string // of new trees, see WithProperties
}

// New makes a Manager. The catalog and the store stay the caller's to close.
func New(options Options) *Manager {
	m := &Manager{
		layout:  options.Layout,
		catalog: options.Catalog,
		store:   options.Store,
		actor:   options.Actor,
		message: options.Message,
		log:     options.Logger,
	}
	if m.actor == (catalog.Actor{}) {
		m.actor = catalog.CurrentActor()
	}
	if m.log == nil {
		m.log = logrus.StandardLogger()
	}
	return m
}

// Usage tells how full the store is.
func (m *Manager) Usage(ctx context.Context) (store.Usage, error) { return m.store.Usage(ctx) }

// MountSnapshot makes a snapshot that the catalog names reachable for
// reading. The caller unmounts it. The error wraps store.ErrNotFound for one
// that is deleted or unknown, and is a *LostError for one that is lost.
func (m *Manager) MountSnapshot(ctx context.Context, id store.SnapshotID) (store.Mount, error) {
	if _, err := m.SnapshotByID(ctx, id); err != nil {
		return nil, err
	}
	return m.mountSnapshot(ctx, id)
}

// MountHead makes the locked head reachable for reading and writing. The
// caller unmounts it before he releases the lock.
func (m *Manager) MountHead(ctx context.Context, lock *HeadLock) (store.Mount, error) {
	tree, err := m.treeByID(ctx, lock.TreeID)
	if err != nil {
		return nil, err
	}
	if !tree.Touched {
		err := m.catalog.Update(ctx, func(tx *sql.Tx) error {
			_, err := tx.Exec(`UPDATE tree SET touched = TRUE WHERE id = ?`, tree.ID)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("note that somebody writes to the head of %s: %w", tree.Name, err)
		}
	}
	return m.mountHead(ctx, tree)
}

// MountHeadToRead is MountHead for somebody who will not write.
func (m *Manager) MountHeadToRead(ctx context.Context, lock *HeadLock) (store.Mount, error) {
	tree, err := m.treeByID(ctx, lock.TreeID)
	if err != nil {
		return nil, err
	}
	return m.mountHead(ctx, tree)
}

// copyRetry is how often a process looks whether another one has ended its copy.
const copyRetry = 5 * time.Millisecond

// keepCatalog leaves a copy of the catalog in the store, where the store can
// keep one, so that the pool alone is enough to come back. It is called after
// each change; a failure is logged, since the change itself is durable.
func (m *Manager) keepCatalog(ctx context.Context) {
	keeper, ok := m.store.(store.Keeper)
	if !ok {
		return
	}
	if err := m.copyCatalogTo(ctx, keeper); err != nil {
		m.log.WithError(err).Warn("the store has no copy of the newest catalog")
	}
}

// copyCatalogTo hands the store a copy. One process at a time does so: else the
// older of two copies could come last.
func (m *Manager) copyCatalogTo(ctx context.Context, keeper store.Keeper) (err error) {
	lock := flock.New(m.layout.catalogCopyLock(), flock.SetPermissions(0o600))
	if _, err := lock.TryLockContext(ctx, copyRetry); err != nil {
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
