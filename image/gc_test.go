package image

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"sidus/image/catalog"
	"sidus/image/store"
)

// session opens a session of a node that boots a snapshot.
func (b *bench) session(id int, snapshot store.SnapshotID) {
	b.t.Helper()
	b.must(b.catalog.Update(b.t.Context(), func(tx *sql.Tx) error {
		_, err := tx.Exec(`INSERT INTO session (id, mac, snapshot, opened, step, step_at, heard, heard_clock)
			VALUES (?, ?, ?, 0, 'up', 0, 0, 0)`, fmt.Sprintf("%032x", id), fmt.Sprintf("52:54:00:00:00:%02x", id), snapshot)
		return err
	}))
}

// end ends a session.
func (b *bench) end(id int, at time.Time) {
	b.t.Helper()
	b.must(b.catalog.Update(b.t.Context(), func(tx *sql.Tx) error {
		_, err := tx.Exec(`UPDATE session SET ended = ? WHERE id = ?`, catalog.Millis(at), fmt.Sprintf("%032x", id))
		return err
	}))
}

func (b *bench) plan(options GCOptions) GCPlan {
	b.t.Helper()
	plan, err := b.PlanGC(b.t.Context(), options)
	b.must(err)
	return plan
}

func (b *bench) collect(options GCOptions) GCReport {
	b.t.Helper()
	report, err := b.Collect(b.t.Context(), b.plan(options))
	b.must(err)
	return report
}

func refs(list []Snapshot) string {
	words := make([]string, len(list))
	for i, s := range list {
		words[i] = s.Ref()
	}
	return strings.Join(words, " ")
}

// holds tells whether the store has a snapshot.
func (b *bench) holds(id store.SnapshotID) bool {
	b.t.Helper()
	items, err := b.store.List(b.t.Context())
	b.must(err)
	for _, item := range items {
		if item.Snapshot == id {
			return true
		}
	}
	return false
}

func TestCollect(t *testing.T) {
	b := newBench(t)
	tree, s := b.tree("debian", 6)
	b.tree("other", 3)
	b.session(1, s[1].ID)
	b.must(discard3(b.Promote(t.Context(), s[2].ID, "default", "")))
	keep := GCOptions{Rules: Retention{Keep: 1}, Tree: "debian", Logs: -1}

	plan := b.plan(keep)
	if got := refs(plan.Goes()); got != "debian@1 debian@4 debian@5" {
		t.Fatalf("the plan lets go %s", got)
	}
	if list, _ := b.Snapshots(t.Context(), tree); len(list) != 6 {
		t.Fatal("a plan has changed something")
	}
	report, err := b.Collect(t.Context(), plan)
	b.must(err)
	if got := refs(report.Collected); got != "debian@1 debian@4 debian@5" || len(report.Freed) != 3 || len(report.Kept)+len(report.Retired) != 0 {
		t.Errorf("collected %+v", report)
	}
	for i, want := range []bool{false, true, true, false, false, true} {
		if b.holds(s[i].ID) != want {
			t.Errorf("the store holds %s: %v, want %v", s[i].Ref(), !want, want)
		}
	}
	events, err := b.catalog.Events(t.Context(), tree.ID, 1)
	b.must(err)
	if events[0].Text != "collected 3 snapshots of debian: @1 @4 @5" {
		t.Errorf("the history says %q", events[0].Text)
	}
	// The boot ends, the channel moves on: now they go, too.
	b.end(1, time.Now())
	b.must(b.SetChannelKeep(t.Context(), "default", 0))
	b.must(discard3(b.Promote(t.Context(), s[5].ID, "default", "")))
	if got := refs(b.collect(keep).Collected); got != "debian@2 debian@3" {
		t.Errorf("collected %s", got)
	}
	if !b.plan(keep).Empty() {
		t.Error("there is something left to collect")
	}
	if got := refs(b.collect(GCOptions{Rules: Retention{Keep: 1}, Logs: -1}).Collected); got != "other@1 other@2" {
		t.Errorf("collected %s", got)
	}
	b.sound()
}

// What begins to be needed between the plan and the collection stays.
func TestCollectAsksAgain(t *testing.T) {
	b := newBench(t)
	_, s := b.tree("debian", 4)
	plan := b.plan(GCOptions{Rules: Retention{Keep: 1}, Logs: -1})
	b.session(1, s[1].ID)
	report, err := b.Collect(t.Context(), plan)
	b.must(err)
	if got := refs(report.Collected); got != "debian@1 debian@3" {
		t.Errorf("collected %s", got)
	}
	if len(report.Kept) != 1 || report.Kept[0].Snapshot.ID != s[1].ID || !strings.Contains(report.Kept[0].Reasons[0], "runs debian@2") {
		t.Errorf("kept %+v", report.Kept)
	}
	// What was not in the plan stays, even if it may go.
	b.end(1, time.Now())
	if report, err = b.Collect(t.Context(), plan); err != nil || refs(report.Collected) != "debian@2" {
		t.Errorf("again: %+v, %v", report, err)
	}
}

// What a mount holds is retired: it shows nowhere, nothing is wrong, and
// whatever deletes something next collects it.
func TestRetiredIsCollectedLater(t *testing.T) {
	for name, later := range map[string]func(b *bench){
		"gc":     func(b *bench) { b.collect(GCOptions{Rules: Retention{Keep: 9}, Logs: -1}) },
		"delete": func(b *bench) { b.must(b.DeleteTree(b.t.Context(), "other", false)) },
		"repair": func(b *bench) {
			findings, err := b.Check(b.t.Context())
			b.must(err)
			done, err := b.Repair(b.t.Context(), findings)
			b.must(err)
			if len(done) != 1 || !strings.Contains(done[0], "debian@1") {
				b.t.Errorf("repaired %q", done)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			tree, s := b.tree("debian", 2)
			b.tree("other", 1)
			mount, err := b.store.MountSnapshot(t.Context(), s[0].ID)
			b.must(err)
			b.must(b.DeleteSnapshot(t.Context(), s[0].ID))
			if list, _ := b.Snapshots(t.Context(), tree); len(list) != 1 {
				t.Errorf("%d snapshots show", len(list))
			}
			if _, err := b.MountSnapshot(t.Context(), s[0].ID); err == nil {
				t.Error("what is retired can be mounted")
			}
			retired, err := b.Retired(t.Context())
			b.must(err)
			if len(retired) != 1 || retired[0].What != "debian@1" || !strings.Contains(retired[0].Reason, "mounted") {
				t.Fatalf("retired: %+v", retired)
			}
			findings, err := b.Check(t.Context())
			b.must(err)
			if len(findings) != 1 || findings[0].Kind != FindingRetired {
				t.Errorf("check: %+v", findings)
			}
			if done, err := b.Repair(t.Context(), findings); err != nil || len(done) != 0 {
				t.Errorf("a repair while it is mounted: %q, %v", done, err)
			}
			b.must(mount.Unmount(t.Context()))
			later(b)
			if b.holds(s[0].ID) {
				t.Error("it was not collected")
			}
			b.sound()
		})
	}
}

// A server that lets go in time is waited for.
func TestCollectWaitsForAServer(t *testing.T) {
	b := newBench(t)
	_, s := b.tree("debian", 3)
	mount, err := b.store.MountSnapshot(t.Context(), s[0].ID)
	b.must(err)
	tried := make(chan struct{})
	var once sync.Once
	b.store.Inject(func(string) error { once.Do(func() { close(tried) }); return nil })
	go func() {
		<-tried
		_ = mount.Unmount(context.Background())
	}()
	report := b.collect(GCOptions{Rules: Retention{Keep: 1}, Logs: -1})
	if len(report.Retired) != 0 || len(report.Freed) != 2 {
		t.Errorf("the report: %+v", report)
	}
	b.sound()
}

// Killed at whatever step, a collection is as not begun or as ended: the
// snapshots that go are gone from the catalog all at once, and a later
// collection frees what is left of them.
func TestCollectKilledAtEveryStep(t *testing.T) {
	for n := 1; ; n++ {
		b := newBench(t)
		tree, s := b.tree("debian", 4)
		plan := b.plan(GCOptions{Rules: Retention{Keep: 1}, Logs: -1})
		step := 0
		b.store.Inject(func(string) error {
			if step++; step == n {
				panic("killed")
			}
			return nil
		})
		killed := func() (killed bool) {
			defer func() { killed = recover() != nil }()
			_, err := b.Collect(t.Context(), plan)
			b.must(err)
			return false
		}()
		b.store.Inject(nil)
		if !killed {
			if n != 5 {
				t.Errorf("a collection of 3, and the copy of the catalog, have %d steps", n-1)
			}
			return
		}
		// Its process is dead.
		b.must(b.catalog.Update(t.Context(), func(tx *sql.Tx) error {
			_, err := tx.Exec(`UPDATE intent SET started = 1`)
			return err
		}))
		list, err := b.Snapshots(t.Context(), tree)
		b.must(err)
		if refs(list) != "debian@4" {
			t.Errorf("step %d: %s are there", n, refs(list))
		}
		if got := b.read(s[3].ID, "file"); got != "version 4" {
			t.Errorf("step %d: the last one holds %q", n, got)
		}
		findings, err := b.Check(t.Context())
		b.must(err)
		leftovers := 0
		for _, f := range findings {
			if f.Kind == FindingLeftover {
				leftovers++
			} else {
				t.Errorf("step %d: check: %s: %s", n, f.Kind, f.Text)
			}
		}
		if want := map[int]int{1: 4, 2: 3, 3: 2, 4: 0}[n]; leftovers != want { // the intent, and what is in the store
			t.Errorf("step %d: check found %d leftovers", n, leftovers)
		}
		if n%2 == 0 {
			_, err = b.Repair(t.Context(), findings)
			b.must(err)
		} else {
			b.collect(GCOptions{Rules: Retention{Keep: 1}, Logs: -1})
			findings, err = b.Check(t.Context())
			b.must(err)
			_, err = b.Repair(t.Context(), findings) // its intent
			b.must(err)
		}
		b.sound()
	}
}

// A store that fails leaves what goes on record.
func TestCollectWithAStoreThatFails(t *testing.T) {
	b := newBench(t)
	b.tree("debian", 3)
	broken := fmt.Errorf("broken on purpose")
	b.store.FailOn("DestroySnapshot", broken)
	report := b.collect(GCOptions{Rules: Retention{Keep: 1}, Logs: -1})
	if len(report.Collected) != 2 || len(report.Freed) != 0 || len(report.Retired) != 2 || report.Retired[0].Reason != broken.Error() {
		t.Errorf("the report: %+v", report)
	}
	b.store.FailOn("DestroySnapshot", nil)
	if report := b.collect(GCOptions{Rules: Retention{Keep: 1}, Logs: -1}); len(report.Freed) != 2 {
		t.Errorf("the second report: %+v", report)
	}
	b.sound()
}

// Whatever is done to trees, channels, nodes and sessions: a collection with
// the hardest rules never removes what somebody needs.
func TestCollectNeverRemovesWhatIsNeeded(t *testing.T) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			random := rand.New(rand.NewPCG(seed, 1))
			var all []Snapshot
			sessions := 0
			for _, name := range []string{"a", "b"} {
				_, err := b.CreateTree(t.Context(), name)
				b.must(err)
				all = append(all, b.snapshot(name))
			}
			any := func() Snapshot { return all[random.IntN(len(all))] }
			for step := range 40 {
				// What is gone meanwhile is refused, which is right.
				switch random.IntN(8) {
				case 0, 1, 2:
					s, err := b.Snapshot(t.Context(), []string{"a", "b"}[random.IntN(2)], nil, false, SnapshotOptions{Complete: random.IntN(3) > 0})
					b.must(err)
					all = append(all, s)
				case 3:
					_, _, _ = b.Promote(t.Context(), any().ID, []string{"default", "gpu"}[random.IntN(2)], "")
				case 4:
					if s, err := b.SnapshotByID(t.Context(), any().ID); err == nil {
						sessions++
						b.session(sessions, s.ID)
					}
				case 5:
					if sessions > 0 {
						b.end(1+random.IntN(sessions), time.Now())
					}
				case 6:
					_, _ = b.Branch(t.Context(), any().ID, fmt.Sprint("branch", step))
				case 7:
					_, _ = b.Rollback(t.Context(), "a", any().ID, false)
				}
				if step%5 != 4 {
					continue
				}
				// Who needs what is asked for one by one, as delete does.
				needed := map[store.SnapshotID]Need{}
				b.must(b.catalog.View(t.Context(), func(tx *sql.Tx) error {
					list, err := querySnapshots(tx, `snapshot.deleted IS NULL`)
					for _, s := range list {
						if needs, _ := needsOf(tx, s.ID, ""); len(needs) > 0 {
							needed[s.ID] = needs[0]
						}
					}
					return err
				}))
				report := b.collect(GCOptions{Rules: Retention{}, Logs: -1})
				for _, s := range report.Collected {
					if need, ok := needed[s.ID]; ok {
						t.Errorf("step %d: %s was collected, but %s", step, s.Ref(), need.Text)
					}
				}
				for id := range needed {
					if !b.holds(id) {
						t.Errorf("step %d: the store lost %s", step, id)
					}
				}
				b.sound()
			}
		})
	}
}

// Collections, promotions and boots at the same time: what a channel or a
// session got stays.
func TestCollectBesidePromotionsAndBoots(t *testing.T) {
	b := newBench(t)
	_, s := b.tree("debian", 8)
	var wait sync.WaitGroup
	other := b.another("bob")
	wait.Go(func() {
		for _, s := range s {
			_, _, _ = other.Promote(context.Background(), s.ID, "default", "")
		}
	})
	wait.Go(func() {
		for i, s := range s {
			_ = other.catalog.Update(context.Background(), func(tx *sql.Tx) error {
				// As a boot does: in one transaction with the look at what is there.
				if _, err := snapshotByID(tx, s.ID); err != nil {
					return err
				}
				_, err := tx.Exec(`INSERT INTO session (id, mac, snapshot, opened, step, step_at, heard, heard_clock)
					VALUES (?, ?, ?, 0, 'up', 0, 0, 0)`, fmt.Sprint(i), fmt.Sprint(i), s.ID)
				return err
			})
		}
	})
	for range 4 {
		b.collect(GCOptions{Rules: Retention{Keep: 2}, Logs: -1})
	}
	wait.Wait()
	b.must(b.catalog.View(t.Context(), func(tx *sql.Tx) error {
		return eachRow(tx, func(who, id string) {
			if _, err := snapshotByID(tx, store.SnapshotID(id)); err != nil {
				t.Errorf("%s: %v", who, err)
			}
		}, `SELECT 'channel ' || name, snapshot FROM channel UNION ALL SELECT 'session ' || id, snapshot FROM session WHERE ended IS NULL`)
	}))
	b.sound()
}

// The steps that a build has taken stay until its end.
func TestCollectBesideABuild(t *testing.T) {
	b := newBench(t)
	b.tree("debian", 1)
	lock, err := b.LockHead(t.Context(), "debian", false)
	b.must(err)
	w, err := b.NewWorkspace(t.Context(), lock, "")
	b.must(err)
	step, err := w.Snapshot(t.Context(), SnapshotOptions{Phase: "base"})
	b.must(err)
	if err := b.DeleteSnapshot(t.Context(), step.ID); err == nil || !strings.Contains(err.Error(), "uses debian@2 right now") {
		t.Errorf("a running build's step was deleted: %v", err)
	}
	if got := b.collect(GCOptions{Logs: -1}).Collected; len(got) != 0 {
		t.Errorf("collected %s", refs(got))
	}
	b.must(w.Adopt(t.Context()))
	b.must(lock.Release())
	b.sound()
}

func TestCollectPrunes(t *testing.T) {
	b := newBench(t)
	_, s := b.tree("debian", 2)
	now := time.Now()
	file := func(age time.Duration, name ...string) string {
		path := filepath.Join(append([]string{b.layout.Dir}, name...)...)
		b.must(os.MkdirAll(filepath.Dir(path), 0o700))
		b.must(os.WriteFile(path, []byte("12345"), 0o600))
		b.must(os.Chtimes(path, now.Add(-age), now.Add(-age)))
		return path
	}
	orphan := file(0, "cache", "index", string(store.NewSnapshotID())+".index")
	half := file(25*time.Hour, "cache", "index", "."+string(s[0].ID)+".index.123")
	writing := file(time.Hour, "cache", "index", "."+string(s[1].ID)+".index.123")
	index := file(0, "cache", "index", string(s[1].ID)+".index")
	pkg := file(0, "cache", "packages", "a.deb")
	var logs []string
	for i := range 4 {
		path := filepath.Dir(file(0, "log", fmt.Sprint("build", i), "base.log"))
		b.must(os.Chtimes(path, now, now.Add(-time.Duration(i)*time.Hour)))
		logs = append(logs, path)
	}
	b.session(1, s[0].ID)
	b.session(2, s[0].ID)
	b.session(3, s[0].ID)
	b.end(1, now.Add(-400*24*time.Hour))
	b.end(2, now.Add(-300*24*time.Hour))

	options := GCOptions{Rules: Retention{Keep: 9}, Sessions: DefaultKeepSessions, Logs: 2, Now: now}
	report := b.collect(options)
	if report.Sessions != 1 || report.Files != 4 || report.Bytes != 20 {
		t.Errorf("the report: %+v", report)
	}
	there := func(path string) bool { _, err := os.Stat(path); return err == nil }
	for path, want := range map[string]bool{
		orphan: false, half: false, writing: true, index: true, pkg: true,
		logs[0]: true, logs[1]: true, logs[2]: false, logs[3]: false,
	} {
		if there(path) != want {
			t.Errorf("%s is there: %v, want %v", path, !want, want)
		}
	}
	options.Packages = true
	if b.collect(options); there(pkg) || !there(filepath.Dir(pkg)) {
		t.Error("the packages, and only they, were not removed")
	}
	if !b.plan(GCOptions{Rules: Retention{Keep: 9}, Logs: 2}).Empty() {
		t.Error("something is left")
	}
}

func TestGCRefusesNonsense(t *testing.T) {
	b := newBench(t)
	for _, options := range []GCOptions{{Rules: Retention{Keep: -1}}, {Rules: Retention{KeepWithin: -1}}, {Sessions: -1}, {Tree: "nowhere"}, {Tree: "../x"}} {
		if _, err := b.PlanGC(t.Context(), options); err == nil {
			t.Errorf("%+v is taken", options)
		}
	}
}

// TestCollectBesideLost: a snapshot that the store has lost is not collected,
// and does not make older ones go in its stead.
func TestCollectBesideLost(t *testing.T) {
	b := newBench(t)
	_, s := b.tree("deb", 3)
	plan := b.plan(GCOptions{Rules: Retention{Keep: 1}})
	if got := refs(plan.Goes()); got != "deb@1 deb@2" {
		t.Fatalf("before: %q goes", got)
	}
	b.must(b.store.DestroySnapshot(t.Context(), s[2].ID))
	report, err := b.Collect(t.Context(), plan)
	b.must(err)
	if got := refs(report.Collected); got != "deb@1" {
		t.Errorf("a plan of before collected %q", got)
	}
	if got := refs(b.collect(GCOptions{Rules: Retention{Keep: 1}}).Collected); got != "" {
		t.Errorf("a plan of now collected %q", got)
	}
	if _, err := b.SnapshotByID(t.Context(), s[2].ID); err != nil {
		t.Errorf("what is lost was collected: %v", err)
	}
}
