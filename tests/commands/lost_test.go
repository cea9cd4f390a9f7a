package commands

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// lose removes something from the store as somebody would by hand. kind is its
// folder there.
func (s *site) lose(kind, id string) {
	s.t.Helper()
	if out, err := exec.Command("btrfs", "subvolume", "delete", filepath.Join(s.root(), kind, id)).CombinedOutput(); err != nil {
		s.t.Fatalf("%v: %s", err, out)
	}
}

// TestLostCache builds where snapshots of phases were removed from the store by
// hand: those phases run again. A head that is lost, too, is made by the build.
func TestLostCache(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	recipe := writeRecipe(t, "small", busyboxPhases+"  - name: site\n    run: echo built > /etc/marker\n")
	s.ok("build", recipe)
	var shown struct {
		Snapshot snapshotJSON `json:"snapshot"`
	}
	s.json(&shown, "show", "small@2")
	s.lose("snapshots", shown.Snapshot.ID)
	s.ok("exec", "small", "--", "/bin/busybox", "true")
	var listing listingJSON
	s.json(&listing, "list")
	if r := s.run("build", recipe); r.status != 4 || !strings.Contains(r.stderr, "lost") || !strings.Contains(r.stderr, "--discard") {
		t.Errorf("a head that nothing can be compared with: %+v", r)
	}
	s.lose("volumes", listing.Trees[0].Head)
	s.want([]string{"run     site", "gone"}, "build", recipe, "--plan")
	s.want([]string{"built small@3"}, "build", recipe)
	s.want([]string{"built"}, "exec", "small", "--", "/bin/busybox", "cat", "/etc/marker")
	if r := s.run("check"); r.status != 6 || !strings.Contains(r.stdout, "sidus delete small@2") || !strings.Contains(r.stdout, "import --stream") {
		t.Errorf("check does not name the ways out: %+v", r)
	}
	s.ok("delete", "small@2", "--yes")
	s.sound()
}

// TestLostComesBack loses a snapshot and a head, and does what check says.
func TestLostComesBack(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.ok("import", "deb", "--dir", smallTree(t))
	s.ok("exec", "deb", "--", "/bin/sh", "-c", "echo second > /etc/marker")
	s.ok("snapshot", "deb", "named")
	s.ok("exec", "deb", "--", "/bin/sh", "-c", "echo third > /etc/marker")
	s.ok("snapshot", "deb")
	s.ok("promote", "deb@2")
	dir := t.TempDir()
	whole, part := filepath.Join(dir, "2"), filepath.Join(dir, "2to3")
	s.ok("export", "deb@2", "-o", whole)
	s.ok("export", "deb@3", "--base", "deb@2", "-o", part)
	before := s.state()
	var shown struct {
		Snapshot snapshotJSON `json:"snapshot"`
	}
	s.json(&shown, "show", "deb@2")
	var listing listingJSON
	s.json(&listing, "list")

	s.lose("snapshots", shown.Snapshot.ID)
	s.fails(3, []string{"deb@2", "lost"}, "branch", "deb@2", "other")
	s.fails(3, []string{"differs", "lost"}, "import", "--stream", part)
	s.ok("import", "--stream", whole)
	s.sound()
	if now := s.state(); now != before {
		t.Errorf("what came back is\n%s\ninstead of\n%s", now, before)
	}
	s.ok("branch", "deb@2", "other")
	s.want([]string{"second"}, "exec", "other", "--", "/bin/busybox", "cat", "/etc/marker")

	s.lose("volumes", listing.Trees[0].Head)
	s.fails(3, []string{"head", "deb", "lost"}, "exec", "deb", "--", "/bin/true")
	if r := s.run("check"); r.status != 6 || !strings.Contains(r.stdout, "sidus rollback deb@base") {
		t.Errorf("check does not name the way out: %+v", r)
	}
	s.ok("rollback", "deb@base")
	s.want([]string{"third"}, "exec", "deb", "--", "/bin/busybox", "cat", "/etc/marker")
	s.sound()
}

// TestReadyInSpiteOf: a primary whose indexes are gone or damaged makes them anew,
// and one that has lost the snapshot of one channel serves the others.
func TestReadyInSpiteOf(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.ok("import", "deb", "--dir", smallTree(t))
	s.setMarker("deb", "second")
	s.ok("snapshot", "deb")
	s.ok("promote", "deb@1", "--channel", "old")
	s.ok("promote", "deb@2")
	s.want([]string{"ready: primary, 2 channels"}, "ready")
	indexes, err := filepath.Glob(filepath.Join(s.dir, "cache/index/*.index"))
	must(t, err)
	if len(indexes) != 2 {
		t.Fatalf("there are the indexes %v", indexes)
	}
	whole, err := os.ReadFile(indexes[1])
	must(t, err)
	must(t, os.Remove(indexes[0]))
	must(t, os.WriteFile(indexes[1], whole[:len(whole)/2], 0o600))
	s.want([]string{"ready: primary, 2 channels"}, "ready")
	if again, err := os.ReadFile(indexes[1]); err != nil || !bytes.Equal(again, whole) {
		t.Errorf("an index that was cut is not as it was: %v", err)
	}
	for _, folder := range []string{"cache", "log", "locks"} {
		must(t, os.RemoveAll(filepath.Join(s.dir, folder)))
	}
	s.want([]string{"ready: primary, 2 channels"}, "ready")
	s.ok("snapshot", "deb")
	s.sound()

	var shown struct {
		Snapshot snapshotJSON `json:"snapshot"`
	}
	lose := func(ref string) {
		s.json(&shown, "show", ref)
		s.lose("snapshots", shown.Snapshot.ID)
	}
	lose("deb@1")
	s.want([]string{"ready: primary, 2 channels", "cannot serve channel old: "}, "ready")
	lose("deb@2")
	if r := s.run("ready"); r.status != 1 || !strings.Contains(r.stdout, "not ready: channel default: ") || !strings.Contains(r.stdout, "not ready: channel old: ") {
		t.Errorf("nothing is there: %+v", r)
	}
}
