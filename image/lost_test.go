package image

import (
	"errors"
	"strings"
	"testing"

	"sidus/image/store"
)

// TestLostHead: a head that somebody removed from the store, written to or not,
// is replaced by a rollback.
func TestLostHead(t *testing.T) {
	for _, touched := range []bool{true, false} {
		b := newBench(t)
		tree, s := b.tree("deb", 2)
		if touched {
			b.write("deb", "file", "in no snapshot")
		}
		tree, err := b.Tree(t.Context(), "deb")
		b.must(err)
		if tree.Touched != touched {
			t.Fatalf("touched is %v", tree.Touched)
		}
		b.must(b.store.DestroyVolume(t.Context(), tree.Head))
		var lost *LostError
		lock, err := b.LockHead(t.Context(), "deb", false)
		b.must(err)
		if _, err := b.MountHead(t.Context(), lock); !errors.As(err, &lost) || !lost.Head || !strings.Contains(err.Error(), "deb") {
			t.Errorf("a lost head is mounted: %v", err)
		}
		b.must(lock.Release())
		report, err := b.Rollback(t.Context(), "deb", s[0].ID, false)
		b.must(err)
		if report.Saved != nil {
			t.Errorf("of a lost head %s was saved", report.Saved.Ref())
		}
		again := b.snapshot("deb")
		if got := b.read(again.ID, "file"); got != "version 1" {
			t.Errorf("the new head holds %q", got)
		}
		b.sound()
	}
}

// TestLostSnapshot: whatever needs one says that it is lost, and leaves all as
// it was.
func TestLostSnapshot(t *testing.T) {
	b := newBench(t)
	tree, s := b.tree("deb", 2)
	b.must(b.store.DestroySnapshot(t.Context(), s[0].ID))
	_, branchErr := b.Branch(t.Context(), s[0].ID, "gpu")
	_, rollbackErr := b.Rollback(t.Context(), "deb", s[0].ID, false)
	_, mountErr := b.MountSnapshot(t.Context(), s[0].ID)
	for what, err := range map[string]error{"branch": branchErr, "rollback": rollbackErr, "mount": mountErr} {
		var lost *LostError
		if !errors.As(err, &lost) || lost.Head || !errors.Is(err, store.ErrNotFound) || !strings.Contains(err.Error(), "deb@1") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if now, err := b.Tree(t.Context(), "deb"); err != nil || now.Head != tree.Head {
		t.Errorf("a rollback that failed has changed the head: %v", err)
	}
	b.must(b.DeleteSnapshot(t.Context(), s[0].ID))
	b.sound()
}

// TestCheckNamesTheWayOut: for each thing that is lost, check says what brings it
// back; when that was done, nothing is found any more.
func TestCheckNamesTheWayOut(t *testing.T) {
	b := newBench(t)
	tree, s := b.tree("deb", 2)
	only, err := b.CreateTree(t.Context(), "only")
	b.must(err)
	b.must(b.store.DestroySnapshot(t.Context(), s[0].ID))
	for _, head := range []store.VolumeID{tree.Head, only.Head} {
		b.must(b.store.DestroyVolume(t.Context(), head))
	}
	findings, err := b.Check(t.Context())
	b.must(err)
	text := ""
	for _, f := range findings {
		if f.Kind != FindingLost || !f.Fatal {
			t.Errorf("%s: %s", f.Kind, f.Text)
		}
		text += f.Text + "\n"
	}
	for _, way := range []string{"import --stream", "sidus send " + string(s[0].ID), "sidus delete deb@1", "sidus rollback deb@base", "sidus delete only"} {
		if !strings.Contains(text, way) {
			t.Errorf("check does not name %q:\n%s", way, text)
		}
	}
	base, err := b.Resolve(t.Context(), "deb@base")
	b.must(err)
	_, err = b.Rollback(t.Context(), "deb", base.ID, false)
	b.must(err)
	b.must(b.DeleteTree(t.Context(), "only", false))
	b.must(b.DeleteSnapshot(t.Context(), s[0].ID))
	b.sound()
}
