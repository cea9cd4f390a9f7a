package image

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"sidus/image/catalog"
	"sidus/image/store"
)

// Diverged is what a replica has and its primary does not know.
type Diverged struct {
	Snapshots []store.SnapshotID
	Trees     []string // IDs
	// Booted tells when each machine, by its MAC address, last booted from the
	// primary.
	Booted map[string]time.Time
}

// runsSilent is how long after its last sign of life a node still counts as one
// that runs what a replica is to drop. Nobody can end its session there, and the
// one that it may have at the primary tells nothing of it.
const runsSilent = 3 * time.Hour

// DropDiverged deletes from a replica what its primary does not know, with the
// channels that point to it. It is refused, with a *NeededError, while nodes run
// one of the snapshots: they were heard a short time ago, and have not booted
// from the primary since.
func (m *Manager) DropDiverged(ctx context.Context, d Diverged) error {
	var intent int64
	var gone []Snapshot
	var heads []store.VolumeID
	err := m.catalog.Update(ctx, func(tx *sql.Tx) error {
		gone, heads = nil, nil
		if err := checkRole(tx, true); err != nil {
			return err
		}
		for _, id := range d.Snapshots {
			s, err := snapshotByID(tx, id)
			if errors.Is(err, store.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			gone = append(gone, s)
			// Where they point, and what they kept, comes from the primary.
			if _, err := tx.Exec(`DELETE FROM channel WHERE snapshot = ?`, id); err != nil {
				return err
			}
		}
		needs, err := needsOfAll(tx, gone, "")
		if err != nil {
			return err
		}
		for id, list := range needs {
			needs[id] = slices.DeleteFunc(list, func(n Need) bool { return n.Kind != "operation" })
			if len(needs[id]) == 0 {
				delete(needs, id)
			}
		}
		if err := d.runners(tx, gone, needs); err != nil {
			return err
		}
		if len(needs) > 0 {
			return neededError("what only this server has", gone, needs)
		}
		if err := retireSnapshots(tx, gone, time.Now()); err != nil {
			return err
		}
		for _, s := range gone {
			if err := m.record(tx, "drop", s.TreeID, "dropped %s (%s), which the primary does not know", s.Ref(), s.ID); err != nil {
				return err
			}
		}
		for _, id := range d.Trees {
			t, err := scanTree(tx.QueryRow(`SELECT `+treeColumns+` FROM tree WHERE id = ? AND deleted IS NULL`, id))
			if errors.Is(err, sql.ErrNoRows) {
				continue
			}
			if err != nil {
				return err
			}
			heads = append(heads, t.Head)
			if _, err := tx.Exec(`UPDATE tree SET deleted = ? WHERE id = ?`, catalog.Millis(time.Now()), id); err != nil {
				return err
			}
			if err := m.record(tx, "drop", id, "dropped the tree %s, which the primary does not know", t.Name); err != nil {
				return err
			}
		}
		if err := retireVolumes(tx, heads, "the head of a dropped tree"); err != nil {
			return err
		}
		intent, err = catalog.Begin(tx, catalog.Intent{Action: "replicate", Volumes: heads, Snapshots: d.Snapshots, Actor: m.actor})
		return err
	})
	if err != nil {
		return err
	}
	_, _, err = m.collectAfter(context.WithoutCancel(ctx), intent, heads, gone)
	return err
}

// runners adds the nodes that run one of the snapshots to the needs.
func (d Diverged) runners(tx *sql.Tx, snapshots []Snapshot, needs map[store.SnapshotID][]Need) error {
	refs := map[store.SnapshotID]string{}
	for _, s := range snapshots {
		refs[s.ID] = s.Ref()
	}
	rows, err := tx.Query(`SELECT s.mac, COALESCE(NULLIF(node.name, ''), s.mac), s.heard, s.snapshot
			FROM session s LEFT JOIN node ON node.mac = s.mac WHERE s.ended IS NULL AND s.heard > ?1
		UNION SELECT s.mac, COALESCE(NULLIF(node.name, ''), s.mac), s.heard, u.snapshot
			FROM live_update u JOIN session s ON s.id = u.session LEFT JOIN node ON node.mac = s.mac WHERE u.held = 1 AND s.ended IS NULL AND s.heard > ?1
		ORDER BY 2`, catalog.Millis(time.Now().Add(-runsSilent)))
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var mac, name string
		var at int64
		var id store.SnapshotID
		if err := rows.Scan(&mac, &name, &at, &id); err != nil {
			return err
		}
		heard := catalog.Time(at)
		if refs[id] == "" || d.Booted[mac].After(heard) {
			continue
		}
		needs[id] = append(needs[id], Need{id, refs[id], "session", name, fmt.Sprintf("node %s runs %s, and was heard at %s: boot it from the primary, or wait until it was silent for %s",
			name, refs[id], heard.Format("2006-01-02 15:04:05"), runsSilent)})
	}
	return rows.Err()
}

// Booted tells when each machine, by its MAC address, last booted from this
// server.
func (m *Manager) Booted(ctx context.Context) (booted map[string]time.Time, err error) {
	booted = map[string]time.Time{}
	err = m.catalog.View(ctx, func(tx *sql.Tx) error {
		rows, err := tx.Query(`SELECT mac, MAX(opened) FROM session GROUP BY mac`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var mac string
			var at int64
			if err := rows.Scan(&mac, &at); err != nil {
				return err
			}
			booted[mac] = catalog.Time(at)
		}
		return rows.Err()
	})
	return booted, err
}
