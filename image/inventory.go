package image

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strconv"

	"sidus/image/catalog"
	"sidus/image/store"
)

// Inventory is what a catalog names, for the planner of replication.
type Inventory struct {
	Site      Site                        `json:"site"`
	Trees     []Tree                      `json:"trees"`     // those that are there
	Gone      []string                    `json:"gone"`      // IDs of trees whose deletion is on record
	Snapshots []Snapshot                  `json:"snapshots"` // Deleted is set for those whose deletion is on record
	Channels  map[string]store.SnapshotID `json:"channels"`
}

// InventoryOf reads the inventory of any catalog. It does not look for what is
// lost.
func InventoryOf(ctx context.Context, c *catalog.Catalog) (i Inventory, err error) {
	i.Channels = map[string]store.SnapshotID{}
	err = c.View(ctx, func(tx *sql.Tx) error {
		if i.Site, err = querySite(tx); err != nil {
			return err
		}
		if i.Snapshots, err = querySnapshots(tx, `TRUE ORDER BY tree.name, snapshot.number`); err != nil {
			return err
		}
		if i.Trees, err = queryTrees(tx); err != nil {
			return err
		}
		if err := eachRow(tx, func(id, _ string) { i.Gone = append(i.Gone, id) }, `SELECT id, '' FROM tree WHERE deleted IS NOT NULL`); err != nil {
			return err
		}
		return eachRow(tx, func(name, id string) { i.Channels[name] = store.SnapshotID(id) }, `SELECT name, snapshot FROM channel`)
	})
	return i, err
}

// Inventory reads the inventory of this server.
func (m *Manager) Inventory(ctx context.Context) (Inventory, error) {
	i, err := InventoryOf(ctx, m.catalog)
	if err != nil {
		return i, err
	}
	return i, m.MarkLost(ctx, i.Snapshots)
}

// MarkLost marks those of the snapshots that the catalog names and the store
// has lost.
func (m *Manager) MarkLost(ctx context.Context, snapshots []Snapshot) error {
	held, err := m.held(ctx)
	if err != nil {
		return err
	}
	for i := range snapshots {
		s := &snapshots[i]
		if item, there := held[string(s.ID)]; there && !item.Partial || !s.Deleted.IsZero() {
			continue
		}
		// It may have been deleted since the list was made.
		switch _, err := m.SnapshotByID(ctx, s.ID); {
		case err == nil:
			s.Lost = true
		case !errors.Is(err, store.ErrNotFound):
			return err
		}
	}
	return nil
}

// IsLost tells whether the store has lost a snapshot. The error wraps
// store.ErrNotFound if the catalog does not name it.
func (m *Manager) IsLost(ctx context.Context, id store.SnapshotID) (bool, error) {
	s, err := m.SnapshotByID(ctx, id)
	if err != nil {
		return false, err
	}
	list := []Snapshot{s}
	err = m.MarkLost(ctx, list)
	return list[0].Lost, err
}

func queryTrees(tx *sql.Tx) (trees []Tree, err error) {
	rows, err := tx.Query(`SELECT ` + treeColumns + ` FROM tree WHERE deleted IS NULL ORDER BY name`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		t, err := scanTree(rows)
		if err != nil {
			return nil, err
		}
		trees = append(trees, t)
	}
	return trees, rows.Err()
}

// ChangeMark returns a text that is another one after each change of what is
// replicated. Signs of life change it once in ten minutes: hundreds of nodes give
// some each second, and a session is silent for 30 days before that counts.
func (m *Manager) ChangeMark(ctx context.Context) (mark string, err error) {
	err = m.catalog.View(ctx, func(tx *sql.Tx) error {
		return tx.QueryRow(`SELECT
			(SELECT COALESCE(MAX(id), 0) FROM event) || ' ' ||
			(SELECT COALESCE(SUM(changed), 0) || ' ' || COUNT(*) FROM channel) || ' ' ||
			(SELECT COUNT(*) || ' ' || COALESCE(MAX(heard), 0) / 600000 || ' ' || COALESCE(MAX(step_at), 0) || ' ' || COUNT(ended) FROM session) || ' ' ||
			(SELECT COUNT(*) || ' ' || COALESCE(SUM(expires), 0) FROM lease) || ' ' ||
			(SELECT COUNT(*) || ' ' || COALESCE(MAX(last_seen), 0) / 600000 FROM node) || ' ' ||
			(SELECT COUNT(*) || ' ' || COALESCE(MAX(answered), 0) FROM live_update)`).Scan(&mark)
	})
	// A recipe is kept after its build is in the history.
	if info, statErr := os.Stat(m.layout.Recipes()); statErr == nil {
		mark += " " + strconv.FormatInt(info.ModTime().UnixNano(), 10)
	}
	return mark, err
}

// HoldWhile keeps snapshots from being deleted while this process reads them.
// The error wraps store.ErrNotFound if one is gone. release must be called; if
// the process ends without, the hold ends with it.
func (m *Manager) HoldWhile(ctx context.Context, action string, ids []store.SnapshotID) (release func(), err error) {
	var intent int64
	err = m.catalog.Update(ctx, func(tx *sql.Tx) error {
		for _, id := range ids {
			if _, err := snapshotByID(tx, id); err != nil {
				return err
			}
		}
		intent, err = catalog.Begin(tx, catalog.Intent{Action: action, Uses: ids, Actor: m.actor})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", action, err)
	}
	return func() { m.endIntent(context.WithoutCancel(ctx), intent) }, nil
}

// CopyCatalog writes a consistent copy of the catalog to the new file path.
func (m *Manager) CopyCatalog(ctx context.Context, path string) error {
	return m.catalog.CopyTo(ctx, path)
}
