package image

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/gofrs/flock"

	"sidus/image/catalog"
	"sidus/image/index"
	"sidus/image/scratch"
	"sidus/image/store"
)

// Finding is something that Check found.
type Finding struct {
	Kind   string `json:"kind"` // leftover, retired, lost, unknown, running, index
	Text   string `json:"text"` // a sentence for people
	Repair string `json:"repair,omitempty"`
	Fatal  bool   `json:"fatal"` // something is lost, or cannot be repaired

	repair  func(ctx context.Context) error
	discard func(ctx context.Context) error // of what is unknown: item
	item    store.Item
}

// The kinds of findings.
const (
	FindingLeftover = "leftover" // a cut operation left something in the store
	FindingRetired  = "retired"  // deleted, and gone from the store when nothing depends on it any more; nothing is wrong
	FindingLost     = "lost"     // the catalog names what the store does not hold
	FindingUnknown  = "unknown"  // the store holds what neither catalog nor intent names
	FindingRunning  = "running"  // a live process works there; nothing is wrong
	FindingIndex    = "index"    // a cached index is damaged or not needed
)

// Check compares catalog and store, and finds what was left over when an
// operation was cut. It changes nothing and does not touch what a live process
// is doing.
func (m *Manager) Check(ctx context.Context) ([]Finding, error) {
	// The catalog first: what is made meanwhile is then known by its intent
	// or not in the list of the store yet, which is read after it. What is
	// destroyed meanwhile is looked for once more before it is called lost.
	before, err := m.knowledge(ctx)
	if err != nil {
		return nil, err
	}
	held, err := m.held(ctx)
	if err != nil {
		return nil, err
	}
	recipes, err := m.layout.KeptRecipes()
	if err != nil {
		return nil, err
	}
	after, err := m.knowledge(ctx)
	if err != nil {
		return nil, err
	}
	var findings []Finding
	for _, intent := range after.intents {
		if f, ok := m.checkIntent(intent, held, after); ok {
			findings = append(findings, f)
		}
	}
	findings = append(findings, m.checkRetired(held, after)...)
	for id, item := range held {
		if before.knows(id) || after.knows(id) {
			continue
		}
		findings = append(findings, m.unknownItem(item))
	}
	lost, err := m.checkLost(ctx, held, before, after)
	if err != nil {
		return nil, err
	}
	findings = append(findings, lost...)
	for _, id := range recipes {
		if !after.trees[id] {
			findings = append(findings, m.oldRecipe(id))
		}
	}
	remnants, err := m.checkRemnants(ctx, after)
	if err != nil {
		return nil, err
	}
	findings = append(findings, remnants...)
	indexes, err := m.checkIndexes(after)
	if err != nil {
		return nil, err
	}
	temporary, err := m.checkScratch()
	return append(append(findings, indexes...), temporary...), err
}

// Repair mends what Check found and can be mended. It returns what it did.
func (m *Manager) Repair(ctx context.Context, findings []Finding) (done []string, err error) {
	var errs []error
	for _, f := range findings {
		if f.repair == nil {
			continue
		}
		if err := f.repair(ctx); errors.Is(err, errNotYet) {
			continue
		} else if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", f.Text, err))
			continue
		}
		done = append(done, f.Repair)
	}
	return done, errors.Join(errs...)
}

// DiscardUnknown destroys what Check called unknown: nobody can reach it any more,
// unless a catalog that names it comes back. It returns what it did.
func (m *Manager) DiscardUnknown(ctx context.Context, findings []Finding) (done []string, err error) {
	var errs []error
	// Volumes first: they may be what keeps snapshots.
	for _, kind := range []store.Kind{store.KindVolume, store.KindSnapshot} {
		for _, f := range findings {
			if f.discard == nil || f.item.Kind != kind {
				continue
			}
			what := fmt.Sprintf("the %s %s", kind, itemID(f.item))
			switch err := f.discard(ctx); {
			case err == nil:
				done = append(done, "destroyed "+what+", which the catalog did not know")
			case !errors.Is(err, errNotYet):
				errs = append(errs, fmt.Errorf("%s: %w", what, err))
			}
		}
	}
	return done, errors.Join(errs...)
}

// errNotYet is what a repair says if nothing is wrong, and nothing can be done
// at this moment.
var errNotYet = errors.New("not yet")

// knowledge is what the catalog knew at one moment.
type knowledge struct {
	named    map[string]string // ID → what it is, for people
	intended map[string]bool   // IDs in an intent
	busy     map[string]bool   // IDs in an intent of a live process
	retired  map[string]Retired
	trees    map[string]bool // IDs
	intents  []catalog.Intent
}

func (k knowledge) knows(id string) bool {
	_, retired := k.retired[id]
	return k.named[id] != "" || k.intended[id] || retired
}

// forgot tells whether what an intent names is nowhere else on record.
func (k knowledge) forgot(id string) bool {
	_, retired := k.retired[id]
	return k.named[id] == "" && !retired
}

func (m *Manager) knowledge(ctx context.Context) (knowledge, error) {
	k := knowledge{named: map[string]string{}, intended: map[string]bool{}, busy: map[string]bool{}, retired: map[string]Retired{}, trees: map[string]bool{}}
	err := m.catalog.View(ctx, func(tx *sql.Tx) (err error) {
		if k.intents, err = catalog.Intents(tx); err != nil {
			return err
		}
		for _, intent := range k.intents {
			alive := intent.Process.Alive()
			for _, v := range intent.Volumes {
				k.intended[string(v)], k.busy[string(v)] = true, k.busy[string(v)] || alive
			}
			for _, s := range intent.Snapshots {
				k.intended[string(s)], k.busy[string(s)] = true, k.busy[string(s)] || alive
			}
		}
		retired, err := queryRetired(tx)
		if err != nil {
			return err
		}
		for _, r := range retired {
			k.retired[r.ID] = r
		}
		err = eachRow(tx, func(id, _ string) { k.trees[id] = true }, `SELECT id, '' FROM tree WHERE deleted IS NULL`)
		if err != nil {
			return err
		}
		err = eachRow(tx, func(id, name string) { k.named[id] = "the head of " + name },
			`SELECT head, name FROM tree WHERE deleted IS NULL`)
		if err != nil {
			return err
		}
		return eachRow(tx, func(id, ref string) { k.named[id] = "snapshot " + ref },
			`SELECT snapshot.id, tree.name || '@' || snapshot.number FROM snapshot JOIN tree ON tree.id = snapshot.tree WHERE snapshot.deleted IS NULL`)
	})
	return k, err
}

func itemID(item store.Item) string {
	if item.Kind == store.KindVolume {
		return string(item.Volume)
	}
	return string(item.Snapshot)
}

// checkIntent looks at one intent. If its process is dead, all that it names
// and the catalog does not is left over.
func (m *Manager) checkIntent(intent catalog.Intent, held map[string]store.Item, known knowledge) (Finding, bool) {
	who := fmt.Sprintf("`%s` of %s (process %d, %s)", intent.Actor.Command, intent.Actor.User, intent.Process.PID, intent.At.Format("2006-01-02 15:04:05"))
	if intent.Process.Alive() {
		return Finding{Kind: FindingRunning, Text: who + " is at work: " + intent.Action}, true
	}
	left := leftOf(intent, held, known)
	text := fmt.Sprintf("%s was cut: its %s left %s", who, intent.Action, countItems(left))
	return Finding{
		Kind:   FindingLeftover,
		Text:   text,
		Repair: fmt.Sprintf("removed what a cut %s left: %s", intent.Action, countItems(left)),
		repair: func(ctx context.Context) error { return m.settle(ctx, intent) },
	}, true
}

// checkRetired tells what is deleted and not destroyed yet.
func (m *Manager) checkRetired(held map[string]store.Item, known knowledge) []Finding {
	var findings []Finding
	for id, r := range known.retired {
		if _, there := held[id]; !there || known.busy[id] {
			continue // destroyed already, or about to be
		}
		f := Finding{
			Kind:   FindingRetired,
			Text:   fmt.Sprintf("%s (the %s %s), deleted %s, still takes space: %s", r.What, r.Kind, r.ID, r.At.Format("2006-01-02 15:04:05"), r.Reason),
			Repair: fmt.Sprintf("freed the space of %s", r.What),
		}
		if r.Reason == "" {
			f.Kind = FindingLeftover
			f.Text = fmt.Sprintf("%s (the %s %s) was deleted %s, and that was cut before its space was free", r.What, r.Kind, r.ID, r.At.Format("2006-01-02 15:04:05"))
		}
		f.repair = func(ctx context.Context) error { return m.repairRetired(ctx, id) }
		findings = append(findings, f)
	}
	return findings
}

func (m *Manager) repairRetired(ctx context.Context, id string) error {
	_, left, err := m.collectRetired(ctx, nil, true)
	if err == nil && slices.ContainsFunc(left, func(r Retired) bool { return r.ID == id }) {
		return errNotYet
	}
	return err
}

func countItems(items []store.Item) string {
	if len(items) == 0 {
		return "nothing in the store"
	}
	list := make([]string, len(items))
	for i, item := range items {
		list[i] = fmt.Sprintf("the %s %s", item.Kind, itemID(item))
	}
	return strings.Join(list, ", ")
}

func (m *Manager) destroyItem(ctx context.Context, item store.Item) (err error) {
	if item.Kind == store.KindVolume {
		err = m.store.DestroyVolume(ctx, item.Volume)
	} else {
		err = m.store.DestroySnapshot(ctx, item.Snapshot)
	}
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}

// unknownItem is something in the store that nobody has announced. A
// half-made item is worth nothing; a whole one may belong to a newer catalog
// than this one, and is not touched.
func (m *Manager) unknownItem(item store.Item) Finding {
	if item.Partial {
		return Finding{
			Kind:   FindingLeftover,
			Text:   fmt.Sprintf("the store holds a half-made %s (%s)", item.Kind, itemID(item)),
			Repair: fmt.Sprintf("removed the half-made %s %s", item.Kind, itemID(item)),
			repair: func(ctx context.Context) error { return m.destroyItem(ctx, item) },
		}
	}
	return Finding{
		Kind: FindingUnknown,
		Text: fmt.Sprintf("the store holds the %s %s (made %s), which the catalog does not know; if this is an old copy of the catalog, bring back the newest "+
			"(`sidus restore`), else `sidus check --repair --discard-unknown` destroys it", item.Kind, itemID(item), item.Created.Format("2006-01-02 15:04")),
		item: item,
		discard: func(ctx context.Context) error {
			// It may have come back as what it was, by a stream, meanwhile.
			if now, err := m.knowledge(ctx); err != nil {
				return err
			} else if now.knows(itemID(item)) {
				return errNotYet
			}
			return m.destroyItem(ctx, item)
		},
	}
}

// oldRecipe is the recipe of a tree that is gone.
func (m *Manager) oldRecipe(tree string) Finding {
	return Finding{
		Kind:   FindingLeftover,
		Text:   "the recipe of a deleted tree (" + tree + ") is still kept",
		Repair: "removed the recipe of the deleted tree " + tree,
		repair: func(context.Context) error { return m.layout.removeRecipe(tree) },
	}
}

// checkIndexes finds cached indexes that are damaged, or of snapshots that
// are gone. They can be made again at any time.
func (m *Manager) checkIndexes(known knowledge) ([]Finding, error) {
	paths, err := filepath.Glob(m.layout.Index("*"))
	if err != nil {
		return nil, err
	}
	var findings []Finding
	for _, path := range paths {
		id := strings.TrimSuffix(filepath.Base(path), ".index")
		problem := ""
		if known.named[id] == "" {
			problem = "is of a snapshot that is gone"
		} else if err := verifyIndex(path); err != nil {
			problem = "is damaged (" + err.Error() + ")"
		}
		if problem == "" {
			continue
		}
		findings = append(findings, Finding{
			Kind:   FindingIndex,
			Text:   fmt.Sprintf("the index of %s %s", id, problem),
			Repair: "removed the index of " + id + "; it is made again when it is needed",
			repair: func(context.Context) error { return os.Remove(path) },
		})
	}
	return findings, nil
}

func verifyIndex(path string) (err error) {
	x, err := index.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, x.Close()) }()
	return x.Verify()
}

// checkScratch finds temporary files of processes that are gone, whatever they
// did. Whoever makes some holds a lock meanwhile.
func (m *Manager) checkScratch() (findings []Finding, err error) {
	add := func(lockPath string, paths ...string) error {
		lock := flock.New(lockPath, flock.SetPermissions(0o600))
		mine, err := lock.TryLock()
		if err != nil || !mine {
			return errors.Join(err, lock.Close()) // somebody is at work there
		}
		for _, path := range paths {
			if _, err := os.Lstat(path); err != nil {
				continue // done a moment ago
			}
			findings = append(findings, temporary(path, os.RemoveAll))
		}
		return lock.Close()
	}
	errs := []error{}
	for _, folder := range m.layout.scratch() {
		left, err := scratch.Left(folder)
		errs = append(errs, err)
		for _, path := range left {
			findings = append(findings, temporary(path, scratch.RemoveLeft))
		}
	}
	incoming, err := filepath.Glob(filepath.Join(m.layout.Secrets(), ".new-*"))
	errs = append(errs, err)
	if _, err := os.Lstat(m.layout.IncomingState()); err == nil {
		incoming = append(incoming, m.layout.IncomingState())
	}
	if len(incoming) > 0 {
		errs = append(errs, add(m.layout.IncomingLock(), incoming...))
	}
	locks, err := filepath.Glob(m.layout.Index("*") + ".lock")
	errs = append(errs, err)
	for _, lock := range locks {
		index := strings.TrimSuffix(filepath.Base(lock), ".lock")
		begun, err := filepath.Glob(filepath.Join(filepath.Dir(lock), "."+index+".*"))
		errs = append(errs, err, add(lock, append(begun, lock)...))
	}
	return findings, errors.Join(errs...)
}

func temporary(path string, remove func(path string) error) Finding {
	return Finding{
		Kind:   FindingLeftover,
		Text:   "a cut operation left the temporary file " + path,
		Repair: "removed the temporary file " + path,
		repair: func(context.Context) error { return remove(path) },
	}
}
