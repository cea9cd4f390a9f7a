package image

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"sidus/image/catalog"
	"sidus/image/store"
)

// Retired is something that the catalog does not name any more and that the
// store still holds: it was about to be destroyed and something depends on it,
// or its destruction was cut. It shows nowhere, cannot be mounted, and is
// destroyed by the next deletion, Collect or Repair that can.
type Retired struct {
	ID     string     `json:"id"`
	Kind   store.Kind `json:"kind"`
	What   string     `json:"what"` // what it was, for people
	At     time.Time  `json:"at"`
	Reason string     `json:"reason,omitempty"` // why it is still there; "" if nobody has tried to destroy it
}

func (r Retired) item() store.Item {
	if r.Kind == store.KindVolume {
		return store.Item{Kind: r.Kind, Volume: store.VolumeID(r.ID)}
	}
	return store.Item{Kind: r.Kind, Snapshot: store.SnapshotID(r.ID)}
}

// retire puts an item on record as one to be destroyed, in the transaction
// that takes it out of the catalog.
func retire(tx *sql.Tx, kind store.Kind, id, what string) error {
	_, err := tx.Exec(`INSERT INTO retired (id, kind, what, at) VALUES (?, ?, ?, ?) ON CONFLICT (id) DO NOTHING`,
		id, kind, what, catalog.Millis(time.Now()))
	if err != nil {
		return fmt.Errorf("retire %s: %w", what, err)
	}
	return nil
}

func retireVolumes(tx *sql.Tx, volumes []store.VolumeID, what string) error {
	for _, v := range volumes {
		if err := retire(tx, store.KindVolume, string(v), what); err != nil {
			return err
		}
	}
	return nil
}

// retireSnapshots takes snapshots out of the catalog.
func retireSnapshots(tx *sql.Tx, snapshots []Snapshot, now time.Time) error {
	for _, s := range snapshots {
		if _, err := tx.Exec(`UPDATE snapshot SET deleted = ? WHERE id = ?`, catalog.Millis(now), s.ID); err != nil {
			return fmt.Errorf("retire %s: %w", s.Ref(), err)
		}
		if err := retire(tx, store.KindSnapshot, string(s.ID), s.Ref()); err != nil {
			return err
		}
	}
	return nil
}

// Retired lists what is retired, the oldest first.
func (m *Manager) Retired(ctx context.Context) (list []Retired, err error) {
	err = m.catalog.View(ctx, func(tx *sql.Tx) error {
		list, err = queryRetired(tx)
		return err
	})
	return list, err
}

func queryRetired(tx *sql.Tx) ([]Retired, error) {
	rows, err := tx.Query(`SELECT id, kind, what, at, reason FROM retired ORDER BY at, rowid`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var list []Retired
	for rows.Next() {
		var r Retired
		var at int64
		if err := rows.Scan(&r.ID, &r.Kind, &r.What, &at, &r.Reason); err != nil {
			return nil, err
		}
		r.At = catalog.Time(at)
		list = append(list, r)
	}
	return list, rows.Err()
}

// letGo is how long a server may take to let go of a snapshot that was deleted
// and that nobody reads any more.
const letGo = 5 * time.Second

// collectRetired destroys what is retired: fresh, which this process has just
// retired and which a server of this machine may need a moment to let go of,
// and, if all is set, everything else, too. It returns what it destroyed and
// what has to stay. What it could not destroy stays on record, with the
// reason.
func (m *Manager) collectRetired(ctx context.Context, fresh []string, all bool) (done, left []Retired, err error) {
	list, err := m.Retired(ctx)
	if err != nil {
		return nil, nil, err
	}
	if !all {
		list = slices.DeleteFunc(list, func(r Retired) bool { return !slices.Contains(fresh, r.ID) })
	}
	// A head often depends on a snapshot, a snapshot never on a head that goes.
	slices.SortStableFunc(list, func(a, b Retired) int {
		return boolToInt(a.Kind != store.KindVolume) - boolToInt(b.Kind != store.KindVolume)
	})
	// A pass destroys what can be destroyed. Another follows as long as that
	// lets others go, or a server may.
	for begun, everything := time.Now(), true; ; {
		var gone []Retired
		waits := false
		left = nil
		for _, r := range list {
			isFresh := slices.Contains(fresh, r.ID)
			if !everything && !isFresh || ctx.Err() != nil {
				left = append(left, r)
				continue
			}
			// Another process may have destroyed it, and a snapshot may have come
			// back under its ID since.
			there, err := m.isRetired(ctx, r.ID)
			if err != nil {
				return done, left, err
			}
			if !there {
				gone = append(gone, r)
				continue
			}
			err = m.destroyItem(ctx, r.item())
			if err == nil {
				gone = append(gone, r)
				continue
			}
			if r.Reason = err.Error(); ctx.Err() != nil {
				r.Reason = ""
			}
			waits = waits || isFresh && errors.Is(err, store.ErrInUse)
			left = append(left, r)
		}
		list, done = left, append(done, gone...)
		if err := m.noteCollected(context.WithoutCancel(ctx), gone); err != nil {
			return done, left, err
		}
		everything = len(gone) > 0
		if len(left) == 0 || ctx.Err() != nil || !everything && (!waits || time.Since(begun) > letGo) {
			break
		}
		if !everything {
			select {
			case <-ctx.Done():
			case <-time.After(lockRetry):
			}
		}
	}
	return done, left, m.noteReasons(context.WithoutCancel(ctx), left)
}

func (m *Manager) isRetired(ctx context.Context, id string) (there bool, err error) {
	err = m.catalog.View(ctx, func(tx *sql.Tx) error {
		return tx.QueryRow(`SELECT EXISTS (SELECT 1 FROM retired WHERE id = ?)`, id).Scan(&there)
	})
	return there, err
}

func boolToInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (m *Manager) noteCollected(ctx context.Context, gone []Retired) error {
	if len(gone) == 0 {
		return nil
	}
	return m.catalog.Update(ctx, func(tx *sql.Tx) error {
		for _, r := range gone {
			if _, err := tx.Exec(`DELETE FROM retired WHERE id = ?`, r.ID); err != nil {
				return fmt.Errorf("collected %s: %w", r.What, err)
			}
		}
		return nil
	})
}

func (m *Manager) noteReasons(ctx context.Context, left []Retired) error {
	if len(left) == 0 {
		return nil
	}
	return m.catalog.Update(ctx, func(tx *sql.Tx) error {
		for _, r := range left {
			if _, err := tx.Exec(`UPDATE retired SET reason = ? WHERE id = ?`, r.Reason, r.ID); err != nil {
				return fmt.Errorf("retired %s: %w", r.What, err)
			}
		}
		return nil
	})
}

// destruction is the removal of things that nobody needs.
type destruction struct {
	action    string
	what      string
	volumes   []store.VolumeID
	snapshots []store.SnapshotID
	ownTree   string // needs of this tree do not count, since it goes as well
	commit    func(tx *sql.Tx) error
}

// destroy takes things out of the catalog in one transaction, and then out of
// the store. What the store cannot let go of yet, or what is left when the
// process is cut, is retired.
func (m *Manager) destroy(ctx context.Context, d destruction) error {
	var id int64
	var snapshots []Snapshot
	err := m.catalog.Update(ctx, func(tx *sql.Tx) error {
		if err := refuseReplica(tx); err != nil {
			return err
		}
		snapshots = nil
		for _, snapshot := range d.snapshots {
			s, err := snapshotByID(tx, snapshot)
			if err != nil {
				return err
			}
			snapshots = append(snapshots, s)
		}
		needs, err := needsOfAll(tx, snapshots, d.ownTree)
		if err != nil {
			return err
		}
		if len(needs) > 0 {
			return neededError(d.what, snapshots, needs)
		}
		if err := retireSnapshots(tx, snapshots, time.Now()); err != nil {
			return err
		}
		if err := retireVolumes(tx, d.volumes, "the head of "+d.what); err != nil {
			return err
		}
		if err := d.commit(tx); err != nil {
			return err
		}
		id, err = catalog.Begin(tx, catalog.Intent{Action: d.action, Volumes: d.volumes, Snapshots: d.snapshots, Actor: m.actor})
		return err
	})
	if err != nil {
		return err
	}
	// What follows must happen even if the user has pressed Ctrl-C.
	ctx = context.WithoutCancel(ctx)
	_, left, err := m.collectAfter(ctx, id, d.volumes, snapshots)
	if err != nil {
		m.log.WithError(err).Warnf("%s is deleted; `sidus check --repair` frees its space", d.what)
	}
	m.warnRetired(d.what, left)
	return nil
}

// collectAfter destroys what an operation has just retired, and whatever else
// is retired, ends its intent and leaves a copy of the catalog in the store.
// It returns what was destroyed and what of the operation has to stay.
func (m *Manager) collectAfter(ctx context.Context, intent int64, volumes []store.VolumeID, snapshots []Snapshot) (done, left []Retired, err error) {
	fresh := make([]string, 0, len(volumes)+len(snapshots))
	for _, v := range volumes {
		fresh = append(fresh, string(v))
	}
	for _, s := range snapshots {
		fresh = append(fresh, string(s.ID))
		if err := os.Remove(m.layout.Index(s.ID)); err != nil && !errors.Is(err, os.ErrNotExist) {
			m.log.WithError(err).Warn("an old index stays")
		}
	}
	done, left, err = m.collectRetired(ctx, fresh, true)
	m.endIntent(context.WithoutCancel(ctx), intent)
	m.keepCatalog(context.WithoutCancel(ctx))
	return done, slices.DeleteFunc(left, func(r Retired) bool { return !slices.Contains(fresh, r.ID) }), err
}

func neededError(what string, snapshots []Snapshot, needs map[store.SnapshotID][]Need) error {
	e := &NeededError{What: what}
	for _, s := range snapshots {
		e.Needs = append(e.Needs, needs[s.ID]...)
	}
	return e
}

// warnRetired tells that what was deleted still takes space.
func (m *Manager) warnRetired(what string, left []Retired) {
	if len(left) == 0 {
		return
	}
	m.log.Warnf("%s is deleted, but its space is not free yet (%s); it is freed by the next `sidus gc`, deletion or `sidus check --repair` after that has ended",
		what, left[0].Reason)
}
