package image

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"time"

	"sidus/image/catalog"
	"sidus/image/store"
)

// Hold is a reason why a snapshot stays that no channel, branch or node gives:
// the next difference to a target begins there, or a command that runs reads
// it. It ends with its reason: with the target, with the process.
type Hold struct {
	Name     string           `json:"name"` // the target, or the command's process: "process 4711"
	Snapshot store.SnapshotID `json:"snapshot"`
	Ref      string           `json:"ref"`
	Since    time.Time        `json:"since"`
	Text     string           `json:"text"`       // the reason, for people
	Releases bool             `json:"releasable"` // `holds release` can end it
}

// Holds lists all holds, by name.
func (m *Manager) Holds(ctx context.Context) (list []Hold, err error) {
	err = m.catalog.View(ctx, func(tx *sql.Tx) error {
		list, err = queryHolds(tx)
		return err
	})
	return list, err
}

func queryHolds(tx *sql.Tx) (list []Hold, err error) {
	list = []Hold{}
	rows, err := tx.Query(`SELECT hold.target, hold.snapshot, hold.at, tree.name || '@' || snapshot.number
		FROM hold JOIN snapshot ON snapshot.id = hold.snapshot JOIN tree ON tree.id = snapshot.tree
		WHERE snapshot.deleted IS NULL ORDER BY hold.target, tree.name, snapshot.number`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		h := Hold{Releases: true}
		var at int64
		if err := rows.Scan(&h.Name, &h.Snapshot, &at, &h.Ref); err != nil {
			return nil, err
		}
		h.Since, h.Text = catalog.Time(at), "the next difference to the target "+h.Name+" begins there"
		list = append(list, h)
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	intents, err := catalog.Intents(tx)
	if err != nil {
		return nil, err
	}
	for _, i := range intents {
		if !i.Process.Alive() {
			continue
		}
		for _, id := range i.Uses {
			ref := string(id)
			if s, err := anySnapshotByID(tx, id); err == nil {
				ref = s.Ref()
			}
			list = append(list, Hold{Name: fmt.Sprintf("process %d", i.Process.PID), Snapshot: id, Ref: ref, Since: i.At,
				Text: fmt.Sprintf("%s of %s works with it (`%s`)", i.Action, i.Actor.User, i.Actor.Command)})
		}
	}
	slices.SortStableFunc(list, func(a, b Hold) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// ReleaseHolds ends the holds of a target; of one snapshot only if id is not
// empty. The target gets whole snapshots then, where it would have got a
// difference. The error wraps store.ErrNotFound if there is no such hold, and
// store.ErrInUse if it is that of a process.
func (m *Manager) ReleaseHolds(ctx context.Context, name string, id store.SnapshotID) (n int, err error) {
	err = m.catalog.Update(ctx, func(tx *sql.Tx) error {
		all, err := queryHolds(tx)
		if err != nil {
			return err
		}
		n = 0
		for _, h := range all {
			if h.Name != name || id != "" && h.Snapshot != id {
				continue
			}
			if !h.Releases {
				return fmt.Errorf("hold %s of %s: %w: it ends with the process; %s", h.Name, h.Ref, store.ErrInUse, h.Text)
			}
			if _, err := tx.Exec(`DELETE FROM hold WHERE target = ? AND snapshot = ?`, h.Name, h.Snapshot); err != nil {
				return err
			}
			n++
			if err := m.record(tx, "holds-release", string(h.Snapshot), "released %s, which the target %s held", h.Ref, h.Name); err != nil {
				return err
			}
		}
		if n == 0 {
			return fmt.Errorf("hold %s: %w; `sidus holds` lists them", name, store.ErrNotFound)
		}
		return nil
	})
	return n, err
}

// holds finds the targets that the next difference to begins at a snapshot.
func (f *needFinder) holds() error {
	return eachRow(f.tx, func(snapshot, target string) {
		f.add(store.SnapshotID(snapshot), "hold", target, "the target "+target+" needs ",
			" for the next difference (`sidus holds release "+target+"`, or `sidus replicate remove "+target+"`, ends that)")
	}, `SELECT snapshot, target FROM hold ORDER BY target`)
}
