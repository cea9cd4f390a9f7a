package image

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"sidus/image/catalog"
	"sidus/image/store"
)

// Target is a server that this one replicates to.
type Target struct {
	Name     string    `json:"name"`
	URL      string    `json:"url"`
	Rate     int64     `json:"rate,omitempty"` // at most so many bytes per second; 0: no limit
	Portable bool      `json:"portable,omitempty"`
	Decrypt  bool      `json:"decrypt,omitempty"` // what is encrypted in the store may go there in the clear
	Added    time.Time `json:"added"`
	Tried    time.Time `json:"tried,omitzero"` // when the last run began
	Done     time.Time `json:"done,omitzero"`  // when the last run that succeeded ended
	AsOf     time.Time `json:"as_of,omitzero"` // the moment that the target holds the catalog of
	Error    string    `json:"error,omitempty"`
	Sent     int64     `json:"sent"` // bytes that the last run sent

	held         []store.SnapshotID // what the target had after the last run
	portableOnly bool               // what the last run found, whatever Portable says
}

// TargetLag says how far a target is behind.
type TargetLag struct {
	Target
	Snapshots int      `json:"snapshots_behind"`        // that the target does not have, and takes
	Channels  []string `json:"channels_behind"`         // that have moved since
	Seconds   int64    `json:"seconds_behind"`          // since the moment that the target holds; 0 if nothing has changed since
	Never     bool     `json:"never_run,omitempty"`     // no run has succeeded yet
	Changed   bool     `json:"changed"`                 // something is to be sent
	Holds     int      `json:"snapshots_held,omitzero"` // snapshots that stay for its sake
}

const targetColumns = `name, url, rate, portable, decrypt, added, tried, done, as_of, error, sent, held, portable_only`

func queryTargets(tx *sql.Tx, where string, args ...any) (list []Target, err error) {
	rows, err := tx.Query(`SELECT `+targetColumns+` FROM target `+where+` ORDER BY name`, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var t Target
		var added, tried, done, asOf int64
		var held []byte
		if err := rows.Scan(&t.Name, &t.URL, &t.Rate, &t.Portable, &t.Decrypt, &added, &tried, &done, &asOf, &t.Error, &t.Sent, &held, &t.portableOnly); err != nil {
			return nil, err
		}
		t.Added, t.Tried, t.Done, t.AsOf = catalog.Time(added), catalog.Time(tried), catalog.Time(done), catalog.Time(asOf)
		if err := json.Unmarshal(held, &t.held); err != nil {
			return nil, fmt.Errorf("catalog: target %s: %w", t.Name, err)
		}
		list = append(list, t)
	}
	return list, rows.Err()
}

// Targets lists the targets, by name.
func (m *Manager) Targets(ctx context.Context) (list []Target, err error) {
	err = m.catalog.View(ctx, func(tx *sql.Tx) error {
		list, err = queryTargets(tx, "")
		return err
	})
	return list, err
}

// Target returns one. The error wraps store.ErrNotFound.
func (m *Manager) Target(ctx context.Context, name string) (t Target, err error) {
	err = m.catalog.View(ctx, func(tx *sql.Tx) error {
		t, err = targetByName(tx, name)
		return err
	})
	return t, err
}

func targetByName(tx *sql.Tx, name string) (Target, error) {
	list, err := queryTargets(tx, `WHERE name = ?`, name)
	if err == nil && len(list) == 0 {
		err = fmt.Errorf("target %s: %w; `sidus replicate list` shows what there is", name, store.ErrNotFound)
	}
	if err != nil {
		return Target{}, err
	}
	return list[0], nil
}

// AddTarget adds a target. It may be done on a replica, too, for the time after
// a takeover. The error wraps store.ErrExists or store.ErrBadName.
func (m *Manager) AddTarget(ctx context.Context, t Target) error {
	if err := ValidateName("target", t.Name); err != nil {
		return err
	}
	return m.catalog.Update(ctx, func(tx *sql.Tx) error {
		if _, err := targetByName(tx, t.Name); err == nil {
			return fmt.Errorf("target %s: %w; `sidus replicate remove %s` removes it", t.Name, store.ErrExists, t.Name)
		} else if !errors.Is(err, store.ErrNotFound) {
			return err
		}
		_, err := tx.Exec(`INSERT INTO target (name, url, rate, portable, decrypt, added) VALUES (?, ?, ?, ?, ?, ?)`, t.Name, t.URL, t.Rate, t.Portable, t.Decrypt, catalog.Millis(time.Now()))
		if err != nil {
			return fmt.Errorf("target %s: %w", t.Name, err)
		}
		return m.record(tx, "target-add", "target "+t.Name, "added the target %s (%s)", t.Name, t.URL)
	})
}

// RemoveTarget removes a target, and the holds for its sake.
func (m *Manager) RemoveTarget(ctx context.Context, name string) error {
	return m.catalog.Update(ctx, func(tx *sql.Tx) error {
		t, err := targetByName(tx, name)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(`DELETE FROM target WHERE name = ?`, name); err != nil {
			return err
		}
		return m.record(tx, "target-remove", "target "+name, "removed the target %s (%s)", name, t.URL)
	})
}

// TargetTried notes that a run to a target begins.
func (m *Manager) TargetTried(ctx context.Context, name string) error {
	return m.catalog.Update(ctx, func(tx *sql.Tx) error {
		_, err := tx.Exec(`UPDATE target SET tried = ? WHERE name = ?`, catalog.Millis(time.Now()), name)
		return err
	})
}

// TargetFailed notes why a run failed.
func (m *Manager) TargetFailed(ctx context.Context, name string, why error) error {
	return m.catalog.Update(ctx, func(tx *sql.Tx) error {
		_, err := tx.Exec(`UPDATE target SET error = ? WHERE name = ?`, why.Error(), name)
		return err
	})
}

// TargetRun is what a run that succeeded has found and done.
type TargetRun struct {
	AsOf         time.Time          // the moment that the target holds the catalog of
	Held         []store.SnapshotID // what the target has
	Sent         int64              // bytes
	PortableOnly bool               // the target takes portable streams only, which complete snapshots go in
}

// TargetDone notes that a run to a target has succeeded. Of each tree the newest
// snapshot that the target has is held from now on, if the next difference begins
// there.
func (m *Manager) TargetDone(ctx context.Context, name string, run TargetRun) error {
	text, err := json.Marshal(run.Held)
	if err != nil {
		return err
	}
	return m.catalog.Update(ctx, func(tx *sql.Tx) error {
		if _, err := targetByName(tx, name); err != nil {
			return nil // it was removed meanwhile
		}
		now := catalog.Millis(time.Now())
		_, err := tx.Exec(`UPDATE target SET done = ?, as_of = ?, error = '', sent = ?, held = ?, portable_only = ? WHERE name = ?`,
			now, catalog.Millis(run.AsOf), run.Sent, string(text), run.PortableOnly, name)
		if err != nil {
			return err
		}
		there := map[store.SnapshotID]bool{}
		for _, id := range run.Held {
			there[id] = true
		}
		snapshots, err := querySnapshots(tx, `snapshot.deleted IS NULL ORDER BY snapshot.tree, snapshot.number`)
		if err != nil {
			return err
		}
		newest := map[string]store.SnapshotID{}
		for _, s := range snapshots {
			if there[s.ID] && !run.PortableOnly {
				newest[s.TreeID] = s.ID
			}
		}
		keep := []string{}
		for _, id := range newest {
			keep = append(keep, string(id))
			if _, err := tx.Exec(`INSERT INTO hold (target, snapshot, at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING`, name, id, now); err != nil {
				return err
			}
		}
		list, err := json.Marshal(keep)
		if err != nil {
			return err
		}
		_, err = tx.Exec(`DELETE FROM hold WHERE target = ? AND snapshot NOT IN (SELECT value FROM json_each(?))`, name, string(list))
		return err
	})
}

// Lags says how far each target is behind, from what this server knows; the
// targets are not asked.
func (m *Manager) Lags(ctx context.Context) (lags []TargetLag, err error) {
	lags = []TargetLag{}
	err = m.catalog.View(ctx, func(tx *sql.Tx) error {
		targets, err := queryTargets(tx, "")
		if err != nil {
			return err
		}
		for _, t := range targets {
			lag, err := lagOf(tx, t)
			if err != nil {
				return err
			}
			lags = append(lags, lag)
		}
		return nil
	})
	return lags, err
}

func lagOf(tx *sql.Tx, t Target) (lag TargetLag, err error) {
	lag = TargetLag{Target: t, Channels: []string{}, Never: t.Done.IsZero()}
	there := map[store.SnapshotID]bool{}
	for _, id := range t.held {
		there[id] = true
	}
	err = eachRow(tx, func(id, _ string) {
		if !there[store.SnapshotID(id)] {
			lag.Snapshots++
		}
	}, `SELECT id, '' FROM snapshot WHERE deleted IS NULL AND (complete OR NOT ?)`, t.Portable || t.portableOnly)
	if err != nil {
		return lag, err
	}
	asOf := int64(0)
	if !t.AsOf.IsZero() {
		asOf = catalog.Millis(t.AsOf)
	}
	err = eachRow(tx, func(name, _ string) { lag.Channels = append(lag.Channels, name) },
		`SELECT DISTINCT channel, '' FROM channel_history WHERE at > ? ORDER BY channel`, asOf)
	if err != nil {
		return lag, err
	}
	slices.Sort(lag.Channels)
	var events int
	if err := tx.QueryRow(`SELECT COUNT(*) FROM event WHERE at > ? AND action NOT LIKE 'target-%' AND action <> 'holds-release'`, asOf).Scan(&events); err != nil {
		return lag, err
	}
	if err := tx.QueryRow(`SELECT COUNT(*) FROM hold WHERE target = ?`, t.Name).Scan(&lag.Holds); err != nil {
		return lag, err
	}
	lag.Changed = lag.Snapshots > 0 || len(lag.Channels) > 0 || events > 0
	if lag.Changed && !t.AsOf.IsZero() {
		lag.Seconds = int64(time.Since(t.AsOf).Seconds())
	}
	return lag, nil
}
