package image

import (
	"context"
	"database/sql"
	"fmt"
	"sync/atomic"

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
	kept       *atomic.Value     // the ChangeMark of what the store's copy of the catalog holds at least, see KeepChanges
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
		kept:    new(atomic.Value),
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
