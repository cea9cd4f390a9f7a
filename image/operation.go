package image

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"sidus/image/catalog"
	"sidus/image/store"
)

// operation is one change of the store together with its change of the
// catalog.
type operation struct {
	action    string
	makes     []store.VolumeID   // volumes that the work makes
	removes   []store.VolumeID   // volumes that are retired and destroyed when all is done
	removed   string             // what they are, for messages
	snapshots []store.SnapshotID // snapshots that the work makes
	uses      []store.SnapshotID // snapshots that must stay meanwhile

	// replicated says that a replica may do it: the change comes from its
	// primary. Others are refused there.
	replicated bool
	// attach is a catalog that commit reads as the schema src; "": none.
	attach string

	// check runs before anything is done, in the transaction that records the
	// intent: names that are taken, objects that are gone. May be nil.
	check func(tx *sql.Tx) error
	// work changes the store. When it fails, what it made is destroyed.
	work func(ctx context.Context) error
	// commit makes the result visible, in the transaction that ends the
	// intent.
	commit func(tx *sql.Tx) error
}

// run does the operation. When it fails, store and catalog are as before; when
// the process is cut, Repair makes them so.
func (m *Manager) run(ctx context.Context, op operation) error {
	var id int64
	err := m.catalog.Update(ctx, func(tx *sql.Tx) error {
		if !op.replicated {
			if err := refuseReplica(tx); err != nil {
				return err
			}
		}
		if op.check != nil {
			if err := op.check(tx); err != nil {
				return err
			}
		}
		for _, used := range op.uses {
			if _, err := snapshotByID(tx, used); err != nil {
				return err
			}
		}
		var err error
		id, err = catalog.Begin(tx, catalog.Intent{
			Action:    op.action,
			Volumes:   append(append([]store.VolumeID{}, op.makes...), op.removes...),
			Snapshots: op.snapshots,
			Uses:      op.uses,
			Actor:     m.actor,
		})
		return err
	})
	if err != nil {
		return err
	}
	err = op.work(ctx)
	if err == nil {
		err = m.catalog.UpdateWith(ctx, op.attach, func(tx *sql.Tx) error {
			if err := op.commit(tx); err != nil {
				return err
			}
			if len(op.removes) > 0 {
				// While the intent is there, nobody takes them for left over.
				return retireVolumes(tx, op.removes, op.removed)
			}
			return catalog.End(tx, id)
		})
	}
	// What follows must happen even if the user has pressed Ctrl-C.
	ctx = context.WithoutCancel(ctx)
	if err != nil {
		m.undo(ctx, id, op)
		return err
	}
	if len(op.removes) == 0 {
		m.keepCatalog(ctx)
		return nil
	}
	_, left, err := m.collectAfter(ctx, id, op.removes, nil)
	if err != nil {
		// The change itself is done.
		m.log.WithError(err).Warnf("%s is left over; `sidus check --repair` removes it", op.removed)
	}
	m.warnRetired(op.removed, left)
	return nil
}

// undo destroys what a failed operation has made. What cannot be destroyed
// stays on record as an intent, for Repair, or for who needs its place.
func (m *Manager) undo(ctx context.Context, id int64, op operation) {
	var errs []error
	for _, snapshot := range op.snapshots {
		errs = append(errs, m.destroyItem(ctx, store.Item{Kind: store.KindSnapshot, Snapshot: snapshot}))
	}
	for _, volume := range op.makes {
		errs = append(errs, m.destroyItem(ctx, store.Item{Kind: store.KindVolume, Volume: volume}))
	}
	if err := errors.Join(errs...); err != nil {
		m.log.WithError(err).Warnf("%s failed, and something is left over; `sidus check --repair` removes it", op.action)
		if err := m.catalog.Update(ctx, func(tx *sql.Tx) error { return catalog.Abandon(tx, id) }); err != nil {
			m.log.WithError(err).Warn("only when this process has ended")
		}
		return
	}
	m.endIntent(ctx, id)
}

func (m *Manager) endIntent(ctx context.Context, id int64) {
	if err := m.catalog.Update(ctx, func(tx *sql.Tx) error { return catalog.End(tx, id) }); err != nil {
		m.log.WithError(err).Warn("`sidus check --repair` removes what is left over")
	}
}

// record adds to the history that the Manager's actor did something.
func (m *Manager) record(tx *sql.Tx, action, object, format string, args ...any) error {
	return catalog.Record(tx, m.actor, action, object, fmt.Sprintf(format, args...), m.message)
}
