package image

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize/english"

	"sidus/image/catalog"
	"sidus/image/store"
)

// The rules that GCOptions has unless the user says otherwise.
const (
	DefaultKeep         = 10
	DefaultKeepWithin   = 30 * 24 * time.Hour
	DefaultKeepSessions = 365 * 24 * time.Hour
	DefaultKeepLogs     = 50
)

// GCOptions say what is collected.
type GCOptions struct {
	Rules    Retention
	Tree     string        // only snapshots of this tree go; "": of all
	Sessions time.Duration // records of boots that ended longer ago go; 0: they all stay
	Logs     int           // the newest N logs of builds stay; negative: they all stay
	Packages bool          // downloaded packages go
	// Now is the time that ages are measured at; zero: that of the call.
	Now time.Time
}

// GCPlan is what a collection would do.
type GCPlan struct {
	Snapshots []Verdict `json:"snapshots"` // by tree, the oldest first
	Retired   []Retired `json:"retired"`   // what is deleted already and was not destroyed yet
	// Remnants are what the store alone knows of: those without a Reason go.
	Remnants []store.Remnant `json:"remnants"`
	Sessions int             `json:"sessions"` // records of boots that ended long ago
	Files    []Prune         `json:"files"`    // of caches and logs

	options GCOptions
}

// Goes are the snapshots that the plan collects.
func (p GCPlan) Goes() []Snapshot {
	var list []Snapshot
	for _, v := range p.Snapshots {
		if v.Goes {
			list = append(list, v.Snapshot)
		}
	}
	return list
}

// Empty tells that there is nothing to collect.
func (p GCPlan) Empty() bool {
	return len(p.Goes()) == 0 && len(p.Retired) == 0 && !slices.ContainsFunc(p.Remnants, isIdle) && p.Sessions == 0 && len(p.Files) == 0
}

// isIdle tells whether nothing keeps a remnant.
func isIdle(r store.Remnant) bool { return r.Reason == "" }

// GCReport is what a collection did.
type GCReport struct {
	Collected []Snapshot `json:"collected"` // deleted by it
	Kept      []Verdict  `json:"kept"`      // of the plan, but somebody has begun to need them
	Freed     []Retired  `json:"freed"`     // destroyed in the store, earlier deletions included
	Retired   []Retired  `json:"retired"`   // deleted, and destroyed when nothing depends on them any more
	// Remnants are what is left in the store without a record in the catalog.
	Remnants []store.Remnant `json:"remnants"`
	Sessions int             `json:"sessions"`
	Files    int             `json:"files"`
	Bytes    int64           `json:"bytes"` // of files
}

// PlanGC says what Collect would do now. It changes nothing.
func (m *Manager) PlanGC(ctx context.Context, options GCOptions) (plan GCPlan, err error) {
	if options.Now.IsZero() {
		options.Now = time.Now()
	}
	if options.Rules.Keep < 0 || options.Rules.KeepWithin < 0 || options.Sessions < 0 {
		return plan, errors.New("a rule for collection is negative")
	}
	plan.options = options
	lost, err := m.lostSnapshots(ctx)
	if err != nil {
		return plan, err
	}
	err = m.catalog.View(ctx, func(tx *sql.Tx) (err error) {
		if plan.Snapshots, err = planSnapshots(tx, options, lost); err != nil {
			return err
		}
		if plan.Retired, err = queryRetired(tx); err != nil {
			return err
		}
		plan.Sessions, err = countSessions(tx, options)
		return err
	})
	if err != nil {
		return plan, err
	}
	if plan.Remnants, err = m.remnants(ctx); err != nil {
		return plan, err
	}
	plan.Files, err = m.planPrune(ctx, options)
	return plan, err
}

func planSnapshots(tx *sql.Tx, options GCOptions, lost map[store.SnapshotID]bool) ([]Verdict, error) {
	in := RetentionInput{Now: options.Now, Rules: options.Rules, Parents: map[store.SnapshotID]store.SnapshotID{}, Lost: lost}
	if options.Tree != "" {
		tree, err := treeByName(tx, options.Tree)
		if err != nil {
			return nil, err
		}
		in.Eligible = func(s Snapshot) bool { return s.TreeID == tree.ID }
	}
	var err error
	if in.Snapshots, err = querySnapshots(tx, `snapshot.deleted IS NULL ORDER BY snapshot.tree, snapshot.number`); err != nil {
		return nil, err
	}
	if in.Needs, err = needsOfAll(tx, in.Snapshots, ""); err != nil {
		return nil, err
	}
	err = eachRow(tx, func(id, parent string) { in.Parents[store.SnapshotID(id)] = store.SnapshotID(parent) },
		`SELECT id, parent FROM snapshot WHERE parent <> ''`)
	if err != nil {
		return nil, err
	}
	return PlanRetention(in), nil
}

// Collect does what a plan says. Of the snapshots those go that the rules
// still let go in the transaction that deletes them: what somebody has begun
// to need since the plan was made stays. When it is cut, everything is as
// before, or deleted and retired.
func (m *Manager) Collect(ctx context.Context, plan GCPlan) (report GCReport, err error) {
	report = GCReport{Collected: []Snapshot{}, Kept: []Verdict{}, Freed: []Retired{}, Retired: []Retired{}}
	lost, err := m.lostSnapshots(ctx)
	if err != nil {
		return report, err
	}
	var intent int64
	err = m.catalog.Update(ctx, func(tx *sql.Tx) (err error) {
		// A replica deletes what its primary deletes, and nothing else.
		if err := refuseReplica(tx); err != nil {
			return err
		}
		if report.Collected, report.Kept, err = m.deleteCollected(tx, plan, lost); err != nil {
			return err
		}
		if report.Sessions, err = deleteSessions(tx, plan.options); err != nil {
			return err
		}
		ids := make([]store.SnapshotID, len(report.Collected))
		for i, s := range report.Collected {
			ids[i] = s.ID
		}
		intent, err = catalog.Begin(tx, catalog.Intent{Action: "gc", Snapshots: ids, Actor: m.actor})
		return err
	})
	if err != nil {
		return report, err
	}
	done, _, collectErr := m.collectAfter(ctx, intent, nil, report.Collected)
	report.Freed = append(report.Freed, done...)
	retired, err := m.Retired(context.WithoutCancel(ctx))
	report.Retired = append(report.Retired, retired...)
	if err := errors.Join(collectErr, err, ctx.Err()); err != nil {
		return report, err
	}
	if err := m.collectRemnants(ctx); err != nil {
		return report, err
	}
	if report.Remnants, err = m.remnants(ctx); err != nil {
		return report, err
	}
	report.Files, report.Bytes, err = m.prune(ctx, plan.Files)
	if waiter, ok := m.store.(store.Waiter); ok && err == nil && len(report.Freed) > 0 {
		err = waiter.Wait(ctx)
	}
	return report, err
}

// deleteCollected takes those snapshots out of the catalog that the plan lets
// go and that the rules, asked again, let go, too.
func (m *Manager) deleteCollected(tx *sql.Tx, plan GCPlan, lost map[store.SnapshotID]bool) (gone []Snapshot, kept []Verdict, err error) {
	gone, kept = []Snapshot{}, []Verdict{}
	again, err := planSnapshots(tx, plan.options, lost)
	if err != nil {
		return nil, nil, err
	}
	wanted := map[store.SnapshotID]bool{}
	for _, s := range plan.Goes() {
		wanted[s.ID] = true
	}
	for _, v := range again {
		switch {
		case !wanted[v.Snapshot.ID]:
		case v.Goes:
			gone = append(gone, v.Snapshot)
		default:
			kept = append(kept, v)
		}
	}
	if err := retireSnapshots(tx, gone, time.Now()); err != nil {
		return nil, nil, err
	}
	for _, of := range byTree(gone) {
		refs := make([]string, len(of))
		for i, s := range of {
			refs[i] = "@" + fmt.Sprint(s.Number)
		}
		if err := m.record(tx, "gc", of[0].TreeID, "collected %s of %s: %s", english.Plural(len(of), "snapshot", ""), of[0].Tree, strings.Join(refs, " ")); err != nil {
			return nil, nil, err
		}
	}
	return gone, kept, nil
}

// byTree cuts a list that is sorted by tree.
func byTree(list []Snapshot) (trees [][]Snapshot) {
	for len(list) > 0 {
		n := 1
		for n < len(list) && list[n].TreeID == list[0].TreeID {
			n++
		}
		trees = append(trees, list[:n])
		list = list[n:]
	}
	return trees
}

const endedBefore = ` FROM session WHERE ended IS NOT NULL AND ended < ?`

// sessionsBefore is the time before which ended sessions go, in the catalog's
// unit; 0 if they all stay.
func (o GCOptions) sessionsBefore() int64 {
	if o.Sessions == 0 {
		return 0
	}
	return catalog.Millis(o.Now.Add(-o.Sessions))
}

func countSessions(tx *sql.Tx, o GCOptions) (n int, err error) {
	err = tx.QueryRow(`SELECT COUNT(*)`+endedBefore, o.sessionsBefore()).Scan(&n)
	return n, err
}

func deleteSessions(tx *sql.Tx, o GCOptions) (int, error) {
	result, err := tx.Exec(`DELETE`+endedBefore, o.sessionsBefore())
	if err != nil {
		return 0, fmt.Errorf("collect old sessions: %w", err)
	}
	n, err := result.RowsAffected()
	return int(n), err
}
