package image

import (
	"context"
	"database/sql"

	"sidus/image/store"
)

// CommonAncestor finds the newest snapshot that both a and b descend from, or
// are. It may be one that was deleted. false means that they share no history.
func (m *Manager) CommonAncestor(ctx context.Context, a, b store.SnapshotID) (s Snapshot, found bool, err error) {
	err = m.catalog.View(ctx, func(tx *sql.Tx) error {
		parents := map[store.SnapshotID]store.SnapshotID{}
		err := eachRow(tx, func(id, parent string) { parents[store.SnapshotID(id)] = store.SnapshotID(parent) },
			`SELECT id, parent FROM snapshot`)
		if err != nil {
			return err
		}
		ancestors := map[store.SnapshotID]bool{}
		for id := a; id != "" && !ancestors[id]; id = parents[id] {
			ancestors[id] = true
		}
		seen := map[store.SnapshotID]bool{}
		for id := b; id != "" && !seen[id]; id = parents[id] {
			seen[id] = true
			if _, known := parents[id]; known && ancestors[id] {
				s, err = anySnapshotByID(tx, id)
				found = err == nil
				return err
			}
		}
		return nil
	})
	return s, found, err
}
