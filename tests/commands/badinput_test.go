package commands

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	_ "modernc.org/sqlite"
)

// badNames are names that nothing may have.
var badNames = []string{"a/b", "..", ".", "../../etc", "a b", " a", "a\nb", "a\x07b", "\x1b[2J", "-x", "--yes", "ümlaut", "\xff\xfe", "a@b", "a:b", "", strings.Repeat("x", 300)}

func TestBadNames(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	dir := smallTree(t)
	s.ok("import", "deb", "--dir", dir)
	before := s.ok("list", "--json")
	for i, bad := range badNames {
		for j, args := range [][]string{
			{"import", "--dir", dir, "--", bad},
			{"branch", "--", "deb@1", bad},
			{"rename", "--", "deb", bad},
			{"rename", "--", bad, "good"},
			{"promote", "deb@1", "--channel=" + bad},
			{"network", "add", "--subnet=10.9.0.0/24", "--", bad},
			{"delete", "--yes", "--", bad},
			{"channel", "delete", "--yes", "--", bad},
			{"channel", "history", "--", bad},
			{"build", writeRecipe(t, "x", busyboxPhases), "--tree=" + bad, "--plan"},
			{"node", "add", "--", bad},
			{"snapshot", "--", "deb", bad},
			{"node", "add", "52:54:00:00:00:01", "--name=" + bad},
			{"show", "--", "deb@" + bad},
		} {
			if j > 1 && (i+j)%4 != 0 {
				continue // each command meets each kind of name, not each name
			}
			if bad == "" && slices.Contains([]string{"snapshot", "show", "node add --name", "build"}, args[0]) || bad == "" && args[len(args)-1] == "--name=" {
				continue // no name is right, or another thing
			}
			r := s.run(args...)
			if r.status != 2 && r.status != 3 || r.status == 3 && !slices.Contains([]string{"show", "delete", "channel"}, args[0]) {
				t.Errorf("sidus %.80q: status %d: %s%s", args, r.status, r.stdout, r.stderr)
			}
			s.wantFailure(r, r.status, nil, args...)
		}
	}
	for _, name := range []string{"latest", "12", "abcdef12"} {
		s.fails(2, []string{"would be read as"}, "snapshot", "deb", name)
	}
	s.sound()
	if after := s.ok("list", "--json"); !sameTrees(t, before, after) {
		t.Errorf("something was made:\n%s", after)
	}
	var networks, nodes []any
	s.json(&networks, "network", "list")
	s.json(&nodes, "node", "list")
	if len(networks)+len(nodes) > 0 {
		t.Errorf("made: %v, %v", networks, nodes)
	}
}

func sameTrees(t *testing.T, a, b string) bool {
	var x, y listingJSON
	decode(t, nil, a, &x)
	decode(t, nil, b, &y)
	return fmt.Sprintf("%+v", stripped(x)) == fmt.Sprintf("%+v", stripped(y))
}

func stripped(l listingJSON) (list []string) {
	for _, tree := range l.Trees {
		list = append(list, fmt.Sprint(tree.ID, tree.Name, tree.Head, tree.Snapshots, tree.Channels))
	}
	return list
}

func TestBadValues(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	dir := smallTree(t)
	s.ok("import", "deb", "--dir", dir)
	file := filepath.Join(dir, "etc/marker")
	for _, c := range []struct {
		status int
		words  []string
		args   []string
	}{
		{2, []string{"--dir", "--tar"}, []string{"import", "x"}},
		{2, []string{"--dir", "--tar"}, []string{"import", "x", "--dir", dir, "--tar", file}},
		{2, []string{"not a directory", "--tar"}, []string{"import", "x", "--dir", file}},
		{2, []string{"directory", "--dir"}, []string{"import", "x", "--tar", dir}},
		{1, []string{"no such file"}, []string{"import", "x", "--dir", "/does/not/exist"}},
		{1, []string{"no such file"}, []string{"import", "x", "--tar", "/does/not/exist"}},
		{1, []string{"tar", file}, []string{"import", "x", "--tar", file}},
		{4, []string{"deb", "exists"}, []string{"import", "deb", "--dir", dir}},
		{4, []string{"deb", "exists"}, []string{"branch", "deb@1", "deb"}},
		{3, []string{"deb@7"}, []string{"show", "deb@7"}},
		{3, []string{"deb@99999999999999999999"}, []string{"show", "deb@99999999999999999999"}},
		{3, []string{"nobody", "sidus list"}, []string{"log", "nobody"}},
		{3, []string{"nobody"}, []string{"channel", "delete", "nobody", "--yes"}},
		{3, []string{"nobody"}, []string{"network", "delete", "nobody", "--yes"}},
		{3, []string{"nobody"}, []string{"node", "show", "nobody"}},
		{2, []string{"--subnet"}, []string{"network", "add", "n", "--subnet", "10.0.0.0"}},
		{2, []string{"subnet"}, []string{"network", "add", "n"}},
		{2, []string{"mode"}, []string{"network", "add", "n", "--subnet", "10.9.0.0/24", "--mode", "loud"}},
		{2, []string{"range"}, []string{"network", "add", "n", "--subnet", "10.9.0.0/24", "--range", "10.8.0.1-10.8.0.9"}},
		{2, []string{"range"}, []string{"network", "add", "n", "--subnet", "10.9.0.0/24", "--range", "10.9.0.9-10.9.0.1"}},
		{2, []string{"router"}, []string{"network", "add", "n", "--subnet", "10.9.0.0/24", "--router", "gate"}},
		{2, []string{"lease"}, []string{"network", "add", "n", "--subnet", "10.9.0.0/24", "--lease", "soon"}},
		{2, []string{"lease"}, []string{"network", "add", "n", "--subnet", "10.9.0.0/24", "--lease", "-5h"}},
		{2, []string{"52:54"}, []string{"node", "add", "52:54:00"}},
		{2, []string{"address"}, []string{"node", "add", "52:54:00:00:00:01", "--address", "here"}},
		{2, []string{"--sort"}, []string{"status", "--sort", "colour"}},
		{2, []string{"--only"}, []string{"serve", "--only", "gopher"}},
		{2, []string{"--dhcp"}, []string{"serve", "--dhcp", "loud"}},
		{2, []string{"--listen"}, []string{"serve", "--listen", "here"}},
		{2, []string{"nfs-port"}, []string{"serve", "--nfs-port", "70000"}},
		{2, []string{"NAME=VALUE"}, []string{"build", file, "--set", "novalue"}},
	} {
		s.fails(c.status, c.words, c.args...)
	}
	s.sound()
}

func TestBadRecipes(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for name, c := range map[string]struct {
		text string
		word string
	}{
		"empty":       {"", "empty"},
		"huge":        {"tree: x\n#" + strings.Repeat("x", 2<<20) + "\n", "1048576 bytes"},
		"self":        {"tree: x\nfrom: self.yaml\nphases:\n  - run: 'true'\n", "self.yaml"},
		"alias":       {"tree: x\nphases: &a\n  - *a\n", "alias.yaml"},
		"bomb":        {"a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\nphases: [*d,*d,*d,*d,*d,*d,*d]\n", "bomb.yaml"},
		"binary":      {"\x7fELF\x00\x01\x02\x00\xff\xfe", "binary.yaml"},
		"unbalanced":  {"phases: [[[[\n", "unbalanced.yaml:"},
		"unknown":     {"tree: x\nphases:\n  - pacakges: [vim]\n", `did you mean "packages"`},
		"type":        {"tree: x\nphases: yes\n", "type.yaml:2"},
		"twice":       {"tree: x\ntree: y\nphases:\n  - run: 'true'\n", "twice.yaml:2"},
		"documents":   {"tree: x\nphases:\n  - run: 'true'\n---\ntree: y\n", "documents.yaml"},
		"list":        {"- a\n- b\n", "list.yaml:1"},
		"escape":      {"tree: x\nphases:\n  - files:\n      - {to: /etc/x, from: ../../../etc/shadow}\n", "escape.yaml"},
		"nophases":    {"tree: x\n", "phases"},
		"nothingdone": {"tree: x\nphases: []\n", "phases"},
	} {
		path := filepath.Join(t.TempDir(), name+".yaml")
		must(t, os.WriteFile(path, []byte(c.text), 0o644))
		s.fails(2, []string{c.word}, "build", path, "--tree", "x")
	}
	r := s.run("build", "/does/not/exist.yaml")
	s.wantFailure(r, r.status, []string{"/does/not/exist.yaml"}, "build", "/does/not/exist.yaml")
	r = s.run("build", t.TempDir())
	s.wantFailure(r, r.status, nil, "build", "a directory")
	s.sound()
	var l listingJSON
	if s.json(&l, "list"); len(l.Trees) > 0 {
		t.Errorf("a recipe that was refused left the trees %+v", l.Trees)
	}
}

// TestMirrorDown: nothing is left of a tree whose first phase fails.
func TestMirrorDown(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		t.Skip("SKIPPED: there is no mmdebstrap")
	}
	s := newSite(t)
	recipe := writeRecipe(t, "x", "phases:\n  - base: {suite: bookworm, mirror: 'http://127.0.0.1:9/debian'}\n")
	r := s.run("build", recipe)
	if r.status != 1 || strings.Count(r.stderr, "sidus: ") != 1 {
		t.Errorf("a mirror that is down: %+v", r)
	}
	for _, word := range []string{"127.0.0.1:9", s.dir + "/log/"} {
		if !strings.Contains(r.stderr, word) {
			t.Errorf("the message does not say %q: %s", word, r.stderr)
		}
	}
	s.fails(3, nil, "show", "x")
	s.waitAlone()
	s.sound()
}

// TestFailingPhase: earlier snapshots stay, the head is as before, the end of
// the log is shown.
func TestFailingPhase(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	recipe := writeRecipe(t, "x", busyboxPhases+"  - name: broken\n    run: |\n      echo what went wrong\n      sleep 1000 &\n      exit 3\n")
	r := s.run("build", recipe)
	if r.status != 1 || !strings.Contains(r.stderr, "what went wrong") || !strings.Contains(r.stderr, s.dir+"/log/") || !strings.Contains(r.stderr, "broken") {
		t.Errorf("a failing phase: %+v", r)
	}
	s.waitAlone()
	s.want([]string{"x@1"}, "log", "x")
	s.sound()
}

// TestFullStore: an import and a phase that do not fit are stopped, with
// status 5, and are gone.
func TestFullStore(t *testing.T) {
	t.Parallel()
	s := bareSite(t, filepath.Join(t.TempDir(), "state"))
	s.ok("init", "--size", "256M")
	dir := t.TempDir()
	file, err := os.Create(filepath.Join(dir, "large"))
	must(t, err)
	_, err = io.CopyN(file, rand.Reader, 400<<20)
	must(t, err)
	must(t, file.Close())
	s.fails(5, []string{"space"}, "import", "large", "--dir", dir)
	s.waitAlone()
	s.afterFull("large")
	archive := exec.Command("tar", "-C", dir, "-cf", "-", ".")
	pipe, err := archive.StdoutPipe()
	must(t, err)
	must(t, archive.Start())
	cmd := s.command("import", "large", "--tar", "-")
	cmd.Stdin = pipe
	s.wantFailure(s.runCmd(cmd), 5, []string{"space"}, "import", "large", "--tar", "-")
	_ = pipe.Close()
	_ = archive.Wait() // by SIGPIPE
	s.afterFull("large")

	recipe := writeRecipe(t, "big", busyboxPhases+"  - name: fill\n    run: |\n      busybox dd if=/dev/urandom of=/large bs=1048576 count=2000\n")
	if r := s.run("build", recipe); r.status != 5 || !strings.Contains(r.stderr, "space") {
		t.Errorf("a phase that fills the store: %+v", r)
	}
	s.waitAlone()
	s.want([]string{"big@1"}, "log", "big")
	s.ok("delete", "big", "--yes")

	s.ok("import", "small", "--dir", smallTree(t))
	r := s.run("exec", "small", "--", "/bin/busybox", "dd", "if=/dev/urandom", "of=/large", "bs=1048576", "count=2000")
	if r.status != 5 || !strings.Contains(r.stderr, "space") {
		t.Errorf("a program that fills the store: %+v", r)
	}
	s.waitAlone()
	s.ok("snapshot", "small") // there is a reserve for it
	s.ok("delete", "small", "--yes")
	s.sound()
}

// afterFull checks that nothing is left of a tree, and that the space is back.
func (s *site) afterFull(tree string) {
	s.t.Helper()
	s.fails(3, nil, "show", tree)
	s.sound()
	if out, err := exec.Command("btrfs", "subvolume", "sync", s.root()).CombinedOutput(); err != nil {
		s.t.Errorf("btrfs subvolume sync: %v: %s", err, out)
	}
	if out, err := exec.Command("sync", "-f", s.root()).CombinedOutput(); err != nil {
		s.t.Errorf("sync: %v: %s", err, out)
	}
	var l listingJSON
	if s.json(&l, "list"); l.Usage.Used > 64<<20 {
		s.t.Errorf("%d bytes are still used", l.Usage.Used)
	}
}

// TestFullDiskBelow: the loop file does not take the last of the disk that it
// lies on, and a disk that others have filled is said.
func TestFullDiskBelow(t *testing.T) {
	t.Parallel()
	disk := t.TempDir()
	must(t, unix.Mount("tmpfs", disk, "tmpfs", 0, "size=1500m"))
	t.Cleanup(func() {
		if err := unix.Unmount(disk, 0); err != nil {
			t.Errorf("the disk below cannot be unmounted: %v", err)
			_ = unix.Unmount(disk, unix.MNT_DETACH)
		}
	})
	free := func() int64 {
		var st unix.Statfs_t
		must(t, unix.Statfs(disk, &st))
		return int64(st.Bavail) * st.Bsize
	}
	s := bareSite(t, filepath.Join(disk, "state"))
	s.ok("init", "--size", "20G")
	s.ok("import", "deb", "--dir", smallTree(t))
	r := s.run("exec", "deb", "--", "/bin/busybox", "dd", "if=/dev/urandom", "of=/large", "bs=1048576", "count=2000")
	if r.status != 5 || !strings.Contains(r.stderr, "space") {
		t.Errorf("a program that fills the disk: %+v", r)
	}
	s.waitAlone()
	if left := free(); left < 600<<20 {
		t.Errorf("the disk has %d MiB free of the reserve of 1024", left>>20)
	}
	s.fails(5, []string{"disk"}, "branch", "deb@1", "x")
	s.ok("exec", "deb", "--", "/bin/busybox", "rm", "/large") // the way out
	s.sound()

	// Now others fill it to the last byte.
	filler, err := os.Create(filepath.Join(disk, "filler"))
	must(t, err)
	t.Cleanup(func() { _ = os.Remove(filler.Name()) }) // or nothing can be unmounted
	must(t, unix.Fallocate(int(filler.Fd()), 0, 0, free()))
	must(t, filler.Close())
	for _, args := range [][]string{
		{"list"}, {"snapshot", "deb"}, {"branch", "deb@1", "x"}, {"import", "x", "--dir", smallTree(t)}, {"promote", "deb@1"}, {"rename", "deb", "x"},
		{"exec", "deb", "--", "/bin/true"}, {"build", writeRecipe(t, "x", busyboxPhases)}, {"node", "add", "52:54:00:00:00:01"},
	} {
		r := s.run(args...)
		if r.status == 0 {
			continue // it needs no space, or there was some left
		}
		if r.status != 5 || !strings.Contains(r.stderr, "space") && !strings.Contains(r.stderr, "full") {
			t.Errorf("sidus %v on a full disk: %+v", args, r)
		}
	}
	must(t, os.Remove(filler.Name()))
	// If a write did not reach the full disk, btrfs has become read-only:
	// mounting it again is the way out (docs/safety.md).
	s.ok("unmount")
	if r := s.run("check", "--repair"); r.status != 0 {
		t.Errorf("check --repair: %+v", r)
	}
	s.sound()
	s.ok("import", "y", "--dir", smallTree(t))
}

func TestNotRoot(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	dir := smallTree(t)
	must(t, os.Chmod(filepath.Dir(s.dir), 0o755))
	for _, args := range [][]string{
		{"init", "--state", filepath.Join(t.TempDir(), "other")}, {"list"}, {"import", "deb", "--dir", dir}, {"serve"}, {"check", "--repair"}, {"status"}, {"unmount"},
		{"exec", "deb", "--", "/bin/true"}, {"promote", "deb@1"}, {"network", "list"}, {"build", writeRecipe(t, "x", busyboxPhases), "--plan"},
	} {
		cmd := s.command(args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		cmd.Dir = "/"
		s.wantFailure(s.runCmd(cmd), 1, []string{"must run as root"}, args...)
	}
}

func TestBrokenStates(t *testing.T) {
	t.Parallel()
	commands := [][]string{{"list"}, {"snapshot", "deb"}, {"check"}, {"promote", "deb@1"}}
	for name, c := range map[string]struct {
		damage func(s *site)
		status int
		words  []string
	}{
		"no state folder": {func(s *site) { must(s.t, os.RemoveAll(s.dir)) }, 1, []string{"sidus init", "--state"}},
		"no catalog":      {func(s *site) { s.removeCatalog() }, 1, []string{"sidus restore --from-store"}},
		"empty catalog": {func(s *site) {
			s.removeCatalog()
			must(s.t, os.WriteFile(filepath.Join(s.dir, "sidus.db"), nil, 0o600))
		}, 1, []string{"sidus.db", "sidus init"}},
		"no database": {func(s *site) {
			s.removeCatalog()
			must(s.t, os.WriteFile(filepath.Join(s.dir, "sidus.db"), []byte(strings.Repeat("this is no database ", 1000)), 0o600))
		}, 1, []string{"sidus.db"}},
		"scrambled catalog": {func(s *site) {
			text, err := os.ReadFile(filepath.Join(s.dir, "sidus.db"))
			must(s.t, err)
			for i := 4096; i < len(text); i++ {
				text[i] ^= 0x5a
			}
			s.removeCatalog()
			must(s.t, os.WriteFile(filepath.Join(s.dir, "sidus.db"), text, 0o600))
		}, 1, []string{"sidus.db"}},
		"cut catalog": {func(s *site) { must(s.t, os.Truncate(filepath.Join(s.dir, "sidus.db"), 8192)) }, 1, []string{"sidus.db"}},
		"catalog from the future": {func(s *site) {
			db, err := sql.Open("sqlite", filepath.Join(s.dir, "sidus.db"))
			must(s.t, err)
			_, err = db.ExecContext(context.Background(), "PRAGMA user_version = 999")
			must(s.t, errors.Join(err, db.Close()))
		}, 1, []string{"newer", "999"}},
		"no loop file": {func(s *site) {
			s.ok("unmount")
			must(s.t, os.Rename(s.storeFile(), s.storeFile()+".away"))
		}, 3, []string{"store.img", "backup"}},
		"scrambled loop file": {func(s *site) {
			s.ok("unmount")
			file, err := os.OpenFile(s.storeFile(), os.O_WRONLY, 0)
			must(s.t, err)
			_, err = file.WriteAt(make([]byte, 1<<20), 0)
			must(s.t, errors.Join(err, file.Close()))
		}, 1, []string{"store.img"}},
		"cut loop file": {func(s *site) { s.ok("unmount"); must(s.t, os.Truncate(s.storeFile(), 200<<20)) }, 1, []string{"store.img", "backup"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := bareSite(t, filepath.Join(t.TempDir(), "state"))
			s.ok("init", "--size", "300M")
			s.ok("import", "deb", "--dir", smallTree(t))
			keep := filepath.Join(t.TempDir(), "keep")
			if out, err := exec.Command("cp", "-a", "--sparse=always", s.dir, keep).CombinedOutput(); err != nil {
				t.Fatalf("cp: %v: %s", err, out)
			}
			s.ok("unmount")
			c.damage(s)
			for _, args := range commands {
				s.fails(c.status, c.words, args...)
			}
			s.noLoops()
			// So that the end of the test is like that of others.
			must(t, os.RemoveAll(s.dir))
			must(t, os.Rename(keep, s.dir))
			s.sound()
		})
	}
}

func (s *site) removeCatalog() {
	files, _ := filepath.Glob(filepath.Join(s.dir, "sidus.db*"))
	for _, file := range files {
		must(s.t, os.Remove(file))
	}
}

// TestNoBtrfs: strace(1) makes the kernel answer mount(2) as one without btrfs
// does. That there is no such file system in /proc/filesystems is not shown to
// the program.
func TestNoBtrfs(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("SKIPPED: there is no strace")
	}
	s := newSite(t)
	s.ok("unmount")
	without := func(s *site, args ...string) result {
		cmd := exec.Command("strace", append([]string{"-f", "-qq", "-o", "/dev/null", "-e", "trace=mount", "-e", "inject=mount:error=ENODEV", program}, args...)...)
		cmd.Env = s.command().Env
		return s.runCmd(cmd)
	}
	words := []string{"kernel has no btrfs", "modprobe btrfs"}
	s.wantFailure(without(s, "list"), 1, words, "list")
	s.noLoops()
	fresh := bareSite(t, filepath.Join(t.TempDir(), "state"))
	s.wantFailure(without(fresh, "init", "--size", "300M"), 1, words, "init")
	if _, err := os.Stat(fresh.storeFile()); err == nil {
		t.Error("init has left a loop file")
	}
	fresh.ok("init", "--size", "300M")
	s.ok("list")
}
