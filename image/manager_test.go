package image

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"sidus/image/catalog"
	"sidus/image/store"
	"sidus/image/store/memstore"
)

// bench is a Manager on a real catalog and the fake store.
type bench struct {
	*Manager
	t     *testing.T
	store *memstore.Store
}

func newBench(t *testing.T) *bench {
	t.Helper()
	layout := Layout{Dir: t.TempDir()}
	if err := layout.Make(); err != nil {
		t.Fatal(err)
	}
	cat, err := catalog.Create(t.Context(), layout.Catalog())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cat.Close(); err != nil {
			t.Error(err)
		}
	})
	fake := memstore.New(t.TempDir())
	m := New(Options{Layout: layout, Catalog: cat, Store: fake, Actor: catalog.Actor{User: "ada", Command: "sidus test"}})
	return &bench{m, t, fake}
}

// another is a second Manager on the same site, as another process has it.
func (b *bench) another(user string) *Manager {
	b.t.Helper()
	cat, err := catalog.Open(b.t.Context(), b.layout.Catalog())
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = cat.Close() })
	return New(Options{Layout: b.layout, Catalog: cat, Store: b.store.Again(), Actor: catalog.Actor{User: user, Command: "sidus test"}})
}

func (b *bench) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// tree makes a tree with n complete snapshots.
func (b *bench) tree(name string, n int) (Tree, []Snapshot) {
	b.t.Helper()
	tree, err := b.CreateTree(b.t.Context(), name)
	b.must(err)
	var list []Snapshot
	for i := range n {
		b.write(name, "file", fmt.Sprint("version ", i+1))
		list = append(list, b.snapshot(name))
	}
	return tree, list
}

func (b *bench) snapshot(tree string) Snapshot {
	b.t.Helper()
	s, err := b.Snapshot(b.t.Context(), tree, nil, false, SnapshotOptions{Complete: true})
	b.must(err)
	return s
}

func (b *bench) write(tree, name, text string) {
	b.t.Helper()
	lock, err := b.LockHead(b.t.Context(), tree, false)
	b.must(err)
	mount, err := b.MountHead(b.t.Context(), lock)
	b.must(err)
	b.must(os.WriteFile(filepath.Join(mount.Path(), name), []byte(text), 0o644))
	b.must(mount.Unmount(b.t.Context()))
	b.must(lock.Release())
}

func (b *bench) read(id store.SnapshotID, name string) string {
	b.t.Helper()
	mount, err := b.MountSnapshot(b.t.Context(), id)
	b.must(err)
	text, err := os.ReadFile(filepath.Join(mount.Path(), name))
	b.must(err)
	b.must(mount.Unmount(b.t.Context()))
	return string(text)
}

// sound fails the test if catalog and store disagree.
func (b *bench) sound() {
	b.t.Helper()
	findings, err := b.Check(b.t.Context())
	b.must(err)
	for _, f := range findings {
		b.t.Errorf("check: %s: %s", f.Kind, f.Text)
	}
	if n := b.store.Mounts(); n != 0 {
		b.t.Errorf("%d mounts were not given back", n)
	}
}

func TestLifeOfATree(t *testing.T) {
	b := newBench(t)
	_, snapshots := b.tree("debian", 2)
	if got := b.read(snapshots[0].ID, "file"); got != "version 1" {
		t.Errorf("the first snapshot holds %q after the second was taken", got)
	}
	branch, err := b.Branch(t.Context(), snapshots[0].ID, "gpu")
	b.must(err)
	if branch.Base != snapshots[0].ID {
		t.Errorf("the branch starts from %s, want %s", branch.Base, snapshots[0].ID)
	}
	b.write("gpu", "file", "driver")
	gpu := b.snapshot("gpu")
	if gpu.Ref() != "gpu@1" || gpu.Parent != snapshots[0].ID {
		t.Errorf("the first snapshot of the branch is %s with parent %s", gpu.Ref(), gpu.Parent)
	}
	if got := b.read(snapshots[1].ID, "file"); got != "version 2" {
		t.Errorf("the branch changed its origin: %q", got)
	}
	b.must(b.Rename(t.Context(), "gpu", "cuda"))
	if s, err := b.Resolve(t.Context(), "cuda@latest"); err != nil || s.ID != gpu.ID {
		t.Errorf("after the rename: %v, %v", s, err)
	}
	b.must(b.DeleteTree(t.Context(), "cuda", false))
	if _, err := b.Tree(t.Context(), "cuda"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the deleted tree: %v", err)
	}
	// The name is free again.
	if _, err := b.CreateTree(t.Context(), "cuda"); err != nil {
		t.Error(err)
	}
	b.sound()
}

func TestRollbackKeepsAndUndoes(t *testing.T) {
	b := newBench(t)
	_, s := b.tree("debian", 3)
	b.must(discard3(b.Promote(t.Context(), s[2].ID, "default", "")))
	b.write("debian", "file", "not in any snapshot")
	report, err := b.Rollback(t.Context(), "debian", s[0].ID, false)
	b.must(err)
	if report.Saved == nil || b.read(report.Saved.ID, "file") != "not in any snapshot" {
		t.Fatalf("what the head held was not saved: %+v", report)
	}
	if report.Saved.Complete {
		t.Error("what was saved can be promoted")
	}
	if len(report.Channels) != 1 || !strings.Contains(report.String(), "channel default still points to debian@3") {
		t.Errorf("the report does not say what nodes boot:\n%s", report)
	}
	later := b.snapshot("debian")
	if b.read(later.ID, "file") != "version 1" {
		t.Error("the head was not rolled back")
	}
	if list, _ := b.Snapshots(t.Context(), Tree{ID: later.TreeID}); len(list) != 5 {
		t.Errorf("%d snapshots are left, want 5", len(list))
	}
	_, err = b.Rollback(t.Context(), "debian", report.Saved.ID, false)
	b.must(err)
	if again := b.snapshot("debian"); b.read(again.ID, "file") != "not in any snapshot" {
		t.Error("the rollback cannot be undone")
	}
	b.sound()
}

// TestRollbackTakesNoTime: a rollback looks at no file, and loses none.
func TestRollbackTakesNoTime(t *testing.T) {
	b := newBench(t)
	_, s := b.tree("debian", 2)
	b.store.FailOn("MountVolume", errors.New("the head was looked at"))
	report, err := b.Rollback(t.Context(), "debian", s[0].ID, false)
	b.must(err)
	branch, err := b.Branch(t.Context(), s[1].ID, "branch")
	b.must(err)
	if _, err := b.Rollback(t.Context(), branch.Name, s[0].ID, false); err != nil {
		t.Errorf("a branch that nobody has written to: %v", err)
	}
	b.store.FailOn("MountVolume", nil)
	if report.Saved != nil {
		t.Errorf("nobody has written to the head, and it was saved as %s", report.Saved.Ref())
	}

	lock, err := b.LockHead(t.Context(), "debian", false)
	b.must(err)
	mount, err := b.MountHeadToRead(t.Context(), lock)
	b.must(err)
	b.must(errors.Join(mount.Unmount(t.Context()), lock.Release()))
	if tree, _ := b.Tree(t.Context(), "debian"); tree.Touched {
		t.Error("a reader counts as one who writes")
	}

	lock, err = b.LockHead(t.Context(), "branch", false)
	b.must(err)
	mount, err = b.MountHead(t.Context(), lock)
	b.must(err)
	b.must(os.WriteFile(filepath.Join(mount.Path(), "more"), []byte("written"), 0o644))
	b.must(errors.Join(mount.Unmount(t.Context()), lock.Release()))
	b.store.FailOn("MountVolume", errors.New("the head was looked at"))
	report, err = b.Rollback(t.Context(), "branch", s[0].ID, false)
	b.must(err)
	b.store.FailOn("MountVolume", nil)
	if report.Saved == nil || b.read(report.Saved.ID, "more") != "written" {
		t.Fatalf("what was written was not saved: %+v", report)
	}
	b.sound()
}

func discard3[A, B any](_ A, _ B, err error) error { return err }

func TestResolve(t *testing.T) {
	b := newBench(t)
	_, s := b.tree("debian", 2)
	named, err := b.Snapshot(t.Context(), "debian", nil, false, SnapshotOptions{Name: "good", Complete: true})
	b.must(err)
	step, err := b.Snapshot(t.Context(), "debian", nil, false, SnapshotOptions{Phase: "packages"})
	b.must(err)
	b.must(b.DeleteSnapshot(t.Context(), s[0].ID))
	_, err = b.CreateTree(t.Context(), "empty")
	b.must(err)
	_, err = b.Branch(t.Context(), s[1].ID, "branch")
	b.must(err)
	for _, c := range []struct {
		reference string
		want      store.SnapshotID
		err       error
	}{
		{"debian@2", s[1].ID, nil},
		{"debian@good", named.ID, nil},
		{"debian@latest", named.ID, nil}, // a step does not count
		{"debian@4", step.ID, nil},
		{"debian@base", step.ID, nil},
		{"branch@base", s[1].ID, nil}, // of another tree
		{"branch@latest", "", store.ErrNotFound},
		{"empty@base", "", store.ErrNotFound},
		{string(s[1].ID), s[1].ID, nil},
		{string(s[1].ID[:12]), s[1].ID, nil},
		{"debian@" + string(s[1].ID[:12]), s[1].ID, nil},
		{"debian@1", "", store.ErrNotFound}, // deleted
		{string(s[0].ID), "", store.ErrNotFound},
		{"debian@99", "", store.ErrNotFound},
		{"debian@bad", "", store.ErrNotFound},
		{"empty@latest", "", store.ErrNotFound},
		{"other@1", "", store.ErrNotFound},
		{"debian", "", store.ErrBadName},
		{"debian@", "", store.ErrBadName},
		{"debian@a/b", "", store.ErrBadName},
		{"@1", "", store.ErrBadName},
		{"", "", store.ErrBadName},
		{"%", "", store.ErrBadName},
	} {
		got, err := b.Resolve(t.Context(), c.reference)
		if !errors.Is(err, c.err) || err == nil && got.ID != c.want {
			t.Errorf("Resolve(%q) = %s, %v; want %s, %v", c.reference, got.ID, err, c.want, c.err)
		}
	}
}

func TestNames(t *testing.T) {
	b := newBench(t)
	for _, name := range []string{"", "..", ".hidden", "a/b", "a b", "-a", "a\n", "a\x00", "ä", strings.Repeat("x", 300), "a@b", "*"} {
		if _, err := b.CreateTree(t.Context(), name); !errors.Is(err, store.ErrBadName) {
			t.Errorf("CreateTree(%q): %v", name, err)
		}
	}
	_, s := b.tree("debian-12.5_x+y", 1)
	for _, name := range []string{"latest", "base", "14", "0123456789abcdef", "a/b", "-x"} {
		if _, err := b.Snapshot(t.Context(), "debian-12.5_x+y", nil, false, SnapshotOptions{Name: name}); !errors.Is(err, store.ErrBadName) {
			t.Errorf("Snapshot(%q): %v", name, err)
		}
	}
	if err := discard3(b.Promote(t.Context(), s[0].ID, "a b", "")); !errors.Is(err, store.ErrBadName) {
		t.Errorf("Promote: %v", err)
	}
	if _, err := b.CreateTree(t.Context(), "debian-12.5_x+y"); !errors.Is(err, store.ErrExists) {
		t.Errorf("the same name twice: %v", err)
	}
	b.sound()
}

func TestPromoteAndChannelRollback(t *testing.T) {
	b := newBench(t)
	_, s := b.tree("debian", 4)
	for i := range 3 {
		channel, before, err := b.Promote(t.Context(), s[i].ID, "default", "")
		b.must(err)
		if channel.Snapshot.ID != s[i].ID || (i > 0 && before.ID != s[i-1].ID) {
			t.Errorf("promotion %d: channel %s, before %s", i, channel.Snapshot.Ref(), before.Ref())
		}
	}
	expect := func(to store.SnapshotID, want Snapshot) {
		t.Helper()
		channel, _, err := b.RollbackChannel(t.Context(), "default", to)
		b.must(err)
		if channel.Snapshot.ID != want.ID {
			t.Errorf("rolled back to %s, want %s", channel.Snapshot.Ref(), want.Ref())
		}
	}
	expect("", s[1]) // an undo,
	expect("", s[0]) // and one more
	if err := discard3(b.RollbackChannel(t.Context(), "default", "")); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("there is nothing below: %v", err)
	}
	expect(s[3].ID, s[3]) // to one that was never promoted
	expect("", s[0])
	if err := discard3(b.RollbackChannel(t.Context(), "nothing", "")); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("no such channel: %v", err)
	}
	history, err := b.ChannelHistory(t.Context(), "default")
	b.must(err)
	if len(history) != 7 || !history[0].Current || history[0].Actor != "ada" {
		t.Errorf("the history: %+v", history)
	}
	step, err := b.Snapshot(t.Context(), "debian", nil, false, SnapshotOptions{Phase: "base"})
	b.must(err)
	if err := discard3(b.Promote(t.Context(), step.ID, "default", "")); !errors.Is(err, ErrIncomplete) {
		t.Errorf("a step of a build was promoted: %v", err)
	}
	if err := discard3(b.RollbackChannel(t.Context(), "default", step.ID)); !errors.Is(err, ErrIncomplete) {
		t.Errorf("rolled back to a step of a build: %v", err)
	}
}

// Two processes promote at the same time: one after the other, both in the
// history, none lost.
func TestConcurrentPromotions(t *testing.T) {
	b := newBench(t)
	_, s := b.tree("debian", 2)
	const each = 25
	var wait sync.WaitGroup
	for i, m := range []*Manager{b.Manager, b.another("bob")} {
		wait.Go(func() {
			for range each {
				if err := discard3(m.Promote(context.Background(), s[i].ID, "default", "")); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wait.Wait()
	history, err := b.ChannelHistory(t.Context(), "default")
	b.must(err)
	count := map[string]int{}
	for i, move := range history {
		count[move.Actor]++
		if i+1 < len(history) && move.Previous != history[i+1].Snapshot {
			t.Fatalf("move %d came from %s, but the one before it went to %s", i, move.Previous, history[i+1].Snapshot)
		}
	}
	if count["ada"] != each || count["bob"] != each {
		t.Errorf("the history has %v, want %d each", count, each)
	}
}

func TestDeleteRefusesWhatIsNeeded(t *testing.T) {
	b := newBench(t)
	tree, s := b.tree("debian", 8)
	b.must(discard3(b.Promote(t.Context(), s[0].ID, "default", "")))
	b.must(discard3(b.Promote(t.Context(), s[1].ID, "default", "")))
	_, err := b.Branch(t.Context(), s[2].ID, "gpu")
	b.must(err)
	b.must(b.catalog.Update(t.Context(), func(tx *sql.Tx) error {
		now := time.Now().UnixMilli()
		for _, statement := range []string{
			`INSERT INTO node (mac, name, registered, pin, created) VALUES ('52:54:00:00:00:01', 'n1', 1, ?, ` + fmt.Sprint(now) + `)`,
		} {
			if _, err := tx.Exec(statement, s[3].ID); err != nil {
				return err
			}
		}
		_, err := tx.Exec(`INSERT INTO session (id, mac, snapshot, opened, step, step_at, heard, heard_clock)
			VALUES ('00000000000000000000000000000001', '52:54:00:00:00:02', ?, ?, 'up', ?, ?, 0)`, s[4].ID, now, now, now)
		if err != nil {
			return err
		}
		_, err = catalog.Begin(tx, catalog.Intent{Action: "branch", Uses: []store.SnapshotID{s[5].ID}, Actor: catalog.Actor{User: "bob", Command: "sidus branch"}})
		return err
	}))
	for i, want := range []string{
		"channel default keeps debian@1 for a rollback",
		"channel default points to debian@2",
		"the branch gpu starts from debian@3",
		"node n1 is pinned to debian@4",
		"node 52:54:00:00:00:02 runs debian@5",
		"bob uses debian@6 right now",
		"", // nobody needs it
		"the head of debian starts from debian@8",
	} {
		err := b.DeleteSnapshot(t.Context(), s[i].ID)
		if want == "" {
			b.must(err)
			continue
		}
		if !errors.Is(err, store.ErrInUse) || !strings.Contains(err.Error(), want) {
			t.Errorf("delete %s: %v; want %q", s[i].Ref(), err, want)
		}
	}
	err = b.DeleteTree(t.Context(), "debian", false)
	var needed *NeededError
	if !errors.As(err, &needed) || len(needed.Needs) != 6 {
		t.Errorf("delete the tree: %v", err)
	}
	if list, _ := b.Snapshots(t.Context(), tree); len(list) != 7 {
		t.Errorf("%d snapshots are left, want 7", len(list))
	}
	if err := b.DeleteChannel(t.Context(), "default"); err != nil {
		t.Errorf("nobody follows the channel: %v", err)
	}
	b.must(b.DeleteSnapshot(t.Context(), s[1].ID))
}

func TestOneWriterPerHead(t *testing.T) {
	b := newBench(t)
	b.tree("debian", 1)
	lock, err := b.LockHead(t.Context(), "debian", false)
	b.must(err)
	bob := b.another("bob")
	_, err = bob.Snapshot(t.Context(), "debian", nil, false, SnapshotOptions{})
	var locked *LockedError
	if !errors.As(err, &locked) || locked.Holder.User != "ada" || locked.Holder.PID != os.Getpid() {
		t.Fatalf("the second writer: %v", err)
	}
	for _, want := range []string{"ada", "sidus test", fmt.Sprint(os.Getpid()), "--wait"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	done := make(chan error)
	go func() {
		_, err := bob.Snapshot(context.Background(), "debian", nil, true, SnapshotOptions{})
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatalf("the waiting writer did not wait: %v", err)
	case <-time.After(3 * lockRetry):
	}
	b.must(lock.Release())
	b.must(<-done)
	waiting, cancel := context.WithTimeout(t.Context(), 2*lockRetry)
	defer cancel()
	lock, err = b.LockHead(t.Context(), "debian", false)
	b.must(err)
	if _, err := bob.LockHead(waiting, "debian", true); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting does not end with its context: %v", err)
	}
	b.must(lock.Release())
}

// Whatever step of the store fails: nothing is visible, nothing is left over,
// and the operation can be done again.
func TestFailureAtEveryStep(t *testing.T) {
	broken := errors.New("broken on purpose")
	for name, operate := range map[string]func(b *bench, s []Snapshot) error{
		"create": func(b *bench, _ []Snapshot) error { _, err := b.CreateTree(b.t.Context(), "new"); return err },
		"branch": func(b *bench, s []Snapshot) error { _, err := b.Branch(b.t.Context(), s[0].ID, "new"); return err },
		"rollback": func(b *bench, s []Snapshot) error {
			_, err := b.Rollback(b.t.Context(), "debian", s[0].ID, false)
			return err
		},
		"snapshot": func(b *bench, _ []Snapshot) error {
			_, err := b.Snapshot(b.t.Context(), "debian", nil, false, SnapshotOptions{})
			return err
		},
		"import": func(b *bench, _ []Snapshot) error {
			_, err := b.Import(b.t.Context(), "new", ImportOptions{Source: "a test", Fill: func(_ context.Context, root string, _ func(int64) error) error {
				return os.WriteFile(filepath.Join(root, "file"), nil, 0o600)
			}})
			return err
		},
		"import that breaks": func(b *bench, _ []Snapshot) error {
			_, err := b.Import(b.t.Context(), "new", ImportOptions{Source: "a test", Fill: func(context.Context, string, func(int64) error) error { return broken }})
			if errors.Is(err, broken) {
				err = nil // as it should
			}
			return err
		},
		"workspace": func(b *bench, s []Snapshot) (err error) {
			lock, err := b.LockHead(b.t.Context(), "debian", false)
			b.must(err)
			defer func() { err = errors.Join(err, lock.Release()) }()
			w, err := b.NewWorkspace(b.t.Context(), lock, s[0].ID)
			if err != nil {
				return err
			}
			if _, err = w.Snapshot(b.t.Context(), SnapshotOptions{Phase: "base"}); err == nil {
				err = w.Adopt(b.t.Context())
			}
			return errors.Join(err, w.Discard(b.t.Context()))
		},
	} {
		t.Run(name, func(t *testing.T) {
			for n := 1; ; n++ {
				b := newBench(t)
				_, s := b.tree("debian", 2)
				b.store.FailAt(n, broken)
				err := operate(b, s)
				b.store.Inject(nil)
				if err == nil {
					if n == 1 && name != "import that breaks" {
						t.Fatal("no step failed")
					}
					return
				}
				if !errors.Is(err, broken) {
					t.Fatalf("step %d: %v", n, err)
				}
				findings, err := b.Check(t.Context())
				b.must(err)
				if len(findings) > 0 {
					// Destroying failed as well: repair must mend it once the
					// process is gone, which is what its intent is for.
					for _, f := range findings {
						if f.Kind != FindingRunning {
							t.Errorf("step %d left: %s: %s", n, f.Kind, f.Text)
						}
					}
				}
				if trees, _ := b.Trees(t.Context()); len(trees) != 1 {
					t.Errorf("step %d: %d trees are visible", n, len(trees))
				}
				if got := b.read(s[1].ID, "file"); got != "version 2" {
					t.Errorf("step %d: a snapshot holds %q", n, got)
				}
				if n > 100 {
					t.Fatal("the operation never succeeds")
				}
			}
		})
	}
}

// What a dead process had announced is removed, what a live one announces is
// not touched, and what nobody announced is only told.
func TestCheckAndRepair(t *testing.T) {
	b := newBench(t)
	_, s := b.tree("debian", 1)
	made, alive, stray := store.NewVolumeID(), store.NewVolumeID(), store.NewVolumeID()
	for _, v := range []store.VolumeID{made, alive, stray} {
		b.must(b.store.CreateVolume(t.Context(), v))
	}
	b.must(b.catalog.Update(t.Context(), func(tx *sql.Tx) error {
		dead, err := catalog.Begin(tx, catalog.Intent{Action: "branch", Volumes: []store.VolumeID{made, store.NewVolumeID()}, Uses: []store.SnapshotID{s[0].ID}})
		if err != nil {
			return err
		}
		if _, err := tx.Exec(`UPDATE intent SET started = 1 WHERE id = ?`, dead); err != nil {
			return err
		}
		_, err = catalog.Begin(tx, catalog.Intent{Action: "import", Volumes: []store.VolumeID{alive}})
		return err
	}))
	kinds := func() map[string]int {
		findings, err := b.Check(t.Context())
		b.must(err)
		count := map[string]int{}
		for _, f := range findings {
			count[f.Kind]++
		}
		return count
	}
	if got := kinds(); got[FindingLeftover] != 1 || got[FindingRunning] != 1 || got[FindingUnknown] != 1 || len(got) != 3 {
		t.Errorf("check found %v", got)
	}
	findings, err := b.Check(t.Context())
	b.must(err)
	_, err = b.Repair(t.Context(), findings)
	b.must(err)
	if got := kinds(); got[FindingLeftover] != 0 || got[FindingRunning] != 1 || got[FindingUnknown] != 1 {
		t.Errorf("after the repair check found %v", got)
	}
	for v, want := range map[store.VolumeID]error{made: store.ErrNotFound, alive: nil, stray: nil} {
		mount, err := b.store.MountVolume(t.Context(), v)
		if !errors.Is(err, want) {
			t.Errorf("volume after the repair: %v, want %v", err, want)
		}
		if err == nil {
			b.must(mount.Unmount(t.Context()))
		}
	}
	// A snapshot that the store lost is told, loudly.
	b.must(b.store.DestroySnapshot(t.Context(), s[0].ID))
	if got := kinds(); got[FindingLost] != 1 {
		t.Errorf("the lost snapshot: %v", got)
	}
}

func TestHistoryTellsWhoAndWhy(t *testing.T) {
	b := newBench(t)
	b.message = "because"
	tree, _ := b.tree("debian", 1)
	events, err := b.catalog.Events(t.Context(), tree.ID, 0)
	b.must(err)
	if len(events) != 2 || events[0].Text != "took debian@1" || events[0].Actor != "ada" || events[0].Message != "because" || events[0].Command != "sidus test" {
		t.Errorf("the history: %+v", events)
	}
}

func TestCatalogIsKeptInTheStore(t *testing.T) {
	b := newBench(t)
	b.tree("debian", 1)
	kept, err := b.store.Kept(t.Context(), "sidus.db")
	b.must(err)
	defer kept.Close()
	path := filepath.Join(t.TempDir(), "copy.db")
	file, err := os.Create(path)
	b.must(err)
	if _, err := file.ReadFrom(kept); err != nil {
		t.Fatal(err)
	}
	b.must(file.Close())
	cat, err := catalog.Open(t.Context(), path)
	b.must(err)
	defer cat.Close()
	copied := New(Options{Layout: b.layout, Catalog: cat, Store: b.store})
	if s, err := copied.Resolve(t.Context(), "debian@latest"); err != nil || s.Number != 1 {
		t.Errorf("the kept copy: %v, %v", s, err)
	}
}
