package image

import (
	"database/sql"
	"fmt"

	"sidus/image/catalog"
	"sidus/image/store"
)

// needsOf says who needs a snapshot, apart from the tree ownTree.
func needsOf(tx *sql.Tx, id store.SnapshotID, ownTree string) ([]Need, error) {
	s, err := snapshotByID(tx, id)
	if err != nil {
		return nil, err
	}
	needs, err := needsOfAll(tx, []Snapshot{s}, ownTree)
	return needs[id], err
}

// Needs says who needs a snapshot.
func (m *Manager) Needs(tx *sql.Tx, id store.SnapshotID) ([]Need, error) { return needsOf(tx, id, "") }

// needsOfAll says who needs each of many snapshots, apart from the tree
// ownTree. It asks the catalog as often for a thousand as for one.
func needsOfAll(tx *sql.Tx, snapshots []Snapshot, ownTree string) (map[store.SnapshotID][]Need, error) {
	f := needFinder{tx: tx, of: map[store.SnapshotID]Snapshot{}, needs: map[store.SnapshotID][]Need{}}
	for _, s := range snapshots {
		f.of[s.ID] = s
	}
	for _, find := range []func() error{f.channels, f.pins, f.sessions, f.operations} {
		if err := find(); err != nil {
			return nil, err
		}
	}
	// With its tree goes what a target would need a snapshot for.
	if ownTree == "" {
		if err := f.holds(); err != nil {
			return nil, err
		}
	}
	return f.needs, f.heads(ownTree)
}

// needFinder collects the needs of the snapshots that it is asked for.
type needFinder struct {
	tx    *sql.Tx
	of    map[store.SnapshotID]Snapshot
	needs map[store.SnapshotID][]Need
}

// add notes a need, if its snapshot was asked for. What it says to people is
// before, the snapshot's name, and after.
func (f *needFinder) add(id store.SnapshotID, kind, who, before, after string) {
	if s, asked := f.of[id]; asked {
		f.needs[id] = append(f.needs[id], Need{s.ID, s.Ref(), kind, who, before + s.Ref() + after})
	}
}

func (f *needFinder) channels() error {
	channels, err := queryChannels(f.tx)
	if err != nil {
		return err
	}
	for _, c := range channels {
		f.add(c.Snapshot.ID, "channel", c.Name, "channel "+c.Name+" points to ", "")
		history, err := queryHistory(f.tx, c.Name)
		if err != nil {
			return err
		}
		told := map[store.SnapshotID]bool{c.Snapshot.ID: true}
		for _, move := range history {
			if move.Kept && !told[move.Snapshot] {
				told[move.Snapshot] = true
				f.add(move.Snapshot, "history", c.Name, "channel "+c.Name+" keeps ", fmt.Sprintf(
					" for a rollback (the last %d are kept; `sidus channel set %s --keep N` changes that)", c.Keep, c.Name))
			}
		}
	}
	return nil
}

// pins finds the nodes that are pinned to a snapshot.
func (f *needFinder) pins() error {
	return eachRow(f.tx, func(pin, node string) {
		f.add(store.SnapshotID(pin), "pin", node, "node "+node+" is pinned to ", "")
	}, `SELECT pin, COALESCE(NULLIF(name, ''), mac) FROM node WHERE pin <> '' ORDER BY name, mac`)
}

// sessions finds the nodes that run a snapshot: they booted it, or have taken
// it by a live update.
func (f *needFinder) sessions() error {
	if err := eachRow(f.tx, func(snapshot, node string) {
		f.add(store.SnapshotID(snapshot), "session", node, "node "+node+" runs ", " since a live update")
	}, `SELECT DISTINCT u.snapshot, COALESCE(NULLIF(node.name, ''), session.mac)
		FROM live_update u JOIN session ON session.id = u.session LEFT JOIN node ON node.mac = session.mac
		WHERE u.held = 1 AND session.ended IS NULL ORDER BY node.name, session.mac`); err != nil {
		return err
	}
	return eachRow(f.tx, func(snapshot, node string) {
		f.add(store.SnapshotID(snapshot), "session", node, "node "+node+" runs ", "")
	}, `SELECT session.snapshot, COALESCE(NULLIF(node.name, ''), session.mac)
		FROM session LEFT JOIN node ON node.mac = session.mac WHERE session.ended IS NULL ORDER BY node.name, session.mac`)
}

// operations finds what live processes do with a snapshot right now.
func (f *needFinder) operations() error {
	intents, err := catalog.Intents(f.tx)
	if err != nil {
		return err
	}
	for _, i := range intents {
		if len(i.Uses) == 0 || !i.Process.Alive() {
			continue
		}
		for _, used := range i.Uses {
			f.add(used, "operation", i.Action, i.Actor.User+" uses ", fmt.Sprintf(" right now (`%s`, process %d)", i.Actor.Command, i.Process.PID))
		}
	}
	return nil
}

// heads finds the trees whose head starts from a snapshot.
func (f *needFinder) heads(ownTree string) error {
	rows, err := f.tx.Query(`SELECT id, name, base FROM tree WHERE base <> '' AND deleted IS NULL AND id <> ? ORDER BY name`, ownTree)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var id, name string
		var base store.SnapshotID
		if err := rows.Scan(&id, &name, &base); err != nil {
			return err
		}
		if f.of[base].TreeID == id {
			f.add(base, "head", name, "the head of "+name+" starts from ", " (`sidus rollback` to another snapshot, or `sidus snapshot`, changes that)")
		} else {
			f.add(base, "branch", name, "the branch "+name+" starts from ", "")
		}
	}
	return rows.Err()
}

// eachRow calls use for each row of a query of two text columns.
func eachRow(tx *sql.Tx, use func(a, b string), query string, args ...any) error {
	rows, err := tx.Query(query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var a, b string
		if err := rows.Scan(&a, &b); err != nil {
			return err
		}
		use(a, b)
	}
	return rows.Err()
}
