package commands

import (
	"os"
	"path/filepath"
	"testing"
)

// TestKeptRecipe builds a tree, loses its recipe, and builds it from what was
// kept: as it is, anew, with other values, as another tree, and after a
// restore.
func TestKeptRecipe(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	recipe := writeRecipe(t, "small", "vars: {who: nobody}\n"+busyboxPhases+"  - name: site\n    files:\n      - {to: /etc/who, content: \"of ${who}\\n\"}\n")
	s.fails(3, []string{"small", "file", "tree"}, "build", "small")
	s.ok("build", recipe, "--set", "who=ada")
	kept := filepath.Join(s.dir, "recipes")
	if entries, err := os.ReadDir(kept); err != nil || len(entries) != 1 {
		t.Fatalf("kept are %v, %v", entries, err)
	}
	must(t, os.RemoveAll(filepath.Dir(recipe)))

	s.want([]string{"nothing to do: small@2"}, "build", "small")
	s.want([]string{"cached", "--rebuild"}, "build", "small", "--rebuild", "site", "--plan")
	s.want([]string{"built small@3"}, "build", "small", "--rebuild", "site")
	s.want([]string{"of ada"}, "exec", "small", "--", "/bin/busybox", "cat", "/etc/who")
	s.want([]string{"built other@1"}, "build", "small", "--tree", "other", "--set", "who=eve")
	s.want([]string{"of eve"}, "exec", "other", "--", "/bin/busybox", "cat", "/etc/who")
	s.want([]string{"nothing to do: other@1"}, "build", "other")
	s.want([]string{"nothing to do: small@3"}, "build", "small")

	// A file of that name wins, a folder does not.
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "small"), 0o755))
	cmd := s.command("build", "small")
	cmd.Dir = dir
	if r := s.runCmd(cmd); r.status != 0 {
		t.Errorf("beside a folder of that name: %s", r.stderr)
	}
	must(t, os.WriteFile(filepath.Join(dir, "other"), []byte("nonsense\n"), 0o644))
	cmd = s.command("build", "other")
	cmd.Dir = dir
	if r := s.runCmd(cmd); r.status != 2 {
		t.Errorf("beside a file of that name: status %d, %s", r.status, r.stderr)
	}

	// It goes into backups, by the tree's ID.
	s.ok("rename", "small", "little")
	backup := filepath.Join(t.TempDir(), "backup.tar.zst")
	s.ok("backup", backup)
	s.ok("unmount")
	for _, name := range []string{"sidus.db", "sidus.db-wal", "sidus.db-shm", "recipes"} {
		must(t, os.RemoveAll(filepath.Join(s.dir, name)))
	}
	s.ok("restore", backup, "--yes", "--force")
	s.want([]string{"nothing to do: little@3"}, "build", "little")

	// One that is too large is not kept, nor is what was kept before.
	recipe = writeRecipe(t, "little", busyboxPhases+"  - name: large\n    files: [{to: /large, from: large}]\n")
	must(t, os.WriteFile(filepath.Join(filepath.Dir(recipe), "large"), make([]byte, 17<<20), 0o644))
	if r := s.run("build", recipe, "--tree", "little", "--discard"); r.status != 0 {
		t.Errorf("status %d, %s", r.status, r.stderr)
	}
	s.fails(3, []string{"little", recipe}, "build", "little")

	s.ok("import", "deb", "--dir", smallTree(t))
	s.fails(3, []string{"deb", "file"}, "build", "deb")
	s.ok("delete", "other", "--yes")
	if entries, err := os.ReadDir(kept); err != nil || len(entries) != 0 {
		t.Errorf("in the end %v is kept, %v", entries, err)
	}
	s.sound()
}
