package transfer

import (
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"sidus/image"
	"sidus/image/catalog"
	"sidus/image/store"
)

// discard replicates, and drops at the other end what only that has.
func discard(from, to *testSite) (Report, error) {
	sender := from.sender()
	sender.Discard = func(error) error { return nil }
	connect, ended := dial(to.receiver(), 0, nil)
	report, err := sender.Replicate(from.t.Context(), connect)
	_ = ended()
	return report, err
}

// alive is the view without what is on record as deleted.
func (s *testSite) alive() string {
	lines := slices.DeleteFunc(slices.Collect(strings.Lines(s.view())), func(line string) bool {
		return strings.HasPrefix(line, "snapshot ") && !strings.Contains(line, " holds ")
	})
	return strings.Join(lines, "")
}

// TestFailBack exchanges the roles again and again. Each time the old primary
// has gone on, comes back as a replica and drops what only it has.
func TestFailBack(t *testing.T) {
	a, b, _ := pair(t, true)
	ctx := t.Context()
	_, err := replicateTo(a, b)
	must(t, err)
	old, now := a, b
	for round := range 3 {
		_, _, err := now.manager.Takeover(ctx)
		must(t, err)
		for n := range 2 + round {
			now.snapshot("deb", fmt.Sprintf("round %d, %d", round, n), kib)
		}
		old.snapshot("deb", "lost", kib)
		old.snapshot("gpu", "lost", kib)
		old.tree(fmt.Sprintf("only-%d", round))
		old.snapshot(fmt.Sprintf("only-%d", round), "lost", kib)
		_, _, err = old.manager.Demote(ctx)
		must(t, err)
		_, err = discard(now, old)
		must(t, err)
		for n := range 2 {
			now.promote(now.snapshot("deb", fmt.Sprintf("later %d", n), kib).ID, "default")
			if _, err := replicateTo(now, old); err != nil {
				t.Fatalf("round %d, replication %d after the return: %v", round, n, err)
			}
			if want, got := now.alive(), old.alive(); got != want {
				t.Fatalf("round %d, replication %d: the replica holds\n%s\ninstead of\n%s", round, n, got, want)
			}
		}
		old.sound()
		now.sound()
		old, now = now, old
	}
}

// TestEpochIsKept: who was told of a later primary never claims its epoch.
func TestEpochIsKept(t *testing.T) {
	a, b, _ := pair(t, true)
	ctx := t.Context()
	_, err := replicateTo(a, b)
	must(t, err)
	epoch := func(s *testSite) int64 {
		site, err := s.manager.Site(ctx)
		must(t, err)
		return site.Epoch
	}
	_, _, err = b.manager.Takeover(ctx)
	must(t, err)
	if _, err := replicateTo(a, b); err == nil {
		t.Fatal("the old primary replicates")
	}
	if got := epoch(a); got != 2 {
		t.Errorf("the old primary knows epoch %d, and was told of 2", got)
	}
	// Told once more, while it is superseded already.
	must(t, b.manager.Supersede(ctx, "c", 4))
	must(t, a.manager.Supersede(ctx, "c", 4))
	must(t, a.manager.Supersede(ctx, "b", 2))
	if site, err := a.manager.Site(ctx); err != nil || site.Epoch != 4 || site.Host != "c" || site.Role != image.Superseded {
		t.Errorf("%+v, %v", site, err)
	}
	_, _, err = a.manager.Demote(ctx)
	must(t, err)
	_, _, err = a.manager.Takeover(ctx)
	must(t, err)
	if got := epoch(a); got != 5 {
		t.Errorf("the old primary takes over with epoch %d", got)
	}
	if epoch(a) == epoch(b) {
		t.Error("two primaries have one epoch")
	}
}

// session notes that a machine booted a snapshot, and when it was last heard.
func (s *testSite) session(mac string, id store.SnapshotID, opened, heard time.Time) {
	s.t.Helper()
	must(s.t, s.catalog.Update(s.t.Context(), func(tx *sql.Tx) error {
		_, err := tx.Exec(`INSERT INTO session (id, mac, snapshot, opened, step, step_at, heard, heard_clock) VALUES (?, ?, ?, ?, 'up', ?4, ?, 0)`,
			string(store.NewSnapshotID()), mac, id, catalog.Millis(opened), catalog.Millis(heard))
		return err
	}))
}

// TestDiscardDespiteSessions: on a replica nobody can end a session. One of a
// node that is gone, or has booted from the primary since, keeps nothing.
func TestDiscardDespiteSessions(t *testing.T) {
	a, b, _ := pair(t, true)
	ctx := t.Context()
	_, err := replicateTo(a, b)
	must(t, err)
	_, _, err = b.manager.Takeover(ctx)
	must(t, err)
	lost := a.snapshot("deb", "lost", kib)
	now := time.Now()
	a.session("52:54:00:00:00:01", lost.ID, now.Add(-9*time.Hour), now.Add(-4*time.Hour))
	a.session("52:54:00:00:00:02", lost.ID, now.Add(-9*time.Hour), now.Add(-time.Hour))
	b.session("52:54:00:00:00:02", lost.Parent, now.Add(-time.Minute), now)
	a.session("52:54:00:00:00:03", lost.ID, now.Add(-2*time.Hour), now.Add(-time.Hour))
	b.session("52:54:00:00:00:03", lost.Parent, now.Add(-3*time.Hour), now.Add(-2*time.Hour))
	_, _, err = a.manager.Demote(ctx)
	must(t, err)
	_, err = discard(b, a)
	if !errors.Is(err, store.ErrInUse) || !strings.Contains(err.Error(), "52:54:00:00:00:03") {
		t.Errorf("a node runs what is dropped: %v", err)
	}
	for _, gone := range []string{"52:54:00:00:00:01", "52:54:00:00:00:02"} {
		if err != nil && strings.Contains(err.Error(), gone) {
			t.Errorf("%s keeps what is dropped: %v", gone, err)
		}
	}
	b.session("52:54:00:00:00:03", lost.Parent, now, now)
	_, err = discard(b, a)
	must(t, err)
	if want, got := b.alive(), a.alive(); got != want {
		t.Errorf("the replica holds\n%s\ninstead of\n%s", got, want)
	}
}

// send sends a snapshot to another server.
func (s *testSite) send(snapshot image.Snapshot, to *testSite) {
	s.t.Helper()
	connect, ended := dial(to.receiver(), 0, nil)
	_, err := s.sender().Send(s.t.Context(), connect, snapshot, nil, "")
	must(s.t, errors.Join(err, ended()))
}

// TestTreeComesBack: a tree that a replica has dropped, and that the primary has
// got from elsewhere since, is the same one there, whatever its name.
func TestTreeComesBack(t *testing.T) {
	a, b, _ := pair(t, true)
	c := newSite(t, "third", true)
	ctx := t.Context()
	_, err := replicateTo(a, b)
	must(t, err)
	_, _, err = b.manager.Takeover(ctx)
	must(t, err)
	name := strings.Repeat("x", 64)
	a.tree(name)
	only := a.snapshot(name, "of a", kib)
	a.send(only, c)
	_, _, err = a.manager.Demote(ctx)
	must(t, err)
	_, err = discard(b, a)
	must(t, err)
	c.send(only, b)
	_, err = replicateTo(b, a)
	must(t, err)
	if got, want := a.alive(), b.alive(); got != want {
		t.Errorf("the replica holds\n%s\ninstead of\n%s", got, want)
	}
	a.sound()
	// Names are exchanged, and a snapshot comes into a tree whose name is that of
	// another one there.
	must(t, b.manager.Rename(ctx, name, "y"))
	b.tree(name)
	b.snapshot(name, "another", kib)
	_, err = replicateTo(b, a)
	must(t, err)
	if got, want := a.alive(), b.alive(); got != want {
		t.Errorf("after a renaming the replica holds\n%s\ninstead of\n%s", got, want)
	}
	a.sound()
}
