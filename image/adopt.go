package image

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"sidus/image/catalog"
	"sidus/image/store"
)

// ErrBehind is returned by Adopt if the catalog names, in a channel, what this
// server does not hold yet.
var ErrBehind = errors.New("snapshots are missing here")

// AdoptOptions describe the catalog of a primary.
type AdoptOptions struct {
	// Catalog is a copy of the primary's catalog, brought up to date by
	// catalog.Open and closed again. Nobody else has it open; it is of no use
	// afterwards.
	Catalog string
	Epoch   int64     // the primary's
	Host    string    // the primary's
	AsOf    time.Time // when the copy was made
	// Properties are those of the primary's trees, see PropertiesOfTrees.
	Properties map[string]map[string]string
	// Install puts in place what belongs to the catalog and is not in it. It is
	// called right before the transaction, if this server still is a replica of
	// that primary; nil means no call.
	Install func() error
}

// Adopt makes the catalog of a replica that of its primary: channels, networks,
// nodes, sessions, leases and the history become what they are there, in one
// transaction, and the channels' snapshots are ready to be served before, but for
// those that cannot be read for now. Trees
// have a head here that starts where the primary's does, with its properties if
// this store has such. Of snapshots only those are listed that are here; what the
// primary has deleted is deleted.
//
// What belongs to this server alone stays: where its store is, its targets, its
// intents. The error wraps ErrBehind if a channel's snapshot is not here.
func (m *Manager) Adopt(ctx context.Context, options AdoptOptions) error {
	a, err := m.planAdoption(ctx, options)
	if err != nil {
		return err
	}
	for _, id := range a.ready {
		err := m.MakeIndex(ctx, id)
		if errors.Is(err, store.ErrUnavailable) {
			// It came encrypted, and its key is not loaded: it is as little ready
			// on the primary. Clients wait, and the index is made when one asks.
			m.log.WithError(err).Warnf("snapshot %s is here, and is not ready to be served", id)
		} else if err != nil {
			return fmt.Errorf("make snapshot %s ready: %w", id, err)
		}
	}
	err = m.run(ctx, operation{
		action: "replicate", replicated: true, attach: options.Catalog,
		makes: a.made(), removes: a.removes, removed: "the head before the replicate",
		check: a.checkRole,
		work: func(ctx context.Context) error {
			if err := a.makeHeads(ctx); err != nil || options.Install == nil {
				return err
			}
			if err := m.catalog.View(ctx, a.checkRole); err != nil {
				return err
			}
			return options.Install()
		},
		commit: a.commit,
	})
	if err != nil {
		return err
	}
	if err := m.adoptProperties(context.WithoutCancel(ctx), options.Properties); err != nil {
		return err
	}
	ids := make([]string, len(a.gone))
	for i, s := range a.gone {
		ids[i] = string(s.ID)
		if err := os.Remove(m.layout.Index(s.ID)); err != nil && !errors.Is(err, os.ErrNotExist) {
			m.log.WithError(err).Warn("an old index stays")
		}
	}
	if len(ids) == 0 {
		return nil
	}
	_, left, err := m.collectRetired(context.WithoutCancel(ctx), ids, true)
	if err == nil && len(left) > 0 {
		m.log.Debugf("%d deleted snapshots are not destroyed yet: %s", len(left), left[0].Reason)
	}
	return err
}

// adoption is what Adopt is to do.
type adoption struct {
	m       *Manager
	options AdoptOptions
	ready   []store.SnapshotID // whose index is wanted
	heads   []adoptedHead      // to be made
	removes []store.VolumeID   // heads to be destroyed
	gone    []Snapshot         // that the primary has deleted
}

// adoptedHead is the new head of a tree.
type adoptedHead struct {
	tree string
	head store.VolumeID
	base store.SnapshotID // "": an empty head
}

func (a *adoption) made() (list []store.VolumeID) {
	for _, h := range a.heads {
		list = append(list, h.head)
	}
	return list
}

func (a *adoption) makeHeads(ctx context.Context) error {
	for _, h := range a.heads {
		var err error
		if h.base == "" {
			err = a.m.store.CreateVolume(ctx, h.head)
		} else {
			err = a.m.store.Clone(ctx, h.base, h.head)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// planAdoption compares the two catalogs. One transfer at a time comes in, so
// that what it finds stays so until the commit.
func (m *Manager) planAdoption(ctx context.Context, options AdoptOptions) (*adoption, error) {
	from, err := catalog.Open(ctx, options.Catalog)
	if err != nil {
		return nil, err
	}
	theirs, err := InventoryOf(ctx, from)
	var inUse []store.SnapshotID
	if err == nil {
		err = from.View(ctx, func(tx *sql.Tx) error {
			add := func(id, _ string) { inUse = append(inUse, store.SnapshotID(id)) }
			return errors.Join(
				eachRow(tx, add, `SELECT DISTINCT snapshot, '' FROM session WHERE ended IS NULL`),
				eachRow(tx, add, `SELECT DISTINCT pin, '' FROM node WHERE pin <> ''`),
				eachRow(tx, add, `SELECT DISTINCT snapshot, '' FROM live_update WHERE held = 1`))
		})
	}
	if err := errors.Join(err, from.Close()); err != nil {
		return nil, err
	}
	ours, err := m.Inventory(ctx)
	if err != nil {
		return nil, err
	}
	a := &adoption{m: m, options: options}
	listed, held := map[store.SnapshotID]Snapshot{}, map[store.SnapshotID]Snapshot{}
	for _, s := range ours.Snapshots {
		if !s.Deleted.IsZero() {
			continue
		}
		listed[s.ID] = s
		if !s.Lost {
			held[s.ID] = s
		}
	}
	for name, id := range theirs.Channels {
		if _, ok := held[id]; !ok {
			return nil, fmt.Errorf("channel %s: %w: %s", name, ErrBehind, id)
		}
		inUse = append(inUse, id)
	}
	for _, id := range inUse {
		if _, ok := held[id]; ok && !slices.Contains(a.ready, id) {
			a.ready = append(a.ready, id)
		}
	}
	a.planHeads(theirs, ours, held)
	for _, s := range theirs.Snapshots {
		if known, ok := listed[s.ID]; ok && !s.Deleted.IsZero() {
			a.gone = append(a.gone, known)
		}
	}
	return a, nil
}

func (a *adoption) planHeads(theirs, ours Inventory, held map[store.SnapshotID]Snapshot) {
	here := map[string]Tree{}
	for _, t := range ours.Trees {
		here[t.ID] = t
	}
	for _, t := range theirs.Trees {
		base := t.Base
		if _, ok := held[base]; !ok {
			base = ""
		}
		old, there := here[t.ID]
		if there && (base == "" || old.Base == base) {
			continue
		}
		a.heads = append(a.heads, adoptedHead{t.ID, store.NewVolumeID(), base})
		if there {
			a.removes = append(a.removes, old.Head)
		}
	}
	for _, t := range ours.Trees {
		if slices.Contains(theirs.Gone, t.ID) {
			a.removes = append(a.removes, t.Head)
		}
	}
}

// own are the tables that are this server's, or that commit treats each for
// itself. All others become the primary's.
var own = []string{"meta", "tree", "snapshot", "session", "intent", "retired", "site", "target", "hold"}

// replicatedMeta are the keys of the table meta that come from the primary: the
// served clock, by which sessions end.
const replicatedMeta = `'served_seconds', 'served_at'`

// checkRole refuses a primary that this server does not follow any more.
func (a *adoption) checkRole(tx *sql.Tx) error {
	if err := checkRole(tx, true); err != nil {
		return err
	}
	s, err := querySite(tx)
	if err == nil && s.Epoch > a.options.Epoch {
		err = fmt.Errorf("this server knows a later primary (%s, epoch %d): %w", orUnknown(s.Host), s.Epoch, store.ErrInUse)
	}
	return err
}

// commit is the transaction. The primary's catalog is the schema src.
func (a *adoption) commit(tx *sql.Tx) error {
	if err := a.checkRole(tx); err != nil {
		return err
	}
	s, err := querySite(tx)
	if err != nil {
		return err
	}
	do := statements{tx: tx}
	do.exec(`PRAGMA defer_foreign_keys = ON`)
	a.trees(&do)
	a.snapshots(&do)
	var tables []string
	if do.err == nil {
		do.err = eachRow(tx, func(name, _ string) { tables = append(tables, name) },
			`SELECT name, '' FROM src.sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'`)
	}
	for _, table := range tables {
		if !slices.Contains(own, table) {
			do.exec(`DELETE FROM main.` + quote(table))
			do.copyRows(table, ``)
		}
	}
	// A node that this server heard later than the primary did is alive.
	do.exec(`UPDATE src.session SET heard = MAX(heard, COALESCE((SELECT heard FROM main.session old WHERE old.id = src.session.id), 0)),
		heard_clock = MAX(heard_clock, COALESCE((SELECT heard_clock FROM main.session old WHERE old.id = src.session.id), 0))`)
	do.exec(`DELETE FROM main.session`)
	do.copyRows("session", ``)
	do.exec(`DELETE FROM main.meta WHERE key IN (` + replicatedMeta + `)`)
	do.copyRows("meta", ` WHERE key IN (`+replicatedMeta+`)`)
	if do.err != nil {
		return fmt.Errorf("take over the primary's catalog: %w", do.err)
	}
	s.Epoch, s.Host, s.AsOf, s.Announced = a.options.Epoch, a.options.Host, a.options.AsOf, nil
	return putRole(tx, s)
}

func (a *adoption) trees(do *statements) {
	now := catalog.Millis(time.Now())
	// Names may have been exchanged: IDs are free as names meanwhile. A tree
	// that only this server has steps aside.
	do.exec(`UPDATE main.tree SET name = id WHERE id IN (SELECT id FROM src.tree)`)
	do.exec(`UPDATE main.tree SET name = substr(name, 1, 55) || '-' || substr(id, 1, 8) WHERE deleted IS NULL AND id NOT IN (SELECT id FROM src.tree)
		AND name IN (SELECT name FROM src.tree WHERE deleted IS NULL)`)
	made := map[string]adoptedHead{}
	for _, h := range a.heads {
		made[h.tree] = h
		// A tree that this server has deleted can come back.
		do.exec(`INSERT INTO main.tree (id, name, head, base, touched, created) VALUES (?, ?, ?, ?, FALSE, ?)
			ON CONFLICT (id) DO UPDATE SET head = excluded.head, base = excluded.base, touched = FALSE, deleted = NULL`, h.tree, h.tree, h.head, h.base, now)
	}
	// What was deleted before this server knew of it is on record, too.
	do.exec(`INSERT INTO main.tree (id, name, head, base, created, deleted)
		SELECT id, id, '', '', created, deleted FROM src.tree WHERE deleted IS NOT NULL AND id NOT IN (SELECT id FROM main.tree)`)
	do.update("tree", "id", "head", "base", "touched")
}

func (a *adoption) snapshots(do *statements) {
	// Numbers and names may have been exchanged, too. Numbers below all that
	// either catalog has are free meanwhile. What only this server has on record
	// as deleted keeps such a number if its own is that of a snapshot there.
	var lowest int64
	if do.err == nil {
		do.err = do.tx.QueryRow(`SELECT MIN(number) FROM (SELECT 0 AS number UNION ALL SELECT number FROM main.snapshot UNION ALL SELECT number FROM src.snapshot)`).Scan(&lowest)
	}
	do.exec(`UPDATE main.snapshot SET number = ? - rowid, name = '' WHERE id IN (SELECT id FROM src.snapshot) OR deleted IS NOT NULL
		AND EXISTS (SELECT 1 FROM src.snapshot s WHERE s.tree = main.snapshot.tree AND s.number = main.snapshot.number)`, lowest)
	do.exec(`UPDATE main.snapshot SET name = '' WHERE EXISTS
		(SELECT 1 FROM src.snapshot s WHERE s.tree = main.snapshot.tree AND s.name = main.snapshot.name AND s.deleted IS NULL AND s.id <> main.snapshot.id)`)
	do.update("snapshot", "id", "deleted")
	do.copyRows("snapshot", ` WHERE deleted IS NOT NULL AND id NOT IN (SELECT id FROM main.snapshot) AND tree IN (SELECT id FROM main.tree)`)
	// The next snapshot here, after a takeover, takes no number that is on record.
	do.exec(`UPDATE main.tree SET next_number = MAX(next_number, (SELECT COALESCE(MAX(number), 0) + 1 FROM main.snapshot WHERE tree = main.tree.id))`)
	for _, s := range a.gone {
		do.exec(`UPDATE main.snapshot SET deleted = (SELECT deleted FROM src.snapshot WHERE id = ?) WHERE id = ?`, s.ID, s.ID)
		if do.err == nil {
			do.err = retire(do.tx, store.KindSnapshot, string(s.ID), s.Ref())
		}
	}
}

// statements runs one after another until one fails.
type statements struct {
	tx  *sql.Tx
	err error
}

func (s *statements) exec(query string, args ...any) {
	if s.err == nil {
		_, s.err = s.tx.Exec(query, args...)
	}
}

// columns returns the columns of a table, quoted, but for some. Both catalogs
// have the same: they have the same migrations.
func (s *statements) columns(table string, without ...string) (columns []string) {
	if s.err == nil {
		s.err = eachRow(s.tx, func(name, _ string) {
			if !slices.Contains(without, name) {
				columns = append(columns, quote(name))
			}
		}, `SELECT name, '' FROM pragma_table_info(?)`, table)
	}
	return columns
}

// copyRows copies rows of the primary's table.
func (s *statements) copyRows(table, where string) {
	columns := strings.Join(s.columns(table), ", ")
	s.exec(`INSERT INTO main.` + quote(table) + ` (` + columns + `) SELECT ` + columns + ` FROM src.` + quote(table) + where)
}

// update makes all columns of the rows that both have the primary's, but for
// some.
func (s *statements) update(table string, without ...string) {
	columns := strings.Join(s.columns(table, without...), ", ")
	s.exec(`UPDATE main.` + table + ` SET (` + columns + `) = (SELECT ` + columns + ` FROM src.` + table + ` other WHERE other.id = main.` + table + `.id)
		WHERE id IN (SELECT id FROM src.` + table + `)`)
}

func quote(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }
