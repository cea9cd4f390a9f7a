package image

import (
	"database/sql"
	"fmt"
	"slices"

	"sidus/image/catalog"
	"sidus/image/store"
)

// needsOf says who needs a snapshot, apart from the tree ownTree.
func needsOf(tx *sql.Tx, id store.SnapshotID, ownTree string) ([]Need, error) {
	s, err := snapshotByID(tx, id)
	if err != nil {
		return nil, err
	}
	var needs []Need
	for _, find := range []func(*sql.Tx, Snapshot) ([]Need, error){channelNeeds, nodeNeeds, operationNeeds} {
		more, err := find(tx, s)
		if err != nil {
			return nil, err
		}
		needs = append(needs, more...)
	}
	heads, err := headNeeds(tx, s, ownTree)
	return append(needs, heads...), err
}

// Needs says who needs a snapshot.
func (m *Manager) Needs(tx *sql.Tx, id store.SnapshotID) ([]Need, error) { return needsOf(tx, id, "") }

func channelNeeds(tx *sql.Tx, s Snapshot) ([]Need, error) {
	channels, err := queryChannels(tx)
	if err != nil {
		return nil, err
	}
	var needs []Need
	for _, c := range channels {
		if c.Snapshot.ID == s.ID {
			needs = append(needs, Need{s.ID, s.Ref(), "channel", c.Name, fmt.Sprintf("channel %s points to %s", c.Name, s.Ref())})
			continue
		}
		history, err := queryHistory(tx, c.Name)
		if err != nil {
			return nil, err
		}
		for _, move := range history {
			if move.Kept && move.Snapshot == s.ID {
				needs = append(needs, Need{s.ID, s.Ref(), "history", c.Name, fmt.Sprintf(
					"channel %s keeps %s for a rollback (the last %d are kept; `sidus channel set %s --keep N` changes that)", c.Name, s.Ref(), c.Keep, c.Name)})
				break
			}
		}
	}
	return needs, nil
}

// nodeNeeds finds the nodes that are pinned to a snapshot or run it.
func nodeNeeds(tx *sql.Tx, s Snapshot) ([]Need, error) {
	var needs []Need
	err := eachRow(tx, func(name, mac string) {
		needs = append(needs, Need{s.ID, s.Ref(), "pin", name, fmt.Sprintf("node %s is pinned to %s", nodeName(name, mac), s.Ref())})
	}, `SELECT name, mac FROM node WHERE pin = ? ORDER BY name, mac`, s.ID)
	if err != nil {
		return nil, err
	}
	err = eachRow(tx, func(name, mac string) {
		needs = append(needs, Need{s.ID, s.Ref(), "session", name, fmt.Sprintf("node %s runs %s", nodeName(name, mac), s.Ref())})
	}, `SELECT COALESCE(node.name, ''), session.mac FROM session LEFT JOIN node ON node.mac = session.mac
		WHERE session.snapshot = ? AND session.ended IS NULL ORDER BY 1, 2`, s.ID)
	return needs, err
}

func nodeName(name, mac string) string {
	if name == "" {
		return mac
	}
	return name
}

// headNeeds finds the trees whose head starts from a snapshot.
func headNeeds(tx *sql.Tx, s Snapshot, ownTree string) ([]Need, error) {
	var needs []Need
	err := eachRow(tx, func(id, name string) {
		switch id {
		case ownTree:
		case s.TreeID:
			needs = append(needs, Need{s.ID, s.Ref(), "head", name, fmt.Sprintf("the head of %s starts from %s (`sidus rollback` to another snapshot, or `sidus snapshot`, changes that)", name, s.Ref())})
		default:
			needs = append(needs, Need{s.ID, s.Ref(), "branch", name, fmt.Sprintf("the branch %s starts from %s", name, s.Ref())})
		}
	}, `SELECT id, name FROM tree WHERE base = ? AND deleted IS NULL ORDER BY name`, s.ID)
	return needs, err
}

// operationNeeds finds what live processes do with a snapshot right now.
func operationNeeds(tx *sql.Tx, s Snapshot) ([]Need, error) {
	intents, err := catalog.Intents(tx)
	if err != nil {
		return nil, err
	}
	var needs []Need
	for _, i := range intents {
		if slices.Contains(i.Uses, s.ID) && i.Process.Alive() {
			needs = append(needs, Need{s.ID, s.Ref(), "operation", i.Action, fmt.Sprintf(
				"%s uses %s right now (`%s`, process %d)", i.Actor.User, s.Ref(), i.Actor.Command, i.Process.PID)})
		}
	}
	return needs, nil
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
