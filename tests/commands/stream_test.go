package commands

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestStreams carries snapshots from one server to another in files.
func TestStreams(t *testing.T) {
	t.Parallel()
	from, to := newSite(t), newSite(t)
	from.ok("import", "deb", "--dir", smallTree(t))
	from.setMarker("deb", "second")
	from.ok("snapshot", "deb", "-m", "the second")
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }

	from.want([]string{"deb@1"}, "export", "deb@1", "-o", file("1"))
	from.want([]string{"deb@2"}, "export", "deb@2", "--base", "deb@1", "-o", file("1-to-2"))
	from.want([]string{"deb@2"}, "export", "deb@2", "--portable", "-o", file("2.tar.zst"))
	from.fails(4, []string{file("1"), "--replace"}, "export", "deb@1", "-o", file("1"))
	from.fails(3, []string{"deb@9"}, "export", "deb@9", "-o", file("9"))
	if _, err := os.Stat(file("9")); err == nil {
		t.Error("an export that failed leaves a file")
	}

	// What differs needs its base; what is there is not taken twice.
	to.fails(3, []string{"has to be here first"}, "import", "--stream", file("1-to-2"))
	to.want([]string{"imported deb@1"}, "import", "--stream", file("1"))
	to.want([]string{"imported deb@2"}, "import", "--stream", file("1-to-2"))
	to.fails(4, []string{"deb@2"}, "import", "--stream", file("1-to-2"))
	var here, there struct {
		Snapshot snapshotJSON `json:"snapshot"`
	}
	from.json(&here, "show", "deb@2")
	to.json(&there, "show", "deb@2")
	if here.Snapshot.ID != there.Snapshot.ID || there.Snapshot.Message != "the second" {
		t.Errorf("sent %+v, received %+v", here.Snapshot, there.Snapshot)
	}
	to.ok("branch", "deb@2", "copy")
	to.want([]string{"second"}, "exec", "copy", "--", "/bin/busybox", "cat", "/etc/marker")

	// The portable kind is an archive that ordinary tools open.
	out, err := exec.Command("sh", "-c", "zstd -dc '"+file("2.tar.zst")+"' | tar -xO ./etc/marker").CombinedOutput()
	if err != nil || string(out) != "second\n" {
		t.Errorf("zstd and tar: %v: %q", err, out)
	}

	// What is cut off, altered or something else is refused, and leaves nothing.
	third := newSite(t)
	before := third.state()
	for _, kind := range []string{"2.tar.zst", "1"} { // portable and native
		whole, err := os.ReadFile(file(kind))
		must(t, err)
		altered := bytes.Clone(whole)
		altered[len(altered)/2] ^= 1
		for name, text := range map[string][]byte{
			"cut": whole[:len(whole)/2], "cut at the end": whole[:len(whole)-1], "altered": altered, "empty": nil, "text": []byte("#!/bin/sh\n"),
		} {
			must(t, os.WriteFile(file("bad"), text, 0o600))
			third.fails(1, []string{"import ", "stream"}, "import", "--stream", file("bad"))
			if now := third.state(); now != before {
				t.Errorf("%s, %s: the site has changed:\n%s", kind, name, now)
			}
			third.sound()
		}
	}
	third.fails(1, []string{"--portable"}, "import", "--stream", file("1"), "--portable-only")
	third.want([]string{"imported mine@2"}, "import", "mine", "--stream", file("2.tar.zst"), "--portable-only")
	third.sound()
	to.sound()
}

// TestDiff shows what differs between snapshots, also of strangers.
func TestDiff(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.ok("import", "deb", "--dir", smallTree(t))
	s.ok("exec", "deb", "--", "/bin/sh", "-c", "echo second > /etc/marker; echo new > /etc/new; /bin/busybox chmod 0711 /etc; /bin/busybox rm /bin/sh")
	s.ok("snapshot", "deb")
	s.ok("import", "other", "--dir", smallTree(t))
	var d struct {
		Files []struct {
			Path   string `json:"path"`
			Change string `json:"change"`
		} `json:"files"`
	}
	s.json(&d, "diff", "deb@1", "deb@2")
	var paths []string
	for _, f := range d.Files {
		paths = append(paths, f.Path)
	}
	got := " " + strings.Join(paths, " ") + " "
	for _, path := range []string{"/etc", "/etc/marker", "/etc/new", "/bin/sh"} {
		if !strings.Contains(got, " "+path+" ") {
			t.Errorf("the difference lacks %s: %s", path, got)
		}
	}
	if strings.Contains(got, "busybox") {
		t.Errorf("the difference has what does not differ: %s", got)
	}
	d.Files = nil
	s.json(&d, "diff", "deb@1", "other@1")
	if len(d.Files) != 0 {
		t.Errorf("equal trees that share no history differ: %+v", d.Files)
	}
	s.fails(3, []string{"deb@7"}, "diff", "deb@1", "deb@7")
}

// TestGC deletes what no rule keeps, and nothing that is needed.
func TestGC(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.ok("import", "deb", "--dir", smallTree(t))
	for range 4 {
		s.setMarker("deb", "more")
		s.ok("snapshot", "deb")
	}
	s.ok("promote", "deb@2")
	s.ok("branch", "deb@3", "gpu")
	before := s.state()
	s.want([]string{"deb@1", "deb@4"}, "gc", "--keep", "1", "--dry-run")
	if now := s.state(); now != before {
		t.Errorf("a dry run changed\n%s\nto\n%s", before, now)
	}
	if r := s.run("gc", "--keep", "1"); r.status != 2 || !strings.Contains(r.stderr, "--yes") || !strings.Contains(r.stderr, "deb@1") {
		t.Errorf("without --yes and a terminal: status %d: %s%s", r.status, r.stdout, r.stderr)
	}
	if now := s.state(); now != before {
		t.Errorf("without --yes it changed\n%s\nto\n%s", before, now)
	}
	s.ok("gc", "--keep", "1", "--yes")
	for ref, gone := range map[string]bool{"deb@1": true, "deb@2": false, "deb@3": false, "deb@4": true, "deb@5": false} {
		if r := s.run("show", ref); (r.status != 0) != gone {
			t.Errorf("%s: status %d: %s%s", ref, r.status, r.stdout, r.stderr)
		}
	}
	s.want([]string{"more"}, "exec", "gpu", "--", "/bin/busybox", "cat", "/etc/marker")
	s.sound()
}

// TestBackup loses the state folder, but for the store, and gets it back.
func TestBackup(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.ok("import", "deb", "--dir", smallTree(t))
	s.ok("promote", "deb@1")
	s.ok("node", "add", "52:54:00:00:00:01", "--name", "n1")
	file := filepath.Join(t.TempDir(), "backup.tar.zst")
	s.ok("backup", file)
	s.fails(4, []string{file, "--replace"}, "backup", file)
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the backup's mode: %v, %v", info.Mode(), err)
	}
	key, err := os.ReadFile(filepath.Join(s.dir, "secrets/site.key"))
	must(t, err)
	before := s.state()
	s.ok("unmount")
	for _, name := range []string{"sidus.db", "sidus.db-wal", "sidus.db-shm", "secrets"} {
		must(t, os.RemoveAll(filepath.Join(s.dir, name)))
	}
	s.ok("restore", file, "--yes")
	if now := s.state(); now != before {
		t.Errorf("restored is\n%s\ninstead of\n%s", now, before)
	}
	if again, err := os.ReadFile(filepath.Join(s.dir, "secrets/site.key")); err != nil || !bytes.Equal(again, key) {
		t.Errorf("the site's key is another one: %v", err)
	}
	s.sound()
}

// TestOldBackup: what was made after a backup is not known to it, and is only
// destroyed by who says so.
func TestOldBackup(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.ok("import", "deb", "--dir", smallTree(t))
	file := filepath.Join(t.TempDir(), "backup.tar.zst")
	s.ok("backup", file)
	s.ok("snapshot", "deb")
	s.ok("branch", "deb@2", "gpu")
	var newer struct {
		Snapshots []struct{ ID string } `json:"snapshots"`
	}
	s.json(&newer, "show", "deb")
	s.run("restore", file, "--force", "--yes")
	said := s.run("check", "--repair")
	if id := newer.Snapshots[1].ID; said.status != 6 || !strings.Contains(said.stdout, "unknown: the store holds the snapshot "+id) || !strings.Contains(said.stdout, "--discard-unknown") {
		t.Errorf("%+v", said)
	}
	s.fails(2, []string{"--repair"}, "check", "--discard-unknown")
	s.fails(2, []string{"destroy 2 volumes and snapshots", "--yes"}, "check", "--repair", "--discard-unknown")
	s.want([]string{"destroyed the volume", "destroyed the snapshot " + newer.Snapshots[1].ID, "agree"}, "check", "--repair", "--discard-unknown", "--yes")
	s.want([]string{"first"}, "exec", "deb", "--", "/bin/busybox", "cat", "/etc/marker")
	s.sound()
}
